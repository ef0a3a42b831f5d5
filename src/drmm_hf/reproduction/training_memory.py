"""Memory that one training step takes: on a GPU its peak, elsewhere the tensors that autograd keeps."""

from dataclasses import dataclass

import torch

from ..configuration_drmm import DrmmConfig
from ..modeling_drmm import DrmmForObjectDetection

_BOXES_PER_IMAGE = 8  # COCO has 7.3
_GIGA = 1e9


@dataclass(frozen=True)
class TrainingMemory:
    """Memory of one step.

    Attributes:
        gigabytes: 10⁹ bytes.
        method: "peak on the GPU", or "kept for the backward pass, weights, gradients and AdamW's moments", which does
            not depend on the device and leaves out temporary tensors.
    """

    gigabytes: float
    method: str


def training_memory(config: DrmmConfig, batch_size: int, height: int, width: int) -> TrainingMemory:
    """Memory of a training step in float32 with AdamW (Table 11), on a random batch.

    Args:
        config: of the model, which is made anew with random weights.
        batch_size: images.
        height, width: network input in pixels, multiples of 32.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: torch.nn.Module = DrmmForObjectDetection(config)
        model.to(device).train()
        batch = _batch(batch_size, height, width, len(config.id2label or {}), device)
    if device.type == "cuda":
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):  # AdamW's moments are there from the second step on
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return TrainingMemory(torch.cuda.max_memory_allocated() / _GIGA, "peak on the GPU")
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # alive until the end, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**batch)
    activations = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in weights)
    total = activations + sum(weights.values()) + 3 * trained
    return TrainingMemory(total / _GIGA, "kept for the backward pass, weights, gradients and AdamW's moments")


def _batch(batch_size: int, height: int, width: int, num_classes: int, device: torch.device) -> dict:
    low = torch.rand(batch_size, _BOXES_PER_IMAGE, 2) * 0.6
    centers, sizes = low + 0.2, torch.full_like(low, 0.2)
    labels = [
        {"class_labels": torch.randint(num_classes, (_BOXES_PER_IMAGE,), device=device), "boxes": boxes.to(device)}
        for boxes in torch.cat((centers, sizes), dim=-1)
    ]
    return {"pixel_values": torch.rand(batch_size, 3, height, width, device=device), "labels": labels}
