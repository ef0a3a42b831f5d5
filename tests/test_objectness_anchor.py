"""The terms that give the objectness a level of its own."""

import pytest
import torch

from drmm_hf.loss import bernoulli_anchor, objectness_anchor, poisson_anchor
from drmm_hf.mixture import MixtureParameters, mixture_loss, responsibilities
from model_fixtures import EMPTY, inputs, small_model
from test_objectives import OPTIONS, joint_densities, mixture


def scene(num_boxes: int = 3):
    parameters = mixture()
    boxes = parameters.locations[:, :num_boxes] + 4.0
    labels = torch.arange(num_boxes)[None] % 3
    return parameters, boxes, labels, torch.ones(1, num_boxes, dtype=torch.bool)


def test_responsibilities_are_the_posterior_written_out() -> None:
    parameters, boxes, labels, mask = scene()
    joint = joint_densities(parameters, boxes[0], labels[0])
    found = responsibilities(parameters, boxes, labels, mask, **OPTIONS)
    torch.testing.assert_close(found[0], joint / joint.sum(dim=1, keepdim=True))


def test_a_ground_truth_out_of_reach_is_nobodys() -> None:
    parameters, _, labels, mask = scene(1)
    far = torch.full((1, 1, 4), 1e6, dtype=torch.float64)
    assert responsibilities(parameters, far, labels, mask).sum() < 1e-6


def test_likelihood_and_poisson_term_are_the_point_process() -> None:
    """-log of exp(-Lambda) prod_j sum_k o_k F_jk p_k, one scalar at a time; n! is left out."""
    parameters, boxes, labels, mask = scene()
    rate = parameters.objectness_logits.sigmoid().sum()
    # the released pi is multiplied by n, so o_k = joint density * rate / n
    intensity = joint_densities(parameters, boxes[0], labels[0]).sum(dim=1) * rate / 3
    nll = mixture_loss(parameters, boxes, labels, mask, **OPTIONS).nll.sum()
    # n log n is the constant between n * pi and pi
    found = nll + 3 * torch.tensor(3.0).log() + objectness_anchor("poisson", parameters, boxes, labels, mask).sum()
    torch.testing.assert_close(found, rate - intensity.log().sum())


@pytest.mark.parametrize("num_boxes", [0, 1, 4])
def test_poisson_is_least_where_the_objectness_adds_up_to_the_number_of_objects(num_boxes) -> None:
    logits = torch.linspace(-2, 2, 12, dtype=torch.float64)[None].requires_grad_()
    optimizer = torch.optim.LBFGS([logits], lr=0.5, max_iter=300)

    def closure():
        optimizer.zero_grad()
        loss = poisson_anchor(logits.sigmoid().sum(dim=-1).log(), torch.tensor([num_boxes])).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert logits.sigmoid().sum().item() == pytest.approx(num_boxes, abs=1e-3)


def test_bernoulli_written_out() -> None:
    logits = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    posterior = torch.tensor([[[0.75, 0.25], [0.5, 0.5], [9.0, 9.0]]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    target = torch.tensor([1 - 0.25 * 0.5, 1 - 0.75 * 0.5], dtype=torch.float64)
    o = logits[0].sigmoid()
    expected = -(target * o.log() + (1 - target) * (1 - o).log()).sum()
    torch.testing.assert_close(bernoulli_anchor(logits, posterior, mask)[0], expected)


def test_bernoulli_teaches_the_objectness_alone() -> None:
    leaves = [t.clone().requires_grad_() for t in mixture()[:4]]
    _, boxes, labels, mask = scene()
    objectness_anchor("bernoulli", MixtureParameters(*leaves), boxes, labels, mask).sum().backward()
    assert all(leaf.grad is None for leaf in leaves[:3])
    assert (leaves[3].grad != 0).all()


@pytest.mark.parametrize("kind", ["poisson", "bernoulli"])
@pytest.mark.parametrize("decoder", ["sparse_rcnn", "adamixer"])
def test_an_image_without_objects_lowers_the_objectness(kind, decoder) -> None:
    torch.manual_seed(0)
    model = small_model(decoder=decoder, objectness_anchor=kind).train()
    batch = {**inputs(batch=1), "labels": [EMPTY]}
    before = model(**batch).objectness_logits.mean().item()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(5):
        outputs = model(**batch)
        outputs.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model(**batch).objectness_logits.mean().item() < before - 0.1
    stages = model.config.num_stages
    assert {f"anchor_stage_{i}" for i in range(1, stages + 1)} <= set(outputs.loss_dict)


def test_without_an_anchor_such_an_image_teaches_nothing() -> None:
    model = small_model().train()
    batch = {**inputs(batch=1), "labels": [EMPTY]}
    outputs = model(**batch)
    assert outputs.loss.item() == 0
    assert not any(name.startswith("anchor") for name in outputs.loss_dict)


@pytest.mark.parametrize("kind", ["poisson", "bernoulli"])
def test_the_loss_is_the_sum_of_its_terms(kind) -> None:
    model = small_model(objectness_anchor=kind).train()
    outputs = model(**inputs())
    weight = {"nll": 1.0, "mcm": model.config.mcm_weight, "anchor": 1.0}
    expected = sum(weight[name.split("_")[0]] * value for name, value in outputs.loss_dict.items())
    torch.testing.assert_close(outputs.loss.detach(), expected)
