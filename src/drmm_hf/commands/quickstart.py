"""`drmm quickstart`: look at a trained detector, then fine-tune it, measure it, and draw what it sees."""

import argparse
import time
from importlib import resources
from pathlib import Path
from typing import Any

from ..cli import positive_int
from ..data import decode_image, generate_scenes, load_detection_dataset
from ..demo import show
from ..evaluation import (
    calibration_report,
    interval_report,
    predict_dataset,
    predict_images,
    save_reliability_diagram,
)
from ..files import make_output_folder, require
from ..loading import label_names, load_detector
from ..training import TrainConfig, TrainResult, train
from ..visualization import contact_sheet, draw_comparison
from . import analyze

_SCENES: dict[str, Any] = {
    "image_size": (288, 384),
    "min_object_size": 36.0,
    "max_object_size": 140.0,
    "mean_objects": 6.0,
}
KNOWN: dict[str, Any] = {
    **_SCENES,
    "classes": ("disc", "rectangle", "triangle", "cross"),
    "num_train": 1,
    "num_val": 60,
    "seed": 1,
}
"""Scenes of what the checkpoint of the package knows; none of them was shown to it (they had another seed)."""
TASK: dict[str, Any] = {**_SCENES, "classes": ("ring", "rhombus", "star"), "num_train": 300, "num_val": 60}
"""Scenes of what it has never seen: the small task to fine-tune on."""
_OUTPUT = "runs/quickstart"
_HEADLINE = ("AP", "AP50", "AR100", "ECE", "D-ECE", "train_seconds")


def checkpoint() -> str:
    """The folder of the small detector that comes with the package; README.md in it says what it has learned."""
    return str(resources.files("drmm_hf") / "checkpoints" / "scenes")


def parser() -> argparse.ArgumentParser:
    """The options of `drmm quickstart`."""
    parser = argparse.ArgumentParser(
        description="A first look: a small trained D-RMM detector on generated scenes, then two minutes of "
        "fine-tuning on a task that is new to it, with a report. With --data, the fine-tuning alone, on your data."
    )
    parser.add_argument(
        "--data", help="COCO, YOLO or Pascal VOC folder as the usual tools write it; default: generated scenes"
    )
    parser.add_argument("--model", help="checkpoint to start from, whose classes are replaced; default: the package's")
    parser.add_argument("--output", default=_OUTPUT, help="folder for everything that is made")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a training that is in OUTPUT, as is always done in the default",
    )
    parser.add_argument(
        "--train-images", type=positive_int, default=1600, help="length of the training, in images seen"
    )
    parser.add_argument("--batch-size", type=positive_int, default=2, help="images per step")
    parser.add_argument("--vertical-flip", type=float, default=0.0, help="probability; 0.5 for pictures without an up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-pictures", type=positive_int, default=8, help="validation images to draw")
    parser.add_argument("--threshold", type=float, default=0.3, help="draw boxes with a score of at least this")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """The first look, unless there are data; then train, measure, draw."""
    require("matplotlib", "plots")
    output, data = make_output_folder(arguments.output), arguments.data
    if not data:
        look(output / "first-look", number=arguments.num_pictures, threshold=arguments.threshold)
        data = str(generate_scenes(output / "scenes", **TASK))
    config = TrainConfig(
        model=arguments.model or checkpoint(),
        data=data,
        output=str(output),
        overwrite=arguments.overwrite or arguments.output == _OUTPUT,
        train_images=arguments.train_images,
        batch_size=arguments.batch_size,
        vertical_flip=arguments.vertical_flip,
        seed=arguments.seed,
    )
    start = arguments.model or "the small detector of the package"
    print(f"\nFine-tuning {start} on {data} for {config.train_images} images ...", flush=True)
    result = train(config)
    options = {"number": arguments.num_pictures, "threshold": arguments.threshold}
    overview = draw_validation_images(result, output / "pictures", **options)
    words = ["--model", str(result.model_dir), "--data", data, "--output", str(output / "report")]
    analyze.run(analyze.parser().parse_args(words))
    numbers = "   ".join(f"{name} {result.metrics[name]}" for name in _HEADLINE if name in result.metrics)
    print(f"""
{numbers}
report    {output / "report" / analyze.REPORT}    (how far its scores can be trusted; open it in a browser)
pictures  {overview}    (ground truth left, detections right)
model     {result.model_dir}    pipeline("object-detection", model="{result.model_dir}")
numbers   {output / "metrics.json"}, detections in {output / "results.json"}

Your own pictures:      drmm predict --model {result.model_dir} --analysis {output / "report" / analyze.NUMBERS} IMAGES
Your own data, longer:  drmm train --recipe finetune-small --model {result.model_dir} --data FOLDER""")


def look(folder: Path, *, number: int, threshold: float) -> None:
    """Draw what the package's checkpoint sees in generated scenes, and how far its scores are right."""
    begun = time.perf_counter()
    model, processor = load_detector(checkpoint())
    dataset = load_detection_dataset(generate_scenes(folder, **KNOWN), "val", id2label=label_names(model))
    results = predict_dataset(model, processor, dataset, with_scales=True, progress=False)
    truth, level = dataset.annotations_path, 0.8
    report, sure = (calibration_report(truth, results, score_threshold=least) for least in (0.0, threshold))
    held = interval_report(truth, results, [level]).coverage[0]
    diagram, overview = folder / "reliability.png", folder / "detections.png"
    save_reliability_diagram(diagram, {f"{len(dataset)} scenes": report})
    pictures = []
    for row in dataset.dataset.select(range(min(number, len(dataset)))):
        image = decode_image(row)
        [found] = predict_images(model, processor, [image])
        pictures.append(show(image, found, model.config, threshold=threshold, level=level).picture)
    contact_sheet(pictures, columns=2, cell_width=700).save(overview)
    errors = f"ECE {report.ece:.3f}, {sure.ece:.3f} of those above {threshold:g}"
    print(f"""A small detector of {", ".join(label_names(model).values())}, on scenes that it has not seen:
{overview}    boxes with their scores and a band around each edge; bands of {level:.0%} hold {held:.0%} of the edges
{diagram}    how many of the detections with a score are right: {errors}
({time.perf_counter() - begun:.0f} s)""")


def draw_validation_images(result: TrainResult, folder: Path, *, number: int, threshold: float) -> Path:
    """Draw ground truth beside predictions, one file an image; the path of the overview of all of them."""
    dataset: Any = result.eval_dataset
    folder.mkdir(parents=True, exist_ok=True)
    sheets = []
    for row in dataset.dataset.select(range(min(number, len(dataset)))):
        image = decode_image(row)
        [found] = predict_images(result.model, result.processor, [image], threshold=threshold)
        sheets.append(draw_comparison(image, row["objects"], found, dataset.id2label, threshold=threshold))
        sheets[-1].save(folder / f"{row['image_id']}.png")
    overview = folder / "overview.png"
    contact_sheet(sheets, columns=2, cell_width=min(800, max(sheet.width for sheet in sheets))).save(overview)
    return overview
