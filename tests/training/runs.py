"""Short trainings for the tests, here or in other processes."""

import json
import multiprocessing
import os
import shutil
import socket
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from drmm_hf.cli import main
from drmm_hf.training import TrainConfig, train

ROOT = Path(__file__).parents[2]
SMALL = {"num_stages": 2, "num_proposals": 16}
# Other processes are forked from one that has imported everything, which takes seconds, and has done nothing with it.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["drmm_hf.commands.train"])


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


def with_annotations(scenes: Path, folder: Path, content: dict[str, Any]) -> Path:
    """The scenes with other annotations of the training split."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").symlink_to(scenes / "images")
    (folder / "annotations/instances_train.json").write_text(json.dumps(content))
    return folder


def spoil(scenes: Path, folder: Path, count: int) -> list[str]:
    """The scenes with some broken pictures, and their names."""
    shutil.copytree(scenes, folder)
    pictures = sorted((folder / "images").glob("*train*"))[:count]
    for picture in pictures:
        picture.write_bytes(picture.read_bytes()[:400])
    return [picture.name for picture in pictures]


def start(configs: list[dict[str, Any]], folder: Path, **variables: str) -> BaseProcess:
    """Begin to train each of the settings, one after the other, in a process of its own and with one thread."""
    process = PROCESSES.Process(target=_train_all, args=(configs, folder / "errors.txt", variables))
    process.start()
    return process


def _train_all(configs: list[dict[str, Any]], errors: Path, variables: dict[str, str]) -> None:
    sys.stderr = errors.open("a")
    os.environ.update(variables)
    torch.set_num_threads(1)
    for one in configs:
        train(TrainConfig(**one))
    PartialState().destroy_process_group()


def start_command(config: TrainConfig, **variables: str) -> BaseProcess:
    """Begin `drmm train` with these settings as a recipe; what it prints goes to errors.txt beside the output."""
    output = Path(config.output)
    recipe = output.with_suffix(".yaml")
    recipe.write_text(json.dumps({name: value for name, value in config.to_dict().items() if name != "resume"}))
    errors = output.with_name("errors.txt")
    process = PROCESSES.Process(target=_command, args=(["train", "--recipe", str(recipe)], errors, variables))
    process.start()
    return process


def _command(words: list[str], errors: Path, variables: dict[str, str]) -> None:
    os.setsid()  # a group of its own: Ctrl-C in a terminal goes to all processes of the group
    sys.stderr = errors.open("a", buffering=1)
    os.environ.update(variables)
    torch.set_num_threads(1)
    sys.exit(main(words))


def two_ranks() -> list[dict[str, str]]:
    """Environment variables of two processes of one training, as torchrun sets them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]


def run_two_processes(configs: list[dict[str, Any]], folder: Path) -> None:
    """Train each of the settings, one after the other, in two processes."""
    _both_succeed([start(configs, folder, **variables) for variables in two_ranks()], folder)


def run_command_in_two_processes(words: list[str], folder: Path) -> None:
    """Run `drmm` with these words in two processes; what they print on stderr goes to errors.txt in the folder."""
    processes = [
        PROCESSES.Process(target=_command, args=(words, folder / "errors.txt", variables)) for variables in two_ranks()
    ]
    for process in processes:
        process.start()
    _both_succeed(processes, folder)


def _both_succeed(processes: list[BaseProcess], folder: Path) -> None:
    for process in processes:
        process.join(600)
        process.kill()
        assert process.exitcode == 0, (folder / "errors.txt").read_text()[-9000:]
