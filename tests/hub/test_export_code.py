"""Checkpoints with code: used from a folder and from a Hub where the package is absent, unused where it is there."""

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
from drmm_hf.hub import code_files, export_with_code, plan_upload, publish
from hub.loopback_hub import LoopbackHub

REPO = "me/stars"
PACKAGE = Path(drmm_hf.__file__).parent
NEEDED = {"huggingface_hub", "numpy", "safetensors", "timm", "torch", "torchvision", "transformers"}


@pytest.fixture
def exported(checkpoint: Path) -> Path:
    export_with_code(checkpoint)
    return checkpoint


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(file)
    return file


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch):
    """What a quiet load leaves empty: warnings of transformers, its questions, and code of the checkpoint that it ran.

    Collected, because transformers swallows an error that is raised in their place.
    """
    messages: list[str] = []

    def refuse(*args, **_):
        messages.append(f"not wanted: {args}")
        raise AssertionError(messages[-1])

    monkeypatch.setattr("builtins.input", refuse)
    monkeypatch.setattr("transformers.dynamic_module_utils.get_class_in_module", refuse)

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler, logger = Keep(logging.WARNING), logging.getLogger("transformers")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def answers(model: DrmmForObjectDetection, processor: DrmmImageProcessor, picture: Path) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        outputs = model.eval()(**processor(images=[Image.open(picture)], return_tensors="pt"))
    return {"logits": outputs.logits, "pred_boxes": outputs.pred_boxes}


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


def test_what_an_export_writes(checkpoint):
    written = export_with_code(checkpoint)
    assert {path.name: path.read_text() for path in written} == code_files()
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_drmm.DrmmConfig",
        "AutoModel": "modeling_drmm.DrmmModel",
        "AutoModelForObjectDetection": "modeling_drmm.DrmmForObjectDetection",
        "AutoImageProcessor": "image_processing_drmm.DrmmImageProcessor",
    }
    processor = json.loads((checkpoint / "preprocessor_config.json").read_text())
    assert not {"auto_map", "image_processor_type"} & set(processor)
    assert processor["size"] == {"shortest_edge": 64, "longest_edge": 96}
    again = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    export_with_code(checkpoint)
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == again


