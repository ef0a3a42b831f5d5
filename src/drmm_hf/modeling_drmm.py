"""D-RMM in transformers: outputs, pretrained base, the mixture model, the detector with its loss, own canvases."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .backbone import DrmmBackbone, DrmmChannelMapping, DrmmFeaturePyramid, load_imagenet_weights
from .configuration_drmm import DrmmConfig
from .decoder import (
    DrmmMixtureHead,
    DrmmProposals,
    DrmmSelfAttention,
    DrmmSetPredictionHead,
    DrmmStage,
    XavierLinear,
    box_coding,
)
from .loss import drmm_loss, pad_targets
from .matching import SetPrediction
from .mixture import MixtureParameters, confidence_logits, effective_scales, log_mixing_coefficients
from .stage_adamixer import AdaMixerStage, IntersectionBias
from .stage_sparse_rcnn import SparseRcnnStage

STRIDE = 32
"""Sides of the network input are padded to a multiple of this."""

_STAGES = {"sparse_rcnn": SparseRcnnStage, "adamixer": AdaMixerStage}
_PYRAMIDS = {"sparse_rcnn": DrmmFeaturePyramid, "adamixer": DrmmChannelMapping}
_HEADS = {"mixture": DrmmMixtureHead, "set_prediction": DrmmSetPredictionHead}


@dataclass
class DrmmModelOutput(ModelOutput):
    """Output of [`DrmmModel`].

    Attributes:
        last_hidden_state: (B, K, D) queries after the last stage.
        locations, scales: (B, K, 4) mu (xyxy) and gamma of the last stage, pixels of the network input.
        class_logits: (B, K, C).
        objectness_logits: (B, K).
        stages: every stage's `MixtureParameters`, first to last; with `head="set_prediction"` `SetPrediction`s, and
            neither scales nor objectness_logits. Only the last without `every_stage`.
        image_sizes: (B, 2) width and height of the un-padded images, pixels of the network input.
        hidden_states: queries before the first and after every stage, (B, K, D) each, on request.
        attentions: self-attention weights of every stage, (B, heads, K, K), on request.
    """

    last_hidden_state: Tensor | None = None
    locations: Tensor | None = None
    scales: Tensor | None = None
    class_logits: Tensor | None = None
    objectness_logits: Tensor | None = None
    stages: tuple[MixtureParameters | SetPrediction, ...] | None = None
    image_sizes: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class DrmmObjectDetectionOutput(ModelOutput):
    """Output of [`DrmmForObjectDetection`]. All of the last stage unless said otherwise.

    With `head="set_prediction"` there are no objectness_logits, class_log_probs, scales and pred_scales, and
    `sigmoid(logits)` is the baseline's own score.

    Attributes:
        loss: the objective, when labels are given.
        loss_dict: its terms per stage, see `drmm_loss`.
        logits: (B, K, C) log-odds of the confidence p_c * o: `sigmoid(logits)` is the score.
        pred_boxes: (B, K, 4) mu as (center x, center y, width, height), fractions of the un-padded image.
        auxiliary_outputs: on request (`output_stages=True`), one dict per stage but the last with `logits`,
            `pred_boxes`, `pred_scales`, `locations`, `scales`, `objectness_logits`, `class_log_probs`.
        last_hidden_state: (B, K, D).
        objectness_logits: (B, K); o = sigmoid.
        class_log_probs: (B, K, C) log p.
        locations, scales: (B, K, 4) mu (xyxy) and gamma before the floor, pixels of the network input.
        pred_scales: (B, K, 4) the scales that the density uses (floor included) of the edges l, t, r, b, as fractions
            of the un-padded image's width, height, width, height.
        hidden_states, attentions: see `DrmmModelOutput`.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    auxiliary_outputs: list[dict[str, Tensor]] | None = None
    last_hidden_state: Tensor | None = None
    objectness_logits: Tensor | None = None
    class_log_probs: Tensor | None = None
    locations: Tensor | None = None
    scales: Tensor | None = None
    pred_scales: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class DrmmPreTrainedModel(PreTrainedModel):
    """Weight initialisation, loading and the settings that transformers asks of a model."""

    config_class = DrmmConfig
    config: DrmmConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _no_split_modules = ["SparseRcnnStage", "AdaMixerStage", "DrmmBackbone"]  # noqa: RUF012
    _supports_sdpa = True
    _can_record_outputs = {"hidden_states": DrmmStage, "attentions": DrmmSelfAttention}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Leaves only: for a class outside transformers this is not called on modules without own parameters.
        if isinstance(module, (XavierLinear, IntersectionBias)):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d):  # the pyramid's; the backbone initialises itself
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, DrmmProposals):
            init.copy_(module.boxes, module.initial_boxes())
            init.normal_(module.features)
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in `PreTrainedModel`; frozen backbone stages stay frozen.

        Raises:
            ValueError: a file of the weights is damaged.
        """
        with_info = kwargs.pop("output_loading_info", False)
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        except SafetensorError as error:
            raise ValueError(
                f"{pretrained_model_name_or_path}: model.safetensors is damaged or cut off ({error}); download or save "
                "it again."
            ) from error
        model._start_backbone({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
        for module in model.modules():
            if isinstance(module, DrmmBackbone):
                module.freeze()
        return (model, info) if with_info else model

    @torch.no_grad()
    def _start_backbone(self, names: Collection[str]) -> None:
        """Initial values for tensors of the backbone that a checkpoint lacks: transformers leaves timm's undefined."""
        for path, module in self.named_modules():
            lacking = {name.removeprefix(f"{path}.") for name in names if name.startswith(f"{path}.")}
            if isinstance(module, DrmmBackbone) and lacking:
                fresh, state = DrmmBackbone(self.config).state_dict(), module.state_dict()
                for name in lacking & fresh.keys():
                    state[name].copy_(fresh[name])


