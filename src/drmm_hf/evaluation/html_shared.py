"""What several sections of the HTML report share."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, TypeAlias

from .html_page import Column, Row, legend, table

Checkpoints: TypeAlias = Sequence[Mapping[str, Any]]


def compared(models: Checkpoints, rows: Sequence[Row], corner: str = "") -> str:
    """A table with one column for each checkpoint."""
    columns = [Column(str(model["name"]), compare="checkpoint", series=index) for index, model in enumerate(models)]
    return table(columns, rows, corner)


def key_of(models: Checkpoints) -> str:
    """The checkpoints and their colours."""
    return legend([str(model["name"]) for model in models])


def notes_of(models: Checkpoints, texts: Sequence[str | None]) -> str:
    """Small print of each checkpoint; once, without a name, where it is the same for all."""
    if len(set(texts)) == 1:
        return f'<p class="note">{escape(texts[0])}</p>' if texts[0] else ""
    return "".join(
        f'<p class="note">{escape(str(model["name"]))}: {escape(text)}</p>'
        for model, text in zip(models, texts, strict=True)
        if text
    )


def findings_of(sentences: Iterable[str]) -> str:
    """The sentences that say what the numbers mean here; nothing without any."""
    shown = "<br>".join(escape(sentence) for sentence in sentences if sentence)
    return f'<p class="finding">{shown}</p>' if shown else ""


def pretty(text: str) -> str:
    """Settings in words, with the sign ≥."""
    return text.replace(">=", "≥")


def signed(value: float, digits: int) -> str:
    """A number with its sign."""
    return f"{value:+.{digits}f}".replace("-", "\u2212")
