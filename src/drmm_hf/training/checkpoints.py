"""Checkpoints to resume from: complete or not there at all, and only for the run they belong to.

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

logger = logging.getLogger(__name__)

NOT_THE_MODEL = {"id2label", "label2id", "transformers_version", "dtype", "architectures", "_name_or_path"}
"""Fields of a model's configuration that say nothing about what is trained; classes have a field of their own."""
_MANIFEST = "checkpoint.json"
_AVERAGE = "average.safetensors"
_ERRORS = (OSError, RuntimeError, SafetensorError)


class Checkpoints:
    """The checkpoints of one output folder, named by their step.

    Args:
        folder: where they lie; made when the first is saved.
        limit: how many to keep.
    """

    def __init__(self, folder: Path, limit: int = 2):
        self.folder, self.limit = folder, limit

    def paths(self) -> list[Path]:
        """Folders of the checkpoints, the newest last."""
        return sorted(self.folder.glob("step-*"))

    def clear(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self.folder, ignore_errors=True)

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
        partial = self.folder / f".partial-{progress['step']:08d}"
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
                "or choose another --output, and add --resume."
            ) from error


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
