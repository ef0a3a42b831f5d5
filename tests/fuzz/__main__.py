"""Random damage: `PYTHONPATH=tests python -m fuzz --cases 2000 --seed 0`, which `make fuzz` runs.

A case is read, or refused with a ValueError or an OSError; anything else is a fault. What is found becomes a line of
the tables in `test_damaged_files.py`.
"""

import argparse
import io
import json
import logging
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import PIL.Image
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers.utils.logging import disable_progress_bar

from drmm_hf import DrmmConfig, DrmmImageProcessor
from drmm_hf.data import decode_image, load_detection_dataset, open_image
from drmm_hf.evaluation import calibration_report, evaluate_coco
from drmm_hf.loading import load_checkpoint
from drmm_hf.training import read_recipe
from fuzz.inputs import ANNOTATION, COCO, RECIPE, RESULTS, write, write_coco, write_model
from fuzz.mutate import mutate_bytes, mutate_value
from model_fixtures import small_config

SUFFIXES = ("png", "jpg", "tif", "webp", "gif", "bmp", "ppm")


def text(random: Random, value: Any) -> bytes:
    content = json.dumps(mutate_value(random, value)).encode()
    return mutate_bytes(random, content) if random.random() < 0.1 else content


def coco(random: Random, folder: Path) -> None:
    for row in load_detection_dataset(write_coco(folder, text(random, COCO))).dataset:
        decode_image(row)


def results(random: Random, folder: Path) -> None:
    first = random.random() < 0.5
    truth = write(folder / "truth.json", text(random, COCO) if first else COCO)
    found = write(folder / "found.json", RESULTS if first else text(random, RESULTS))
    evaluate_coco(truth, found, per_class=True)
    calibration_report(truth, found)


def annotations(random: Random, folder: Path) -> None:
    processor = DrmmImageProcessor(size={"height": 16, "width": 16})
    batch = processor(PIL.Image.new("RGB", (16, 12)), mutate_value(random, ANNOTATION), return_tensors="pt")
    for label in batch.get("labels", ()):
        assert ((label["boxes"] >= 0) & (label["boxes"] <= 1)).all()


def recipes(random: Random, folder: Path) -> None:
    content = yaml.safe_dump(mutate_value(random, RECIPE)).encode(errors="replace")
    read_recipe(str(write(folder / "my.yaml", mutate_bytes(random, content) if random.random() < 0.4 else content)))


def configurations(random: Random, folder: Path) -> None:
    own = {k: v for k, v in small_config().to_dict().items() if not k.startswith(("backbone", "dtype", "transformers"))}
    fields = mutate_value(random, own)
    if isinstance(fields, dict) and all(isinstance(name, str) for name in fields):
        DrmmConfig.from_dict(DrmmConfig(**fields).to_dict())


def images(random: Random, folder: Path) -> None:
    suffix, buffer = random.choice(SUFFIXES), io.BytesIO()
    image = PIL.Image.effect_noise(random.choice(((16, 12), (1, 1), (300, 1))), 90)
    mode = random.choice(("L", "RGB"))
    image.convert(mode).save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    assert open_image(write(folder / f"picture.{suffix}", mutate_bytes(random, buffer.getvalue()))).mode == "RGB"


def checkpoints(random: Random, folder: Path) -> None:
    path = random.choice(sorted(write_model(folder / "model").iterdir()))
    is_json = path.suffix == ".json"
    write(path, text(random, json.loads(path.read_text())) if is_json else mutate_bytes(random, path.read_bytes()))
    load_checkpoint(str(folder / "model"))


TARGETS: dict[Callable[[Random, Path], None], float] = {
    coco: 0.25, results: 0.15, annotations: 0.2, recipes: 0.15, configurations: 0.1, images: 0.12, checkpoints: 0.03
}  # fmt: skip


def main() -> int:
    """Run the cases and print the faults, each with what repeats it; 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    disable_progress_bar()
    faults = 0
    for target, share in TARGETS.items():
        refused = 0
        number = max(1, round(arguments.cases * share))
        for case in range(number):
            with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
                try:
                    target(Random(f"{arguments.seed} {target.__name__} {case}"), Path(folder))
                except (ValueError, OSError, StrictDataclassError) as error:
                    refused += 1
                    if isinstance(error, StrictDataclassError) or 10 < len(str(error)) < 3000:
                        continue
                    reason = f"message of {len(str(error))} characters: {str(error)[:200]}"
                except Exception:
                    reason = traceback.format_exc(limit=-3)
                else:
                    continue
                faults += 1
                print(f"--- {target.__name__}, case {case} of seed {arguments.seed}: {reason}")
        print(f"{target.__name__:15} {number:6} cases, {refused:6} refused")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
