"""Backbone: an image becomes maps at ascending strides; freezing, BatchNorm modes and ImageNet weights."""

from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from transformers import AutoBackbone

from .configuration_drmm import DrmmConfig
from .folded_norm import fold_batch_norms
from .weight_files import check_timm_file


class DrmmBackbone(nn.Module):
    """A timm or transformers backbone that returns NCHW maps and keeps its frozen parts frozen."""

    def __init__(self, config: DrmmConfig):
        super().__init__()
        self.norm_mode = config.backbone_norm
        self.frozen_stages = config.frozen_stages
        self.model_kwargs = dict(config.backbone_kwargs or {})
        try:
            self.model = AutoBackbone.from_config(config.backbone_config, **self.model_kwargs)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                "The backbone cannot be built from DrmmConfig.backbone_config and "
                f"backbone_kwargs={self.model_kwargs}: {_summary(error)}"
            ) from error
        if self.norm_mode == "frozen" and hasattr(self.model, "freeze_batch_norm_2d"):
            self.model.freeze_batch_norm_2d()
        fold_batch_norms(self.model)
        # timm's Swin gives NHWC maps and says so on the network inside its feature wrapper
        output_format = getattr(getattr(self.model, "_backbone", None), "output_fmt", "NCHW")
        self.channels_last_output = str(getattr(output_format, "value", output_format)) == "NHWC"
        # Swin's own detection code normalises each map; its features come straight from a residual stream
        self.output_norms = nn.ModuleList(nn.LayerNorm(c) for c in self.channels if self.channels_last_output)
        self.freeze()

    @property
    def channels(self) -> list[int]:
        """Width of each map."""
        return list(self.model.channels)

    @property
    def strides(self) -> list[int] | None:
        """Pixels per cell of each map where the backbone states them, as timm's do."""
        info = getattr(getattr(self.model, "_backbone", None), "feature_info", None)
        return None if info is None else list(info.reduction())

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised pixels to maps (B, C_l, H_l, W_l), finest first."""
        if pixel_values.device.type == "cpu":  # convolutions, pooling and reading of regions are faster so
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        # said here because config.output_attentions=True reaches the backbone's configuration, which may refuse it
        maps = self.model(pixel_values, output_attentions=False).feature_maps
        if self.channels_last_output:
            return [norm(m).permute(0, 3, 1, 2) for norm, m in zip(self.output_norms, maps, strict=True)]
        return list(maps)

    def freeze(self) -> None:
        """Stop the gradient of the frozen stages. `from_pretrained` re-enables it, so it is called again there."""
        for module in self._frozen_modules():
            module.requires_grad_(False)
        if self.norm_mode == "frozen":
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.requires_grad_(False)

    def train(self, mode: bool = True) -> "DrmmBackbone":
        if mode and self.norm_mode == "sync":
            self._synchronize_batch_norm()
        super().train(mode)
        if mode:
            fixed = list(self._frozen_modules())
            if self.norm_mode not in ("train", "sync"):
                fixed += [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
            for module in fixed:
                module.eval()
        return self

    def _synchronize_batch_norm(self) -> None:
        """Let BatchNorm see the batches of all processes. Without several GPUs it is ordinary BatchNorm.

        The parameters stay the same objects, so an optimizer that has them already keeps working.
        """
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not distributed or torch.distributed.get_world_size() == 1:
            return
        if next(self.parameters()).device.type == "cpu":  # torch has SyncBatchNorm for accelerators only
            return
        self.model = convert_sync_batchnorm(self.model)

    def _frozen_modules(self) -> list[nn.Module]:
        """The stem and the first `frozen_stages` stages, as mmdet's `frozen_stages` counts them."""
        if self.frozen_stages <= 0:
            return []
        network, names = self._stage_names()
        if self.frozen_stages > len(names):
            raise ValueError(
                f"DrmmConfig.frozen_stages={self.frozen_stages}: the backbone {type(network).__name__} has "
                f"{len(names)} stages that can be frozen; give at most {len(names)}, or 0 to train all."
            )
        return _modules_through(network, names[self.frozen_stages - 1])

    def _stage_names(self) -> tuple[nn.Module, list[str]]:
        """The network and the dotted name of each of its stages. What is finer than stride 4 is the stem."""
        if hasattr(self.model, "_backbone"):
            network = self.model._backbone
            # indexed by position: without an index timm gives the chosen outputs only, with one it counts the stem
            return network, [info["module"] for info in network.feature_info.info if info["reduction"] >= 4]
        for name, module in self.model.named_modules():
            if isinstance(module, nn.ModuleList) and name.endswith(("encoder.stages", "encoder.layers")):
                return self.model, [f"{name}.{i}" for i in range(len(module))]
        return self.model, []


