"""Configuration of D-RMM models."""

import difflib
import math
import reprlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .mixture import STOP_GRADIENTS
from .presets import preset_fields

_MAY_BE_ZERO = {
    *("frozen_stages", "num_class_layers", "num_box_layers", "dropout", "attention_dropout"),
    *("mcm_weight", "min_scale_ratio", "likelihood_floor", "class_weight"),
}

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 80, 80, 40


def shown(value: Any) -> str:
    """What a message shows of a value: its repr, shortened where it is long or deep."""
    return _SHORT.repr(value)


class DetectorConfig(PreTrainedConfig):
    """What the configurations of both models share."""

    def __setattr__(self, key: str, value: Any) -> None:
        # here and not in __post_init__: from_pretrained(folder, id2label=...) assigns it after the file's own names,
        # and the file's label2id would stay
        if key == "id2label" and value is not None:
            value = class_names(value)
            super().__setattr__("label2id", {name: index for index, name in value.items()})
        super().__setattr__(key, value)

    def to_dict(self) -> dict[str, Any]:
        """The saved fields. `auto_map` only where the code itself is saved beside it; no folder of this machine."""
        values = super().to_dict()
        if self._auto_class is None:
            values.pop("auto_map", None)
        for name in self.sub_configs:
            if isinstance(values.get(name), dict):
                values[name].pop("_name_or_path", None)
        return values

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in `PreTrainedConfig`, but another model's config.json, of which transformers only warns, is refused.

        Raises:
            ValueError: the file has another model_type.
        """
        values, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if values and values.get("model_type") != cls.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path}/config.json: model_type is {values.get('model_type')!r}, expected "
                f"{cls.model_type!r}. Load it with AutoModelForObjectDetection; "
                "DrmmDetrForObjectDetection.from_detector puts D-RMM on a detector of transformers."
            )
        return values, kwargs

    def check_fields(self, kinds: Mapping[str, Any]) -> None:
        """Refuse numbers out of range, of the fields whose types are given, and unknown names in `stop_gradient`."""
        owner, config = type(self).__name__, vars(self)
        for name, kind in kinds.items():
            value = config[name]
            least = "0 or more" if name in _MAY_BE_ZERO else "greater than 0"
            if kind in (int, float, float | int) and not (
                0 < value < math.inf or (value == 0 and name in _MAY_BE_ZERO)
            ):
                raise ValueError(f"{owner}.{name}={value} must be {least}, and finite.")
        if config["likelihood_floor"] >= 1.0:
            raise ValueError(f"{owner}.likelihood_floor={config['likelihood_floor']} must be in [0, 1).")
        if unknown := set(config["stop_gradient"]).difference(STOP_GRADIENTS):
            raise ValueError(f"{owner}.stop_gradient has {sorted(unknown)}; there are {', '.join(STOP_GRADIENTS)}.")


@strict
class DrmmConfig(DetectorConfig):
    r"""Configuration of [`DrmmModel`] and [`DrmmForObjectDetection`].

    The defaults are the paper's D-RMM on Sparse R-CNN with a ResNet-50 and 300 proposals, as the authors' code runs
    it. `DrmmConfig.from_preset(name)` gives named configurations.

    Args:
        decoder (`str`, defaults to `"sparse_rcnn"`):
            How a stage reads the image: `"sparse_rcnn"` by RoIAlign and dynamic convolution from a feature pyramid
            network, `"adamixer"` by 3-D sampling and adaptive mixing from a channel mapping.
        head (`str`, defaults to `"mixture"`):
            What a stage predicts: `"mixture"`, the parameters of a mixture density, or `"set_prediction"`, sigmoid
            classes and box deltas as Sparse R-CNN and AdaMixer were published.
        objective (`str`, defaults to `"nll_mcm"`):
            `"nll_mcm"` is D-RMM (Table 2, row 5), `"nll"` the mixture likelihood alone (row 3), `"nll_max"` that of the
            maximal component (Table 3, IV), `"nll_mcm_bipartite"` takes MCM's component by bipartite matching (Table
            2, row 4), `"nll_bipartite"` is the likelihood of matched components (row 2), see `mixture.mixture_loss`.
            `"set_prediction"` (row 1) is the loss of the head of that name: focal, L1 and GIoU of matched boxes.
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            A backbone of transformers or (`model_type="timm_backbone"`) timm with a feature pyramid of ascending
            stride. Default: timm's `resnet50.tv_in1k` (torchvision's first weights, as the paper), strides 4 to 32.
        backbone_kwargs (`dict`, *optional*):
            Further arguments for the constructor of the backbone, such as timm's `{"strict_img_size": False}`.
        backbone_norm (`str`, defaults to `"eval"`):
            BatchNorm of the backbone while training: `"train"` (batch statistics), `"sync"` (statistics of the batches
            of all GPUs; the paper), `"eval"` (fixed statistics, trained affine; the released 1x configuration),
            `"frozen"` (both fixed).
        frozen_stages (`int`, defaults to 1):
            Number of backbone stages that are not trained, the stem included. 0 trains all.
        pyramid_levels (`list[int]`, *optional*):
            Which levels of the feature pyramid regions are read from (0 = finest). Default: all.
        num_proposals (`int`, defaults to 300):
            Number of components K of the mixture.
        num_stages (`int`, defaults to 6):
            Number of refinement stages.
        hidden_size, num_attention_heads, decoder_ffn_dim, dynamic_dim (`int`):
            Widths of a stage: queries, attention heads, feed-forward layer, Sparse R-CNN's dynamic convolution.
        num_sampling_groups, num_sampling_points, num_mixing_points (`int`, default 4, 32 and 128):
            AdaMixer's groups of channels, points that a query reads in each, and points that they are mixed to.
        num_class_layers, num_box_layers (`int`, default 1 and 3):
            Hidden layers of the two branches of a head. AdaMixer's presets have 1 and 1.
        roi_size, roi_sampling_ratio (`int`, default 7 and 2):
            RoIAlign's bins and samples per bin along a side.
        roi_canonical_size (`float`, defaults to 56):
            Regions of sqrt(area) up to twice as much, in pixels, are read from the finest level, those up to four times
            as much from the second-finest, and so on by octaves (released code, `finest_scale`).
        proposal_init (`str`, defaults to `"grid"`):
            Initial proposals: `"grid"` of boxes (released D-RMM) or `"full_image"` (Sparse R-CNN, AdaMixer).
        learn_proposal_boxes (`bool`, defaults to `True`):
            Whether the initial boxes are trained. AdaMixer's are not.
        proposal_size (`float`, defaults to 0.5):
            Side of the boxes of the grid as a fraction of the image.
        box_unit (`float`, defaults to 1.0):
            Pixels per unit of the box branch: mu = proposal + box_unit * output, gamma = box_unit * softplus(output).
            1 is the released code. A larger unit learns faster from scratch at small image sizes. AdaMixer moves boxes
            in units of their own size, so there it is the unit of gamma alone.
        density (`str`, defaults to `"cauchy"`), student_t_dof (`float`):
            Density of a box edge, see `mixture.box_log_density`.
        mcm_weight (`float`, defaults to 0.5):
            Weight beta of the maximum component maximization term.
        objectness_anchor (`str`, defaults to `"none"`):
            What ties the level of the objectness to the number of objects: `"none"` (the paper: only its ratios
            count), `"poisson"` or `"bernoulli"`, see `loss.objectness_anchor`.
        min_scale_ratio (`float`, defaults to 0.04):
            Floor of the scales relative to the predicted box, see `mixture.effective_scales`.
        likelihood_floor (`float`, defaults to 1e-12), class_weight (`float`), stop_gradient (`list[str]`):
            See `mixture.mixture_loss`.
        class_gradient (`float`, defaults to 1.0):
            Factor on the gradient that the class probabilities send into the network; likelihood and responsibilities
            are unchanged. 1 is the paper; 2 tells look-alike classes apart sooner (docs/results/real-data.md).
        loss_reduction (`str`, defaults to `"sum"`):
            `"sum"` over all ground truths of the batch (released code) or `"mean"` per ground truth.
        isolate_images (`bool`, defaults to `False`):
            At inference, compute each image of a padded batch on its own canvas, so that its detections do not depend
            on the other images (`modeling_drmm.run_on_own_canvas`). The released code does not; the padding's features
            reach into the border of the image.
        top_k_ratio (`float`, *optional*):
            Fraction of the components kept after every stage (Appendix C.2), by objectness.
        num_query_groups (`int`, defaults to 1):
            Groups of proposals that are trained side by side and matched on their own (Group-DETR; Table 11); only
            the first is used afterwards. Only for `set_prediction`.
        num_target_copies (`int`, defaults to 1):
            Copies of each ground truth in the matching (Table 10). Only for `set_prediction`.
        use_pretrained_backbone: not a field; ImageNet weights are loaded by `DrmmForObjectDetection.load_backbone`.

    Example:
        >>> from drmm_hf import DrmmConfig, DrmmForObjectDetection
        >>> config = DrmmConfig.from_preset("drmm-sparse-rcnn-tiny", num_labels=3)
        >>> model = DrmmForObjectDetection(config)
    """

    model_type = "drmm"
    keys_to_ignore_at_inference = [  # noqa: RUF012  (Trainer adds a list to it)
        "auxiliary_outputs",
        "last_hidden_state",
        "hidden_states",
        "attentions",
        "objectness_logits",
        "class_log_probs",
        "locations",
        "scales",
        "pred_scales",
    ]
    attribute_map = {  # noqa: RUF012
        "num_queries": "num_proposals",
        "num_hidden_layers": "num_stages",
        "decoder_layers": "num_stages",
        "d_model": "hidden_size",
        "decoder_attention_heads": "num_attention_heads",
    }
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012

    decoder: Literal["sparse_rcnn", "adamixer"] = "sparse_rcnn"
    head: Literal["mixture", "set_prediction"] = "mixture"
    objective: Literal["nll_mcm", "nll", "nll_max", "nll_mcm_bipartite", "nll_bipartite", "set_prediction"] = "nll_mcm"
    backbone_config: dict | PreTrainedConfig | None = None
    backbone_kwargs: dict | None = None
    backbone_norm: Literal["train", "sync", "eval", "frozen"] = "eval"
    frozen_stages: int = 1
    pyramid_levels: list[int] | tuple[int, ...] | None = None
    num_proposals: int = 300
    num_stages: int = 6
    hidden_size: int = 256
    num_attention_heads: int = 8
    decoder_ffn_dim: int = 2048
    dynamic_dim: int = 64
    num_sampling_groups: int = 4
    num_sampling_points: int = 32
    num_mixing_points: int = 128
    num_class_layers: int = 1
    num_box_layers: int = 3
    roi_size: int = 7
    roi_sampling_ratio: int = 2
    roi_canonical_size: float | int = 56
    proposal_init: Literal["grid", "full_image"] = "grid"
    proposal_size: float | int = 0.5
    learn_proposal_boxes: bool = True
    box_unit: float | int = 1.0
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    layer_norm_eps: float = 1e-5
    density: Literal["cauchy", "gaussian", "student_t"] = "cauchy"
    student_t_dof: float | int = 1.0
    mcm_weight: float | int = 0.5
    objectness_anchor: Literal["none", "poisson", "bernoulli"] = "none"
    min_scale_ratio: float | int = 0.04
    likelihood_floor: float | int = 1e-12
    class_weight: float | int = 1.0
    stop_gradient: list[str] | tuple[str, ...] = ("location",)
    class_gradient: float | int = 1.0
    loss_reduction: Literal["sum", "mean"] = "sum"
    isolate_images: bool = False
    top_k_ratio: float | None = None
    num_query_groups: int = 1
    num_target_copies: int = 1

    def __post_init__(self, **kwargs):
        # The base class falls back to two labels; a detector's default is COCO's 80 classes.
        if self.id2label is None and kwargs.get("num_labels") is None:
            kwargs["num_labels"] = 80
        if kwargs.get("backbone") is not None:  # transformers would ask the Hub for it
            raise ValueError(
                f"DrmmConfig.backbone={kwargs['backbone']!r} is no field; give backbone_config={{'model_type': "
                f"'timm_backbone', 'backbone': {kwargs['backbone']!r}, 'out_indices': [1, 2, 3, 4]}}."
            )
        backbone = self.backbone_config
        if backbone is None:
            backbone = {"model_type": "timm_backbone", "backbone": "resnet50.tv_in1k", "out_indices": [1, 2, 3, 4]}
        if isinstance(backbone, dict):
            if backbone.get("model_type") not in [*CONFIG_MAPPING]:
                raise ValueError(
                    f"DrmmConfig.backbone_config has model_type {backbone.get('model_type')!r}; give 'timm_backbone' "
                    "or a backbone of transformers such as 'resnet'."
                )
            try:
                self.backbone_config = CONFIG_MAPPING[backbone["model_type"]].from_dict(backbone)
            except (StrictDataclassError, TypeError, ValueError) as error:
                raise ValueError(f"DrmmConfig.backbone_config: {' '.join(str(error).split())[:500]}") from error
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Refuse values that no model can be built from. Called by the base class."""
        self.check_fields(DrmmConfig.__annotations__)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"DrmmConfig.hidden_size={self.hidden_size} must be a multiple of "
                f"num_attention_heads={self.num_attention_heads}."
            )
        if self.top_k_ratio is not None and not 0.0 < self.top_k_ratio <= 1.0:
            raise ValueError(f"DrmmConfig.top_k_ratio={self.top_k_ratio} must be in (0, 1], or None to keep all.")
        # decoders, heads, objectives and options that do not go together
        if (self.head == "set_prediction") != (self.objective == "set_prediction"):
            reason = (
                "the mixture objectives need mixture components; set objective='set_prediction' too"
                if self.head == "set_prediction"
                else "a mixture has no sigmoid classes to match; set head='set_prediction' too"
            )
            raise ValueError(f"DrmmConfig.objective={self.objective!r} with head={self.head!r}: {reason}.")
        if self.head == "set_prediction" and self.top_k_ratio is not None:
            raise ValueError(
                "DrmmConfig.top_k_ratio ranks components by objectness, which head='set_prediction' does not have."
            )
        if self.objectness_anchor != "none" and self.objective in ("set_prediction", "nll_bipartite"):
            raise ValueError(
                f"DrmmConfig.objectness_anchor={self.objectness_anchor!r} anchors the objectness of a mixture, which "
                f"objective={self.objective!r} is not; leave it at 'none'."
            )
        for name in ("num_query_groups", "num_target_copies"):
            if self.head == "mixture" and getattr(self, name) > 1:
                raise ValueError(
                    f"DrmmConfig.{name}={getattr(self, name)} gives matching more positives; under a mixture every "
                    "component learns from every ground truth already. It is for head='set_prediction'."
                )
        if self.decoder == "adamixer" and (self.hidden_size % 8 or self.hidden_size % self.num_sampling_groups):
            raise ValueError(
                f"DrmmConfig.hidden_size={self.hidden_size} must be a multiple of 8 (its position encoding) and of "
                f"num_sampling_groups={self.num_sampling_groups} for decoder='adamixer'."
            )

    def to_diff_dict(self) -> dict[str, Any]:
        """Always writes the labels: the base class leaves out two labels, its own default, and loads 80."""
        labels = {"id2label": self.id2label, "label2id": self.label2id}
        return {**super().to_diff_dict(), **labels}

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> "DrmmConfig":
        """This configuration: the base class would take the name in the field `decoder` for that of a text model."""
        return self

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "DrmmConfig":
        """A named configuration of `presets.PRESETS`, any field of which can be overridden.

        Raises:
            ValueError: no such preset or no such field; the message lists the nearest names.
        """
        values = preset_fields(name)
        known = {field.name for field in fields(cls)} | set(cls.attribute_map) | {"num_labels", "attn_implementation"}
        for field_name in overrides:
            if field_name not in known:
                near = difflib.get_close_matches(field_name, known, n=3, cutoff=0.3) or sorted(known)
                raise ValueError(f"DrmmConfig has no field {field_name!r}. Nearest: {', '.join(near)}.")
        return cls(**{**values, **overrides})


def class_names(id2label: Mapping[Any, str]) -> dict[int, str]:
    """The names by ascending class index; the keys of a JSON file are strings."""
    if not isinstance(id2label, Mapping) or not all(isinstance(name, str) for name in id2label.values()):
        raise ValueError(
            f"id2label is {str(id2label)[:200]}; give a dict of class indices 0..n-1 and their names (text)."
        )
    keys = [str(key)[:40] for key in id2label]
    if not keys or sorted(keys) != sorted(str(index) for index in range(len(keys))):
        raise ValueError(
            f"id2label has the keys {keys[:10]}; give each class one of 0..n-1. Category ids with gaps, as "
            "COCO's, have to be mapped first."
        )
    return {int(key): name for key, name in sorted(id2label.items(), key=lambda item: int(item[0]))}
