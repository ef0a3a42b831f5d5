"""What a training leaves in its output folder; checkpoints to resume from are complete or not there at all.

A checkpoint is written beside its place, synced to disk and renamed, and its list of files comes last, so a crash at
any moment leaves the previous one. Model, optimizer, schedule, GradScaler and random states are Accelerate's.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch.optim.swa_utils import AveragedModel

from ..configuration_drmm import DrmmConfig
from ..files import write_text
from .batches import TrainingData
from .config import TrainConfig

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

NOT_THE_MODEL = {"id2label", "label2id", "transformers_version", "dtype", "architectures", "_name_or_path"}
"""Fields of a model's configuration that say nothing about what is trained; classes have a field of their own."""
DEPLOYED = {"model": "deployed", "best": "deployed-best"}
"""Folders of weights, and beside which of them the stock detector that D-RMM was put on lies by itself."""
_MANIFEST = "checkpoint.json"
_AVERAGE = "average.safetensors"
_ERRORS = (OSError, RuntimeError, SafetensorError)


class Checkpoints:
    """The checkpoints of one output folder, named by their step.

    Args:
        output: the folder of the training; they lie in checkpoints/ there, which is made when the first is saved.
        limit: how many to keep.
    """

    def __init__(self, output: Path, limit: int = 2):
        self.output, self.folder, self.limit = output, output / "checkpoints", limit

    def paths(self) -> list[Path]:
        """Folders of the checkpoints, the newest last."""
        return sorted(self.folder.glob("step-*"))

    def _found(self) -> str:
        """What the output folder holds already: "a finished training", "an unfinished training" or nothing."""
        if (self.output / "metrics.json").is_file():
            return "a finished training"
        weights = any((self.output / name / "config.json").is_file() for name in DEPLOYED)
        return "an unfinished training" if weights or self.paths() else ""

    def refuse_others(self, config: TrainConfig) -> None:
        """A `ValueError` if the output folder holds a training that `config` neither resumes nor overwrites."""
        found, resumable = self._found(), bool(self.paths())
        if found and not config.overwrite and not (config.resume and resumable):
            go_on = "--resume to go on with it, " * resumable
            raise ValueError(
                f"--output {self.output}: holds {found}; choose another folder, {go_on}or --overwrite to begin anew"
            )

    def claim(self) -> None:
        """Keep other trainings out of the output folder for as long as this object lives.

        Raises:
            ValueError: another one is there.
        """
        self._lock = (self.output / ".lock").open("w")
        try:
            if fcntl is not None:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(f"--output {self.output}: another training runs there; choose another folder") from error
        except OSError:  # a file system without locks
            pass

    def begin_anew(self) -> None:
        """Remove what would make a new training look finished, or pass for a part of it; other files stay."""
        if self._found():
            for name in ("metrics.json", "results.json"):
                (self.output / name).unlink(missing_ok=True)
            for path in (*self.paths(), *(self.output / name for name in (*DEPLOYED, *DEPLOYED.values()))):
                shutil.rmtree(path, ignore_errors=True)

    def save(self, accelerator: Accelerator, progress: Mapping[str, Any], average: AveragedModel | None = None) -> None:
        """Save the state of all processes; every process calls it.

        Args:
            accelerator: knows the model, the optimizer and the schedule.
            progress: plain values for `to_resume`, among them `step`, the steps done, and `identity`.
            average: of the weights, if there is one.

        Raises:
            OSError: it cannot be written; what was there before is untouched.
        """
        final = self.folder / f"step-{progress['step']:08d}"
        partial = self.folder / ".partial"
        # The waits are outside: that another process is lost is no matter of this disk.
        if accelerator.is_main_process:
            with self._writing(final, partial):
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        accelerator.wait_for_everyone()
        with self._writing(final, partial):
            accelerator.save_state(str(partial), safe_serialization=True)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            with self._writing(final, partial):
                if average is not None:
                    save_model(average, str(partial / _AVERAGE))  # not save_file: layers may share their weights
                _seal(partial, progress)
                shutil.rmtree(final, ignore_errors=True)
                partial.rename(final)
                _sync(self.folder)
            for old in self.paths()[: -self.limit]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()

    def to_resume(self, identity: Mapping[str, Any]) -> tuple[Path, dict[str, Any]] | None:
        """The newest complete checkpoint and its progress; damaged ones are passed over with a note.

        Args:
            identity: what the run that goes on must share with the one before, as plain values.

        Raises:
            ValueError: the checkpoint is of another run, by the first field that differs.
        """
        for path in reversed(self.paths()):
            try:
                progress = _complete(path)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                logger.warning("%s: incomplete or damaged (%s); passed over", path, error)
                continue
            for name, value in identity.items():
                saved = progress["identity"].get(name)
                if saved != value:
                    raise ValueError(
                        f"{path}: was made with {name}={saved}, but this run has {value}; give the data and settings "
                        "of the first part, or begin anew with another --output"
                    )
            logger.warning("going on from %s", path)
            return path, progress
        logger.warning("%s: no checkpoint to resume; starting from the beginning", self.folder)
        return None

    def load(self, path: Path, accelerator: Accelerator, average: AveragedModel | None = None) -> None:
        """Restore what `save` saved into the prepared objects of `accelerator`.

        Raises:
            ValueError: the checkpoint does not fit the model or the settings.
        """
        try:
            accelerator.load_state(str(path))
            if average is not None:
                load_model(average, path / _AVERAGE)
        except (*_ERRORS, ValueError, KeyError) as error:
            raise ValueError(f"{path}: cannot be resumed: {' '.join(str(error).split())[:300]}") from error

    @contextlib.contextmanager
    def _writing(self, final: Path, partial: Path) -> Iterator[None]:
        try:
            yield
        except _ERRORS as error:
            shutil.rmtree(partial, ignore_errors=True)
            kept = self.paths()
            state = f"the last good one is {kept[-1]}" if kept else "there is none yet"
            raise OSError(
                f"{final}: the checkpoint cannot be written ({' '.join(str(error).split())}); {state}. Free some space "
                "and go on with --resume."
            ) from error


