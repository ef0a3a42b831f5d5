"""Results on the disk as they come."""

import json
from pathlib import Path

import pytest

from drmm_hf.evaluation.spool import ResultsSpool

SETTINGS = {"model": "m", "top_k": 100}


def test_batches_of_all_processes_come_back_in_order(tmp_path: Path) -> None:
    first = ResultsSpool.begin(tmp_path / "spool", SETTINGS, resume=False)
    second = ResultsSpool(first.folder, part=1)
    for batch, spool in ((3, second), (0, first), (2, first), (1, second)):
        spool.append(batch, [{"score": batch / 10}], skipped=["ä"])
    assert first.finished() == second.finished() == {0, 1, 2, 3}
    assert [json.loads(line) for line in second.result_lines()] == [{"score": batch / 10} for batch in range(4)]
    assert [(entry["batch"], entry["count"], entry["skipped"]) for entry in first.entries()] == [
        (batch, 1, ["ä"]) for batch in range(4)
    ]
    first.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_was_cut_off_does_not_count_and_spoils_nothing(tmp_path: Path) -> None:
    spool = ResultsSpool.begin(tmp_path / "spool", SETTINGS, resume=False)
    spool.append(0, ["ä", 1])
    spool.append(1, ["long" * 50])
    part = spool.folder / "part-0.jsonl"
    for length in (1, 40, 204, 220):
        whole = part.read_bytes()
        part.write_bytes(whole[: len(whole) - length])
        assert spool.finished() == {0}
        again = ResultsSpool.begin(spool.folder, SETTINGS, resume=True)
        assert again.finished() == {0}
        again.append(1, ["long" * 50])
        assert list(again.result_lines()) == ['"\\u00e4"', "1", '"' + "long" * 50 + '"']
        assert part.read_bytes() == whole


def test_other_settings_are_refused(tmp_path: Path) -> None:
    spool = ResultsSpool.begin(tmp_path / "spool", SETTINGS, resume=True)
    spool.append(0, [])
    with pytest.raises(ValueError, match=r"settings\.json: field top_k is 100, now 300; leave out --resume"):
        ResultsSpool.begin(spool.folder, {**SETTINGS, "top_k": 300}, resume=True)
    assert spool.finished() == {0}
    assert ResultsSpool.begin(spool.folder, {**SETTINGS, "top_k": 300}, resume=False).finished() == set()


def test_without_resume_all_begins_anew(tmp_path: Path) -> None:
    ResultsSpool.begin(tmp_path / "spool", SETTINGS, resume=False).append(0, [])
    assert ResultsSpool.begin(tmp_path / "spool", SETTINGS, resume=False).finished() == set()


def test_nan_is_refused(tmp_path: Path) -> None:
    spool = ResultsSpool.begin(tmp_path / "spool", SETTINGS, resume=False)
    with pytest.raises(ValueError, match="not JSON compliant"):
        spool.append(0, [float("nan")])
    assert spool.finished() == set()
