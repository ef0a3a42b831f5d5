"""Checkpoints to resume from: complete or not there at all.

A checkpoint is written beside its place, synced to disk and renamed, and its list of files comes last, so a crash at
any moment leaves the previous one. Model, optimizer, GradScaler and random states are Accelerate's (which knows about
FSDP and DeepSpeed) and are read with `weights_only`; the schedule and the position in the data follow from the step.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .optimization import WeightAverage

logger = logging.getLogger(__name__)

_MANIFEST = "checkpoint.json"
_AVERAGE = "average.safetensors"
_SAVE_ERRORS = (OSError, RuntimeError, SafetensorError)


class Checkpoints:
    """The checkpoints of one output folder, named by their step.

    Args:
        folder: where they lie; made when the first is saved.
        limit: how many to keep.
    """

    def __init__(self, folder: Path, limit: int = 2):
        self.folder, self.limit = folder, limit

    def save(
        self, accelerator: Accelerator, step: int, progress: dict[str, Any], average: WeightAverage | None = None
    ) -> Path:
        """Save the state of all processes after `step`; every process calls it.

        Raises:
            OSError: it cannot be written; what was there before is untouched.
        """
        final, partial = self.folder / f"step-{step:08d}", self.folder / f".partial-{step:08d}"
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            self._writing(final, lambda: partial.mkdir(parents=True))
        accelerator.wait_for_everyone()
        self._writing(final, lambda: accelerator.save_state(str(partial), safe_serialization=True))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self._writing(final, lambda: _seal(partial, {"step": step, **progress}, average))
            shutil.rmtree(final, ignore_errors=True)
            self._writing(final, lambda: _publish(partial, final))
            for old in self._steps()[: -self.limit]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()
        return final

    def last(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest complete checkpoint and its progress; damaged ones are passed over with a note."""
        for path in reversed(self._steps()):
            problem, content = _inspect(path)
            if problem is None:
                return path, content
            logger.warning("%s: %s; passed over", path, problem)
        return None

    def load(self, path: Path, accelerator: Accelerator, average: WeightAverage | None = None) -> None:
        """Restore what `save` saved into the prepared objects of `accelerator`.

        Raises:
            ValueError: the checkpoint does not fit the model or the settings.
        """
        try:
            accelerator.load_state(str(path))
            if average is not None:
                if not (path / _AVERAGE).is_file():
                    raise ValueError("it has no averaged weights; it was made without --ema-decay")
                content = json.loads((path / _MANIFEST).read_text())
                average.load(load_file(path / _AVERAGE), content["ema_updates"])
        except (*_SAVE_ERRORS, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{path}: cannot be resumed: {reason}") from error

    def clear(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def __bool__(self) -> bool:
        return bool(self._steps())

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def _writing(self, final: Path, action: Callable[[], Any]) -> None:
        try:
            action()
        except _SAVE_ERRORS as error:
            shutil.rmtree(self.folder / final.name.replace("step-", ".partial-"), ignore_errors=True)
            kept = self._steps()
            state = f"the last good one is {kept[-1]}" if kept else "there is none yet"
            reason = " ".join(str(error).split())
            raise OSError(
                f"{final}: the checkpoint cannot be written ({reason}); {state}. Free some space or choose another "
                "--output, and add --resume."
            ) from error


def _seal(partial: Path, content: dict[str, Any], average: WeightAverage | None) -> None:
    """Add the average and, last, the list of files with their sizes; force all of it to disk."""
    if average is not None:
        state = {name: tensor.contiguous() for name, tensor in average.model.state_dict().items()}
        save_file(state, partial / _AVERAGE)
        content = {**content, "ema_updates": average.updates}
    files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
    sizes = {str(path.relative_to(partial)): path.stat().st_size for path in files}
    (partial / _MANIFEST).write_text(json.dumps({**content, "files": sizes}, indent=1) + "\n")
    for path in [*files, partial / _MANIFEST, partial]:
        _sync(path)


def _publish(partial: Path, final: Path) -> None:
    partial.rename(final)
    _sync(final.parent)


def _inspect(path: Path) -> tuple[str | None, dict[str, Any]]:
    """What is wrong with a checkpoint, or None, and its manifest."""
    try:
        content = json.loads((path / _MANIFEST).read_text())
        for name, size in content["files"].items():
            found = (path / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes in place of {size}", {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"incomplete or damaged ({type(error).__name__})", {}
    return None, content


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
