"""The mixture loss against values of the authors' released code (tests/reference/README.md)."""

import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from drmm_hf.mixture import MixtureParameters, mixture_loss

REFERENCE = Path(__file__).parent / "reference"
CASES = json.loads((REFERENCE / "drmm_loss_cases.json").read_text())
# our argument's name in the files of golden values
INPUTS = {"locations": "loc", "scales": "sc", "class_logits": "prob_logits", "objectness_logits": "fg_logits"}


@cache
def golden() -> dict[str, torch.Tensor]:
    return load_file(REFERENCE / "drmm_loss_inputs.safetensors") | load_file(
        REFERENCE / "drmm_loss_gradients.safetensors"
    )


def our_arguments(cfg: dict) -> dict:
    """The released code's options as arguments of `mixture_loss`."""
    detach = {"location": "mcm_coord_detach", "class": "mcm_cat_detach", "mixing": "mcm_mix_detach"}
    return {
        "density": cfg["coord_dist"],
        "student_t_dof": cfg["t_freedom"],
        "min_scale_ratio": cfg["min_sc_ratio"],
        "class_weight": cfg["prob_weight"],
        "stop_gradient": tuple(name for name, option in detach.items() if cfg[option]),
    }


def run(name: str) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Total, per-ground-truth loss and the gradients (released names) of one case."""
    values = golden()
    leaves = {ours: values[f"{name}/{theirs}"].clone().requires_grad_() for ours, theirs in INPUTS.items()}
    cfg = CASES["defaults"] | CASES["cases"][name]["cfg"]
    parameters = MixtureParameters(
        leaves["locations"][None],
        leaves["scales"][None],
        leaves["class_logits"][None],
        leaves["objectness_logits"].reshape(1, -1),
    )
    boxes, labels = values[f"{name}/gt_boxes"][None], values[f"{name}/gt_labels"][None]
    loss = mixture_loss(parameters, boxes, labels, **our_arguments(cfg))
    per_box = cfg["mm_weight"] * (loss.nll + cfg["mcm_weight"] * loss.mcm)
    per_box.sum().backward()
    return per_box.sum().detach(), per_box[0].detach(), {INPUTS[k]: v.grad for k, v in leaves.items()}


@pytest.mark.parametrize("name", CASES["cases"])
def test_loss_and_gradients_equal_the_released_code(name):
    total, per_box, gradients = run(name)
    assert total.isfinite(), "finite also where the released code is not"
    assert all(g.isfinite().all() for g in gradients.values())
    if len(golden()[f"{name}/gt_labels"]) == 0:
        # The released code keeps its graph alive with 1e-12 times a random pseudo ground truth.
        assert total == 0
        assert all(g.abs().max() == 0 for g in gradients.values())
        return
    expected = CASES["cases"][name]["loss"]
    if math.isfinite(expected):
        torch.testing.assert_close(total, torch.tensor(expected), rtol=1e-5, atol=0)
        torch.testing.assert_close(per_box, golden()[f"{name}/per_gt"], rtol=1e-5, atol=1e-5)
    for theirs, gradient in gradients.items():
        expected_gradient = golden()[f"{name}/grad_{theirs}"]
        if expected_gradient.isfinite().all():
            error = (gradient - expected_gradient).norm() / expected_gradient.norm().clamp(min=1e-8)
            assert error < 1e-4, f"gradient of {theirs}: relative error {error:.1e}"


def test_every_released_case_is_here():
    assert len(CASES["cases"]) == 43