def identity(config: TrainConfig, images_per_step: int, data: TrainingData, model: DrmmConfig) -> dict[str, Any]:
    """What a resumed run must share with the one before, as plain values."""
    fields = json.loads(json.dumps(model.to_dict()))
    return {
        "images_per_step": images_per_step,
        "seed": config.seed,
        "min_scale_ratio_start": config.min_scale_ratio_start,
        **data.identity(),
        "classes": {str(label): name for label, name in data.id2label.items()},
        "ema_decay": config.ema_decay,
        "image_frame": config.image_frame,
        "image_size": config.image_size,
        **{f"config.{name}": fields[name] for name in sorted(fields) if name not in NOT_THE_MODEL},
    }


def keep_lines(path: Path, last_step: int) -> None:
    """Drop from metrics.jsonl what a run wrote after the checkpoint from which this one goes on."""
    kept = []
    for line in path.read_text().splitlines() if last_step and path.is_file() else []:
        with contextlib.suppress(ValueError):  # cut off in the middle
            if json.loads(line)["step"] <= last_step:
                kept.append(line + "\n")
    write_text(path, "".join(kept))


def _seal(partial: Path, progress: Mapping[str, Any]) -> None:
    """Add, last of all, the list of files with their sizes; force all of it to disk."""
    files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
    sizes = {str(path.relative_to(partial)): path.stat().st_size for path in files}
    (partial / _MANIFEST).write_text(json.dumps({**progress, "files": sizes}, indent=1) + "\n")
    for path in [*files, partial / _MANIFEST, partial]:
        _sync(path)


def _complete(path: Path) -> dict[str, Any]:
    """What `_seal` noted; an error of any kind where a file is missing or has another size."""
    content = json.loads((path / _MANIFEST).read_text())
    for name, size in content["files"].items():
        found = (path / name).stat().st_size
        if found != size:
            raise ValueError(f"{name} has {found} bytes in place of {size}")
    return content


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
