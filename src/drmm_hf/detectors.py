"""What the detectors of transformers predict, layer by layer, in the one form that a mixture is made of.

The last layer of the decoder is what the detector gives itself. An adapter reads the layers before it off a forward
pass, and all proposals of the encoder where the detector chooses its queries among them. The pass is one without
labels: with them, queries that denoise boxes would stand among the others.
"""

import contextlib
import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_NO_SCORE = -1e6  # exp of it is zero in every sum, and it is finite


class Layer(NamedTuple):
    """Predictions of one layer. Queries in G groups that train side by side are (B * G, K, ...), image by image.

    Attributes:
        log_scores: (B, K, C) log q, the logarithm of the detector's own scores.
        boxes: (B, K, 4) center x, center y, width, height as fractions of the un-padded image.
        hidden_states: (B, K, D) of the decoder; None for proposals of the encoder.
    """

    log_scores: Tensor
    boxes: Tensor
    hidden_states: Tensor | None = None


class Recording(dict[str, list[Any]]):
    """Outputs of modules in the order of the calls, by the module's name; "" is the detector's base model."""

    @property
    def base(self) -> Any:
        """Output of the base model."""
        return self[""][0]


class Adapter(NamedTuple):
    """How to read a family.

    Attributes:
        decoder: (detector, recording) -> the decoder's layers without the last.
        encoder: (detector, recording) -> all proposals of the encoder, or None for a family without. A configuration
            with `two_stage=False` has none either.
        watched: patterns of names of the base model's modules whose outputs these need besides its own.
        log_scores: class logits -> log q.
    """

    decoder: Callable[[Any, Recording], list[Layer]]
    encoder: Callable[[Any, Recording], Layer] | None = None
    watched: tuple[str, ...] = ()
    log_scores: Callable[[Tensor], Tensor] = F.logsigmoid

    def layers(self, detector: Any, record: Recording, outputs: Any) -> list[Layer]:
        """All layers of the decoder: those before the last, and what the detector gives itself as the last."""
        last = (self.log_scores(outputs.logits.float()), outputs.pred_boxes, last_hidden_state(detector, outputs))
        groups = getattr(detector.config, "group_detr", 1) if detector.training else 1
        return [*self.decoder(detector, record), Layer(*(t.unflatten(1, (groups, -1)).flatten(0, 1) for t in last))]


def adapter_for(model_type: str) -> Adapter:
    """The adapter of a family.

    Raises:
        ValueError: there is none for this `model_type`.
    """
    if model_type not in ADAPTERS:
        raise ValueError(
            f"no adapter for detectors of model_type {model_type!r}; there are {', '.join(sorted(ADAPTERS))}. An "
            "adapter gives log scores, boxes and hidden states of every decoder layer: see drmm_hf/detectors.py."
        )
    return ADAPTERS[model_type]


def last_hidden_state(detector: Any, outputs: Any) -> Tensor:
    """(B, K, D) what the detector's logits and boxes are made of; D-FINE may stop before its last layer."""
    if hasattr(detector, "eval_idx") and not detector.training:
        return outputs.intermediate_hidden_states[detector.eval_idx]
    return outputs.last_hidden_state


@contextlib.contextmanager
def recording(detector: Any, watched: tuple[str, ...]) -> Iterator[Recording]:
    """Record the outputs of the base model, and of its modules that `Adapter.watched` names, in what runs inside."""
    record = Recording()

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, inputs, output: record.setdefault(name, []).append(output)

    named = dict(detector.model.named_modules())
    matching = (
        name for pattern in watched for name in fnmatch.filter(named, pattern) if name.count(".") == pattern.count(".")
    )
    names = ["", *matching]
    handles = [named[name].register_forward_hook(keep(name)) for name in names]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


# RT-DETR, RT-DETR v2 and D-FINE: the decoder applies the heads itself


def _rt_detr_decoder(detector: Any, record: Recording) -> list[Layer]:
    return _layers(record.base, record.base.intermediate_hidden_states.unbind(1))


def _d_fine_decoder(detector: Any, record: Recording) -> list[Layer]:
    """The first layer predicts twice: by a head of its own before the distributions of its edges are refined."""
    hidden = record.base.intermediate_hidden_states  # (L, B, K, D)
    return _layers(record.base, (hidden[0], *hidden))


def _layers(base: Any, hidden_states: Iterable[Tensor]) -> list[Layer]:
    # predictions of all layers in training, and of D-FINE's last one alone otherwise
    logits, boxes = base.intermediate_logits.unbind(1)[:-1], base.intermediate_reference_points.unbind(1)
    return [Layer(F.logsigmoid(q.float()), b, h) for q, b, h in zip(logits, boxes, hidden_states, strict=False)]


def _rt_detr_encoder(detector: Any, record: Recording) -> Layer:
    logits, coordinates = record.base.enc_outputs_class, record.base.enc_outputs_coord_logits.float()
    outside = coordinates.amax(dim=-1, keepdim=True) > 1e4  # anchors at the border, which the model marks by infinity
    log_scores = F.logsigmoid(logits.float()).masked_fill(outside, _NO_SCORE)
    return Layer(log_scores, coordinates.sigmoid())


# LW-DETR and RF-DETR: groups of queries, each with an encoder head of its own, and one box reference for all layers


def _refined(references: Tensor, deltas: Tensor) -> Tensor:
    centers = references[..., :2] + deltas[..., :2] * references[..., 2:]
    return torch.cat((centers, references[..., 2:] * deltas[..., 2:].exp()), dim=-1)


