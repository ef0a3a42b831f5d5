"""`drmm convert`: a released checkpoint to a checkpoint folder of this package, or back."""

import argparse
from collections import Counter
from pathlib import Path

from ..conversion import convert_checkpoint, write_released_file
from ..files import writing
from ..hub import write_checkpoint_card
from ..loading import load_drmm


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Convert a checkpoint of the authors' D-RMM, mmdet's Sparse R-CNN or AdaMixer.",
    )
    parser.add_argument("source", help=".pth or .safetensors as released; with --reverse a folder of this package")
    parser.add_argument("output", help="folder to write; with --reverse a .pth file")
    parser.add_argument("--preset", help="configuration to build, see `drmm presets`")
    parser.add_argument(
        "--weights", choices=("raw", "ema"), default="raw", help="the file's ordinary weights, or their moving average"
    )
    parser.add_argument("--reverse", action="store_true", help="write the weights back under the released names")
    return parser


def run(arguments: argparse.Namespace) -> None:
    output = Path(arguments.output)
    if arguments.reverse:
        model, _ = load_drmm(arguments.source)
        print(f"{write_released_file(model, output)} tensors under the released names: {output}")
        return
    if arguments.preset is None:
        raise ValueError("--preset is missing; `drmm presets` lists the names, such as sparse-rcnn-r50")
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output}: a file is in the way; choose another folder")
    converted = convert_checkpoint(arguments.source, arguments.preset, arguments.weights)
    report = converted.report
    with writing(output):
        converted.model.save_pretrained(output)
        converted.processor.save_pretrained(output)
    origin = f"`{Path(arguments.source).name}` (preset `{arguments.preset}`): {report.used} tensors, none changed"
    write_checkpoint_card(output, converted_from=origin, overwrite=True)
    print(f"{report.used} tensors converted, {len(report.skipped)} skipped, {len(report.added)} added: {output}")
    for reason, number in Counter([*report.skipped.values(), *report.added.values()]).items():
        print(f"  {number}: {reason}")
