"""The commands and snippets of docs/publish.md."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from drmm_hf.hub import cli, plan_upload, publish

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "publish.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^ {4}python scripts/publish\.py (.+)$", DOCUMENT, flags=re.MULTILINE)
REPO = "me/my-detector"


def test_every_snippet_runs(hub, checkpoint, tmp_path, monkeypatch):
    with plan_upload(checkpoint, with_code=True) as plan:
        commit = publish(plan, REPO).commit
    model = tmp_path / "runs" / "mine" / "model"
    model.parent.mkdir(parents=True)
    checkpoint.rename(model)
    Image.new("RGB", (96, 64), (120, 30, 30)).save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    assert len(SNIPPETS) == 4
    for snippet in SNIPPETS:
        exec(snippet.replace("COMMIT", commit), {})
    assert (model / "modeling_drmm.py").is_file()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(hub, checkpoint, command, tmp_path, monkeypatch, capfd):
    model = tmp_path / "runs" / "mine" / "model"
    model.parent.mkdir(parents=True)
    checkpoint.rename(model)
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    assert cli.main(shlex.split(command)) == 0
    assert (shlex.split(command)[1] in hub.repositories) == ("--push" in command)


def test_every_option_is_in_the_table(capfd):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    options = set(re.findall(r"^  (--[\w-]+)", capfd.readouterr().out, flags=re.MULTILINE)) - {"--debug"}
    described = set(re.findall(r"^\| `(--[\w-]+)", DOCUMENT, flags=re.MULTILINE)) | {"--push"}
    assert options == described


@pytest.mark.parametrize(
    "row", re.findall(r"^\| `(.+?)` \|", DOCUMENT.split("## When it fails")[1], flags=re.MULTILINE)
)
def test_every_message_in_the_table_is_one_of_the_code(row):
    source = "".join(path.read_text() for path in Path(cli.__file__).parent.glob("*.py"))
    assert row.rstrip(" .") in source
