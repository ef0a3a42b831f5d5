"""A Sparse R-CNN or AdaMixer checkpoint as the start of a D-RMM training."""

import torch

from ..loading import load_checkpoint
from ..modeling_drmm import DrmmForObjectDetection

# last layers of a head: their outputs mean something else under a mixture
_OUTPUT_LAYERS = ("classifier", "objectness", "box")


@torch.no_grad()
def warm_start(model: DrmmForObjectDetection, checkpoint: str) -> list[str]:
    """Copy all weights of a checkpoint of this package but the output layers of the heads into `model`.

    Args:
        model: freshly initialised; its output layers keep that.
        checkpoint: folder or Hub id, such as `scripts/convert.py` writes.

    Returns:
        The names of the tensors of `model` that were not copied.

    Raises:
        FileNotFoundError, ValueError: the checkpoint cannot be loaded, or is of another decoder, backbone or size.
    """
    source, _ = load_checkpoint(checkpoint)
    if source.config.decoder != model.config.decoder:
        raise ValueError(
            f"{checkpoint} has decoder={source.config.decoder!r}, the model to train {model.config.decoder!r}; choose "
            "a preset of the same decoder."
        )
    target, weights = model.state_dict(), source.state_dict()
    kept = [name for name in target if name.startswith("model.heads.") and name.split(".")[3] in _OUTPUT_LAYERS]
    wanted = [name for name in target if name not in kept]
    missing = [name for name in wanted if name not in weights]
    misfits = [name for name in wanted if name in weights and weights[name].shape != target[name].shape]
    if missing or misfits:
        examples = ", ".join((missing + misfits)[:3])
        raise ValueError(
            f"{checkpoint} does not fit the model to train: {len(missing)} tensors missing and {len(misfits)} of "
            f"another shape, such as {examples}. Choose the preset of the same backbone, widths and numbers of stages "
            "and proposals."
        )
    for name in wanted:
        target[name].copy_(weights[name])
    return kept
