"""A small checkpoint with a card, and a Hub in memory behind huggingface_hub's methods that ask one."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import CommitInfo, CommitOperationDelete
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

from drmm_hf import DrmmImageProcessor
from model_fixtures import small_model

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: object-detection
---
# Discs, rings and stars
A detector for a test.
"""
TOKEN = "hf_secret"


def answer(status: int, kind: type[HfHubHTTPError] = HfHubHTTPError) -> HfHubHTTPError:
    """The error of a request that the Hub answers with this status."""
    return kind(f"{status}", response=SimpleNamespace(status_code=status, headers={}, request=None))


class FakeHub:
    """One repository: `commits` by hash (name -> content), `branches`, and what shall go wrong.

    Attributes:
        failures: method of HfApi -> the error that it raises.
        calls: the methods that were called, in order.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.private = False
        self.failures: dict[str, Exception] = {}
        self.calls: list[str] = []

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        sha = f"{len(self.commits):040x}"
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        if not self.branches:
            self.private = bool(private)
            self.commit("main", {".gitattributes": b""})

    def create_branch(self, repo_id, *, branch, exist_ok=False):
        self.branches.setdefault(branch, self.branches["main"])

    def model_info(self, repo_id, *, revision=None):
        if (revision or "main") not in self.branches:
            raise answer(404, RevisionNotFoundError)
        siblings = [SimpleNamespace(rfilename=name) for name in self.files(revision or "main")]
        return SimpleNamespace(sha=self.branches[revision or "main"], private=self.private, siblings=siblings)

    def create_commit(self, repo_id, operations, *, revision, create_pr, parent_commit, commit_message):
        branch = revision or "main"
        if parent_commit != self.branches[branch]:
            raise answer(412)
        files = dict(self.files(branch))
        for operation in operations:
            if isinstance(operation, CommitOperationDelete):
                del files[operation.path_in_repo]
            else:
                content = operation.path_or_fileobj
                files[operation.path_in_repo] = content if isinstance(content, bytes) else Path(content).read_bytes()
        sha = self.commit("refs/pr/1" if create_pr else branch, files)
        url = f"https://huggingface.co/{repo_id}/commit/{sha}"
        return CommitInfo(
            commit_url=url, commit_message=commit_message, commit_description="", oid=sha,
            pr_url=f"https://huggingface.co/{repo_id}/discussions/1" if create_pr else None,
        )  # fmt: skip


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as `save_pretrained` writes it, with scores that spread, and a model card."""
    folder = tmp_path_factory.mktemp("hub") / "detector"
    model = small_model()
    with torch.no_grad():
        for head in model.model.heads:
            head.classifier.weight.mul_(8)
            head.objectness.weight.mul_(8)
    model.save_pretrained(folder)
    DrmmImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(saved, tmp_path / "detector"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """The Hub that publishing talks to, and a token for it."""
    fake = FakeHub()

    class Api:
        def __getattr__(self, name: str):
            fake.calls.append(name)
            if name in fake.failures:
                raise fake.failures[name]
            return getattr(fake, name)

    # by module object: `drmm_hf.hub.publish` is the function of that name
    monkeypatch.setattr(sys.modules["drmm_hf.hub.publish"], "HfApi", lambda **_: Api())
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return fake