def test_saving_a_checkpoint_that_was_loaded_with_its_code_beside_it_writes_none(exported, tmp_path):
    DrmmForObjectDetection.from_pretrained(exported).save_pretrained(tmp_path / "saved")
    DrmmImageProcessor.from_pretrained(exported).save_pretrained(tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert not any("auto_map" in path.read_text() for path in (tmp_path / "saved").glob("*.json"))
    processor = json.loads((tmp_path / "saved" / "preprocessor_config.json").read_text())
    assert processor["image_processor_type"] == "DrmmImageProcessor"


@pytest.mark.parametrize("options", [{}, {"trust_remote_code": True}, {"trust_remote_code": False}])
def test_where_the_package_is_installed_it_is_used_without_a_question_or_a_message(exported, picture, strict, options):
    detector = pipeline("object-detection", model=str(exported), **options)
    assert type(detector.model) is DrmmForObjectDetection
    assert type(detector.image_processor) is DrmmImageProcessor
    assert detector(str(picture), threshold=0.0)
    for auto, ours in (
        (AutoConfig, DrmmConfig),
        (AutoModel, DrmmModel),
        (AutoModelForObjectDetection, DrmmForObjectDetection),
        (AutoImageProcessor, DrmmImageProcessor),
    ):
        assert type(auto.from_pretrained(exported, **options)) is ours
    assert not strict


def test_by_repository_id_with_a_pinned_revision_and_offline_the_second_time(
    hub: LoopbackHub, checkpoint, picture, strict, monkeypatch
):
    with plan_upload(checkpoint, with_code=True) as plan:
        first = publish(plan, REPO).commit
    expected = pipeline("object-detection", model=str(checkpoint))(str(picture), threshold=0.0)
    assert pipeline("object-detection", model=REPO)(str(picture), threshold=0.0) == expected

    model = DrmmForObjectDetection.from_pretrained(checkpoint)
    with torch.no_grad():
        model.model.heads[-1].objectness.bias.add_(1)
    model.save_pretrained(checkpoint)
    with plan_upload(checkpoint, with_code=True) as plan:
        publish(plan, REPO)
    asked = len(hub.requests)
    assert pipeline("object-detection", model=REPO, revision=first)(str(picture), threshold=0.0) == expected
    assert not [line for line in hub.requests[asked:] if line.startswith("GET") and "model.safetensors" in line]
    newest = pipeline("object-detection", model=REPO)(str(picture), threshold=0.0)
    assert newest != expected

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert pipeline("object-detection", model=REPO)(str(picture), threshold=0.0) == newest
    assert pipeline("object-detection", model=REPO, revision=first)(str(picture), threshold=0.0) == expected
    assert len(hub.requests) == asked
    assert not strict


ABSENT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "drmm_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
try:
    import drmm_hf
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("the package is there")

import json
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForObjectDetection, pipeline

sources, picture, output = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
tensors, answers = {}, []
for number, (source, revision) in enumerate(sources):
    options = {"trust_remote_code": True, "revision": revision}
    assert AutoConfig.from_pretrained(source, **options).model_type == "drmm"
    assert type(AutoModel.from_pretrained(source, **options)).__name__ == "DrmmModel"
    model = AutoModelForObjectDetection.from_pretrained(source, **options)
    processor = AutoImageProcessor.from_pretrained(source, **options)
    with torch.no_grad():
        outputs = model.eval()(**processor(images=[Image.open(picture)], return_tensors="pt"))
    tensors |= {f"{number}.{name}": outputs[name].contiguous() for name in ("logits", "pred_boxes")}
    detector = pipeline("object-detection", model=source, **options)
    answers.append(detector(picture, threshold=0.0))
save_file(tensors, f"{output}/tensors.safetensors")
model.save_pretrained(f"{output}/again")
processor.save_pretrained(f"{output}/again")
again = pipeline("object-detection", model=f"{output}/again", trust_remote_code=True)
answers.append(again(picture, threshold=0.0))
print(json.dumps(answers))
"""


def without_the_package(script: str, *arguments: str, home: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_", "PYTHON"))
    }
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        env=kept | settings,
        cwd=home,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )


def noise(text: str) -> list[str]:
    """Lines of stderr other than progress bars and what torchvision announces about itself."""
    known = ("Loading weights", "  warnings.warn(_DEPRECATION_MSG")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(known)]
    return [line for line in lines if "torchvision/io/image.py" not in line and "%|" not in line and "B/s" not in line]


@pytest.mark.slow
def test_without_the_package_folder_and_hub_give_the_same_bits(hub: LoopbackHub, checkpoint, picture, tmp_path):
    with plan_upload(checkpoint, with_code=True) as plan:
        commit = publish(plan, REPO).commit
    export_with_code(checkpoint)
    sources = [(str(checkpoint), None), (REPO, commit)]
    (tmp_path / "home").mkdir()
    (tmp_path / "out").mkdir()
    done = without_the_package(
        ABSENT,
        json.dumps(sources),
        str(picture),
        str(tmp_path / "out"),
        home=tmp_path / "home",
        endpoint=hub.endpoint,
    )
    assert done.returncode == 0, done.stderr
    assert not noise(done.stderr)
    processor = DrmmImageProcessor.from_pretrained(checkpoint)
    expected = answers(DrmmForObjectDetection.from_pretrained(checkpoint), processor, picture)
    tensors = load_file(tmp_path / "out" / "tensors.safetensors")
    for number in range(len(sources)):
        for name, tensor in expected.items():
            assert torch.equal(tensors[f"{number}.{name}"], tensor), f"{name} of {sources[number]}"
    detections = json.loads(done.stdout)
    assert detections == [pipeline("object-detection", model=str(checkpoint))(str(picture), threshold=0.0)] * 3
    saved = {path.name for path in (tmp_path / "out" / "again").glob("*.py")}
    assert saved == set(code_files()), "saving a model that runs its checkpoint's code hands the code on"


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("config.json", None, FileNotFoundError, "config.json: no such file; give a folder that save_pretrained wrote"),
        ("preprocessor_config.json", None, FileNotFoundError, "preprocessor_config.json: no such file"),
        ("config.json", "{", ValueError, "config.json: not valid JSON .*save the checkpoint again"),
        ("config.json", "[]", ValueError, "config.json: expected a JSON object, found a list"),
        ("config.json", '{"model_type": "detr"}', ValueError, "field model_type is 'detr', expected 'drmm'"),
    ],
)
def test_a_folder_that_cannot_be_exported_is_left_as_it_was(checkpoint, name, text, error, message):
    (checkpoint / name).unlink()
    if text is not None:
        (checkpoint / name).write_text(text)
    before = {path.name for path in checkpoint.iterdir()}
    with pytest.raises(error, match=message):
        export_with_code(checkpoint)
    assert {path.name for path in checkpoint.iterdir()} == before


def test_no_folder_to_export(tmp_path):
    with pytest.raises(FileNotFoundError, match="stars: no such folder"):
        export_with_code(tmp_path / "stars")