def _lw_detr_decoder(detector: Any, record: Recording) -> list[Layer]:
    hidden = record.base.intermediate_hidden_states[:-1]  # (L - 1, B, G * K, D)
    logits = detector.class_embed(hidden)
    boxes = _refined(record.base.intermediate_reference_points, detector.bbox_embed(hidden))
    size = detector.config.num_queries
    parts = (tensor.unflatten(2, (-1, size)).flatten(1, 2) for tensor in (F.logsigmoid(logits.float()), boxes, hidden))
    return [Layer(*layer) for layer in zip(*parts, strict=True)]


def _lw_detr_encoder(detector: Any, record: Recording) -> Layer:
    groups = [str(i) for i in range(detector.config.group_detr) if f"enc_out_bbox_embed.{i}" in record]
    # the detector calls a group's class layer again, for the chosen proposals
    logits, deltas = (
        torch.stack([record[f"{name}.{group}"][0] for group in groups], dim=1)
        for name in ("enc_out_class_embed", "enc_out_bbox_embed")
    )
    features = record["backbone"][0]
    maps = [features] if isinstance(features, tuple) else features
    mask = torch.cat([mask.flatten(1) for _, mask in maps], dim=1)
    shapes = [tuple(values.shape[-2:]) for values, _ in maps]
    _, proposals, outside = detector.model.gen_encoder_output_proposals(deltas[:, 0], ~mask, shapes)
    log_scores = F.logsigmoid(logits.float()).masked_fill(outside.unsqueeze(1), _NO_SCORE)
    return Layer(log_scores.flatten(0, 1), _refined(proposals.unsqueeze(1), deltas).flatten(0, 1))


# Deformable DETR, one stage or two


def _deformable_detr_decoder(detector: Any, record: Recording) -> list[Layer]:
    base = record.base
    references = [base.init_reference_points, *base.intermediate_reference_points.unbind(1)]
    layers = []
    for i, hidden in enumerate(base.intermediate_hidden_states[:, :-1].unbind(1)):
        boxes = _moved(references[i], detector.bbox_embed[i](hidden))
        layers.append(Layer(F.logsigmoid(detector.class_embed[i](hidden).float()), boxes, hidden))
    return layers


def _moved(references: Tensor, deltas: Tensor) -> Tensor:
    """Boxes whose centers, or whose all coordinates, are offsets of references before the sigmoid."""
    shares = references.clamp(0, 1)
    start = (shares.clamp(min=1e-5) / (1 - shares).clamp(min=1e-5)).log()
    return (deltas + F.pad(start, (0, 4 - start.shape[-1]))).sigmoid()


def _deformable_detr_encoder(detector: Any, record: Recording) -> Layer:
    logits, coordinates = record.base.enc_outputs_class, record.base.enc_outputs_coord_logits
    outside = ~coordinates.isfinite().all(dim=-1, keepdim=True)
    # the proposals are chosen by the first class alone, which stands for any object: an equal share to every class
    log_scores = F.logsigmoid(logits[..., :1].float()).masked_fill(outside, _NO_SCORE)
    log_scores = log_scores.expand_as(logits) - math.log(logits.shape[-1])
    return Layer(log_scores, coordinates.float().masked_fill(outside, 0.0).sigmoid())


# DETR and Conditional DETR: `auxiliary_loss` would give the layers, but changes what they compute


def _hidden_states(detector: Any, record: Recording) -> list[Tensor]:
    layers = range(len(detector.model.decoder.layers) - 1)
    return [detector.model.decoder.layernorm(record[f"decoder.layers.{i}"][0]) for i in layers]


def _detr_decoder(detector: Any, record: Recording) -> list[Layer]:
    layers = []
    for hidden in _hidden_states(detector, record):
        log_scores = _detr_log_scores(detector.class_labels_classifier(hidden).float())
        layers.append(Layer(log_scores, detector.bbox_predictor(hidden).sigmoid(), hidden))
    return layers


def _detr_log_scores(logits: Tensor) -> Tensor:
    """The last class is the background."""
    return logits.log_softmax(dim=-1)[..., :-1]


def _conditional_detr_decoder(detector: Any, record: Recording) -> list[Layer]:
    references = record.base.reference_points.transpose(0, 1)
    layers = []
    for hidden in _hidden_states(detector, record):
        log_scores = F.logsigmoid(detector.class_labels_classifier(hidden).float())
        layers.append(Layer(log_scores, _moved(references, detector.bbox_predictor(hidden)), hidden))
    return layers


_LW_DETR = Adapter(_lw_detr_decoder, _lw_detr_encoder, ("backbone", "enc_out_class_embed.?*", "enc_out_bbox_embed.?*"))
_DECODER_LAYERS = ("decoder.layers.?*",)
ADAPTERS = {
    "rt_detr": Adapter(_rt_detr_decoder, _rt_detr_encoder),
    "rt_detr_v2": Adapter(_rt_detr_decoder, _rt_detr_encoder),
    "d_fine": Adapter(_d_fine_decoder, _rt_detr_encoder),
    "lw_detr": _LW_DETR,
    "rf_detr": _LW_DETR,
    "deformable_detr": Adapter(_deformable_detr_decoder, _deformable_detr_encoder),
    "conditional_detr": Adapter(_conditional_detr_decoder, watched=_DECODER_LAYERS),
    "detr": Adapter(_detr_decoder, watched=_DECODER_LAYERS, log_scores=_detr_log_scores),
}
"""By `model_type`."""
