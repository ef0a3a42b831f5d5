"""`drmm predict`: detect objects in image files, draw them and write them down."""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..cli import add_frame_argument, add_model_arguments, count, fraction, positive_int
from ..evaluation import detections_to_coco
from ..evaluation.analysis import read_thresholds
from ..evaluation.predict import find_images, is_url, open_source, predict_batches
from ..evaluation.tiles import predict_tiled
from ..files import make_output_folder, numbered, write_json, writing
from ..loading import label_names, load_detector
from ..visualization import draw_detections

_SMALLEST_STEP = 16
"""Pixels from one tile to the next."""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Detect objects in images. Writes a drawing of each and predictions.json (COCO results, whose "
        "category_id is the model's label, from 0; category_name says which).",
    )
    parser.add_argument("--model", required=True, help="folder written by save_pretrained, or a Hub id")
    add_model_arguments(parser)
    add_frame_argument(parser)
    parser.add_argument("input", nargs="+", help="images, folders of images with their subfolders, or URLs of images")
    parser.add_argument(
        "--output", default="drawn", help="folder for the drawings and predictions.json (default: %(default)s)"
    )
    smallest = parser.add_mutually_exclusive_group()
    smallest.add_argument("--threshold", type=fraction, default=0.3, help="smallest score (default: 0.3)")
    smallest.add_argument(
        "--analysis", metavar="JSON", help="analysis.json of drmm analyze: of each class its threshold there"
    )
    parser.add_argument(
        "--workers", type=count, default=1, help="threads that prepare images, each a batch ahead (default: 1)"
    )
    parser.add_argument(
        "--tile",
        type=positive_int,
        metavar="PIXELS",
        help="cut large images into overlapping tiles of this side, keep each object once; --top-k is then of a tile",
    )
    parser.add_argument(
        "--overlap", type=fraction, default=0.2, help="share of a tile that neighbours have in common (default: 0.2)"
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    output = Path(arguments.output)
    if any(Path(text).is_dir() and Path(text).resolve() == output.resolve() for text in arguments.input):
        raise ValueError(f"--output {output}: is also an input folder; drawings would mix with the images")
    files = find_images(arguments.input, leave_out=output)
    if arguments.overlap == 1.0:
        raise ValueError("--overlap 1: tiles would not move on; give less than 1, such as 0.2")
    if arguments.tile and arguments.tile * (1.0 - arguments.overlap) < _SMALLEST_STEP:
        raise ValueError(
            f"--tile {arguments.tile} --overlap {arguments.overlap}: tiles would move on by less than {_SMALLEST_STEP} "
            "pixels, which takes hours; give larger tiles or a smaller overlap"
        )
    model, processor = load_detector(arguments.model, arguments.device)
    id2label = label_names(model)
    limits = [arguments.threshold] * len(id2label)
    if arguments.analysis:
        classes = [id2label[label] for label in range(len(id2label))]
        limits = read_thresholds(arguments.analysis, arguments.model, classes)
    make_output_folder(arguments.output)
    targets = name_outputs(files, output)
    skipped: list[str] = []

    def readable() -> Iterator[dict[str, Any]]:
        for image_id, file in enumerate(files, start=1):
            try:
                yield {"image_id": image_id, "file": file, "image": open_source(file, arguments.image_frame)}
            except (OSError, ValueError) as error:
                skipped.append(str(error))

    options: dict[str, Any] = {
        "batch_size": arguments.batch_size,
        "threshold": 0.0 if arguments.analysis else arguments.threshold,
        "top_k": arguments.top_k,
        "num_workers": arguments.workers,
    }
    predict: Callable[..., Iterator[Any]] = predict_batches
    if arguments.tile:
        predict, options = predict_tiled, {**options, "tile": arguments.tile, "overlap": arguments.overlap}
    else:
        options["total"] = len(files)
    results: list[dict[str, Any]] = []
    # Held by the loop alone: an error in it ends the generator, and with it the progress bar, before it is printed.
    for rows, found in predict(model, processor, readable(), **options):
        for row, candidates in zip(rows, found, strict=True):
            kept = candidates["scores"] >= torch.tensor(limits)[candidates["labels"]]
            detections = {name: values[kept] for name, values in candidates.items()}
            drawing = targets[row["file"]]
            with writing(drawing):
                draw_detections(row["image"], detections, id2label, threshold=0.0).save(drawing)
            # `category_id` is the model's label, boxes are in pixels of the image in its frame
            for result in detections_to_coco([detections], [row["image_id"]], range(len(id2label))):
                names = {"category_name": id2label[result["category_id"]], "file_name": row["file"]}
                results.append({**result, **names, "drawing": drawing.name})
    write_json(output / "predictions.json", results)
    read = len(files) - len(skipped)
    known = f"their class's in {arguments.analysis}" if arguments.analysis else f"{arguments.threshold} (--threshold)"
    print(f"{len(results)} detections in {read} of {len(files)} images: {output / 'predictions.json'}")
    print(f"smallest score: {known}")
    for message in skipped:
        print(f"skipped: {message}", file=sys.stderr)
    return 1 if skipped else 0


def name_outputs(files: list[str], output: Path) -> dict[str, Path]:
    """`<stem>.png` in `output` for each file or URL; `<stem>-2.png` and so on where another one is called so."""
    inputs = (Path(file).resolve() for file in files)
    taken = {path.stem.lower() for path in inputs if path.parent == output.resolve() and path.suffix.lower() == ".png"}
    names = {}
    for file in files:
        stem = Path(re.split("[?#]", file)[0] if is_url(file) else file).stem or "image"
        name = numbered(stem, taken)
        taken.add(name.lower())
        names[file] = output / f"{name}.png"
    return names
