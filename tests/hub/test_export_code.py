"""Checkpoints with code: used from a folder where the package is absent, unused where it is there."""

import ast
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForObjectDetection, pipeline
from transformers.dynamic_module_utils import get_imports

import drmm_hf
from drmm_hf import DrmmConfig, DrmmForObjectDetection, DrmmImageProcessor, DrmmModel
from drmm_hf.hub import code_files, export_with_code

PACKAGE = Path(drmm_hf.__file__).parent
NEEDED = {"huggingface_hub", "numpy", "PIL", "safetensors", "timm", "torch", "torchvision", "transformers"}
AUTO = (
    (AutoConfig, DrmmConfig),
    (AutoModel, DrmmModel),
    (AutoModelForObjectDetection, DrmmForObjectDetection),
    (AutoImageProcessor, DrmmImageProcessor),
)


@pytest.fixture
def exported(checkpoint: Path) -> Path:
    export_with_code(checkpoint)
    return checkpoint


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(file)
    return file


def test_the_code_is_flat_complete_and_needs_no_other_package():
    texts = code_files()
    for name, text in texts.items():
        assert text.startswith((PACKAGE / name).read_text())
        # an optional import, which stands inside `try`, is none that transformers asks for
        assert set(get_imports(PACKAGE / name)) <= NEEDED | set(sys.stdlib_module_names), name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, f"{name} imports from a folder above its own"
                assert node.module, f"{name}: `from . import` is not understood by transformers"
                assert f"{node.module}.py" in texts, f"{name} imports .{node.module}"
    assert {"configuration_drmm.py", "modeling_drmm.py", "image_processing_drmm.py", "presets.py"} < set(texts)


def test_what_an_export_writes_and_a_later_save_does_not(checkpoint, tmp_path):
    written = export_with_code(checkpoint)
    assert {path.name: path.read_text() for path in written} == code_files()
    auto_map = json.loads((checkpoint / "config.json").read_text())["auto_map"]
    assert auto_map == {auto.__name__: f"{ours.__module__.split('.')[-1]}.{ours.__name__}" for auto, ours in AUTO}
    processor = json.loads((checkpoint / "preprocessor_config.json").read_text())
    assert not {"auto_map", "image_processor_type"} & set(processor)
    assert processor["size"] == {"shortest_edge": 64, "longest_edge": 96}
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    export_with_code(checkpoint)
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
    saved = tmp_path / "saved"
    DrmmForObjectDetection.from_pretrained(checkpoint).save_pretrained(saved)
    DrmmImageProcessor.from_pretrained(checkpoint).save_pretrained(saved)
    assert {path.name for path in saved.iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert not any("auto_map" in path.read_text() for path in saved.glob("*.json"))


@pytest.mark.parametrize("options", [{}, {"trust_remote_code": True}, {"trust_remote_code": False}])
def test_where_the_package_is_installed_it_is_used_without_a_question_or_a_message(
    exported, picture, monkeypatch, options
):
    unwanted: list[str] = []  # collected, because transformers swallows an error that is raised in its place

    def refuse(*args, **_):
        unwanted.append(f"{args}")
        raise AssertionError(unwanted[-1])

    monkeypatch.setattr("builtins.input", refuse)
    monkeypatch.setattr("transformers.dynamic_module_utils.get_class_in_module", refuse)
    handler, logger = logging.Handler(logging.WARNING), logging.getLogger("transformers")
    monkeypatch.setattr(handler, "emit", lambda record: unwanted.append(record.getMessage()))
    monkeypatch.setattr(logger, "handlers", [*logger.handlers, handler])
    detector = pipeline("object-detection", model=str(exported), **options)
    assert type(detector.model) is DrmmForObjectDetection
    assert type(detector.image_processor) is DrmmImageProcessor
    assert detector(str(picture), threshold=0.0)
    for auto, ours in AUTO:
        assert type(auto.from_pretrained(exported, **options)) is ours
    assert not unwanted


ABSENT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "drmm_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())

import json
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForObjectDetection, pipeline

source, picture, output = sys.argv[1:]
options = {"trust_remote_code": True}
assert AutoConfig.from_pretrained(source, **options).model_type == "drmm"
assert type(AutoModel.from_pretrained(source, **options)).__name__ == "DrmmModel"
model = AutoModelForObjectDetection.from_pretrained(source, **options)
processor = AutoImageProcessor.from_pretrained(source, **options)
with torch.no_grad():
    outputs = model.eval()(**processor(images=[Image.open(picture)], return_tensors="pt"))
save_file({name: outputs[name].contiguous() for name in ("logits", "pred_boxes")}, f"{output}/tensors.safetensors")
model.save_pretrained(f"{output}/again")
processor.save_pretrained(f"{output}/again")
for folder in (source, f"{output}/again"):
    print(json.dumps(pipeline("object-detection", model=folder, **options)(picture, threshold=0.0)))
"""


@pytest.mark.slow
def test_without_the_package_the_code_of_the_folder_gives_the_same_bits(exported, picture, tmp_path) -> None:
    kept = {name: v for name, v in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-c", ABSENT, str(exported), str(picture), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**kept, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert "drmm" not in done.stderr, "nothing is said about the model"
    processor = DrmmImageProcessor.from_pretrained(exported)
    with torch.no_grad():
        model = DrmmForObjectDetection.from_pretrained(exported).eval()
        expected = model(**processor(images=[Image.open(picture)], return_tensors="pt"))
    for name, tensor in load_file(tmp_path / "tensors.safetensors").items():
        assert torch.equal(expected[name], tensor), name
    detections = pipeline("object-detection", model=str(exported))(str(picture), threshold=0.0)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [detections] * 2
    saved = {path.name for path in (tmp_path / "again").glob("*.py")}
    assert saved == set(code_files()), "saving a model that runs its checkpoint's code hands the code on"


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("config.json", None, FileNotFoundError),
        ("preprocessor_config.json", None, FileNotFoundError),
        ("config.json", "{", ValueError),
        ("config.json", "[]", ValueError),
        ("config.json", '{"model_type": "detr"}', ValueError),
    ],
)
def test_a_folder_that_cannot_be_exported_is_left_as_it_was(checkpoint, name, text, error) -> None:
    (checkpoint / name).unlink()
    if text is not None:
        (checkpoint / name).write_text(text)
    before = {path.name for path in checkpoint.iterdir()}
    with pytest.raises(error, match=name):
        export_with_code(checkpoint)
    assert {path.name for path in checkpoint.iterdir()} == before
