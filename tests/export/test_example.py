"""`examples/onnx_detect.py`: the image processor and the pipeline without torch and without this package."""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from drmm_hf import DrmmImageProcessor
from drmm_hf.data.scene_rendering import render_scene
from drmm_hf.export import GraphSettings, processor_settings
from drmm_hf.postprocessing import select_detections

SOURCE = Path(__file__).parents[2] / "examples" / "onnx_detect.py"
LEVEL = 1 / 255 / 0.224  # one of the 256 levels after normalization


@pytest.fixture(scope="module")
def example() -> ModuleType:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    spec = importlib.util.spec_from_file_location("onnx_detect", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scene(height: int = 90, width: int = 130, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    image = Image.fromarray(render_scene(rng, height, width, min_size=12.0, max_size=60.0, mean_objects=4.0).image)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8)))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image if mode == "RGBA" else image.convert(mode)


def assert_like_the_pipeline(example: ModuleType, exported: Path, checkpoint: Path, image: Image.Image) -> None:
    expected = sorted(pipeline("object-detection", str(checkpoint))(image, threshold=0.0), key=lambda d: -d["score"])
    found = example.OnnxDetector(exported)(image, threshold=0.0)
    assert len(found) == 20  # what the export keeps
    for one, other in zip(found, expected, strict=False):
        assert one["score"] == pytest.approx(other["score"], abs=1e-3)
        assert one["label"] == other["label"]
        # the pipeline cuts off fractions
        assert one["box"] == pytest.approx([*other["box"].values()], abs=1.1)
        assert len(one["scale"]) == 4


def test_a_picture_gives_the_pipelines_detections(example, exported, checkpoint, bccd) -> None:
    for image in (scene(), Image.open(min(bccd.glob("images/*.jpg")))):
        assert_like_the_pipeline(example, exported, checkpoint, image)


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("RGB", {"size": {"shortest_edge": 64, "longest_edge": 96}}),
        ("L", {"size": {"shortest_edge": 100}}),
        ("P", {"size": {"height": 64, "width": 96}}),
        ("RGBA", {"size": {"shortest_edge": 64, "longest_edge": 96}, "pad_size": {"height": 128, "width": 160}}),
        ("I;16", {"do_resize": False}),
        ("RGB", {"do_normalize": False, "resample": 3, "size": {"shortest_edge": 64}}),
    ],
)
def test_preprocessing_is_the_image_processors(example, mode: str, settings: dict) -> None:
    processor, image = DrmmImageProcessor(**settings), scene(mode=mode)
    expected = processor(image, return_tensors="np")
    pixel_values, pixel_mask = example.preprocess(image, processor.to_dict())
    np.testing.assert_array_equal(pixel_mask, expected["pixel_mask"])
    apart = np.abs(pixel_values - expected["pixel_values"])
    # Pillow and torchvision round a few pixels of a resize differently
    assert apart.max() <= LEVEL * 1.03
    assert (apart > 1e-5).mean() < 2e-3


@pytest.mark.parametrize("shape", [(90, 130), (130, 60), (64, 96)])
def test_preprocessing_for_a_fixed_size_is_the_image_processors(example, shape: tuple[int, int]) -> None:
    fields = processor_settings(DrmmImageProcessor(), GraphSettings(size=(64, 96)))
    image = scene(*shape)
    expected = DrmmImageProcessor.from_dict(fields)(image, return_tensors="np")
    pixel_values, pixel_mask = example.preprocess(image, fields)
    np.testing.assert_array_equal(pixel_mask, expected["pixel_mask"])
    assert np.abs(pixel_values - expected["pixel_values"]).max() <= LEVEL * 1.03


def test_an_image_too_large_for_the_canvas_is_named(example) -> None:
    fields = DrmmImageProcessor(do_resize=False, pad_size={"height": 64, "width": 64}).to_dict()
    with pytest.raises(ValueError, match="pad_size"):
        example.preprocess(scene(), fields)


def test_raw_outputs_are_ranked_as_the_image_processor_ranks(example) -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(1, 7, n, generator=generator) for n in (3, 4, 4)]
    outputs = dict(zip(("logits", "pred_boxes", "pred_scales"), values, strict=True))
    expected = select_detections(outputs, threshold=-1.0, target_sizes=[(40, 60)], top_k=9)[0]
    found = example.rank({name: value[0].numpy() for name, value in outputs.items()}, (40, 60), 9)
    for name in ("scores", "labels", "boxes", "scales"):
        np.testing.assert_allclose(found[name], expected[name].numpy(), rtol=1e-5, atol=1e-5)


def test_the_command_prints_and_draws(example, exported, tmp_path, monkeypatch, capsys) -> None:
    scene().save(tmp_path / "in.png")
    arguments = [str(exported), str(tmp_path / "in.png"), "--threshold", "0", "--draw", str(tmp_path / "out.png")]
    monkeypatch.setattr(sys, "argv", ["onnx_detect.py", *arguments])
    example.main()
    assert len(capsys.readouterr().out.splitlines()) == 20
    drawn = np.asarray(Image.open(tmp_path / "out.png"))
    assert drawn.shape == (90, 130, 3)
    assert (drawn == (230, 57, 70)).all(-1).sum() > 100


def test_the_example_needs_three_packages() -> None:
    imported = set()
    for node in ast.walk(ast.parse(SOURCE.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "PIL"}
