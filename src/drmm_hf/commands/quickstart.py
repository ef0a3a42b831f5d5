"""`drmm quickstart`: train a small detector, measure it, and draw what it sees."""

import argparse
from pathlib import Path
from typing import Any

from ..cli import positive_int
from ..data import decode_image, generate_scenes, load_detection_dataset
from ..evaluation.predict import predict_images
from ..files import make_output_folder
from ..loading import label_names
from ..training import TrainConfig, TrainResult, train
from ..visualization import contact_sheet, draw_comparison

SCENES: dict[str, Any] = {
    "num_train": 1000,
    "num_val": 150,
    "image_size": (288, 384),
    "min_object_size": 32.0,
    "max_object_size": 120.0,
    "mean_objects": 20.0,
}
"""Full scenes of objects that are not too small: five minutes are short for the data set's default difficulty."""
_HEADLINE = ("AP", "AP50", "AP75", "AR100", "ECE", "train_seconds")


def parser() -> argparse.ArgumentParser:
    """The options of `drmm quickstart`."""
    parser = argparse.ArgumentParser(
        description="Train a small D-RMM detector and look at it: on generated scenes, or on your data; from random "
        "weights, or from a checkpoint."
    )
    parser.add_argument(
        "--data", help="COCO, YOLO or Pascal VOC folder as the usual tools write it; default: generated scenes"
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
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Make data unless there are some, train on them, and draw."""
    output = make_output_folder(arguments.output)
    data = arguments.data
    if not data:
        print("Making generated scenes ...", flush=True)
        data = str(generate_scenes(output / "scenes", **SCENES))
    config = TrainConfig(
        model=arguments.model,
        data=data,
        output=str(output),
        train_images=arguments.train_images,
        batch_size=arguments.batch_size,
        vertical_flip=arguments.vertical_flip,
        seed=arguments.seed,
    )
    print(f"Training {config.model or config.preset} on {data} for {config.train_images} images ...", flush=True)
    result = train(config)
    overview = draw_validation_images(
        config, result, output / "pictures", number=arguments.num_pictures, threshold=arguments.threshold
    )
    numbers = "   ".join(f"{name} {result.metrics[name]}" for name in _HEADLINE if name in result.metrics)
    print(f"""
{numbers}

model        {result.model_dir}    pipeline("object-detection", model="{result.model_dir}")
metrics      {output / "metrics.json"}
loss curve   {output / "metrics.jsonl"}
detections   {output / "results.json"}    (COCO results format)
pictures     {overview}    (ground truth left, predictions right)
data         {data}

Your own pictures:  drmm predict --model {result.model_dir} IMAGES --output drawn
Your own data:      drmm quickstart --data FOLDER --output runs/mine""")


def draw_validation_images(
    config: TrainConfig, result: TrainResult, folder: Path, *, number: int, threshold: float
) -> Path:
    """Draw ground truth beside predictions, one file an image; the path of the overview of all of them."""
    dataset = load_detection_dataset(config.data, config.eval_split, id2label=label_names(result.model))
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
