"""The mixture loss: its equations written naively, its invariances, and its behavior at the extremes."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from drmm_hf.mixture import (
    DENSITIES,
    OBJECTIVES,
    STOP_GRADIENTS,
    MixtureLoss,
    MixtureParameters,
    box_log_density,
    confidence_logits,
    effective_scales,
    log_mixing_coefficients,
    mixture_loss,
    mixture_losses,
)
from model_fixtures import Recorder


def case(batch: int = 2, components: int = 7, boxes: int = 3, classes: int = 4, seed: int = 0, dtype=torch.float64):
    """Parameters, ground-truth boxes and labels of ordinary size."""
    g = torch.Generator().manual_seed(seed)

    def corners(n: int) -> torch.Tensor:
        low = 40 * torch.rand(batch, n, 2, generator=g, dtype=dtype)
        return torch.cat((low, low + 5 + 30 * torch.rand(batch, n, 2, generator=g, dtype=dtype)), dim=-1)

    parameters = MixtureParameters(
        corners(components),
        1 + 4 * torch.rand(batch, components, 4, generator=g, dtype=dtype),
        torch.randn(batch, components, classes, generator=g, dtype=dtype),
        torch.randn(batch, components, generator=g, dtype=dtype),
    )
    return parameters, corners(boxes), torch.randint(classes, (batch, boxes), generator=g)


def densities(boxes, locations, scales, density: str, dof: float):
    """The 1-D densities of scipy at every edge, multiplied: (B, N, K)."""
    distribution = {"cauchy": stats.cauchy, "gaussian": stats.norm, "student_t": stats.t(dof)}[density]
    if density == "student_t":
        z = (boxes[:, :, None] - locations[:, None]) / scales[:, None]
        return torch.from_numpy(distribution.pdf(z.numpy())).div(scales[:, None]).prod(-1)
    edges = distribution.pdf(boxes[:, :, None].numpy(), locations[:, None].numpy(), scales[:, None].numpy())
    return torch.from_numpy(edges).prod(-1)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("floor", [0.0, 1e-12, 1e-6])
def test_the_equations_written_out(density: str, floor: float) -> None:
    """Eq. 2, Eq. 3, Eq. 5, Eq. 7 in linear space and float64, with pi times N and the floors of the released code."""
    parameters, boxes, labels = case()
    size = parameters.locations[..., 2:] - parameters.locations[..., :2]
    scales = torch.maximum(parameters.scales, 0.1 * torch.cat((size, size), -1))
    o = parameters.objectness_logits.sigmoid()
    pi = 3 * o / o.sum(-1, keepdim=True)
    p = parameters.class_logits.softmax(-1)
    p_of_label = torch.stack([p[i][:, labels[i]].T for i in range(2)])
    joint = pi[:, None] * densities(boxes, parameters.locations, scales, density, 3.0) * p_of_label.sqrt()
    evidence = joint.sum(-1)
    loss = mixture_loss(
        parameters,
        boxes,
        labels,
        density=density,
        student_t_dof=3.0,
        min_scale_ratio=0.1,
        likelihood_floor=floor,
        class_weight=0.5,
    )
    torch.testing.assert_close(loss.nll, -(evidence + floor).log())
    torch.testing.assert_close(loss.mcm, -(joint.max(-1).values / (evidence + floor) + floor).log())


@pytest.mark.parametrize(
    "stop", list(itertools.chain.from_iterable(itertools.combinations(STOP_GRADIENTS, r) for r in (0, 1, 3)))
)
@pytest.mark.parametrize("density", DENSITIES)
def test_mcm_sends_nothing_into_what_is_stopped(density: str, stop) -> None:
    """With a factor stopped MCM sends nothing there (properties/test_loss.py has the gradients themselves)."""
    parameters, boxes, labels = case(batch=1, components=4, boxes=2, classes=3)
    leaves = [t.requires_grad_() for t in parameters[:4]]
    stop = (stop,) if isinstance(stop, str) else stop
    total = mixture_loss(MixtureParameters(*leaves), boxes, labels, density=density, stop_gradient=stop).mcm.sum()
    if set(stop) == set(STOP_GRADIENTS):
        assert not total.requires_grad
        return
    gradients = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    reaches = {"location": gradients[0], "class": gradients[2], "mixing": gradients[3]}
    for name, gradient in reaches.items():
        assert (gradient.abs().max() == 0) == (name in stop), name


def test_images_do_not_see_each_other() -> None:
    parameters, boxes, labels = case()
    together = mixture_loss(parameters, boxes, labels)
    for i in range(2):
        alone = mixture_loss(
            MixtureParameters(*(t[i : i + 1] for t in parameters[:4])), boxes[i : i + 1], labels[i : i + 1]
        )
        torch.testing.assert_close(alone, MixtureLoss(together.nll[i : i + 1], together.mcm[i : i + 1]))


def test_what_is_masked_does_not_matter() -> None:
    parameters, boxes, labels = case()
    mask = torch.tensor([[True, True, False], [False, False, False]])
    expected = mixture_loss(MixtureParameters(*(t[:1] for t in parameters[:4])), boxes[:1, :2], labels[:1, :2])
    boxes[~mask], labels[~mask] = float("nan"), -100
    leaves = MixtureParameters(*(t.requires_grad_() for t in parameters[:4]))
    loss = mixture_loss(leaves, boxes, labels, mask)
    torch.testing.assert_close(loss.nll[:1, :2], expected.nll)
    torch.testing.assert_close(loss.mcm[:1, :2], expected.mcm)
    assert loss.nll[~mask].abs().sum() + loss.mcm[~mask].abs().sum() == 0
    (loss.nll.sum() + loss.mcm.sum()).backward()
    for leaf in leaves[:4]:
        assert leaf.grad.isfinite().all()
        assert leaf.grad[1].abs().max() == 0
        assert leaf.grad[0].abs().max() > 0


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
positive = st.one_of(
    st.sampled_from([0.0, 1e-45, 1e-38, 1e-20]), st.floats(0, torch.finfo(torch.float32).max, width=32)
)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(finite, min_size=8, max_size=8),
    st.lists(positive, min_size=8, max_size=8),
    st.lists(finite, min_size=8, max_size=8),
    st.lists(finite, min_size=4, max_size=4),
    st.sampled_from(DENSITIES),
    st.sampled_from([0.0, 1e-12]),
    st.sampled_from([0.0, 0.04]),
)
def test_finite_for_every_finite_input(locations, scales, logits, box, density, floor, ratio) -> None:
    parameters = MixtureParameters(
        torch.tensor(locations).view(1, 2, 4).requires_grad_(),
        torch.tensor(scales).view(1, 2, 4).requires_grad_(),
        torch.tensor(logits[:6]).view(1, 2, 3).requires_grad_(),
        torch.tensor(logits[6:]).view(1, 2).requires_grad_(),
    )
    boxes = torch.stack((torch.tensor(box), parameters.locations[0, 0].detach())).unsqueeze(0)
    loss = mixture_loss(
        parameters,
        boxes,
        torch.tensor([[0, 2]]),
        density=density,
        student_t_dof=2.5,
        likelihood_floor=floor,
        min_scale_ratio=ratio,
        stop_gradient=(),
    )
    value = loss.nll.sum() + loss.mcm.sum()
    value.backward()
    assert value.isfinite()
    assert floor == 0.0 or max(loss.nll.max(), loss.mcm.max()) <= -math.log(floor) + 1e-4
    for name, leaf in zip(MixtureParameters._fields, parameters[:4], strict=False):
        assert leaf.grad.isfinite().all(), name


def test_memory_grows_with_boxes_times_components_and_nothing_reads_the_host() -> None:
    """No (N, K, 4) or (N, K, C) tensor, and no operator that would make a GPU wait for the host."""
    parameters, boxes, labels = case(batch=2, components=30, boxes=50, classes=80, dtype=torch.float32)
    leaves = MixtureParameters(*(t.requires_grad_() for t in parameters[:4]))
    with Recorder() as recorder:
        loss = mixture_loss(leaves, boxes, labels, torch.ones(2, 50, dtype=torch.bool))
        (loss.nll + loss.mcm).sum().backward()
    assert recorder.largest == 2 * 30 * max(50, 80), "the largest tensor is that of all pairs, or the class logits"
    assert not [name for name in recorder.waiting() if not name.startswith("lift_fresh")]


def stages_of_a_batch(components: tuple[int, ...], dtype=torch.float64) -> tuple[list[MixtureParameters], tuple]:
    """Stages with so many components, with gradient, and three images of 3, 0 and 1 ground truths."""
    stages = []
    for seed, count in enumerate(components):
        parameters, boxes, labels = case(batch=3, components=count, seed=seed, dtype=dtype)
        stages.append(MixtureParameters(*(t.requires_grad_() for t in parameters[:4])))
    mask = torch.tensor([[True, True, True], [False, False, False], [True, False, False]])
    return stages, (boxes, labels, mask)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("components", [(7, 7, 7), (7, 5, 5, 2)])
@pytest.mark.parametrize("density", DENSITIES)
def test_all_stages_at_once_are_each_stage_by_itself(components, objective, density) -> None:
    """Values and gradients, with the padding and, where the host knows the counts, without it."""
    options = {"objective": objective, "density": density, "class_weight": 0.7}
    stages, targets = stages_of_a_batch(components)
    leaves = [leaf for stage in stages for leaf in stage[:4]]
    alone = [mixture_loss(stage, *targets, **options) for stage in stages]
    expected = torch.stack([(terms.nll + 0.5 * terms.mcm).sum() for terms in alone])
    gradients = torch.autograd.grad(expected.sum(), leaves)
    for counts in (None, [3, 0, 1]):
        terms = mixture_losses(stages, *targets, counts, **options)
        assert terms.nll.shape == (9 if counts is None or "bipartite" in objective else 4, len(stages))
        total = (terms.nll + 0.5 * terms.mcm).sum(dim=0)
        torch.testing.assert_close(total, expected)
        torch.testing.assert_close(torch.autograd.grad(total.sum(), leaves), gradients)
        if len(terms.nll) == 4:  # in the order of the images
            torch.testing.assert_close(terms.nll, torch.stack([t.nll[targets[2]] for t in alone], dim=1))


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    stages, targets = stages_of_a_batch((7,))
    loss = mixture_losses(stages, *targets).nll.sum()
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(loss, stages[0].locations, create_graph=True)


@pytest.mark.slow
def test_it_compiles_whole_and_once_for_other_numbers_of_ground_truths() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(mixture_losses, fullgraph=True, dynamic=True, backend="aot_eager")
    for boxes in (3, 5, 9):
        parameters, *targets = case(boxes=boxes)
        leaves = MixtureParameters(*(t.requires_grad_() for t in parameters[:4]))
        gradients = []
        with torch._dynamo.config.patch(error_on_recompile=boxes > 3):
            for function in (compiled, mixture_losses):
                terms = function([leaves, leaves], *targets)
                gradients.append(torch.autograd.grad((terms.nll + terms.mcm).sum(), leaves[:4]))
        torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("density", "unknown"),
        ("objective", "hungarian"),
        ("stop_gradient", ("loc",)),
        ("stop_gradient", "location"),
        ("boxes", torch.zeros(2, 3, 5)),
        ("boxes", torch.zeros(2, 4, 4)),
        ("mask", torch.ones(2, 4, dtype=torch.bool)),
    ],
)
def test_wrong_arguments_are_named(name: str, value) -> None:
    parameters, boxes, labels = case()
    with pytest.raises(ValueError, match=name):
        mixture_loss(**{"parameters": parameters, "boxes": boxes, "labels": labels, name: value})


def test_mixing_coefficients_and_scale_floor() -> None:
    logits = torch.tensor([[-120.0, -119.0, -121.0]])
    torch.testing.assert_close(log_mixing_coefficients(logits).exp().sum(), torch.tensor(1.0))
    locations = torch.tensor([[0.0, 0.0, 100.0, 50.0], [10.0, 0.0, 0.0, 50.0]])
    scales = effective_scales(locations, torch.full((2, 4), 3.0), 0.04)
    assert scales.tolist() == [[4.0, 3.0, 4.0, 3.0], [3.0, 3.0, 3.0, 3.0]]
    at_the_peak = (torch.zeros(4, 1), torch.zeros(4, 1, 1), torch.ones(4, 1, 1), torch.zeros(1, dtype=torch.long))
    assert box_log_density(*at_the_peak).exp().item() == pytest.approx(math.pi**-4)


@pytest.mark.parametrize("classes", [1, 5])
def test_confidence_logits_against_float64_and_at_the_extremes(classes: int) -> None:
    g = torch.Generator().manual_seed(0)
    class_logits, objectness = 20 * torch.randn(1, 50, classes, generator=g), 20 * torch.randn(1, 50, generator=g)
    logits = confidence_logits(class_logits, objectness)
    exact, o = class_logits.double().exp(), objectness.double().unsqueeze(-1).exp()
    # p*o / (1 - p*o) without a difference of nearly equal numbers; odds of o are o / 1
    others = torch.stack([exact[..., [k for k in range(classes) if k != c]].sum(-1) for c in range(classes)], dim=-1)
    odds = exact * o / (exact + others * (1 + o))
    assert classes == 1 or (odds > 1e7).any(), "confidences that float32 rounds to one are among them"
    torch.testing.assert_close(logits, odds.log().float(), rtol=2e-6, atol=2e-6)
    extreme = confidence_logits(torch.tensor([[[300.0] + [-300.0] * (classes - 1)]]), torch.tensor([[80.0]]))
    assert extreme.isfinite().all()
    assert extreme[0, 0, 0] > 30
