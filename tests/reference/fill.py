"""Deterministic weights and inputs by name: with them a full-size model is compared without shipping its weights.

A tensor called `name` is drawn from PCG64 seeded by the first eight bytes (little endian) of sha256(name), shaped by
the first of the rules below that fits, in float64, and rounded to float32 last. The golden values were computed by the
authors' released code with its parameters filled in the same way, under the released names.
"""

import hashlib
import math

import numpy as np


def generator(name: str) -> np.random.Generator:
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Value of the released parameter or buffer `name` of D-RMM, Sparse R-CNN or AdaMixer."""
    noise = generator(name).standard_normal(shape)
    base = noise / math.sqrt(math.prod(shape[1:]))
    if name.endswith("running_mean"):
        value = 0.1 * noise
    elif name.endswith("running_var"):
        value = 1 + 0.1 * np.abs(noise)
    elif name.endswith("init_proposal_bboxes.weight"):
        center, size = noise[:, :2], 1.5 * noise[:, 2:]
        value = np.concatenate([0.1 + 0.8 / (1 + np.exp(-center)), 0.06 + 0.85 / (1 + np.exp(-size))], axis=1)
    elif name.endswith(("init_proposal_features.weight", "init_content_features.weight")):
        value = noise
    elif name.endswith("iof_tau"):
        value = 4 / (1 + np.exp(-noise))
    elif name.endswith("sampling_offset_generator.0.weight"):
        value = 0.3 * base
    elif name.endswith("sampling_offset_generator.0.bias"):
        value = 0.3 * noise - np.where(np.arange(shape[0]) % 3 == 2, 3.0, 0.0)
    elif name.endswith("fc_cls.weight"):
        value = (3.0 if shape[0] == 81 else 1.5) * base  # 81 rows: D-RMM, objectness first
    elif name.endswith("fc_cls.bias") and shape[0] == 80:
        value = -3 + 0.3 * noise
    elif name.endswith("fc_reg.weight"):
        value = (8.0 if shape[0] == 8 else 0.3) * base  # 8 rows: D-RMM, scales last
    elif name.endswith("weight") and len(shape) == 1:
        value = 1 + 0.1 * noise
    elif name.endswith("bias"):
        value = 0.05 * noise
    else:
        value = base
    return np.ascontiguousarray(value.astype(np.float32))
