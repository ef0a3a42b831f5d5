"""`scripts/predict.py`: detect objects in image files, draw them and write them down.

While it runs, OUTPUT/predictions.partial holds the detections so far; memory does not grow with the number of images.
"""

import argparse
import hashlib
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageOps
from tqdm.auto import tqdm

from ..cli import add_model_arguments, count, fraction
from ..data import open_image
from ..evaluation.coco import detections_to_coco
from ..evaluation.predict import Detection, predict_images
from ..evaluation.prefetch import prefetch
from ..evaluation.spool import ResultsSpool
from ..files import make_output_folder, write_json_lines, writing
from ..loading import label_names, load_detector, weights_written
from ..visualization import draw_detections

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"})


def find_images(inputs: Sequence[str]) -> list[Path]:
    """Image files named by `inputs`, each once, in order; a folder stands for the images directly in it.

    Raises:
        FileNotFoundError: an input does not exist, or a folder holds no images.
    """
    found: dict[Path, None] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
            if not inside:
                raise FileNotFoundError(f"{path}: no images in this folder ({', '.join(sorted(SUFFIXES))})")
            found.update(dict.fromkeys(inside))
        elif path.is_file():
            found[path] = None
        else:
            raise FileNotFoundError(f"{path}: no such image file or folder")
    return list(found)


def open_upright(path: Path) -> Image.Image:
    """RGB image as viewers show it, turned by its EXIF orientation; `open_image` keeps the stored frame."""
    image = open_image(path)
    with Image.open(path) as stored:
        image.getexif()[ExifTags.Base.Orientation] = stored.getexif().get(ExifTags.Base.Orientation, 1)
    return ImageOps.exif_transpose(image)


def name_outputs(files: Sequence[Path], output: Path) -> dict[Path, Path]:
    """`<stem>.png` in `output` for each file; `<stem>-2.png` and so on where that name is taken.

    A name is taken by another drawing, whatever the case of its letters, or by an input file itself.
    """
    taken = {str(file.resolve()).lower() for file in files}
    names = {}
    for file in files:
        target, number = output / f"{file.stem}.png", 1
        while str(target.resolve()).lower() in taken:
            number += 1
            target = output / f"{file.stem}-{number}.png"
        taken.add(str(target.resolve()).lower())
        names[file] = target
    return names


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Detect objects in images. Writes a drawing of each and predictions.json (COCO results).",
    )
    parser.add_argument("--model", required=True, help="folder written by save_pretrained, or a Hub id")
    add_model_arguments(parser)
    parser.add_argument("input", nargs="+", help="images, or folders of images")
    parser.add_argument(
        "--output", default="drawn", help="folder for the drawings and predictions.json (default: %(default)s)"
    )
    parser.add_argument("--threshold", type=fraction, default=0.3, help="smallest score (default: 0.3)")
    parser.add_argument(
        "--workers",
        type=count,
        default=1,
        help="threads that open images, each a batch ahead of the model (default: 1)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the interrupted run of the same command in OUTPUT"
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    files = find_images(arguments.input)
    output = Path(arguments.output)
    if any(Path(text).is_dir() and Path(text).resolve() == output.resolve() for text in arguments.input):
        raise ValueError(f"--output {output}: is also an input folder; drawings would mix with the images")
    model, processor = load_detector(arguments.model, arguments.device)
    make_output_folder(arguments.output)
    targets = name_outputs(files, output)
    id2label = label_names(model)
    spool = ResultsSpool.begin(output / "predictions.partial", _settings(arguments, files), arguments.resume)
    for batch in _batches(files, arguments, spool.finished()):
        detections = predict_images(
            model,
            processor,
            [image for _, _, image in batch.images],
            threshold=arguments.threshold,
            top_k=arguments.top_k,
        )
        results = []
        for (image_id, file, image), detection in zip(batch.images, detections, strict=True):
            with writing(targets[file]):
                draw_detections(image, detection, id2label, threshold=arguments.threshold).save(targets[file])
            results += describe(detection, image_id, file, targets[file], id2label)
        spool.append(batch.index, results, skipped=batch.skipped)
    write_json_lines(output / "predictions.json", spool.result_lines())
    entries = spool.entries()
    skipped = [message for entry in entries for message in entry["skipped"]]
    found = sum(entry["count"] for entry in entries)
    spool.remove()
    print(f"{found} detections in {len(files) - len(skipped)} of {len(files)} images: {output / 'predictions.json'}")
    for message in skipped:
        print(f"skipped: {message}", file=sys.stderr)
    return 1 if skipped else 0


def describe(
    detection: Detection, image_id: int, file: Path, drawing: Path, id2label: Mapping[int, str]
) -> list[dict[str, Any]]:
    """COCO results of one image, each with its file, its drawing and the name of its class.

    `category_id` is the model's label. Boxes are [x, y, width, height] in pixels of the upright image.
    """
    extra = {"file_name": str(file), "drawing": drawing.name}
    return [
        {**result, "category_name": id2label[result["category_id"]], **extra}
        for result in detections_to_coco([detection], [image_id], range(len(id2label)))
    ]


@dataclass(frozen=True)
class _Batch:
    """Opened images: (image id from 1, file, upright RGB image), and a message for each that cannot be read."""

    index: int
    images: list[tuple[int, Path, Image.Image]]
    skipped: list[str]


def _batches(files: Sequence[Path], arguments: argparse.Namespace, finished: Collection[int]) -> Iterator[_Batch]:
    """The batches that are left; images are opened in threads, those of one batch for each worker ahead."""
    size = arguments.batch_size
    starts = [start for start in range(0, len(files), size) if start // size not in finished]

    def load(start: int) -> _Batch:
        batch = _Batch(start // size, [], [])
        for image_id, file in enumerate(files[start : start + size], start=start + 1):
            try:
                batch.images.append((image_id, file, open_upright(file)))
            except (OSError, ValueError) as error:
                batch.skipped.append(str(error))
        return batch

    with tqdm(total=len(files), initial=min(len(files), len(finished) * size), desc="detecting", unit="image") as bar:
        for batch in prefetch(load, starts, arguments.workers):
            yield batch
            bar.update(len(batch.images) + len(batch.skipped))


def _settings(arguments: argparse.Namespace, files: Sequence[Path]) -> dict[str, Any]:
    """What drawings and detections depend on."""
    listed = hashlib.sha256("\n".join(map(str, files)).encode("utf-8", "surrogateescape")).hexdigest()
    named = ("model", "threshold", "top_k", "batch_size")
    return {
        "input": arguments.input,
        "files": listed,
        "weights_written": weights_written(arguments.model),
        **{name: getattr(arguments, name) for name in named},
    }
