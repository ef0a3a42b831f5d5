"""Speed and memory beside transformers' detectors: python scripts/benchmark.py SUITE... --output DIR (see --help)

To compare with another commit, check it out elsewhere and name its sources: with `PYTHONPATH=/elsewhere/src` the suites
loss, inference, training, postprocessing and scaling measure that one; the json files have the same form.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from transformers.utils import logging

from benchmarks import data, forward, loss, scaling
from benchmarks.measure import Settings
from benchmarks.page import processor_name, render
from drmm_hf.cli import positive_int, run_command

SUITES = {
    "loss": loss.measure_loss,
    "inference": forward.measure_inference,
    "training": forward.measure_training,
    "postprocessing": forward.measure_postprocessing,
    "evaluation": data.measure_evaluation,
    "data": data.measure_data,
    "scaling": scaling.measure_scaling,
}
PACKAGES = ("torch", "torchvision", "transformers", "timm")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure suites, write a json for each, and make the page of all of them; 2 after one line for bad input."""
    parser = argparse.ArgumentParser(description="Speed and memory beside transformers' detectors.")
    parser.add_argument(
        "suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}, or all (default: only render)"
    )
    parser.add_argument("--output", required=True, help="folder of the results, also of earlier ones that are rendered")
    parser.add_argument("--page", help="the page (default: speed.md in that folder)")
    parser.add_argument("--device", default="cpu", help="such as cpu or cuda:1 (default: cpu)")
    parser.add_argument(
        "--threads", type=positive_int, default=torch.get_num_threads(), help="on a CPU (default: torch's)"
    )
    parser.add_argument("--rounds", type=positive_int, default=7, help="numbers of each candidate (default: 7)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything works")
    parser.add_argument("--compile", action="store_true", help="also measure compiled forms (minutes)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    arguments.batch_size = "fixed by the suite; take --quick"  # what the message of a full memory names
    return run_command(run, arguments)


def run(arguments: argparse.Namespace) -> int:
    """Measure the suites that `arguments` name and render the page."""
    names = list(SUITES) if "all" in arguments.suites else arguments.suites
    for name in names:
        if name not in SUITES:
            raise ValueError(f"there is no suite {name!r}; choose of {', '.join(SUITES)}, or all")
    check_device(arguments.device)
    settings = Settings(arguments.device, arguments.threads, arguments.rounds, arguments.quick, arguments.compile)
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    page = Path(arguments.page) if arguments.page else folder / "speed.md"
    if not page.parent.is_dir():
        raise ValueError(f"--page {page}: its folder does not exist; make it first")
    logging.set_verbosity_error()  # transformers warns of what random weights do not need
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        for name in names:
            print(f"{name} ...", flush=True)
            torch.manual_seed(0)
            content = {"suite": name, "environment": environment(settings), "figures": [], **SUITES[name](settings)}
            (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            gc.collect()  # models of the last suite
    finally:
        torch.set_num_threads(threads)
    render(folder, page)
    print(page)
    return 0


def check_device(name: str) -> None:
    """ValueError if there is no such device, or it is neither a CPU nor a CUDA one."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: no such device; take cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: only cpu and cuda are measured")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA device(s)")


def environment(settings: Settings) -> dict[str, object]:
    """Machine, versions, date and settings of a run."""
    cuda = settings.device.startswith("cuda")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": torch.cuda.get_device_name(settings.device) if cuda else processor_name(),
        "cores": os.cpu_count(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        **asdict(settings),
    }


if __name__ == "__main__":
    raise SystemExit(main())
