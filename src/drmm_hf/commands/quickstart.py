"""Quick start: train a small detector, measure it, load it through the stock pipeline, and draw what it sees."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import pipeline

from ..cli import positive_int
from ..data import decode_image, generate_scenes, load_detection_dataset
from ..files import make_output_folder
from ..loading import label_names
from ..training.config import TrainConfig
from ..training.loop import TrainResult, train
from ..visualization import contact_sheet, draw_comparison

# Full scenes of objects that are not too small: five minutes are short for the data set's default difficulty.
_SCENES: dict[str, Any] = {
    "num_train": 1000,
    "num_val": 150,
    "image_size": (288, 384),
    "min_object_size": 32.0,
    "max_object_size": 120.0,
    "mean_objects": 20.0,
}
_HEADLINE = ("AP", "AP50", "AP75", "AR100", "ECE", "train_seconds")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train a small D-RMM detector and look at it: on generated scenes, or on your data; from random "
        "weights, or from a checkpoint."
    )
    parser.add_argument(
        "--data", help="COCO-format folder (annotations/instances_{train,val}.json, images/); default: generated scenes"
    )
    parser.add_argument("--model", help="checkpoint to start from, whose classes are replaced; default: random weights")
    parser.add_argument("--output", default="runs/quickstart", help="folder for everything that is made")
    parser.add_argument(
        "--train-images", type=positive_int, default=8000, help="length of the training, in images seen"
    )
    parser.add_argument("--batch-size", type=positive_int, default=2, help="images per step")
    parser.add_argument("--vertical-flip", type=float, default=0.0, help="probability; 0.5 for pictures without an up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-pictures", type=positive_int, default=8, help="validation images to draw")
    parser.add_argument("--threshold", type=float, default=0.3, help="draw boxes with a score of at least this")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(arguments: argparse.Namespace) -> int:
    output = make_output_folder(arguments.output)
    if arguments.data:
        data = Path(arguments.data)
    else:
        print("Making generated scenes ...", flush=True)
        data = generate_scenes(output / "scenes", **_SCENES)
    config = TrainConfig(
        model=arguments.model,
        data=str(data),
        output=str(output),
        train_images=arguments.train_images,
        batch_size=arguments.batch_size,
        vertical_flip=arguments.vertical_flip,
        seed=arguments.seed,
    )
    print(f"Training {config.model or config.preset} on {data} for {config.train_images} images ...", flush=True)
    result = train(config)
    pictures = draw_validation_images(config, result, output / "pictures", arguments.num_pictures, arguments.threshold)
    print(summary(result, data, output, pictures))
    return 0


def draw_validation_images(
    config: TrainConfig, result: TrainResult, folder: Path, number: int, threshold: float
) -> list[Path]:
    """Ground truth beside the predictions of the saved model, loaded by `pipeline("object-detection")`.

    Returns:
        The files drawn, the overview of all of them first.
    """
    dataset = load_detection_dataset(config.data, config.eval_split, id2label=label_names(result.model))
    rows = dataset.dataset.select(range(min(number, len(dataset))))
    images = [decode_image(row) for row in rows]
    detector = pipeline("object-detection", model=str(result.model_dir), device="cpu")
    detections = [_as_detections(found, dataset.label2id) for found in detector(images, threshold=threshold)]
    folder.mkdir(parents=True, exist_ok=True)
    paths, sheets = [folder / "overview.png"], []
    for row, image, found in zip(rows, images, detections, strict=True):
        sheets.append(draw_comparison(image, row["objects"], found, dataset.id2label, threshold=threshold))
        paths.append(folder / f"{row['image_id']}.png")
        sheets[-1].save(paths[-1])
    contact_sheet(sheets, columns=2, cell_width=min(800, max(sheet.width for sheet in sheets))).save(paths[0])
    return paths


def _as_detections(found: list[dict[str, Any]], label2id: dict[str, int]) -> dict[str, list]:
    """The pipeline's answer for one image in the form that drawing takes."""
    return {
        "boxes": [[d["box"][edge] for edge in ("xmin", "ymin", "xmax", "ymax")] for d in found],
        "labels": [label2id[d["label"]] for d in found],
        "scores": [d["score"] for d in found],
    }


def summary(result: TrainResult, data: Path, output: Path, pictures: Sequence[Path]) -> str:
    """What was reached and where everything lies."""
    numbers = "   ".join(f"{name} {result.metrics[name]}" for name in _HEADLINE if name in result.metrics)
    return f"""
{numbers}

model        {result.model_dir}    pipeline("object-detection", model="{result.model_dir}")
metrics      {output / "metrics.json"}
loss curve   {output / "metrics.jsonl"}
detections   {output / "results.json"}    (COCO results format)
pictures     {pictures[0]}    (ground truth left, predictions right)
data         {data}

Your own pictures:  python scripts/predict.py --model {result.model_dir} IMAGES --output drawn
Your own data:      make quickstart DATA=folder OUT=runs/mine"""
