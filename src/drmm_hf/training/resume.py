"""Whether a run goes on from a checkpoint, and from which."""

import json
import logging
from pathlib import Path
from typing import Any

from ..modeling_drmm import DrmmForObjectDetection
from .checkpoints import Checkpoints
from .config import TrainConfig
from .sources import SampleSource

logger = logging.getLogger(__name__)

_FINISHED = "metrics.json"
_NOT_THE_MODEL = {"id2label", "label2id", "transformers_version", "dtype", "architectures"}
_FIXES = {
    "images_per_step": "; choose --gradient-accumulation or --batch-size so that the number agrees",
    "classes": "; resume with the data set of the first part, or fine-tune with --model",
    "training images": "; resume with the data set of the first part",
    "shards": "; resume with the data set of the first part",
}


def run_identity(
    model: DrmmForObjectDetection, source: SampleSource, config: TrainConfig, images_per_step: int
) -> dict[str, Any]:
    """What a resumed run must share with the one before, as plain values."""
    fields = model.config.to_dict()
    return {
        "images_per_step": images_per_step,
        "seed": config.seed,
        **source.identity(),
        "classes": {str(label): name for label, name in source.id2label.items()},
        "ema_decay": config.ema_decay,
        **{
            f"config.{name}": json.loads(json.dumps(fields[name]))
            for name in sorted(fields)
            if name not in _NOT_THE_MODEL
        },
    }


def checkpoint_to_resume(
    checkpoints: Checkpoints, output: Path, identity: dict[str, Any], resume: bool
) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint from which to go on and its progress, or None for a new run. Changes nothing.

    Raises:
        ValueError: the checkpoint is of another run, by the first field that differs; or, without `resume`, there are
            checkpoints of an unfinished run, which a new one would remove.
    """
    if not resume:
        if checkpoints and not (output / _FINISHED).is_file():
            raise ValueError(
                f"{checkpoints.folder}: an unfinished training has left checkpoints here; add --resume to go on with "
                "it, or choose another --output."
            )
        return None
    found = checkpoints.last()
    if found is None:
        logger.warning("%s: no checkpoint to resume; starting from the beginning", checkpoints.folder)
        return None
    path, progress = found
    for name, value in identity.items():
        saved = progress["identity"].get(name)
        if saved != value:
            raise ValueError(f"{path}: was made with {name}={saved}, but this run has {value}{_FIXES.get(name, '')}")
    logger.warning("going on from %s", path)
    return found


def prepare_output(output: Path, checkpoints: Checkpoints, *, keep: bool) -> None:
    """Make the output folder; unless `keep`, remove what would make a new run look finished or resumable."""
    output.mkdir(parents=True, exist_ok=True)
    if not keep:
        checkpoints.clear()
        (output / _FINISHED).unlink(missing_ok=True)
