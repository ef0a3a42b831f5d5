"""`drmm check-data`: what a training will find in a data set, before it starts."""

import argparse
from pathlib import Path

from ..cli import add_frame_argument, positive_int
from ..data.check import check_data, format_check
from ..data.layouts import find_parts
from ..data.splits import usual_name
from ..data.tables import is_objects_source, load_splits
from ..data.transforms import scaled_size
from ..files import make_output_folder, write_json
from ..image_processing_drmm import DrmmImageProcessor
from ..presets import preset_fields, processor_fields
from ..training import TrainConfig
from ..training.batches import TableData


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Say what a folder of labeled images is and what is in it: images, boxes and classes, and what is "
        "doubtful. `drmm train` does the same before its first step."
    )
    parser.add_argument("data", nargs="?", default=".", help="the data set's folder, or a Hub id (default: here)")
    parser.add_argument("--train-split", default="train", help="split to train on (default: train)")
    parser.add_argument("--eval-split", default="val", help="split to evaluate; '' for none (default: val)")
    for option in ("annotations", "images", "eval-annotations", "eval-images"):
        parser.add_argument(f"--{option}", help="as in `drmm train`")
    add_frame_argument(parser)
    parser.add_argument(
        "--preset", default="drmm-sparse-rcnn-tiny", help="the model whose input size and number of proposals are meant"
    )
    parser.add_argument(
        "--image-size", type=positive_int, nargs="+", metavar="N", help="the shorter side, or height and width, instead"
    )
    parser.add_argument("--output", help="folder for data_report.json")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Print the check, and refuse what cannot train."""
    output = make_output_folder(arguments.output) if arguments.output else None
    of_data = ("data", "train_split", "eval_split", "annotations", "images", "eval_annotations", "eval_images")
    fields = {name: getattr(arguments, name) for name in (*of_data, "image_frame")}
    if arguments.annotations and not arguments.eval_annotations:
        fields["eval_split"] = ""
    data = TableData(TrainConfig(**fields, train_images=1))
    val = data.evaluation_dataset() if fields["eval_split"] else None
    size = processor_fields(arguments.preset).get("size", DrmmImageProcessor.size)
    if arguments.image_size is not None:
        given = arguments.image_size
        if len(given) > 2:
            raise ValueError(f"--image-size {' '.join(map(str, given))}: give the shorter side, or height and width")
        size = scaled_size(size, given)
    report = check_data(data.dataset, val, size=size, num_proposals=preset_fields(arguments.preset)["num_proposals"])
    print(format_check(report))
    if not arguments.annotations:
        folder = Path(arguments.data).expanduser().absolute()
        there = {*(load_splits(arguments.data) if is_objects_source(arguments.data) else find_parts(folder))}
        if others := sorted(there - {usual_name(arguments.train_split), usual_name(arguments.eval_split)}):
            print(f"other splits: {', '.join(others)} (--eval-split {others[0]} checks it)")
    if output:
        write_json(output / "data_report.json", report)
    if report["problem"]:
        raise ValueError(f"{Path(arguments.data)}: {report['problem']}")
