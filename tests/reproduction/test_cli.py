"""`scripts/reproduce.py` as a user runs it, with trainings of two images."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from drmm_hf.training import TrainConfig, read_recipe, train
from reproduce import main

ROOT = Path(__file__).parents[2]
Words = Callable[..., list[str]]


def test_a_table_from_nothing(table3: Path) -> None:
    text = (table3 / "table3.md").read_text()
    rows = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.startswith("| ")]
    assert rows[1:] == ["nll", "nll + NMS", "nll + WTA", "nll_max", "nll_mcm"]
    assert "AP, paper (COCO)" in text
    content = json.loads((table3 / "table3.json").read_text())
    metrics = json.loads((table3 / "runs/nll_mcm-seed0/metrics.json").read_text())
    row = content["rows"]["nll_mcm"]
    assert row["AP"]["mean"] == pytest.approx(metrics["AP"], abs=1e-4)
    assert row["ECE"]["mean"] == pytest.approx(metrics["ECE"], abs=1e-4)
    assert content["training"] == "2 images, drmm-sparse-rcnn-tiny"
    assert not (table3 / "runs/nll_mcm-seed0/checkpoints").exists()
    objectives = [read_recipe(str(table3 / f"runs/{name}-seed0/recipe.yaml")) for name in ("nll", "nll_max", "nll_mcm")]
    assert [recipe["config"]["objective"] for recipe in objectives] == ["nll", "nll_max", "nll_mcm"]


def test_finished_runs_are_not_trained_again(words: Words, table3: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(table3, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "runs/nll_max-seed0")
    before = (tmp_path / "runs/nll-seed0/metrics.json").stat().st_mtime_ns
    assert main(words(tmp_path)) == 0
    assert "run 1 of 1: nll_max-seed0 (2 images)" in capsys.readouterr().out
    assert (tmp_path / "runs/nll-seed0/metrics.json").stat().st_mtime_ns == before


def test_an_interrupted_run_wants_resume_and_goes_on(words: Words, table3: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(table3, tmp_path, dirs_exist_ok=True)
    run = tmp_path / "runs/nll-seed0"
    recipe = read_recipe(str(run / "recipe.yaml"))
    train(TrainConfig(**{**recipe, "output": str(run), "save_every": 1, "overwrite": True}))
    (run / "metrics.json").unlink()  # as if it had been killed at the end
    assert main(words(tmp_path)) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(words(tmp_path, "--resume")) == 0
    assert (run / "metrics.json").is_file()


@pytest.mark.slow
def test_a_training_that_cannot_go_on_leaves_the_others(words: Words, tmp_path: Path, capsys) -> None:
    arguments = words(tmp_path, "--learning-rates", "1e-3", "1e17", table="table9", images="6")
    cut = arguments.index("--config")
    assert main([*arguments[:cut], "--max-bad-steps", "1", "--log-every", "1", *arguments[cut:]]) == 1
    error = capsys.readouterr().err
    assert "error: nll_mcm-lr1e+17-seed0: " in error
    text = (tmp_path / "table9.md").read_text()
    assert "- Stopped: nll_mcm-lr1e+17-seed0: " in text
    assert len(json.loads((tmp_path / "table9.json").read_text())["runs"]) == 2


def test_dry_run_lists_the_runs_and_writes_nothing(words: Words, tmp_path: Path, capsys) -> None:
    more = ("--seeds", "0", "1", "2", "--learning-rates", "1e-3", "2e-3", "--dry-run")
    assert main(words(tmp_path / "out", *more, images="100")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "18 runs, 18 to train: 1,800 images"
    assert any("nll-lr0.002-seed2" in line and "objective=nll" in line for line in lines)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("preset", "shared"), [("drmm-sparse-rcnn-tiny", "beta1-k64"), ("drmm-adamixer-tiny", "beta0.5-k64")]
)
def test_one_training_under_several_names_is_planned_once(
    scenes: Path, tmp_path: Path, capsys, preset: str, shared: str
) -> None:
    arguments = ["--data", str(scenes), "--output", str(tmp_path), "--preset", preset, "--dry-run"]
    assert main(["table8", "fig11", "table7", *arguments]) == 0
    out = capsys.readouterr().out
    # D-RMM itself is in all three, and both numbers of proposals of Fig. 11 are in Table 8, too
    assert out.splitlines()[-1].startswith("22 runs, ")
    assert "nll_mcm-seed0" in out
    assert f"{shared}-seed0" not in out
    assert main(["table8", *arguments]) == 0
    assert "nll_mcm-seed0" in capsys.readouterr().out  # the name does not depend on the tables asked for


def test_finished_runs_of_a_folder_make_another_figure(words: Words, table3: Path, tmp_path: Path, capsys) -> None:
    assert main(words(tmp_path, "--runs", str(table3 / "runs"), table="fig7")) == 0
    text = (tmp_path / "fig7.md").read_text()
    assert "Not here, because there is no finished run: set_prediction." in text
    assert (tmp_path / "fig7.png").read_bytes().startswith(b"\x89PNG")
    values = json.loads((tmp_path / "fig7.json").read_text())["rows"]
    expected = json.loads((table3 / "table3.json").read_text())["rows"]
    assert values["without NMS"]["nll"]["mean"] == expected["nll"]["AP"]["mean"]
    assert values["NMS 0.7"]["nll"]["mean"] == expected["nll + NMS"]["AP"]["mean"]


@pytest.mark.parametrize("table", ["table9", "fig8", "fig9", "anchor", "duplicates", "ranking", "recalibration"])
def test_runs_measured_by_other_tables(words: Words, table3: Path, tmp_path: Path, table: str) -> None:
    assert main(words(tmp_path, "--runs", str(table3 / "runs"), table=table)) == 0
    rows = json.loads((tmp_path / f"{table}.json").read_text())["rows"]
    # after so short a training nothing has the score that D-ECE asks for, and no image is without objects
    absent = ("D-ECE", "OCE", "false positives")
    assert all(cell["seeds"] for row in rows.values() for name, cell in row.items() if not name.startswith(absent))


def test_the_weight_of_mcm_says_nothing_of_a_run_without_mcm(words: Words, table3: Path, tmp_path: Path) -> None:
    for name in ("nll", "nll_mcm"):
        shutil.copytree(table3 / f"runs/{name}-seed0", tmp_path / name)
        path = tmp_path / name / "model/config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, "mcm_weight": config["mcm_weight"] / 2}))
    assert main(words(tmp_path / "out", "--runs", str(tmp_path), table="table2")) == 0
    assert list(json.loads((tmp_path / "out/table2.json").read_text())["rows"]) == ["nll"]


def test_runs_that_do_not_fit_are_refused_by_name(words: Words, table3: Path, tmp_path: Path, capsys) -> None:
    for name in ("a", "b"):
        shutil.copytree(table3 / "runs/nll-seed0", tmp_path / name)
    other_model = words(tmp_path / "out", "--runs", str(table3 / "runs"), table="table2")
    for command, *named in (
        (words(table3, images="4"), "nll-seed0", "train_images"),
        (words(tmp_path / "out", "--runs", str(tmp_path)), "a and b"),
        (other_model[: other_model.index("--")], "table2", "num_proposals=16"),
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert all(name in error for name in named)
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--", "--seed", "3"], "--seed"),
        (["--preset", "adamixer-tiny"], "--preset adamixer-tiny"),
        (["--preset", "drmm-sparse-rcnn-huge"], "drmm-sparse-rcnn-huge"),
        (["--", "--config", "num_proposals=0"], "cell nll"),
        (["--learning-rates", "0"], "learning_rate"),
        (["--seeds"], "--seeds"),
        (["--runs", "nothing-here"], "nothing-here"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, capsys, arguments: list[str], named: str) -> None:
    try:
        status = main(["table3", "--data", "nowhere", "--output", str(tmp_path / "out"), *arguments])
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    error = capsys.readouterr().err
    assert named in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("table", "library", "extra"), [("fig7", "matplotlib", "plots"), ("table2", "scipy", "baselines")]
)
def test_a_missing_extra_is_named_before_the_training(
    words: Words, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch,
    table: str, library: str, extra: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == library else object())
    assert main(words(tmp_path / "out", table=table)) == 2
    assert f"drmm-hf[{extra}]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_commands_of_the_document_are_understood(tmp_path: Path, capsys) -> None:
    text = (ROOT / "docs/reproduce.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^    (?:\w+ launch |python )scripts/reproduce\.py (.+)$", text, flags=re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        arguments = [word for word in shlex.split(command) if word not in ("--dry-run", "--resume")]
        if "--runs" not in arguments:
            assert main(["--dry-run", *arguments]) == 0, command
            assert "to train" in capsys.readouterr().out
