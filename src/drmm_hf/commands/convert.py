"""`scripts/convert.py`: a released checkpoint to a checkpoint folder of this package, or back."""

import argparse
import io
from pathlib import Path

import torch
from huggingface_hub import ModelCard, ModelCardData

from ..conversion.convert import Converted, convert_checkpoint, released_state_dict
from ..conversion.verify import verify_golden
from ..files import writing
from ..loading import load_checkpoint

_ORIGINS = {
    ("sparse_rcnn", "mixture"): ("D-RMM on Sparse R-CNN", "https://github.com/lhj815/D-RMM"),
    ("adamixer", "mixture"): ("D-RMM on AdaMixer", "https://github.com/lhj815/D-RMM"),
    ("sparse_rcnn", "set_prediction"): ("Sparse R-CNN", "https://github.com/open-mmlab/mmdetection"),
    ("adamixer", "set_prediction"): ("AdaMixer", "https://github.com/MCG-NJU/AdaMixer"),
}


def model_card(converted: Converted, source: Path, preset: str) -> ModelCard:
    """A short card: where the weights come from, how to use them, and that no number of ours stands behind them."""
    config = converted.model.config
    name, url = _ORIGINS[config.decoder, config.head]
    data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="object-detection",
        tags=["drmm", "object-detection"],
    )
    num_labels = len(config.id2label or {})
    text = f"""---
{data.to_yaml()}
---
# {name}, converted from `{source.name}`

Weights of {name} ([released code]({url})) in the format of drmm-hf: preset
`{preset}`, {config.num_proposals} proposals, {config.num_stages} stages, {num_labels} classes.
{converted.report.used} tensors were taken over unchanged.

```python
import drmm_hf
from transformers import pipeline

detector = pipeline("object-detection", model="<this folder>")
detector("picture.jpg", threshold=0.3)
```

Accuracy was not measured for this card; `scripts/evaluate.py` does it. See the origin for the licence of the weights.
"""
    return ModelCard(text)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Convert a checkpoint of the authors' D-RMM, mmdet's Sparse R-CNN or AdaMixer.",
    )
    parser.add_argument("source", help=".pth or .safetensors as released; with --reverse a folder of this package")
    parser.add_argument("output", help="folder to write; with --reverse a .pth file")
    parser.add_argument("--preset", help="configuration to build, see scripts/presets.py")
    parser.add_argument(
        "--weights", choices=("raw", "ema"), default="raw", help="the file's ordinary weights, or their moving average"
    )
    parser.add_argument(
        "--verify", metavar="GOLDEN", help="recompute the golden values in this safetensors file with the result"
    )
    parser.add_argument("--reverse", action="store_true", help="write the weights back under the released names")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(arguments: argparse.Namespace) -> int:
    if arguments.reverse:
        return _reverse(arguments)
    if arguments.preset is None:
        raise ValueError("--preset is missing; scripts/presets.py lists the names, such as sparse-rcnn-r50")
    converted = convert_checkpoint(arguments.source, arguments.preset, arguments.weights)
    output = Path(arguments.output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output}: a file is in the way; choose another folder")
    with writing(output):
        converted.model.save_pretrained(output)
        converted.processor.save_pretrained(output)
        model_card(converted, Path(arguments.source), arguments.preset).save(output / "README.md")
    report = converted.report
    print(f"{report.used} tensors converted, {len(report.skipped)} skipped, {len(report.added)} added: {output}")
    for reason in sorted(set(report.skipped.values()) | set(report.added.values())):
        count = sum(r == reason for r in (*report.skipped.values(), *report.added.values()))
        print(f"  {count}: {reason}")
    if arguments.verify is None:
        return 0
    model, _ = load_checkpoint(str(output))
    deviations = verify_golden(model, arguments.verify)
    worst = max(deviations, key=lambda d: d.value / d.tolerance)
    bad = [d for d in deviations if not d.within]
    for deviation in bad:
        print(f"  {deviation.name}: off by {deviation.value:.1e}, allowed {deviation.tolerance:.0e}")
    verdict = "differs from" if bad else "equals"
    print(
        f"{verdict} the golden values ({len(deviations)} quantities; closest to its limit: {worst.name}, off by "
        f"{worst.value:.1e} of {worst.tolerance:.0e})"
    )
    return 1 if bad else 0


def _reverse(arguments: argparse.Namespace) -> int:
    output = Path(arguments.output)
    if output.suffix != ".pth":
        raise ValueError(f"{output}: give a .pth file to write with --reverse")
    model, _ = load_checkpoint(arguments.source)
    state = released_state_dict(model)
    classes = list((model.config.id2label or {}).values())  # in the order of the labels
    # In memory first: torch's own writer ends the process when the disk is full.
    content = io.BytesIO()
    torch.save({"meta": {"CLASSES": classes}, "state_dict": state}, content)
    with writing(output):
        output.write_bytes(content.getbuffer())
    print(f"{len(state)} tensors under the released names: {output}")
    return 0
