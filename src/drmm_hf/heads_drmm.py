"""What a stage predicts from its queries: mixture components (D-RMM), or classes and boxes (the baselines)."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from .boxes_drmm import box_coding
from .configuration_drmm import DrmmConfig
from .layers_drmm import XavierLinear
from .matching import SetPrediction
from .mixture import MixtureParameters

_PRIOR_BIAS = -math.log((1 - 0.01) / 0.01)


class DrmmMixtureHead(nn.Module):
    """Reads the parameters of one mixture component off each query (paper, Figure 4)."""

    def __init__(self, config: DrmmConfig):
        super().__init__()
        dim, self.scale_unit = config.hidden_size, float(config.box_unit)
        self.coding = box_coding(config)
        self.class_layers, self.box_layers = _branches(config)
        # One matrix in the released code: apart, the objectness survives fine-tuning on other classes.
        num_labels = len(config.id2label or {})
        self.objectness = XavierLinear(dim, 1, bias_value=0.0, fan_out=num_labels + 1)
        self.classifier = XavierLinear(dim, num_labels, bias_value=0.0, fan_out=num_labels + 1)
        self.box = XavierLinear(dim, 8, bias_value=0.0, zero_weight=config.decoder == "adamixer")

    def forward(self, query_states: Tensor, regions: Tensor) -> tuple[MixtureParameters, Tensor]:
        """Queries (B, K, D) and the regions (B, K, 4) they looked at to the stage's mixture and the next regions."""
        hidden = _run(self.class_layers, query_states)
        class_logits, objectness_logits = self.classifier(hidden), self.objectness(hidden).squeeze(-1)
        # float32 also under autocast: bfloat16 resolves pixels only to 4 at a coordinate of 1000
        moves, raw_scales = self.box(_run(self.box_layers, query_states)).float().chunk(2, dim=-1)
        regions = self.coding.refine(regions, moves)
        parameters = MixtureParameters(
            self.coding.decode(regions), self.scale_unit * F.softplus(raw_scales), class_logits, objectness_logits
        )
        return parameters, regions

    def step(self, query_states: Tensor, regions: Tensor, rank: bool) -> tuple[Tensor, Tensor | None]:
        """Only what the next stage needs: its regions and, to `rank` the components, their objectness (B, K)."""
        moves = self.box(_run(self.box_layers, query_states)).float()[..., :4]
        objectness = self.objectness(_run(self.class_layers, query_states)).squeeze(-1) if rank else None
        return self.coding.refine(regions, moves), objectness


class DrmmSetPredictionHead(nn.Module):
    """Sigmoid classes and a box of each query: Sparse R-CNN's and AdaMixer's own head."""

    def __init__(self, config: DrmmConfig):
        super().__init__()
        dim = config.hidden_size
        self.coding = box_coding(config)
        self.class_layers, self.box_layers = _branches(config)
        self.classifier = XavierLinear(dim, len(config.id2label or {}), bias_value=_PRIOR_BIAS)
        self.box = XavierLinear(dim, 4, bias_value=0.0, zero_weight=config.decoder == "adamixer")

    def forward(self, query_states: Tensor, regions: Tensor) -> tuple[SetPrediction, Tensor]:
        """Queries (B, K, D) and the regions (B, K, 4) they looked at to the stage's boxes and the next regions."""
        class_logits = self.classifier(_run(self.class_layers, query_states))
        regions = self.coding.refine(regions, self.box(_run(self.box_layers, query_states)).float())
        return SetPrediction(self.coding.decode(regions), class_logits), regions

    def step(self, query_states: Tensor, regions: Tensor, rank: bool) -> tuple[Tensor, None]:
        """Only what the next stage needs: its regions. There is no objectness to rank by."""
        return self.coding.refine(regions, self.box(_run(self.box_layers, query_states)).float()), None


class _BranchLayer(nn.Module):
    def __init__(self, config: DrmmConfig):
        super().__init__()
        # AdaMixer's branches have a bias, Sparse R-CNN's have none
        self.linear = XavierLinear(config.hidden_size, config.hidden_size, bias=config.decoder == "adamixer")
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.relu(self.norm(self.linear(hidden)))


def _branches(config: DrmmConfig) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Hidden layers of the class branch and of the box branch."""
    counts = (config.num_class_layers, config.num_box_layers)
    class_layers, box_layers = (nn.ModuleList(_BranchLayer(config) for _ in range(count)) for count in counts)
    return class_layers, box_layers


def _run(layers: nn.ModuleList, hidden: Tensor) -> Tensor:
    for layer in layers:
        hidden = layer(hidden)
    return hidden