def _modules_through(network: nn.Module, path: str) -> list[nn.Module]:
    """The module at a dotted path and, on every level down to it, what stands before it."""
    modules, parts = [], path.split(".")
    while parts:
        children = dict(network.named_children())
        # timm flattens a feature network's stages: "layers.0" becomes a child "layers_0"
        name, parts = ("_".join(parts), []) if "_".join(parts) in children else (parts[0], parts[1:])
        if name not in children:
            raise ValueError(
                f"DrmmConfig.frozen_stages: the backbone has no module {path!r}; set it to 0 to train all."
            )
        modules += list(children.values())[: list(children).index(name)]
        network = children[name]
    return [*modules, network]


def load_imagenet_weights(backbone: DrmmBackbone, source: str | None = None) -> None:
    """Load pretrained timm weights into the backbone, BatchNorm statistics included.

    Goes through timm itself, because transformers' own loading of a timm backbone resets the running statistics.

    Args:
        backbone: the backbone of a model, built.
        source: a file of timm weights (safetensors, or a state dict that `torch.load(weights_only=True)` reads), or
            None for timm's published weights of this architecture from the Hub.

    Raises:
        FileNotFoundError: no such file, or the Hub cannot be reached.
        ValueError: the weights are damaged, not finite, or of another backbone; or the backbone is not timm's.
    """
    import timm

    target = getattr(backbone.model, "_backbone", None)
    if target is None:
        raise ValueError(
            f"load_backbone loads timm weights, but the backbone is a {type(backbone.model).__name__} of transformers: "
            "load its weights with load_state_dict, or use a backbone_config of model_type 'timm_backbone'."
        )
    if source is not None and not Path(source).is_file():
        raise FileNotFoundError(
            f"{source}: no such file; give a file of timm weights of {backbone.model.config.backbone}."
        )
    config = backbone.model.config
    options = {"features_only": True, "out_indices": tuple(config.out_indices), **backbone.model_kwargs}
    if source is not None:
        check_timm_file(source, config.backbone, **options)
    try:
        overlay = None if source is None else {"file": source}
        reference = timm.create_model(config.backbone, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        missing, unexpected = target.load_state_dict(reference.state_dict(), strict=False)
    except OSError as error:
        raise FileNotFoundError(
            f"timm's weights of {config.backbone} cannot be fetched from the Hub ({_summary(error)}). "
            "Without a connection give a local file of them as `source`."
        ) from error
    except (RuntimeError, SafetensorError, UnpicklingError) as error:
        raise ValueError(
            f"{source or 'timm'}: the weights do not fit the backbone {config.backbone} "
            f"with backbone_kwargs={backbone.model_kwargs}: {_summary(error)}"
        ) from error
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]
    unexpected = [k for k in unexpected if not k.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(
            f"The weights of {config.backbone} do not fit the model's backbone: "
            f"{len(missing)} keys missing {missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}."
        )


def _summary(error: Exception) -> str:
    # torch's errors of a state dict name the first tensor in the second line
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:2]) or type(error).__name__


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


def valid_sizes(pixel_values: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """(B, 2) width and height of each image inside its padded canvas, pixels, float32.

    At least 1 pixel, also for an empty mask: the outputs are fractions of it.
    """
    check_input_shapes(pixel_values, pixel_mask)
    batch, _, height, width = pixel_values.shape
    if pixel_mask is None:
        sides = [
            torch.full((batch,), side, dtype=torch.float32, device=pixel_values.device) for side in (width, height)
        ]
        return torch.stack(sides, dim=-1)
    return torch.stack((pixel_mask[:, 0, :].sum(-1), pixel_mask[:, :, 0].sum(-1)), dim=-1).float().clamp(min=1)
