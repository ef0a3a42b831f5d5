"""`scripts/predict.py`: detect objects in image files, draw them and write them down."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageOps
from tqdm.auto import tqdm

from ..data import open_image
from ..visualization import draw_detections
from .coco import detections_to_coco
from .command_line import add_model_arguments, fraction, make_output_folder, run_command, write_json
from .loading import label_names, load_detector
from .predict import Detection, predict_images

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 1 if some images could not be read and were skipped; 2 if nothing could be done.
    """
    return run_command(_run, _parser().parse_args(argv))


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="predict.py",
        description="Detect objects in images. Writes a drawing of each and predictions.json (COCO results).",
    )
    add_model_arguments(parser)
    parser.add_argument("input", nargs="+", help="images, or folders of images")
    parser.add_argument("--output", required=True, help="folder for the drawings and predictions.json")
    parser.add_argument("--threshold", type=fraction, default=0.3, help="smallest score (default: 0.3)")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    files = find_images(arguments.input)
    output = Path(arguments.output)
    if any(Path(text).is_dir() and Path(text).resolve() == output.resolve() for text in arguments.input):
        raise ValueError(f"--output {output}: is also an input folder; drawings would mix with the images")
    model, processor = load_detector(arguments.model, arguments.device)
    make_output_folder(arguments.output)
    targets = name_outputs(files, output)
    id2label = label_names(model)
    predictions: list[dict[str, Any]] = []
    skipped: list[str] = []
    try:
        for batch in _batches(files, arguments.batch_size, skipped):
            detections = predict_images(
                model,
                processor,
                [image for _, _, image in batch],
                threshold=arguments.threshold,
                top_k=arguments.top_k,
            )
            for (image_id, file, image), detection in zip(batch, detections, strict=True):
                draw_detections(image, detection, id2label, threshold=arguments.threshold).save(targets[file])
                predictions += describe(detection, image_id, file, targets[file], id2label)
    finally:
        # Also after an interruption: what was found so far is kept.
        write_json(output / "predictions.json", predictions)
    done = f"{len(files) - len(skipped)} of {len(files)} images"
    print(f"{len(predictions)} detections in {done}: {output / 'predictions.json'}")
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


def _batches(
    files: Sequence[Path], batch_size: int, skipped: list[str]
) -> Iterator[list[tuple[int, Path, Image.Image]]]:
    """(image id from 1, file, upright RGB image) in batches; what cannot be read goes to `skipped`."""
    batch: list[tuple[int, Path, Image.Image]] = []
    for image_id, file in enumerate(tqdm(files, desc="detecting", unit="image"), start=1):
        try:
            batch.append((image_id, file, open_upright(file)))
        except (OSError, ValueError) as error:
            skipped.append(str(error))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch
