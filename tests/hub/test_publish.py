"""Publishing: which files of a folder go, what arrives in the repository, and what is refused."""

import json
from pathlib import Path

import pytest
from huggingface_hub import CommitInfo, constants
from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

from drmm_hf import DrmmForObjectDetection
from drmm_hf.cli import main
from drmm_hf.hub import code_files, export_with_code, plan_upload
from drmm_hf.hub import publish as send
from hub.conftest import TOKEN, answer

REPO = "me/stars"
BASE = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}


def publish(folder: Path, with_code: bool = False, **options) -> CommitInfo:
    return send(plan_upload(folder, with_code), REPO, **options)


class TestPlan:
    def test_only_known_files_are_published_and_the_others_named(self, checkpoint) -> None:
        known = ("LICENSE", "metrics.json", "results.json", "analysis.json", "overview.png", "images/reliability.svg")
        unknown = (
            *("optimizer.bin", "pytorch_model.bin", "training_args.bin", "other.safetensors", "tokens.json"),
            *("notes.py", ".env", ".hidden.png", "images/raw.tif"),
            *("step-00000010/model.safetensors", "step-00000010/scene.png"),
        )
        for name in (*known, *unknown):
            (checkpoint / name).parent.mkdir(exist_ok=True)
            (checkpoint / name).write_text("1")
        plan = plan_upload(checkpoint)
        assert list(plan.files) == sorted({*BASE, *known})
        assert sorted(plan.left_out) == sorted(unknown)
        assert plan.size("results.json") == 1

    def test_folders_of_the_machine_are_not_published(self, checkpoint) -> None:
        """`drmm analyze` names the annotations by their whole path."""
        facts = {"data": {"annotations": str(checkpoint / "annotations" / "val.json"), "images": 87}, "AP": [0.5, None]}
        text = json.dumps({**facts, "checkpoints": [{"checkpoint": "runs/mine/model"}]})
        (checkpoint / "analysis.json").write_text(text)
        sent = json.loads(plan_upload(checkpoint).read("analysis.json"))
        assert sent == {**json.loads(text), "data": {"annotations": "val.json", "images": 87}}
        assert (checkpoint / "analysis.json").read_text() == text

    def test_code_is_written_anew_into_the_plan_and_not_into_the_folder(self, checkpoint) -> None:
        export_with_code(checkpoint)
        (checkpoint / "mixture.py").write_text("old = True\n")
        (checkpoint / "stray.py").write_text("")
        plan = plan_upload(checkpoint)
        assert set(plan.files) == {*BASE, *code_files()}
        assert plan.read("mixture.py").decode() == code_files()["mixture.py"]
        assert "auto_map" in json.loads(plan.read("config.json"))
        assert plan.left_out == ["stray.py"]
        assert (checkpoint / "mixture.py").read_text() == "old = True\n"

    @pytest.mark.parametrize(
        ("name", "text", "error"),
        [
            ("README.md", None, FileNotFoundError),
            ("README.md", "# Stars\n", ValueError),
            ("README.md", "---\nlicense: [a\n---\n", ValueError),
            ("README.md", "---\n- a\n---\n", ValueError),
            ("config.json", None, FileNotFoundError),
            ("preprocessor_config.json", None, FileNotFoundError),
            ("analysis.json", "{", ValueError),
            ("config.json", '{"model_type": "detr"}', ValueError),
        ],
    )
    def test_what_cannot_be_published(self, checkpoint, name, text, error) -> None:
        (checkpoint / name).unlink(missing_ok=True)
        if text is not None:
            (checkpoint / name).write_text(text)
        with pytest.raises(error, match=name):
            plan_upload(checkpoint)

    @pytest.mark.parametrize("folder", ["stars", "me/stars"])  # a name on the Hub is no folder to publish
    def test_no_such_folder(self, folder, tmp_path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileNotFoundError, match="stars"):
            plan_upload(folder)


