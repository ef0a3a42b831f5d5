"""Publishing to a Hub: what arrives, what is refused, and what happens when the Hub or the line fails."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from drmm_hf import DrmmForObjectDetection
from drmm_hf.hub import code_files, export_with_code, plan_upload
from drmm_hf.hub import publish as send
from drmm_hf.hub.cli import main
from drmm_hf.hub.publish import Published
from hub.loopback_hub import TOKEN, LoopbackHub, Repository

REPO = "me/stars"
BASE = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}


def publish(folder: Path, with_code: bool = False, **options) -> Published:
    with plan_upload(folder, with_code) as plan:
        return send(plan, REPO, **options)


def commits(hub: LoopbackHub) -> int:
    """Commits after the one that creates the repository."""
    return len(hub.repositories[REPO].commits) - 1 if REPO in hub.repositories else 0


def test_a_new_repository_holds_exactly_the_planned_files(hub, checkpoint):
    published = publish(checkpoint)
    files = hub.files(REPO)
    assert set(files) == {*BASE, ".gitattributes"}
    assert all(files[name] == (checkpoint / name).read_bytes() for name in BASE)
    assert hub.repositories[REPO].branches == {"main": published.commit}
    assert published.url == f"{hub.endpoint}/{REPO}/commit/{published.commit}"
    assert commits(hub) == 1
    assert len(hub.blobs) == 1, "the weights went through LFS"
    assert not hub.tokens_seen_by_storage


def test_an_update_is_one_commit_and_removes_weights_that_would_be_read_in_its_place(hub, checkpoint, tmp_path):
    first = publish(checkpoint)
    model = DrmmForObjectDetection.from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="300KB")
    second = publish(checkpoint)
    assert second.removed == ("model.safetensors",)
    names = set(hub.files(REPO))
    assert "model.safetensors" not in names
    assert "model.safetensors.index.json" in names
    assert set(hub.files(REPO, first.commit)) == {*BASE, ".gitattributes"}, "the old commit is untouched"
    assert commits(hub) == 2


def test_publishing_the_same_again_changes_nothing_but_is_verified(hub, checkpoint):
    first = publish(checkpoint)
    asked = len(hub.requests)
    assert publish(checkpoint).commit == first.commit
    assert commits(hub) == 1
    assert not [line for line in hub.requests[asked:] if line.startswith("PUT")], "the weights are there already"
    assert [line for line in hub.requests[asked:] if "/storage/" in line], "they are read back"


def test_branch_pull_request_and_private(hub, checkpoint):
    publish(checkpoint, private=True, revision="tiny/v2")
    repository = hub.repositories[REPO]
    assert repository.private
    assert set(hub.files(REPO, "main")) == {".gitattributes"}
    assert set(hub.files(REPO, "tiny/v2")) > BASE
    (checkpoint / "metrics.json").write_text("{}")
    published = publish(checkpoint, create_pr=True)
    assert published.pull_request == f"{hub.endpoint}/{REPO}/discussions/1"
    assert set(hub.files(REPO, "main")) == {".gitattributes"}
    assert {*BASE, "metrics.json"} < set(hub.files(REPO, "refs/pr/1"))


def test_a_pull_request_against_a_branch_that_does_not_exist(hub, checkpoint):
    with pytest.raises(ValueError, match="me/stars has no such branch"):
        publish(checkpoint, create_pr=True, revision="nowhere")


def test_private_is_not_taken_for_granted_in_a_public_repository(hub, checkpoint):
    hub.repositories[REPO] = Repository(private=False)
    hub.repositories[REPO].commit("main", {})
    with pytest.raises(ValueError, match="exists and is public; make it private in its settings"):
        publish(checkpoint, private=True)
    assert commits(hub) == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "repos/create"),
        ("GET", f"api/models/{REPO}$"),
        ("POST", "preupload"),
        ("POST", "lfs/objects/batch"),
        ("PUT", "storage"),
        ("POST", "validate-yaml"),
        ("POST", "/commit/"),
        ("GET", "storage"),
    ],
)
@pytest.mark.parametrize("action", [503, "cut"])
def test_a_passing_failure_of_the_hub_or_the_line_is_overcome(hub, checkpoint, method, path, action):
    hub.fail(method, path, action, times=2)
    published = publish(checkpoint)
    assert all(fault.times == 0 for fault in hub.faults)
    assert commits(hub) == 1
    assert hub.repositories[REPO].branches["main"] == published.commit


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, checkpoint):
    hub.fail("POST", "/commit/", "lose")
    published = publish(checkpoint)
    assert commits(hub) == 1
    assert hub.repositories[REPO].branches["main"] == published.commit
    assert published.url == f"{hub.endpoint}/{REPO}/commit/{published.commit}"


def test_a_pull_request_whose_answer_is_lost_is_not_opened_twice(hub, checkpoint):
    hub.fail("POST", "/commit/", "lose")
    with pytest.raises(ConnectionError, match="Look whether the pull request is there before you run it again"):
        publish(checkpoint, create_pr=True)
    assert hub.repositories[REPO].pull_requests == 1


@pytest.mark.parametrize(
    ("method", "path", "action", "error", "text"),
    [
        ("POST", "repos/create", 401, PermissionError, "the Hub answered 401.*run `hf auth login` or set HF_TOKEN"),
        ("POST", "repos/create", 403, PermissionError, "403.*the token may not write to me/stars"),
        ("POST", "preupload", 403, PermissionError, "403.*the token may not write to me/stars"),
        ("POST", "/commit/", 403, PermissionError, "403.*the token may not write to me/stars"),
        ("POST", "/commit/", 409, ValueError, "409.*me/stars changed meanwhile; run it again"),
        ("POST", "/commit/", 500, ConnectionError, "500.*Nothing was published"),
        ("POST", "preupload", 502, ConnectionError, "502.*Nothing was published"),
        ("PUT", "storage", "cut", ConnectionError, "model.safetensors.*Nothing was published"),
        ("PUT", "storage", 500, ConnectionError, "model.safetensors.*500.*Nothing was published"),
        ("PUT", "storage", 403, ConnectionError, "model.safetensors.*403.*Nothing was published"),
    ],
)
def test_a_lasting_failure_publishes_nothing_and_says_so(hub, checkpoint, method, path, action, error, text):
    hub.fail(method, path, action, times=99)
    with pytest.raises(error, match=text) as raised:
        publish(checkpoint)
    assert commits(hub) == 0
    assert TOKEN not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_failed_upload_by_xet_is_told_in_the_same_way(hub, checkpoint, monkeypatch):
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with pytest.raises(OSError, match=r"xet.*Nothing was published"):
        publish(checkpoint)
    assert commits(hub) == 0


def test_offline_mode_is_named(hub, checkpoint, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"offline mode is enabled.*HF_HUB_OFFLINE.*Nothing was published"):
        publish(checkpoint)
    assert not hub.requests


def test_another_commit_in_between_is_noticed(hub, checkpoint):
    hub.before_commit = lambda repository: repository.commit("main", {"README.md": b"someone else's"})
    with pytest.raises(ValueError, match=r"412: A commit has happened since.*me/stars changed meanwhile"):
        publish(checkpoint)
    assert hub.files(REPO) == {"README.md": b"someone else's"}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_arrives_changed_is_not_called_published(hub, checkpoint, name):
    hub.corrupt = lambda path, content: content[:-1] + b" " if path == name else content
    with pytest.raises(ValueError, match=rf"me/stars at \w+ does not hold what was sent: {name} missing or different"):
        publish(checkpoint)


def test_a_commit_that_cannot_be_read_back_is_called_unverified(hub, checkpoint):
    hub.fail("GET", "storage", 500, times=99)
    hub.fail("HEAD", "model.safetensors", 500, times=99)
    with pytest.raises(ConnectionError, match=r"me/stars at \w+ is published but not verified"):
        publish(checkpoint)


def test_without_a_token_nothing_is_asked(hub, checkpoint, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(PermissionError, match="no token for the Hub; run `hf auth login` or set HF_TOKEN"):
        publish(checkpoint)
    assert not hub.requests


def test_an_unreachable_hub(hub, checkpoint, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="the Hub cannot be reached"):
        publish(checkpoint)


def test_the_dry_run_shows_files_sizes_and_card_and_asks_nothing(hub, checkpoint, capfd):
    (checkpoint / "optimizer.bin").write_bytes(b"0" * 99)
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    assert main([str(checkpoint), REPO]) == 0
    out = capfd.readouterr().out
    for line in (
        f"{checkpoint} -> {REPO}",
        "left out: optimizer.bin",
        "  | # Discs, rings and stars",
        "(see --with-code)",
    ):
        assert line in out
    assert f"{(checkpoint / 'preprocessor_config.json').stat().st_size}B  preprocessor_config.json" in out
    assert "Dry run: nothing was sent." in out
    assert not hub.requests
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before


def test_pushing_from_the_command_line_with_code(hub, checkpoint, capfd):
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    assert main([str(checkpoint), REPO, "--push", "--with-code", "--message", "First stars"]) == 0
    captured = capfd.readouterr()
    assert set(hub.files(REPO)) == {*BASE, *code_files(), ".gitattributes"}
    commit = hub.repositories[REPO].branches["main"]
    assert f"verified: {len(BASE) + len(code_files())} files and the model's answers" in captured.out
    assert f'revision="{commit}"' in captured.out
    assert TOKEN not in captured.out + captured.err
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before, "the folder is left as it was"


def test_an_error_of_the_command_is_one_line(hub, checkpoint, capfd):
    hub.fail("POST", "/commit/", 403)
    assert main([str(checkpoint), REPO, "--push"]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "the token may not write to me/stars" in errors[0]


@pytest.mark.parametrize("name", ["stars", "me/stars/x", "me/st ars"])
def test_a_name_that_is_none(hub, checkpoint, name, capfd):
    assert main([str(checkpoint), name]) == 2
    assert capfd.readouterr().err.startswith("error: ")


def test_a_published_model_gives_the_same_answers(hub, checkpoint, tmp_path):
    publish(checkpoint)
    ours = DrmmForObjectDetection.from_pretrained(checkpoint)
    theirs = DrmmForObjectDetection.from_pretrained(REPO, cache_dir=tmp_path / "cache")
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name])


def test_a_folder_with_code_is_published_with_this_packages_code(hub, checkpoint):
    export_with_code(checkpoint)
    (checkpoint / "mixture.py").write_text("raise RuntimeError('old')\n")
    publish(checkpoint)
    files = hub.files(REPO)
    assert files["mixture.py"].decode() == code_files()["mixture.py"]
    assert "auto_map" in json.loads(files["config.json"])
