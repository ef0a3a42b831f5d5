"""D-RMM on the detectors of transformers: a stock detector, one layer for gamma, and the likelihood as the loss."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForObjectDetection, PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from .configuration_drmm import class_names
from .configuration_drmm_detr import DrmmDetrConfig
from .detectors import adapter_for, last_hidden_state, recording
from .loss import Targets, drmm_loss, pad_targets
from .mixture import MixtureParameters, effective_scales, score_mixture
from .modeling_drmm import DrmmObjectDetectionOutput, check_input_shapes, image_sizes


class DrmmEdgeScales(nn.Module):
    """gamma of every edge: a share of the box's width or height, learned from what the decoder knows of the box.

    The encoder's proposals, which no layer has read yet, have one share each of l, t, r and b.
    """

    def __init__(self, hidden_size: int, proposals: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, hidden_size))
        self.bias = nn.Parameter(torch.zeros(4))
        self.proposal_bias = nn.Parameter(torch.zeros(4)) if proposals else None

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            init.zeros_(parameter)

    def forward(self, hidden_states: Tensor | None, sizes: Tensor) -> Tensor:
        """(B, K, D) hidden states, or None, and (B, K, 2) initial gamma in pixels, to (B, K, 4) gamma of l, t, r, b."""
        shares: Any = self.proposal_bias if hidden_states is None else hidden_states @ self.weight.T + self.bias
        # no gradient into the box: a larger box would be the cheapest way to a larger gamma
        return torch.cat((sizes, sizes), dim=-1).detach() * shares.float().exp()


class DrmmDetrForObjectDetection(PreTrainedModel):
    """A detector of transformers that is trained by the likelihood of a mixture, without matching.

    Its scores, normalised, are the weights of the mixture, so that `logits` and `pred_boxes` are those of the detector
    to the bit, and `model.detector` is an ordinary model that can be saved and used by itself.
    """

    config_class = DrmmDetrConfig
    config: DrmmDetrConfig
    base_model_prefix = "detector"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True

    def __init__(self, config: DrmmDetrConfig):
        super().__init__(config)
        detector: Any = config.detector_config
        self.adapter = adapter_for(detector.model_type)
        self.detector = AutoModelForObjectDetection.from_config(detector)
        self.frozen = {name for name, parameter in self.detector.named_parameters() if not parameter.requires_grad}
        self.has_proposals = self.adapter.encoder is not None and getattr(detector, "two_stage", True)
        self.edge_scales = DrmmEdgeScales(detector.d_model, self.has_proposals)
        self.loss_function = drmm_loss
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, DrmmEdgeScales):
            module.reset_parameters()

    @classmethod
    def from_detector(
        cls,
        pretrained_model_name_or_path: Any,
        id2label: Mapping[int, str] | None = None,
        label2id: Mapping[str, int] | None = None,
        **fields: Any,
    ) -> "DrmmDetrForObjectDetection":
        """Put D-RMM on a stock checkpoint.

        Args:
            pretrained_model_name_or_path: folder or Hub id of a detector that `detectors.ADAPTERS` knows.
            id2label, label2id: classes, either of the two, if not those of the checkpoint; class layers of another
                width begin anew.
            fields: of `DrmmDetrConfig`. Others are for the stock model's `from_pretrained`, such as `revision` or
                `num_queries`. Weights are float32, as training needs them, unless `dtype` is among these.

        Returns:
            The model in eval mode, as `from_pretrained` gives it.

        Raises:
            ValueError: a family without an adapter, or a field that cannot be.
        """
        if id2label is None and label2id is not None:
            id2label = {label: name for name, label in label2id.items()}
        options: dict[str, Any] = {"dtype": torch.float32}
        if id2label is not None:
            names = class_names(id2label)
            labels = {name: label for label, name in names.items()}
            options |= {"id2label": names, "label2id": labels, "ignore_mismatched_sizes": True}
        ours = {name: fields.pop(name) for name in DrmmDetrConfig.__annotations__ if name in fields}
        try:
            detector = AutoModelForObjectDetection.from_pretrained(pretrained_model_name_or_path, **options | fields)
        except TypeError as error:
            known = ", ".join(DrmmDetrConfig.__annotations__)
            raise ValueError(f"from_detector: {error}; fields of D-RMM are {known}.") from error
        if isinstance(detector, cls):
            raise ValueError(
                f"{pretrained_model_name_or_path} is D-RMM on a detector already: load it with from_pretrained."
            )
        with torch.device("meta"):  # the constructor makes a detector of its own, here one without memory
            model = cls(DrmmDetrConfig(detector_config=detector.config, **ours))
        model.edge_scales.to_empty(device=detector.device).to(detector.dtype).reset_parameters()
        model.detector = detector
        model._freeze()
        return model.eval()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in `PreTrainedModel`; what the stock detector keeps frozen stays frozen."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze()  # with output_loading_info there are two
        return loaded

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: transformers would not ask the detector, whose modules it knows, for what a checkpoint lacks.

        Class layers of other classes would begin without the bias of the family.
        """
        return False

    def train(self, mode: bool = True) -> "DrmmDetrForObjectDetection":
        """As in `nn.Module`, but a BatchNorm whose weight is frozen, as by LoRA, keeps the statistics that it has."""
        super().train(mode)
        for norm in self.detector.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.affine and not norm.weight.requires_grad:
                norm.eval()
        return self

    def _freeze(self) -> None:
        """Parameters that the detector's constructor freezes: loading of a checkpoint enables all of them."""
        for name, parameter in self.detector.named_parameters():
            if name in self.frozen:
                parameter.requires_grad_(False)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: list[dict[str, Tensor]] | None = None,
        **kwargs: Any,
    ) -> DrmmObjectDetectionOutput:
        """Detect objects; with labels, also the loss.

        Args:
            pixel_values: (B, 3, H, W) as the detector's own processor makes them; float32 also for halved weights.
            pixel_mask: (B, H, W), 1 on the image and 0 on its padding; None if there is none.
            labels: one dict per image with `class_labels` (n,) and `boxes` (n, 4), (center x, center y, width, height)
                as fractions of the un-padded image.

        Raises:
            ValueError: inputs of a wrong shape; labels that are malformed or out of range, see `pad_targets`.
        """
        check_input_shapes(pixel_values, pixel_mask)
        pixel_values = pixel_values.to(self.dtype)  # of halved weights
        if self.config.objective == "native":
            outputs = self.detector(pixel_values, pixel_mask=pixel_mask, labels=labels, **kwargs)
            return DrmmObjectDetectionOutput(
                loss=outputs.loss,
                loss_dict=outputs.loss_dict,
                logits=outputs.logits,
                pred_boxes=outputs.pred_boxes,
                last_hidden_state=outputs.last_hidden_state,
            )
        watching: Any = recording(self.detector, self.adapter.watched) if labels is not None else nullcontext()
        with watching as record:
            outputs = self.detector(pixel_values, pixel_mask=pixel_mask, **kwargs)
        sizes = image_sizes(pixel_values, pixel_mask)
        loss = loss_dict = None
        if labels is not None:
            layers = self.adapter.layers(self.detector, record, outputs)
            if self.config.encoder_stage and self.has_proposals and self.adapter.encoder is not None:
                layers = [self.adapter.encoder(self.detector, record), *layers]
            stages = [
                score_mixture(layer.log_scores, *self._edges(layer.boxes, layer.hidden_states, sizes))
                for layer in layers
            ]
            loss, loss_dict = self._loss(stages, labels, sizes, first=0 if layers[0].hidden_states is None else 1)
        hidden_states = last_hidden_state(self.detector, outputs)
        locations, scales = self._edges(outputs.pred_boxes, hidden_states, sizes)
        extent = torch.cat((sizes, sizes), dim=-1).unsqueeze(1)
        return DrmmObjectDetectionOutput(
            loss=loss,
            loss_dict=loss_dict,
            logits=outputs.logits,
            pred_boxes=outputs.pred_boxes,
            last_hidden_state=outputs.last_hidden_state,
            locations=locations,
            scales=scales,
            pred_scales=effective_scales(locations, scales, self.config.min_scale_ratio) / extent,
        )

    def _edges(self, boxes: Tensor, hidden_states: Tensor | None, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes and gamma in pixels of the network input; `sizes` (B, 2) are repeated for groups of queries."""
        sizes = sizes.repeat_interleave(len(boxes) // len(sizes), dim=0).unsqueeze(1)
        centers, extents = (boxes.float() * torch.cat((sizes, sizes), dim=-1)).chunk(2, dim=-1)
        locations = torch.cat((centers - extents / 2, centers + extents / 2), dim=-1)
        return locations, self.edge_scales(hidden_states, self.config.initial_scale_ratio * extents)

    def _loss(
        self, stages: list[MixtureParameters], labels: list[dict[str, Tensor]], sizes: Tensor, first: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective summed over the stages, which are numbered from `first`: the encoder's proposals are stage 0.

        Groups of queries are mixtures of their own, and their mean counts.
        """
        targets = pad_targets(labels, sizes, len(self.config.id2label or {}), compare_sizes=False)
        counts = [len(label["class_labels"]) for label in labels]
        num_groups = len(stages[-1].locations) // len(sizes)
        if num_groups > 1:
            targets = Targets(*(t.repeat_interleave(num_groups, dim=0) for t in targets))
            counts = [count for count in counts for _ in range(num_groups)]
        loss, terms = self.loss_function(stages, targets, self.config, counts=counts)
        if self.config.loss_reduction == "sum":
            loss, terms = loss / num_groups, {name: value / num_groups for name, value in terms.items()}
        numbered = [(*name.rsplit("_", 1), value) for name, value in terms.items()]
        return loss, {f"{name}_{int(number) - 1 + first}": value for name, number, value in numbered}