class DrmmModel(DrmmPreTrainedModel):
    """Image to mixture densities: backbone, pyramid and S refinement stages, without loss or confidences."""

    def __init__(self, config: DrmmConfig):
        super().__init__(config)
        self.backbone = DrmmBackbone(config)
        channels = self.backbone.channels
        levels = list(config.pyramid_levels) if config.pyramid_levels is not None else list(range(len(channels)))
        if not levels or levels != sorted(set(levels) & set(range(len(channels)))):
            raise ValueError(
                f"DrmmConfig.pyramid_levels={levels}: the backbone gives levels 0..{len(channels) - 1}; "
                "give some of them in ascending order."
            )
        self.pyramid = _PYRAMIDS[config.decoder](channels, config.hidden_size, levels)
        # Stated rather than measured where possible: a captured graph then takes images of any size.
        strides = self.backbone.strides
        self.strides = None if strides is None else [strides[level] for level in levels]
        self.proposals = DrmmProposals(config)
        self.stages = nn.ModuleList(_STAGES[config.decoder](config) for _ in range(config.num_stages))
        self.heads = nn.ModuleList(_HEADS[config.head](config) for _ in range(config.num_stages))
        self.coding = box_coding(config)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self, pixel_values: Tensor, pixel_mask: Tensor | None = None, every_stage: bool = True, **kwargs
    ) -> DrmmModelOutput:
        """Predict the mixture of each image.

        Args:
            pixel_values: (B, 3, H, W) normalised, zero-padded at the right and bottom to a multiple of 32.
            pixel_mask: (B, H, W), 1 on the image and 0 on its padding; None if there is none.
            every_stage: predict the mixtures of all stages. Without, the intermediate ones move the boxes alone, and
                `stages` has only the last.
        """
        check_input_shapes(pixel_values, pixel_mask)
        sizes = image_sizes(pixel_values, pixel_mask)
        features = self.pyramid(self.backbone(pixel_values.to(self.dtype)))
        strides = self.strides or [round(pixel_values.shape[-1] / f.shape[-1]) for f in features]
        boxes, query_states = self.proposals(sizes)
        num_groups = query_states.shape[1] // self.config.num_proposals
        regions = self.coding.encode(boxes)
        stages: list[Any] = []
        for i, (stage, head) in enumerate(zip(self.stages, self.heads, strict=True), start=1):
            query_states = stage(
                query_states, regions.detach(), *features, strides=strides, num_groups=num_groups, **kwargs
            )
            # The first stage moves the learned proposals with gradient, every other detached regions.
            is_read = every_stage or i == len(self.stages)
            if is_read:
                prediction, regions = head(query_states, regions)
                stages.append(prediction)
            else:
                regions = head.next_regions(query_states, regions)  # type: ignore[operator]
            if self.config.top_k_ratio is not None:  # Appendix C.2, which only a mixture head may be asked for
                objectness = (
                    stages[-1].objectness_logits if is_read else head.rank(query_states)  # type: ignore[operator]
                )
                index = objectness.topk(max(1, int(objectness.shape[1] * self.config.top_k_ratio)), dim=-1).indices
                regions, query_states = _keep(regions, index), _keep(query_states, index)
                if is_read:
                    stages[-1] = _keep_components(stages[-1], index)
            regions = regions.detach()
        last = stages[-1]
        return DrmmModelOutput(
            last_hidden_state=query_states,
            locations=last.locations,
            scales=getattr(last, "scales", None),
            class_logits=last.class_logits,
            objectness_logits=getattr(last, "objectness_logits", None),
            stages=tuple(stages),
            image_sizes=sizes,
        )


