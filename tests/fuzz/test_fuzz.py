"""A short slice of the fuzzing, and every input that was once a fault."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz.__main__ import SHARES, run_cases
from fuzz.judge import Refusal, Target, judge

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.json"))
CASES = {"checkpoints": 4, "backbone": 12, "tars": 12, "parquet": 12, "images": 30}
TARGETS = {kind.name: kind for kind in SHARES}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", TARGETS)
def test_a_slice(name: str) -> None:
    """Of seed 1, so that these are other cases than those of the long job."""
    result = run_cases(TARGETS[name], seed=1, indices=range(CASES.get(name, 70)))
    assert result["faults"] == []
    assert result["counts"]["refused"] > 0, "the changes break something"


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_what_was_once_a_fault(path: Path, tmp_path: Path) -> None:
    case = json.loads(path.read_text())
    root = tmp_path / case["target"]
    root.mkdir()
    verdict = judge(TARGETS[case["target"]](), case["value"], root)
    assert verdict.kind == case["ends"], verdict.text
    assert case.get("message", "") in verdict.text


class Raises(Target):
    """A reader with a fault, to see that the judge finds it."""

    name = "raises"

    def __init__(self, error: BaseException):
        self.error = error

    def run(self, value: object, folder: Path) -> None:
        raise self.error

    def names(self, value: object) -> tuple[str, ...]:
        return ("file.json",)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (KeyError("file.json"), "fault"),
        (RecursionError("file.json"), "fault"),
        (UnicodeDecodeError("utf-8", b"a", 0, 1, "file.json"), "fault"),
        (ValueError("file.json: raised outside of the package"), "fault"),
        (Refusal("file.json: one line"), "refused"),
        (Refusal("which file?"), "fault"),
        (Refusal("file.json " + "x" * 4000), "fault"),
    ],
)
def test_the_judge(error: Exception, kind: str, tmp_path: Path) -> None:
    assert judge(Raises(error), None, tmp_path).kind == kind
