"""A small checkpoint with a card, and a Hub that huggingface_hub and transformers talk to in this process."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers.utils.hub
from huggingface_hub import constants

from drmm_hf import DrmmImageProcessor
from hub.loopback_hub import TOKEN, LoopbackHub, running_hub
from model_fixtures import small_model

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: object-detection
---
# Discs, rings and stars
A detector for a test.
"""


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
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A running Hub that this process talks to, with a token and an empty cache; retries do not wait."""
    with running_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        huggingface_hub.close_session()
        yield server
        huggingface_hub.close_session()