class DrmmForObjectDetection(DrmmPreTrainedModel):
    """D-RMM detector: mixture densities as boxes with confidences, and the likelihood as the loss."""

    def __init__(self, config: DrmmConfig):
        super().__init__(config)
        self.model = DrmmModel(config)
        # transformers would pick DETR's matching loss by the name of this class
        self.loss_function = drmm_loss
        self.post_init()

    def load_backbone(self, source: str | None = None) -> None:
        """Load ImageNet weights into a timm backbone, see `load_imagenet_weights`: of the Hub, a file, a package."""
        load_imagenet_weights(self.model.backbone, source)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: list[dict[str, Tensor]] | None = None,
        output_stages: bool = False,
        **kwargs,
    ) -> DrmmObjectDetectionOutput:
        """Detect objects; with labels, also the loss over all stages.

        Args:
            pixel_values: (B, 3, H, W) normalised images as `DrmmImageProcessor` makes them.
            pixel_mask: (B, H, W), 1 on the image and 0 on its padding; None if there is none.
            labels: one dict per image with `class_labels` (n,) and `boxes` (n, 4), (center x, center y, width, height)
                as fractions of the un-padded image; `size`, if there, is checked against pixel_mask.
            output_stages: also return the intermediate stages in `auxiliary_outputs`.

        Raises:
            ValueError: inputs of a wrong shape; labels that are malformed or out of range, see `pad_targets`.
        """
        kwargs["every_stage"] = output_stages or labels is not None
        if self.config.isolate_images and not self.training:
            outputs = run_on_own_canvas(self.model, pixel_values, pixel_mask, **kwargs)
        else:
            outputs = self.model(pixel_values, pixel_mask=pixel_mask, **kwargs)
        stages, sizes = outputs.stages, outputs.image_sizes
        num_labels, num_names = stages[-1].class_logits.shape[-1], len(self.config.id2label or {})
        if num_labels != num_names:
            raise ValueError(
                f"config.id2label has {num_names} names, but the model's class layers tell {num_labels} classes apart. "
                "For other classes load it with from_pretrained(..., id2label=names, ignore_mismatched_sizes=True)."
            )
        loss = loss_dict = None
        if labels is not None:
            targets = pad_targets(labels, sizes, num_labels)
            counts = [len(label["class_labels"]) for label in labels]
            loss, loss_dict = self.loss_function(stages, targets, self.config, sizes, counts)
        return DrmmObjectDetectionOutput(
            loss=loss,
            loss_dict=loss_dict,
            auxiliary_outputs=[self._describe(stage, sizes) for stage in stages[:-1]] if output_stages else None,
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **self._describe(stages[-1], sizes),
        )

    def _describe(self, stage: MixtureParameters | SetPrediction, sizes: Tensor) -> dict[str, Tensor]:
        """The public fields of one stage; of the first query group if there are several."""
        extent = torch.cat((sizes, sizes), dim=-1).unsqueeze(1)
        if isinstance(stage, SetPrediction):
            locations, logits = (t[:, : self.config.num_proposals] for t in stage)
            return {"logits": logits, "locations": locations, "pred_boxes": _center_size(locations / extent)}
        scales = effective_scales(stage.locations, stage.scales, self.config.min_scale_ratio)
        return {
            "logits": confidence_logits(stage.class_logits, stage.objectness_logits),
            "pred_boxes": _center_size(stage.locations / extent),
            "pred_scales": scales / extent,
            "objectness_logits": stage.objectness_logits,
            "class_log_probs": stage.class_logits.float().log_softmax(dim=-1),
            "locations": stage.locations,
            "scales": stage.scales,
        }