class TestPublish:
    def test_one_commit_holds_the_planned_files_and_an_update_removes_replaced_weights(self, hub, checkpoint) -> None:
        first = publish(checkpoint)
        files = hub.files()
        assert set(files) == {*BASE, ".gitattributes"}
        assert all(files[name] == (checkpoint / name).read_bytes() for name in BASE)
        assert hub.branches == {"main": first.oid}
        model = DrmmForObjectDetection.from_pretrained(checkpoint)
        (checkpoint / "model.safetensors").unlink()
        model.save_pretrained(checkpoint, max_shard_size="300KB")
        publish(checkpoint)
        assert "model.safetensors" not in hub.files()
        assert "model.safetensors.index.json" in hub.files()
        assert set(hub.files(first.oid)) == {*BASE, ".gitattributes"}
        assert hub.calls.count("create_commit") == 2

    def test_branch_pull_request_and_private(self, hub, checkpoint) -> None:
        publish(checkpoint, private=True, revision="tiny/v2")
        assert hub.private
        assert set(hub.files()) == {".gitattributes"}
        assert set(hub.files("tiny/v2")) > BASE
        published = publish(checkpoint, create_pr=True)
        assert published.pr_url
        assert set(hub.files()) == {".gitattributes"}
        assert set(hub.files("refs/pr/1")) > BASE
        with pytest.raises(ConnectionError, match=REPO):
            publish(checkpoint, create_pr=True, revision="nowhere")

    def test_private_is_not_taken_for_granted_in_a_public_repository(self, hub, checkpoint) -> None:
        hub.commit("main", {})
        with pytest.raises(ValueError, match="public"):
            publish(checkpoint, private=True)
        assert "create_commit" not in hub.calls

    @pytest.mark.parametrize(
        ("method", "failure"),
        [
            ("create_repo", answer(401)),
            ("create_repo", OfflineModeIsEnabled("offline")),
            ("model_info", answer(404, RepositoryNotFoundError)),
            ("create_commit", answer(409)),
            ("create_commit", RuntimeError("Error while uploading 'model.safetensors'")),
        ],
    )
    def test_a_failure_of_the_hub_is_one_line(self, hub, checkpoint, method, failure, capsys) -> None:
        hub.failures[method] = failure
        assert main(["publish", str(checkpoint), REPO, "--push"]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert line.startswith(f"error: {REPO}")
        assert TOKEN not in line

    def test_another_commit_in_between_is_noticed(self, hub, checkpoint, monkeypatch) -> None:
        before = hub.model_info

        def and_another(*arguments, **options):
            info = before(*arguments, **options)
            hub.commit("main", {"README.md": b"someone else's"})
            return info

        monkeypatch.setattr(hub, "model_info", and_another)
        with pytest.raises(ConnectionError, match=REPO):
            publish(checkpoint)
        assert hub.files() == {"README.md": b"someone else's"}

    def test_without_a_token_nothing_is_asked(self, hub, checkpoint, monkeypatch, tmp_path) -> None:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
        with pytest.raises(PermissionError, match="token"):
            publish(checkpoint)
        assert not hub.calls


class TestCommand:
    def test_the_dry_run_shows_files_and_card_and_asks_nothing(self, hub, checkpoint, capsys) -> None:
        (checkpoint / "optimizer.bin").write_bytes(b"0" * 99)
        assert main(["publish", str(checkpoint), REPO]) == 0
        out = capsys.readouterr().out
        assert all(name in out for name in (*BASE, "optimizer.bin", "# Discs, rings and stars"))
        assert not hub.calls

    def test_pushing_with_code(self, hub, checkpoint, capsys) -> None:
        assert main(["publish", str(checkpoint), REPO, "--push", "--with-code", "--message", "First stars"]) == 0
        captured = capsys.readouterr()
        assert set(hub.files()) == {*BASE, *code_files(), ".gitattributes"}
        assert f'revision="{hub.branches["main"]}"' in captured.out
        assert TOKEN not in captured.out + captured.err

    @pytest.mark.parametrize("name", ["stars", "me/stars/x", "me/st ars"])
    def test_a_name_that_is_none(self, hub, checkpoint, name, capsys) -> None:
        assert main(["publish", str(checkpoint), name, "--push"]) == 2
        assert not hub.calls
