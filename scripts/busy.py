"""Steps a minute of a small training beside other busy processes, by the waiting of its threads.

    python scripts/busy.py --busy 2 --rounds 5 --seconds 30

Each round runs the candidates in turn: threads that sleep when they wait (`OMP_WAIT_POLICY=passive`, the package's
default), threads that spin for a while first (`--spins`), and torch's own, which spin for long.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "src"
SLEEPING = {"OMP_WAIT_POLICY": "passive"}


def train(seconds: float, threads: int) -> float:
    """Steps a minute of the preset drmm-sparse-rcnn-tiny with two images a step."""
    import torch  # before drmm_hf, which would choose the policy

    from drmm_hf import DrmmConfig, DrmmForObjectDetection

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = DrmmForObjectDetection(DrmmConfig.from_preset("drmm-sparse-rcnn-tiny", num_labels=3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    pixels = torch.randn(2, 3, 288, 384)
    labels = [{"class_labels": torch.arange(9) % 3, "boxes": torch.rand(9, 4) * 0.3 + 0.2} for _ in range(2)]

    def step() -> None:
        model(pixels, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        step()
        steps += 1
    return 60 * steps / (time.perf_counter() - start)


def measure(policy: dict[str, str], seconds: float, threads: int) -> float:
    """`train` in a process of its own, with the variables of `policy`."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment = {**plain, "PYTHONPATH": str(SOURCES), **policy}
    command = [sys.executable, __file__, "--seconds", str(seconds), "--threads", str(threads), "--one"]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, default=2, help="other processes that compute all the time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each training")
    parser.add_argument("--threads", type=int, default=2, help="of each training")
    parser.add_argument("--spins", type=int, nargs="*", default=[], help="further candidates, as GOMP_SPINCOUNT")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(train(arguments.seconds, arguments.threads))
        return
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(arguments.busy)]
    try:
        policies = {"sleeping": SLEEPING}
        policies |= {f"{count} spins": {**SLEEPING, "GOMP_SPINCOUNT": str(count)} for count in arguments.spins}
        policies["spinning"] = {}
        found: dict[str, list[float]] = {name: [] for name in policies}
        for _ in range(arguments.rounds):
            for name, policy in policies.items():
                found[name].append(measure(policy, arguments.seconds, arguments.threads))
    finally:
        for other in others:
            other.kill()
    load = os.getloadavg()[0]
    print(f"{arguments.threads} threads on {os.cpu_count()} cores, {arguments.busy} busy processes, load {load:.1f}")
    for name, rates in found.items():
        print(f"{name}: {statistics.median(rates):.0f} steps a minute ({min(rates):.0f} to {max(rates):.0f})")


if __name__ == "__main__":
    main()
