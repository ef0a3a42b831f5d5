"""Which files of a folder are published."""

import json
import os

import pytest

from drmm_hf.hub import code_files, export_with_code, plan_upload

BASE = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}


def test_only_known_files_are_published_and_the_others_named(checkpoint):
    known = ("LICENSE", "metrics.json", "results.json", "analysis.json", "overview.png", "images/reliability.svg")
    unknown = (
        "optimizer.bin",
        "pytorch_model.bin",
        "training_args.bin",
        "other.safetensors",
        "tokens.json",
        "notes.py",
        ".env",
        ".hidden.png",
        "images/raw.tif",
        "step-00000010/model.safetensors",
        "step-00000010/scene.png",
    )
    for name in (*known, *unknown):
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_text("1")
    with plan_upload(checkpoint) as plan:
        assert set(plan.files) == {*BASE, *known}
        assert list(plan.files) == sorted(plan.files)
        expected = {name for name in unknown if not name.startswith("step")} | {"step-00000010/"}
        assert set(plan.left_out) == expected
        staged = {path.relative_to(plan.staged).as_posix() for path in plan.staged.rglob("*") if path.is_file()}
        assert staged == set(plan.files)
        assert plan.size("results.json") == 1
    assert not plan.staged.exists()


def test_folders_of_the_machine_are_not_published(checkpoint):
    """`scripts/analyze.py` names the annotations by their whole path."""
    facts = {"data": {"annotations": str(checkpoint / "annotations" / "val.json"), "images": 87}, "AP": [0.5, None]}
    text = json.dumps({**facts, "checkpoints": [{"checkpoint": "runs/mine/model", "results": "results-mine.json"}]})
    (checkpoint / "analysis.json").write_text(text)
    with plan_upload(checkpoint) as plan:
        staged = json.loads((plan.staged / "analysis.json").read_text())
    assert staged == {**json.loads(text), "data": {"annotations": "val.json", "images": 87}}
    assert (checkpoint / "analysis.json").read_text() == text


def test_code_is_added_to_the_plan_and_not_to_the_folder(checkpoint):
    config = (checkpoint / "config.json").read_bytes()
    with plan_upload(checkpoint, with_code=True) as plan:
        assert plan.with_code
        assert set(plan.files) == {*BASE, *code_files()}
        assert "auto_map" in json.loads((plan.staged / "config.json").read_text())
    assert (checkpoint / "config.json").read_bytes() == config
    assert {path.name for path in checkpoint.iterdir()} == BASE


def test_code_in_the_folder_is_written_anew_and_a_stray_module_left_out(checkpoint):
    export_with_code(checkpoint)
    (checkpoint / "mixture.py").write_text("old = True\n")
    (checkpoint / "stray.py").write_text("")
    with plan_upload(checkpoint) as plan:
        assert plan.with_code
        assert (plan.staged / "mixture.py").read_text() == code_files()["mixture.py"]
        assert plan.left_out == ("stray.py",)
    assert (checkpoint / "mixture.py").read_text() == "old = True\n"


def test_a_snapshot_of_the_cache_whose_files_are_links(checkpoint, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in BASE:
        (linked / name).symlink_to(checkpoint / name)
    with plan_upload(linked, with_code=True) as plan:
        assert set(plan.files) == {*BASE, *code_files()}
    assert "auto_map" not in (checkpoint / "config.json").read_text()


def test_a_disk_without_links(checkpoint, monkeypatch):
    def refuse(*_, **__):
        raise OSError("links are not supported")

    monkeypatch.setattr(os, "symlink", refuse)
    with plan_upload(checkpoint) as plan:
        assert (plan.staged / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("README.md", None, FileNotFoundError, r"README.md: no such file; a published model needs a model card"),
        ("README.md", "# Stars\n", ValueError, "README.md: the card's header has no field license"),
        ("README.md", "---\nlicense: [a\n---\n", ValueError, "README.md: not a model card: "),
        ("README.md", "---\n- a\n---\n", ValueError, "README.md: not a model card: "),
        ("config.json", None, FileNotFoundError, "no config.json in this folder"),
        ("preprocessor_config.json", None, FileNotFoundError, "no preprocessor_config.json in this folder"),
        ("model.safetensors", None, FileNotFoundError, "no weights"),
        ("analysis.json", "{", ValueError, r"analysis.json: not valid JSON \(line 1, column 2"),
        ("model.safetensors", "x", ValueError, "the model cannot be loaded"),
        ("config.json", '{"model_type": "detr"}', ValueError, "model_type is 'detr', expected 'drmm'"),
    ],
)
def test_what_cannot_be_published(checkpoint, name, text, error, message):
    (checkpoint / name).unlink(missing_ok=True)
    if text is not None:
        (checkpoint / name).write_text(text)
    with pytest.raises(error, match=message), plan_upload(checkpoint):
        pass


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="stars: no such model folder"), plan_upload(tmp_path / "stars"):
        pass
    # a name on the Hub is no folder to publish
    with pytest.raises(FileNotFoundError, match="no such model folder"), plan_upload("me/stars"):
        pass


def test_an_empty_folder_of_pictures_is_nothing_to_mention(checkpoint):
    (checkpoint / "images").mkdir()
    with plan_upload(checkpoint) as plan:
        assert plan.left_out == ()
