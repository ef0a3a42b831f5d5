"""Help and messages name the command as it was called: the installed one, or the script."""

import importlib

import pytest

MAIN = {
    "analyze": "drmm_hf.evaluation.analyze_cli",
    "convert": "drmm_hf.conversion.cli",
    "evaluate": "drmm_hf.evaluation.cli",
    "export": "drmm_hf.export.cli",
    "predict": "drmm_hf.evaluation.predict_cli",
    "presets": "drmm_hf.evaluation.presets_cli",
    "train": "drmm_hf.training.cli",
}


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("/usr/bin/drmm-{}", "drmm-{}"),
        ("C:/Scripts/drmm-{}.exe", "drmm-{}"),
        ("scripts/{}.py", "{}.py"),
        ("-c", "{}.py"),
        ("/usr/bin/pytest", "{}.py"),
    ],
)
@pytest.mark.parametrize("name", MAIN)
def test_the_usage(name: str, typed: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", [typed.format(name)])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(MAIN[name]).main(["--no-such-option"])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"usage: {shown.format(name)} ")
    assert f"\n{shown.format(name)}: error: " in error
