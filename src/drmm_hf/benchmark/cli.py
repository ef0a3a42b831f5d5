"""`scripts/benchmark.py`: measure, write a json for each suite, and make the page of all of them."""

import argparse
import gc
import importlib
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.utils import logging

from ..cli import positive_int, run_command
from ..files import make_output_folder
from .render import render
from .results import Settings, write_suite

SUITES = ("loss", "inference", "training", "postprocessing", "evaluation", "data", "scaling")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 2 after one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="benchmark.py", description="Speed and memory beside transformers' detectors."
    )
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
    return run_command(_run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    suites = list(SUITES) if "all" in arguments.suites else arguments.suites
    for name in suites:
        if name not in SUITES:
            raise ValueError(f"there is no suite {name!r}; choose of {', '.join(SUITES)}, or all")
    device = _device(arguments.device)
    settings = Settings(device, arguments.threads, arguments.rounds, arguments.quick, arguments.compile)
    folder = make_output_folder(arguments.output)
    page = Path(arguments.page) if arguments.page else folder / "speed.md"
    if not page.parent.is_dir():
        raise ValueError(f"--page {page}: its folder does not exist; make it first")
    logging.set_verbosity_error()  # transformers warns of what random weights do not need
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        for name in suites:
            print(f"{name} ...", flush=True)
            torch.manual_seed(0)
            suite = importlib.import_module(f".{name}", __package__).run(settings)
            write_suite(folder / f"{name}.json", name, suite, settings)
            gc.collect()  # models of the last suite
    finally:
        torch.set_num_threads(threads)
    render(folder, page)
    print(page)
    return 0


def _device(name: str) -> str:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: no such device; take cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: only cpu and cuda are measured")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA device(s)")
    return str(device)