def run_on_own_canvas(model: nn.Module, pixel_values: Tensor, pixel_mask: Tensor | None, **kwargs: Any) -> Any:
    """The model's output for a padded batch, each image on its own canvas, as if it were alone.

    A batch pads its images to the largest. The padding is zero, but after a convolution and a normalization it is not
    zero any more, and what it holds reaches into the image from the border. So an image's detections change with its
    padding, as in every convolutional detector that is fed padded batches, the released code included. Computed on its
    own canvas (its size, rounded up as the image processor does for a single image) they do not.

    Args:
        model: called as `model(pixel_values, pixel_mask=..., **kwargs)`; its outputs have the batch first.
        pixel_values: (B, 3, H, W), padded at the right and the bottom.
        pixel_mask: (B, H, W), 1 on the image; None if there is no padding.

    Returns:
        The output in the order of the batch; images of one canvas size are computed together. Reads the sizes on the
        host, which on a GPU waits for the mask; while a graph is captured (compilation, export) the batch is computed
        whole.
    """
    check_input_shapes(pixel_values, pixel_mask)
    if pixel_mask is None or torch.compiler.is_compiling():
        return model(pixel_values, pixel_mask=pixel_mask, **kwargs)
    full = tuple(pixel_values.shape[-2:])
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, (width, height) in enumerate(image_sizes(pixel_values, pixel_mask).long().tolist()):
        canvas = tuple(min(-(-side // STRIDE) * STRIDE, most) for side, most in zip((height, width), full, strict=True))
        groups.setdefault(canvas, []).append(i)
    if list(groups) == [full]:
        return model(pixel_values, pixel_mask=pixel_mask, **kwargs)
    outputs = [
        model(pixel_values[index, :, :height, :width], pixel_mask=pixel_mask[index, :height, :width], **kwargs)
        for (height, width), index in groups.items()
    ]
    order = torch.tensor([i for index in groups.values() for i in index], device=pixel_values.device).argsort()
    # None: a layer whose hidden states were not asked for
    return tree_map(lambda *parts: None if parts[0] is None else torch.cat(parts)[order], *outputs)


def check_input_shapes(pixel_values: Tensor, pixel_mask: Tensor | None) -> None:
    """Raise ValueError where pixel_values are not (B, 3, H, W) or pixel_mask is not (B, H, W)."""
    shape = tuple(pixel_values.shape)
    if len(shape) != 4 or shape[1] != 3:
        raise ValueError(f"pixel_values has shape {shape}; expected (batch, 3, height, width).")
    if pixel_mask is not None and tuple(pixel_mask.shape) != (shape[0], *shape[2:]):
        raise ValueError(
            f"pixel_mask has shape {tuple(pixel_mask.shape)} beside pixel_values {shape}; "
            f"expected {(shape[0], *shape[2:])}, as DrmmImageProcessor makes it."
        )


def image_sizes(pixel_values: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """(B, 2) width and height of each image inside its padded canvas, pixels, float32.

    At least 1 pixel, also for an empty mask: the outputs are fractions of it.
    """
    batch, _, height, width = pixel_values.shape
    if pixel_mask is None:
        sides = [torch.full((batch,), s, dtype=torch.float32, device=pixel_values.device) for s in (width, height)]
        return torch.stack(sides, dim=-1)
    inside = pixel_mask != 0  # counted as whole numbers, whatever the type of the mask
    return torch.stack((inside[:, 0, :].sum(-1), inside[:, :, 0].sum(-1)), dim=-1).float().clamp(min=1)


def _keep(tensor: Tensor, index: Tensor) -> Tensor:
    """(B, K, ...) at the components (B, k)."""
    return tensor.take_along_dim(index.view(*index.shape, *[1] * (tensor.dim() - 2)), dim=1)


def _keep_components(parameters: MixtureParameters, index: Tensor) -> MixtureParameters:
    """The components at (B, k); their log pi is that of the whole mixture, as released."""
    whole = parameters._replace(log_mixing=log_mixing_coefficients(parameters.objectness_logits))
    return MixtureParameters(*(_keep(field, index) for field in whole if field is not None))


def _center_size(corners: Tensor) -> Tensor:
    """(..., 4) xyxy to center x, center y, width, height."""
    x1y1, x2y2 = corners.chunk(2, dim=-1)
    return torch.cat(((x1y1 + x2y2) / 2, x2y2 - x1y1), dim=-1)
