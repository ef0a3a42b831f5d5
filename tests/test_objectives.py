"""The objectives of Tables 2 and 3: their values written out, and what they do to duplicates."""

import itertools

import pytest
import torch

from drmm_hf.mixture import OBJECTIVES, MixtureParameters, log_mixing_coefficients, mixture_loss
from model_fixtures import inputs, small_model

OPTIONS = {"min_scale_ratio": 0.0, "likelihood_floor": 0.0}


def mixture(components: int = 5, seed: int = 0) -> MixtureParameters:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(1, components, *shape, generator=generator, dtype=torch.float64)

    corner = draw(2) * 20 + 50
    locations = torch.cat((corner, corner + 20), dim=-1)
    return MixtureParameters(locations, draw(4).abs() * 5 + 3, draw(3), draw())


def joint_densities(parameters: MixtureParameters, boxes, labels) -> torch.Tensor:
    """(N, K) n * pi_k * F_jk * p_k[c_j], one scalar at a time."""
    locations, scales, class_logits, objectness = (t[0] for t in parameters[:4])
    pi = objectness.sigmoid() / objectness.sigmoid().sum()
    p = class_logits.softmax(-1)
    joint = torch.zeros(len(boxes), len(pi), dtype=torch.float64)
    for j, k in itertools.product(range(len(boxes)), range(len(pi))):
        density = 1.0
        for edge in range(4):
            s, d = scales[k, edge], boxes[j, edge] - locations[k, edge]
            density = density / (torch.pi * s * (1 + (d / s) ** 2))
        joint[j, k] = len(boxes) * pi[k] * density * p[k, labels[j]]
    return joint


def best_assignment(joint: torch.Tensor) -> list[int]:
    """Components of the ground truths with the greatest product of densities, by trying all."""
    num, components = joint.shape
    choices = itertools.permutations(range(components), num)
    return list(max(choices, key=lambda c: sum(joint[j, k].log().item() for j, k in enumerate(c))))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_definitions_written_out(objective) -> None:
    parameters = mixture()
    boxes = parameters.locations[0, :2] + 4.0
    boxes = torch.cat((boxes, boxes[:1] + 1.0))  # two ground truths want the same component
    labels = torch.tensor([0, 2, 0])
    joint = joint_densities(parameters, boxes, labels)
    matched = joint[torch.arange(3), best_assignment(joint)]
    assert not torch.equal(matched, joint.max(dim=1).values), "matching and maximum must differ to be told apart"
    likelihood = {
        "nll_max": joint.max(dim=1).values,
        "nll_bipartite": matched,
    }.get(objective, joint.sum(dim=1))
    owner = matched if objective == "nll_mcm_bipartite" else joint.max(dim=1).values
    terms = mixture_loss(parameters, boxes[None], labels[None], objective=objective, **OPTIONS)
    torch.testing.assert_close(terms.nll[0], -likelihood.log())
    torch.testing.assert_close(terms.mcm[0], -(owner / joint.sum(dim=1)).log())


@pytest.mark.parametrize("objective", ["nll_bipartite", "nll_mcm_bipartite"])
def test_more_ground_truths_than_components(objective) -> None:
    parameters = mixture(components=2)
    boxes = torch.cat((parameters.locations, parameters.locations[:, :1] + 2.0), dim=1)
    terms = mixture_loss(parameters, boxes, torch.zeros(1, 3, dtype=torch.long), objective=objective)
    assert (terms.mcm == 0).sum() == 1
    assert (terms.nll == 0).sum() == (1 if objective == "nll_bipartite" else 0)


def fit(objective: str, steps: int = 400) -> torch.Tensor:
    """Optimise twenty free components on one image with two objects; returns each object's shares (2, K)."""
    torch.manual_seed(0)
    boxes = torch.tensor([[[20.0, 20.0, 60.0, 60.0], [70.0, 30.0, 120.0, 90.0]]])
    labels = torch.tensor([[0, 1]])
    start = boxes[0].repeat(10, 1) + torch.randn(20, 4)
    free = [start[None], torch.ones(1, 20, 4), torch.zeros(1, 20, 2), torch.zeros(1, 20)]
    free = [t.clone().requires_grad_() for t in free]
    optimizer = torch.optim.Adam(free, lr=0.08)
    for _ in range(steps):
        locations, raw, classes, objectness = free
        parameters = MixtureParameters(locations, torch.nn.functional.softplus(raw), classes, objectness)
        terms = mixture_loss(parameters, boxes, labels, objective=objective)
        loss = (terms.nll + (0.5 * terms.mcm if "mcm" in objective else 0.0)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    log_share = log_mixing_coefficients(free[3].detach())[0]
    owner = (free[0][0, :, 0].detach() > 45).long()
    return torch.stack([log_share.exp() * (owner == j) for j in range(2)])


def test_nll_leaves_duplicates_that_mcm_removes() -> None:
    """An object's weight stays spread over its components under NLL, and gathers on one with MCM (Figure 5)."""
    spread, gathered = fit("nll"), fit("nll_mcm")
    for j in range(2):
        largest = [(shares[j].max() / shares[j].sum()).item() for shares in (spread, gathered)]
        assert largest[0] < 0.5, "NLL alone would already have chosen one component"
        assert largest[1] > 0.9
        assert (spread[j] > 0.1 * spread[j].max()).sum() >= 3
        assert (gathered[j] > 0.1 * gathered[j].max()).sum() == 1


@pytest.mark.parametrize("objective", [*OBJECTIVES, "set_prediction"])
def test_every_objective_trains_a_model(objective) -> None:
    extra = {"head": "set_prediction"} if objective == "set_prediction" else {}
    model = small_model(objective=objective, **extra).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    losses = []
    for _ in range(20):
        loss = model(**inputs()).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("decoder", ["sparse_rcnn", "adamixer"])
def test_the_gradient_of_the_class_alone_is_scaled(decoder) -> None:
    losses, gradients = [], []
    for factor in (1.0, 3.0):
        model = small_model(decoder=decoder, class_gradient=factor).train()
        loss = model(**inputs()).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert losses[0] == losses[1]
    last = model.config.num_stages - 1
    for name, plain in gradients[0].items():
        if "classifier" in name:
            torch.testing.assert_close(gradients[1][name], 3.0 * plain)
        elif name.endswith(("objectness.weight", f"{last}.head.box.weight")):
            torch.testing.assert_close(gradients[1][name], plain)
    assert any("classifier" in name for name in gradients[0])
