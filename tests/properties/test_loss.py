"""What the mixture loss does not depend on, its bounds, and its gradient, for random mixtures."""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drmm_hf.mixture import DENSITIES, OBJECTIVES, MixtureParameters, effective_scales, mixture_loss
from properties.examples import few_examples


class Case(NamedTuple):
    """One image: a mixture of K components and N ground truths, float64."""

    parameters: MixtureParameters
    boxes: torch.Tensor
    labels: torch.Tensor


@st.composite
def cases(draw: st.DrawFn) -> Case:
    components, boxes, classes = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    spread = draw(st.sampled_from([0.3, 3.0, 30.0]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def corners(n: int) -> torch.Tensor:
        low = 50 * torch.rand(1, n, 2, generator=g, dtype=torch.float64)
        return torch.cat((low, low + 1 + 40 * torch.rand(1, n, 2, generator=g, dtype=torch.float64)), dim=-1)

    def normal(*shape: int) -> torch.Tensor:
        return spread * torch.randn(1, *shape, generator=g, dtype=torch.float64)

    scales = (0.1 * normal(components, 4)).exp() * spread
    parameters = MixtureParameters(corners(components), scales, normal(components, classes), normal(components))
    return Case(parameters, corners(boxes), torch.randint(classes, (1, boxes), generator=g))


densities = st.sampled_from(DENSITIES)
objectives = st.sampled_from(OBJECTIVES)
seeds = st.integers(0, 1000)


def terms(case: Case, **options) -> torch.Tensor:
    """(2, N): NLL and MCM."""
    return torch.cat(mixture_loss(*case, **options))


def permuted(tensors, order: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(t[:, order] for t in tensors)


@few_examples
@given(cases(), densities, objectives, seeds, st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_neither_order_nor_place_nor_autocast_matters(
    case: Case, density: str, objective: str, seed: int, x: float, y: float
) -> None:
    options = {"density": density, "objective": objective}
    expected = terms(case, **options)
    counts = (case.parameters.objectness_logits.shape[1], case.labels.shape[1])
    order, other_order = (torch.randperm(n, generator=torch.Generator().manual_seed(seed)) for n in counts)
    other = case._replace(parameters=MixtureParameters(*permuted(case.parameters[:4], order)))
    torch.testing.assert_close(terms(other, **options), expected)
    other = Case(case.parameters, *permuted(case[1:], other_order))
    torch.testing.assert_close(terms(other, **options), expected[:, other_order])
    shift = torch.tensor([x, y, x, y], dtype=torch.float64)
    moved = case.parameters._replace(locations=case.parameters.locations + shift)
    other = case._replace(parameters=moved, boxes=case.boxes + shift)
    torch.testing.assert_close(terms(other, **options), expected, rtol=1e-6, atol=1e-6)
    single = Case(MixtureParameters(*(t.float() for t in case.parameters[:4])), case.boxes.float(), case.labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = terms(single, **options)
    torch.testing.assert_close(inside, terms(single, **options), rtol=0, atol=0)


@few_examples
@given(cases(), densities, st.floats(0.1, 10))
def test_a_unit_of_length_adds_a_constant(case: Case, density: str, unit: float) -> None:
    """The density is per px^4: lengths times u add 4 log u to every NLL and leave MCM alone."""
    parameters = case.parameters._replace(
        locations=case.parameters.locations * unit, scales=case.parameters.scales * unit
    )
    options = {"density": density, "likelihood_floor": 0.0}
    nll, mcm = terms(case, **options)
    other_nll, other_mcm = terms(Case(parameters, case.boxes * unit, case.labels), **options)
    torch.testing.assert_close(other_nll, nll + 4 * math.log(unit))
    torch.testing.assert_close(other_mcm, mcm)


@few_examples
@given(cases(), densities, st.sampled_from(["nll_mcm", "nll", "nll_max", "nll_mcm_bipartite"]))
def test_an_impossible_component_changes_nothing(case: Case, density: str, objective: str) -> None:
    extra = MixtureParameters(*(torch.cat((t, t[:, :1] + 1), dim=1) for t in case.parameters[:4]))
    extra.objectness_logits[:, -1] = -1e5
    options = {"density": density, "objective": objective}
    if objective == "nll_mcm_bipartite" and case.labels.shape[1] >= extra.objectness_logits.shape[1]:
        return  # the matching then has to give it to a ground truth
    torch.testing.assert_close(terms(case._replace(parameters=extra), **options), terms(case, **options))


@few_examples
@given(cases(), densities)
def test_the_likelihood_is_at_most_that_of_the_narrowest_peak(case: Case, density: str) -> None:
    """p(b, c) <= N * max_k F_k(mu_k), since the mixing weights (times N) and the class probabilities are at most 1."""
    scales = effective_scales(case.parameters.locations, case.parameters.scales, 0.04)
    peak = {"cauchy": math.pi, "gaussian": math.sqrt(2 * math.pi), "student_t": math.pi}[density]
    bound = (scales * peak).log().sum(-1).min() - math.log(case.labels.shape[1])
    nll = mixture_loss(*case, density=density, likelihood_floor=0.0).nll
    assert (nll >= bound - 1e-9).all()


@few_examples
@given(cases(), densities)
def test_mcm_is_the_logarithm_of_at_most_k(case: Case, density: str) -> None:
    """The largest of K shares is at least 1/K: 0 <= MCM <= log K, and 0 for one component."""
    mcm = mixture_loss(*case, density=density, likelihood_floor=0.0).mcm
    assert (mcm >= -1e-9).all()
    assert (mcm <= math.log(case.parameters.objectness_logits.shape[1]) + 1e-9).all()
    one = case._replace(parameters=MixtureParameters(*(t[:, :1] for t in case.parameters[:4])))
    torch.testing.assert_close(mixture_loss(*one, density=density, likelihood_floor=0.0).mcm, torch.zeros_like(mcm))


@settings(few_examples, max_examples=8)
@given(cases(), densities, objectives)
def test_the_gradient_is_that_of_finite_differences(case: Case, density: str, objective: str) -> None:
    leaves = [t.clone().requires_grad_() for t in case.parameters[:4]]

    def both(*tensors: torch.Tensor) -> torch.Tensor:
        return terms(
            case._replace(parameters=MixtureParameters(*tensors)),
            density=density,
            objective=objective,
            stop_gradient=(),
        )

    assert torch.autograd.gradcheck(both, leaves, eps=1e-7, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("density", DENSITIES)
def test_the_bound_is_reached(density: str) -> None:
    """One certain component on the box: NLL is minus the logarithm of the peak, the least that it can be."""
    box = torch.tensor([[[3.0, 4.0, 5.0, 7.0]]], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    parameters = MixtureParameters(box, torch.ones_like(box) * 2, one[..., None], one)
    nll = mixture_loss(parameters, box, torch.zeros(1, 1, dtype=torch.long), density=density, likelihood_floor=0.0).nll
    peak = math.sqrt(2 * math.pi) if density == "gaussian" else math.pi
    assert nll.item() == pytest.approx(4 * math.log(2 * peak))
