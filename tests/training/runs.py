"""Short trainings for the tests, here or in other processes; as a script it trains each of a JSON list of settings."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState

from drmm_hf.training import TrainConfig, train

ROOT = Path(__file__).parents[2]
SMALL = {"num_stages": 2, "num_proposals": 16}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


def fields(data: Path, output: Path, **more: Any) -> dict[str, Any]:
    """Settings of eight steps on the CPU, without evaluation and checkpoints."""
    own = {"data": str(data), "output": str(output), "train_images": 16, "batch_size": 2, "log_every": 1, "cpu": True}
    return {**own, "image_size": [96], "eval_split": "", "save_every": 0, "config": SMALL, **more}


def settings(data: Path, output: Path, **more: Any) -> TrainConfig:
    return TrainConfig(**fields(data, output, **more))


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "images_per_second"} for record in records]


def start(configs: list[dict[str, Any]], folder: Path, *launcher: str) -> subprocess.Popen[str]:
    """Begin to train each of the settings, one after the other, in a process of its own."""
    path = folder / "configs.json"
    path.write_text(json.dumps(configs))
    command = [sys.executable, *launcher, str(Path(__file__)), str(path)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def run_two_processes(configs: list[dict[str, Any]], folder: Path) -> None:
    """Train each of the settings, one after the other, in two processes."""
    process = start(configs, folder, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-9000:]


if __name__ == "__main__":
    for one in json.loads(Path(sys.argv[1]).read_text()):
        train(TrainConfig(**one))
    PartialState().destroy_process_group()
