"""The two factors of the joint density that cost one number per pair of ground truth and component.

Both are autograd functions of their own for the sake of memory and speed: their backward passes compute anew what they
need, so that training keeps nothing of the size of all pairs times four edges or times the classes. With 2,000
proposals, six stages and COCO's classes that is the difference between megabytes and gigabytes. Differentiable once.

Ground truths of all images stand in one row of M, and `image` (M,) int64 names the image of each; the components of an
image are (B, ...), for instance (B, S, K) for S stages.
"""

from typing import Any

import torch
from torch import Tensor

# Within these bounds (pixels) a product of two sums s^2 + d^2 is neither zero nor infinite in float32.
MIN_SCALE, MAX_LENGTH = 1e-9, 1e9


class LogEdgeTail(torch.autograd.Function):
    """log of the product over the four edges of s^2 + (mu - b)^2, what Cauchy and Student-t densities are made of.

    forward(boxes, locations, scales, image) takes the edges first: ground truths (4, M), components (4, B, ...), all
    within `MIN_SCALE` and `MAX_LENGTH`. It gives (M, ...), differentiable in locations and scales.
    """

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, locations: Tensor, scales: Tensor, image: Tensor) -> Tensor:
        ctx.save_for_backward(boxes, locations, scales, image)
        squares = scales.square()
        first, second, third, fourth = (_edge(boxes, locations, squares, image, edge)[1] for edge in range(4))
        return first.mul_(second).log_().add_(third.mul_(fourth).log_())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor, None]:  # type: ignore[override]
        _check_first_derivative()
        boxes, locations, scales, image = ctx.saved_tensors
        squares = scales.square()
        moves, widths = torch.zeros_like(locations), torch.zeros_like(scales)
        for edge in range(4):
            deviation, total = _edge(boxes, locations, squares, image, edge)
            share = total.reciprocal_().mul_(gradient)
            widths[edge].index_add_(0, image, share)
            moves[edge].index_add_(0, image, share.mul_(deviation))
        return None, moves.mul_(2), widths.mul_(scales).mul_(2), None


class LogClassProbability(torch.autograd.Function):
    """log of the softmax at the label of each ground truth.

    forward(labels, image, *class_logits) takes (M,), (M,) and the logits (B, s, K, C) of some stages each, and gives
    (M, S, K) for all S stages, differentiable in the logits.
    """

    @staticmethod
    def forward(ctx: Any, labels: Tensor, image: Tensor, *class_logits: Tensor) -> Tensor:
        log_probs = [logits.log_softmax(dim=-1) for logits in class_logits]
        ctx.save_for_backward(labels, image, *log_probs)
        return torch.cat([part.permute(0, 3, 1, 2)[image, labels] for part in log_probs], dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        _check_first_derivative()
        labels, image, *log_probs = ctx.saved_tensors
        parts = gradient.split([part.shape[1] for part in log_probs], dim=1)
        gradients = []
        for part, log_prob in zip(parts, log_probs, strict=True):
            # zeros in the layout of the logits: the backward pass of indexing would fill them transposed
            at_labels = torch.zeros_like(log_prob)
            at_labels.permute(0, 3, 1, 2).index_put_((image, labels), part, accumulate=True)
            gradients.append(torch.ops.aten._log_softmax_backward_data(at_labels, log_prob, -1, log_prob.dtype))
        return None, None, *gradients


def _check_first_derivative() -> None:
    # once_differentiable says nothing to torch.autograd.grad(..., inputs), which then leaves out this part
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("The mixture loss has first derivatives only: call it without create_graph=True.")


def _edge(boxes: Tensor, locations: Tensor, squares: Tensor, image: Tensor, edge: int) -> tuple[Tensor, Tensor]:
    """Deviations mu - b and sums s^2 + (mu - b)^2 of one edge, (M, ...) each."""
    target = boxes[edge].view(-1, *[1] * (locations.dim() - 2))
    deviation = locations[edge].index_select(0, image).sub_(target)
    return deviation, squares[edge].index_select(0, image).addcmul_(deviation, deviation)
