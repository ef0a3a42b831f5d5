"""What loading annotations and making training batches costs, as a page of Markdown (see --help)."""

import argparse
import importlib.metadata
import os
import platform
import time
from pathlib import Path

from drmm_hf.data import load_detection_dataset
from drmm_hf.data.benchmark import report

PACKAGES = ("torch", "pillow", "datasets", "pycocotools", "transformers", "albumentations")


PAGE = """# The cost of the data

    {command} --output docs/results/data.md

Measured on {date} on one core of an {processor} ({cores} visible) under Linux, with
{versions}.
Other work ran on the machine, so times are CPU time of the process, which that changes little; the ways compared take
turns in one run.

## Loading annotations
Generated json files with the numbers of COCO: 80 categories, 7.3 boxes an image, a polygon of 24 points for each. The
image files are empty: `load_detection_dataset` lists their folder to see that all are there, as always, and opens none.
Every start is a new process. pycocotools is `COCO(path)`, which looks neither at the values nor at the images. COCO
folders leave nothing on the disk that would make the second start another than the first; it finds the json in the file
cache of the operating system. Most of the difference is Python's garbage collector, which `load_detection_dataset`
stops while it reads: it would go through all the new objects, and those of torch, again and again.

{starts}

Resident memory in MB: of the process before loading (imports, torch above all), after it, and at its highest; then of a
`DataLoader` worker that reads every row once in random order without decoding the image (for pycocotools,
`loadAnns(getAnnIds(image))`). What a worker does not share with the main process grows where reading means counting
references to Python objects; the rows here are Arrow buffers.

{memory}

## From image files to batches
The augmentation of the 3x schedule (`PaperTransform`) and the padding of a batch of 8, from JPEG files of 640x480
pixels ({photos}), on one thread. The last line is the way of transformers' object-detection example: the
image decoded whole, the same resizes, crops and flips by albumentations, then `DetrImageProcessor` to normalize and
pad. The first leaves the batch uint8, a quarter of the bytes to hand on, to be normalized on the device of the model;
the second line does that on the CPU, too, for the same output as the last.

{throughput}
"""


def processor_name() -> str:
    """Model of the processor as Linux gives it, or the architecture."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1000, 10_000, 118_000], help="images of the json files"
    )
    parser.add_argument("--data", help="COCO-format folder with real photos of 640x480 pixels (default: generated)")
    parser.add_argument("--rounds", type=int, default=7, help="of the throughput (default: 7)")
    parser.add_argument("--output", type=Path, help="file for the page (default: print it)")
    arguments = parser.parse_args()
    try:
        photos = load_detection_dataset(arguments.data, "train") if arguments.data else None
        tables = report(arguments.sizes, photos, rounds=arguments.rounds)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    page = PAGE.format(
        **tables,
        command="python scripts/benchmark_data.py" + (" --data coco" if arguments.data else ""),
        photos="real COCO photos" if arguments.data else "generated images, smooth with some noise",
        processor=processor_name(),
        cores=os.cpu_count(),
        date=time.strftime("%Y-%m-%d"),
        versions=versions,
    )
    if arguments.output:
        arguments.output.write_text(page)
    else:
        print(page, end="")


if __name__ == "__main__":
    main()
