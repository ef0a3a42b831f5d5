"""Sentences and tables that model cards share."""

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ..configuration_drmm import DrmmConfig

PAPER_URL, PAPER_CODE = "https://arxiv.org/abs/2205.08714", "https://github.com/lhj815/D-RMM"
DIAGRAM = "images/reliability.png"
APACHE = "apache-2.0"
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")

_DECODERS = {"sparse_rcnn": "Sparse R-CNN", "adamixer": "AdaMixer"}
_METHOD = f"""@inproceedings{{yoo2023drmm,
  title     = {{End-to-End Multi-Object Detection with a Regularized Mixture Model}},
  author    = {{Yoo, Jaeyoung and Lee, Hojun and Seo, Seunghyeon and Chung, Inseop and Kwak, Nojun}},
  booktitle = {{International Conference on Machine Learning (ICML)}},
  year      = {{2023}},
  url       = {{{PAPER_URL}}}
}}"""
_DECODER_ENTRIES = {
    "sparse_rcnn": """@inproceedings{sun2021sparsercnn,
  title     = {Sparse {R-CNN}: End-to-End Object Detection with Learnable Proposals},
  author    = {Sun, Peize and Zhang, Rufeng and Jiang, Yi and Kong, Tao and Xu, Chenfeng and Zhan, Wei and
               Tomizuka, Masayoshi and Li, Lei and Yuan, Zehuan and Wang, Changhu and Luo, Ping},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2021}
}""",
    "adamixer": """@inproceedings{gao2022adamixer,
  title     = {{AdaMixer}: A Fast-Converging Query-Based Object Detector},
  author    = {Gao, Ziteng and Wang, Limin and Han, Bing and Guo, Sheng},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2022}
}""",
}


def method_name(config: DrmmConfig) -> str:
    """Such as `D-RMM on AdaMixer`, or the baseline's own name."""
    decoder = _DECODERS[config.decoder]
    return decoder if config.head == "set_prediction" else f"D-RMM on {decoder}"


def description(config: DrmmConfig, parameters: float) -> str:
    """What the model is, in a paragraph.

    Args:
        config: of the model.
        parameters: in millions.
    """
    size = (
        f"{config.num_proposals} proposals, {config.num_stages} refinement stages, backbone "
        f"`{getattr(config.backbone_config, 'backbone', None)}`, {parameters:.1f} M parameters"
    )
    if config.head == "set_prediction":
        return (
            f"{_DECODERS[config.decoder]}, a baseline of D-RMM: one-to-one Hungarian matching in training, with "
            f"focal, L1 "
            f"and GIoU losses, and no NMS. {size[0].upper()}{size[1:]}. Its scores are not meant to be probabilities."
        )
    text = (
        f"An object detector that is a density estimator ([paper]({PAPER_URL})): its proposals are the components of a "
        "mixture over boxes and classes. Training maximizes the likelihood of the true boxes, "
    )
    if config.objective == "nll_mcm":
        text += f"and of a term (MCM, weight {config.mcm_weight:g}) by which one component comes to own one object. "
    else:
        text = text.removesuffix(", ") + f" (objective `{config.objective}`). "
    return (
        f"{text}There is no matching and no NMS. A score is the probability that there is an object times the "
        f"probability "
        f"of its class, and every box edge has a width γ, in pixels, that says how far off it may be. "
        f"{method_name(config)}: "
        f"{size}."
    )


def usage(model: str, revision: bool) -> str:
    """How to load it.

    Args:
        model: folder or repository.
        revision: whether it is a repository, of which one commit is chosen.
    """
    pinned = ', revision="COMMIT"' if revision else ""
    return f"""```python
import drmm_hf  # registers the classes with transformers
from transformers import pipeline

detector = pipeline("object-detection", model="{model}"{pinned})
detector("picture.jpg", threshold=0.5)  # [{{'score': ..., 'label': ..., 'box': {{'xmin': ..., ...}}}}, ...]
```

Without the package drmm-hf, a repository that holds the model's code as `.py` files is loaded by transformers alone,
with `trust_remote_code=True, revision="COMMIT"`. That runs these files on your machine: read them, and name the commit
that you read, so that nobody can change what runs."""


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of Markdown; None becomes a dash."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join("–" if cell is None else cell_text(cell) for cell in line) + " |" for line in lines
    )


def cell_text(value: Any) -> str:
    """A text that is only text: no markup, one line."""
    text = html.escape(" ".join(str(value).split()), quote=False)
    for sign in "\\`*_[]|#":
        text = text.replace(sign, "\\" + sign) if sign in text else text
    return text


def number(value: float | None) -> str | None:
    """Three digits after the point, or None."""
    return None if value is None else f"{value:.3f}"


def bullets(lines: Iterable[str]) -> str:
    """A list of Markdown."""
    return "\n".join(f"- {line}" for line in lines)


def general_limits(config: DrmmConfig) -> list[str]:
    """What holds for every model of its kind."""
    lines = ["Do not let it decide alone where a wrong or a missed box harms somebody."]
    if config.head == "mixture" and config.objectness_anchor == "none":
        lines.insert(
            0,
            "An image without objects taught the model nothing, so scores on empty pictures may be too high "
            "(`objectness_anchor` in the configuration is there for that).",
        )
    return lines


def check_license(license_id: str) -> None:
    """ValueError if the Hub would take it for no license: it names them in small letters, without spaces."""
    if not _LICENSE.fullmatch(license_id):
        raise ValueError(
            f"license {license_id!r}: give the Hub's name of it, such as apache-2.0, mit, cc-by-4.0 or other"
        )


def license_text(origin: str | None = None, license_id: str = APACHE) -> str:
    """Licence and attribution.

    Args:
        origin: sentence on weights that are not of this package, or on the data.
        license_id: of the weights.
    """
    own = (
        "Apache-2.0, as is the package drmm-hf"
        if license_id == APACHE
        else f"The weights: {license_id}. The package drmm-hf: Apache-2.0"
    )
    text = (
        f"{own}. The method is that of Yoo, Lee, Seo, Chung and Kwak "
        f"([paper]({PAPER_URL}), ICML 2023); drmm-hf is an independent implementation, compared with [their released "
        f"code]"
        f"({PAPER_CODE}) (Apache-2.0, Copyright 2022-present NAVER WEBTOON)."
    )
    return f"{text} {origin}" if origin else text


def citation(config: DrmmConfig) -> str:
    """BibTeX entries of the method and of what it is built on."""
    method = [_METHOD] if config.head == "mixture" else []
    return "```bibtex\n" + "\n\n".join([*method, _DECODER_ENTRIES[config.decoder]]) + "\n```"
