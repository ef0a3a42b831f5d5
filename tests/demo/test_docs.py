"""The page of documentation: its table of options, and what a Space is made of."""

import re
from pathlib import Path

import pytest
import yaml

from drmm_hf.demo import cli

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "demo.md").read_text(encoding="utf-8")
CODE = dict(re.findall(r"```(yaml|text)\n(.*?)```", TEXT, flags=re.DOTALL))


def test_every_option_and_variable_is_named() -> None:
    options = {option for action in cli._parser()._actions for option in action.option_strings if len(option) > 2}
    assert options - {"--help", "--debug"} == set(re.findall(r"^\| `(--\w+)` \|", TEXT, flags=re.MULTILINE))
    assert all(f"| {name} |" in TEXT for name in (cli.CHECKPOINT, cli.ANALYSIS, cli.EXAMPLES))


def test_a_space_is_what_the_page_says() -> None:
    header = yaml.safe_load(CODE["yaml"].strip().strip("-"))
    assert (header["sdk"], header["app_file"]) == ("gradio", "app.py")
    assert CODE["text"].strip() == "drmm-hf[demo]"


def test_the_app_takes_its_checkpoint_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    app = next(code for code in re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL) if "main([])" in code)
    monkeypatch.setenv(cli.CHECKPOINT, str(tmp_path / "none"))
    monkeypatch.setattr(cli, "import_gradio", lambda: None)
    with pytest.raises(SystemExit, match="2"):
        exec(compile(app, "app.py", "exec"), {})
    assert "none: no such model folder" in capsys.readouterr().err


def test_the_functions_are_used_as_the_page_says(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    from demo.reports import report
    from drmm_hf.data.scene_shapes import CATEGORIES
    from drmm_hf.demo.examples import example_scenes

    content = report()
    content["checkpoints"][0]["thresholds"]["per_class"] = {name: {"score_threshold": 0.4} for name in CATEGORIES}
    folder = tmp_path / "runs" / "quickstart"
    folder.mkdir(parents=True)
    (folder / "model").symlink_to(checkpoint)
    (tmp_path / "runs" / "report").mkdir()
    (tmp_path / "runs" / "report" / "analysis.json").write_text(json.dumps(content))
    example_scenes(CATEGORIES, 1)[0].save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    code = next(code for code in re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL) if "show(" in code)
    exec(compile(code, "demo.md", "exec"), {})
    assert (tmp_path / "seen.png").stat().st_size > 0
    assert "expected precision" in capsys.readouterr().out
