"""Fuzzing in a bounded job: `PYTHONPATH=tests python -m fuzz --cases 20000 --seed 0`.

Every kind of input is tried in a process of its own, with a limit of its memory. A fault is printed with
what repeats it.
"""

import argparse
import json
import logging
import multiprocessing
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from fuzz.annotation_targets import AnnotationTarget, CocoTarget, ResultsTarget
from fuzz.file_targets import BackboneTarget, CheckpointTarget, ParquetTarget, ReleasedTarget, TarTarget
from fuzz.image_targets import ImageTarget, ProcessorTarget
from fuzz.judge import Target, judge
from fuzz.settings_targets import ConfigTarget, RecipeTarget

SHARES: dict[type, float] = {
    CocoTarget: 0.24,
    ResultsTarget: 0.12,
    AnnotationTarget: 0.1,
    ConfigTarget: 0.15,
    RecipeTarget: 0.12,
    ImageTarget: 0.1,
    ProcessorTarget: 0.06,
    CheckpointTarget: 0.02,
    ReleasedTarget: 0.04,
    BackboneTarget: 0.01,
    TarTarget: 0.02,
    ParquetTarget: 0.02,
}
MORE_MEMORY = 4 * 2**30
"""Bytes of address space that the cases of a target may take beyond what the process has at the start."""


def drawn(target: Target, seed: int, index: int) -> Any:
    """The value of a case."""
    return target.draw(Random(f"{seed} {target.name} {index}"))


def run_cases(kind: type, seed: int, indices: range) -> dict[str, Any]:
    """Counts of how the cases ended, the faults (one a place), and the growth of the memory in MiB."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    target = kind()
    counts: Counter[str] = Counter()
    faults: dict[str, tuple[int, str]] = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{target.name}-") as folder:
        root = Path(folder) / target.name
        root.mkdir()
        for index in indices:
            verdict = judge(target, drawn(target, seed, index), root)
            counts[verdict.kind] += 1
            if verdict.kind == "fault":
                words = verdict.text.split(":")
                place = "".join(words[:2]) + verdict.text.rsplit("[", 1)[-1]
                faults.setdefault(place, (index, verdict.text))
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    return {"counts": dict(counts), "faults": list(faults.values()), "memory": growth}


def _limited(kind: type, seed: int, indices: range, queue: Any) -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MORE_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    queue.put(run_cases(kind, seed, indices))


def main() -> int:
    parser = argparse.ArgumentParser(description="Feed damaged input to every reader of the package.")
    parser.add_argument("--cases", type=int, default=20_000, help="number of all cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=[kind.name for kind in SHARES], help="only this kind of input")
    parser.add_argument("--case", type=int, help="only this case of --target, with its value and traceback")
    arguments = parser.parse_args()
    kinds = [kind for kind in SHARES if arguments.target in (None, kind.name)]
    if arguments.case is not None:
        target = kinds[0]()
        value = drawn(target, arguments.seed, arguments.case)
        print(json.dumps({"target": target.name, "value": value}))
        with tempfile.TemporaryDirectory() as folder:
            target.run(value, Path(folder))
        return 0
    context = multiprocessing.get_context("fork")
    failed, total, started = False, 0, time.perf_counter()
    print(f"{'input':12} {'cases':>6} {'success':>8} {'refused':>8} {'faults':>7} {'MiB':>5} {'s':>5}")
    for kind in kinds:
        count = arguments.cases if arguments.target else max(1, round(arguments.cases * SHARES[kind]))
        begun, queue = time.perf_counter(), context.SimpleQueue()
        process = context.Process(target=_limited, args=(kind, arguments.seed, range(count), queue))
        process.start()
        while process.is_alive() and queue.empty():
            time.sleep(0.05)
        if queue.empty():
            process.join()
            print(f"{kind.name}: the process ended with status {process.exitcode}")
            failed = True
            continue
        result = queue.get()
        process.join()
        counts, total = result["counts"], total + count
        numbers = [counts.get(name, 0) for name in ("success", "refused", "fault")]
        seconds = time.perf_counter() - begun
        print(
            f"{kind.name:12} {count:6} {numbers[0]:8} {numbers[1]:8} {numbers[2]:7} {result['memory']:5} {seconds:5.0f}"
        )
        for index, text in result["faults"]:
            print(f"    --target {kind.name} --case {index}: {' '.join(text.split())}")
        failed |= bool(numbers[2])
        sys.stdout.flush()
    print(f"{total} cases, seed {arguments.seed}, {time.perf_counter() - started:.0f} s")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
