"""`pipeline("object-detection")` and the Auto classes find D-RMM with nothing but `import drmm_hf`, and stay quiet."""

import json
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForObjectDetection, pipeline

from drmm_hf import DrmmForObjectDetection, DrmmImageProcessor, DrmmModel
from model_fixtures import NAMES, small_model

SIZES = [(96, 64), (60, 80), (64, 64)]  # width, height


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Folder of a model whose scores spread, with an image processor that pads to one size."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = small_model().eval()
    with torch.no_grad():
        for head in model.model.heads:
            head.classifier.weight.mul_(8)
            head.objectness.weight.mul_(8)
    model.save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 96}
    DrmmImageProcessor(size=size, pad_size={"height": 96, "width": 96}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


def flat(detections: list[dict]) -> list[tuple]:
    """Detections as comparable rows; boxes are whole pixels in a pipeline's answer."""
    return [(d["label"], round(d["score"], 4), *d["box"].values()) for d in detections]


@pytest.fixture
def messages():
    """Warnings and errors of transformers, whose loggers hand nothing to pytest's own capture."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler, logger = Keep(logging.WARNING), logging.getLogger("transformers")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def test_pipeline_answers_in_pixels_of_the_image_and_says_nothing_else(checkpoint, images, messages, capfd):
    detector = pipeline("object-detection", model=str(checkpoint))
    answer = detector(images[1], threshold=0.0)
    assert not [record.getMessage() for record in messages]
    lines = capfd.readouterr().err.replace("\r", "\n").splitlines()
    assert not [line for line in lines if line.strip() and not line.startswith("Loading weights")]

    model = DrmmForObjectDetection.from_pretrained(checkpoint).eval()
    processor = DrmmImageProcessor.from_pretrained(checkpoint)
    with torch.no_grad():
        outputs = model(**processor(images[1], return_tensors="pt"))
    expected = processor.post_process_object_detection(outputs, 0.0, target_sizes=[(80, 60)])[0]
    assert len(answer) == len(expected["scores"]) == 36
    by_score = sorted(answer, key=lambda d: -d["score"])
    torch.testing.assert_close(torch.tensor([d["score"] for d in by_score]), expected["scores"])
    assert {d["label"] for d in answer} <= set(NAMES.values())
    assert by_score[0]["label"] == NAMES[expected["labels"][0].item()]
    best = torch.tensor([float(v) for v in by_score[0]["box"].values()])
    assert (best - expected["boxes"][0]).abs().max() <= 1, "a pipeline cuts boxes to whole pixels"


def test_batches_of_a_pipeline_give_what_single_images_give(checkpoint, images):
    detector = pipeline("object-detection", model=str(checkpoint))
    single = [flat(detector(image, threshold=0.2)) for image in images]
    assert all(single)
    assert [flat(d) for d in detector(images, threshold=0.2)] == single
    assert [flat(d) for d in detector(images, threshold=0.2, batch_size=2)] == single
    scores = sorted((d["score"] for d in detector(images[0], threshold=0.0)), reverse=True)
    best = detector(images[0], threshold=(scores[4] + scores[5]) / 2)
    assert sorted((d["score"] for d in best), reverse=True) == pytest.approx(scores[:5])


def test_auto_classes_give_ours(checkpoint):
    assert type(AutoModelForObjectDetection.from_pretrained(checkpoint)) is DrmmForObjectDetection
    assert type(AutoModel.from_pretrained(checkpoint)) is DrmmModel
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    assert type(processor) is DrmmImageProcessor
    assert dict(processor.size) == {"shortest_edge": 64, "longest_edge": 96}
    assert dict(processor.pad_size) == {"height": 96, "width": 96}


SCRIPT = """
import socket
def refuse(*args, **kwargs):
    raise AssertionError(f"a connection was tried: {args}")
socket.socket.connect = refuse
socket.getaddrinfo = refuse

import json, sys
import drmm_hf
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForObjectDetection, pipeline

folder, file = sys.argv[1:]
types = [type(a.from_pretrained(folder)).__name__
         for a in (AutoConfig, AutoModel, AutoModelForObjectDetection, AutoImageProcessor)]
detector = pipeline("object-detection", model=folder)
image = Image.open(file)
answers = [detector(file, threshold=0.2), detector(image, threshold=0.2), *detector([file, image], threshold=0.2)]
print(json.dumps({"types": types, "answers": answers}))
"""


def test_a_fresh_process_needs_only_the_import_and_no_connection(checkpoint, images, tmp_path):
    file = tmp_path / "image.png"
    images[0].save(file)
    source = Path(sys.modules["drmm_hf"].__file__).parents[1]
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY")}
    environment |= {"PYTHONPATH": str(source), "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(checkpoint), str(file)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    noise = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip()]
    # torchvision announces the end of its image readers when it is imported
    known = ("Loading weights", "  warnings.warn(_DEPRECATION_MSG")
    noise = [line for line in noise if not line.startswith(known) and "torchvision/io/image.py" not in line]
    assert not noise
    result = json.loads(done.stdout)
    assert result["types"] == ["DrmmConfig", "DrmmModel", "DrmmForObjectDetection", "DrmmImageProcessor"]
    first, *others = result["answers"]
    assert first
    assert all(other == first for other in others)


@pytest.mark.parametrize(
    "failure", ["RuntimeError('operator torchvision::nms does not exist')", "OSError('_ZN5torch')"]
)
def test_a_torchvision_that_does_not_fit_torch_is_one_error(tmp_path, failure):
    (tmp_path / "torchvision.py").write_text(f"raise {failure}")
    source = Path(sys.modules["drmm_hf"].__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{source}"}
    command = [sys.executable, "-c", "import drmm_hf"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert "pip install" in last
