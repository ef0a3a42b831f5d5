"""Terms that tie the level of the objectness to the number of objects. They are not in the paper.

The likelihood sees the objectness through pi_k = o_k / sum o alone, so it is blind to a common factor of all o_k, and
an image without objects teaches nothing. Either term of this file gives o a level of its own, from the same mixture,
without matching and without a weight to choose.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .mixture import MixtureParameters, responsibilities


def poisson_anchor(objectness_logits: Tensor, num_boxes: Tensor) -> Tensor:
    """Lambda - n log Lambda with Lambda = sum_k o_k, the expected number of objects of the image.

    Added to the NLL (Eq. 4) it makes the negative log-likelihood, up to log n!, of a Poisson point process whose
    intensity is sum_k o_k F_k p_k: the number of objects is Poisson with mean Lambda, each is drawn from the mixture.

    Args:
        objectness_logits: (B, K).
        num_boxes: (B,) number n of ground truths.

    Returns:
        (B,) the term of each image; it can be negative. Its minimum is at Lambda = n.
    """
    log_rate = F.logsigmoid(objectness_logits).logsumexp(dim=-1)
    return log_rate.exp() - num_boxes * log_rate


def bernoulli_anchor(objectness_logits: Tensor, responsibility: Tensor, mask: Tensor) -> Tensor:
    """Binary cross entropy of o_k against the probability that component k is responsible for any object.

    Args:
        objectness_logits: (B, K).
        responsibility: (B, N, K) posterior of component k given ground truth j; no gradient goes into it.
        mask: (B, N) True where there is a ground truth.

    Returns:
        (B,) sum over the components of each image.
    """
    none = torch.where(mask.unsqueeze(-1), 1.0 - responsibility.detach(), 1.0).prod(dim=1)
    return F.binary_cross_entropy_with_logits(objectness_logits, 1.0 - none, reduction="none").sum(dim=-1)


def objectness_anchor(
    kind: str, parameters: MixtureParameters, boxes: Tensor, labels: Tensor, mask: Tensor, **options
) -> Tensor:
    """The term `config.objectness_anchor` of one stage, (B,) in float32 or wider.

    Args:
        kind: "poisson" or "bernoulli".
        parameters, boxes, labels, mask: see `mixture.mixture_loss`.
        options: of the mixture, see `mixture.responsibilities`.
    """
    with torch.autocast(boxes.device.type, enabled=False):
        logits = parameters.objectness_logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if kind == "poisson":
            return poisson_anchor(logits, mask.sum(dim=-1))
        return bernoulli_anchor(logits, responsibilities(parameters, boxes, labels, mask, **options), mask)
