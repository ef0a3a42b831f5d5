"""Half precision, as weights and under autocast: what is a coordinate or a parameter of the mixture stays float32.

Detections are compared on trained models: the repository's checkpoint on photographs, and a D-RMM on Sparse R-CNN that
the test trains on six drawn scenes until it finds objects (it has learned these by heart, and that is enough here: its
boxes and scores are not those of random weights).
"""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou
from transformers import pipeline

from drmm_hf import DrmmConfig, DrmmForObjectDetection, DrmmImageProcessor
from drmm_hf.data.scene_rendering import render_scene
from drmm_hf.data.scenes import CATEGORIES
from model_fixtures import inputs
from test_families import FAMILIES, build

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "drmm-adamixer-tiny-bccd"
HALF = [torch.bfloat16, torch.float16]


@torch.no_grad()
def detect(model, processor, images, autocast: torch.dtype | None = None) -> list[dict[str, torch.Tensor]]:
    """Detections of each image by itself."""
    found = []
    for image in images:
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            outputs = model(**processor(image, return_tensors="pt"))
        found += processor.post_process_object_detection(outputs, 0.5, target_sizes=[image.size[::-1]])
    return found


def assert_same_detections(found: list[dict], expected: list[dict]) -> None:
    """As many as in float32, one more or less, and every clear one at its place with its class."""
    for ours, exact in zip(found, expected, strict=True):
        assert abs(len(ours["scores"]) - len(exact["scores"])) <= 1
        clear = exact["scores"] > 0.6
        overlap = box_iou(exact["boxes"][clear], ours["boxes"]) * (exact["labels"][clear][:, None] == ours["labels"])
        assert not clear.any() or (overlap.amax(dim=1) > 0.95).all()


@pytest.fixture(scope="module")
def trained() -> tuple[DrmmForObjectDetection, DrmmImageProcessor, list[Image.Image]]:
    """D-RMM on Sparse R-CNN that detects the objects of six scenes."""
    torch.manual_seed(0)
    scenes = [
        render_scene(np.random.default_rng(seed), 96, 128, min_size=24, max_size=64, mean_objects=2)
        for seed in (0, 1, 2, 5, 7, 8)
    ]
    labels = {name: index for index, name in enumerate(CATEGORIES)}
    records = [
        {"image_id": i, "annotations": [{"bbox": [*o.box[:2], *np.subtract(o.box[2:], o.box[:2])],
         "category_id": labels[o.name]} for o in scene.objects]}
        for i, scene in enumerate(scenes)
    ]  # fmt: skip
    images = [Image.fromarray(scene.image) for scene in scenes]
    processor = DrmmImageProcessor(size={"shortest_edge": 96, "longest_edge": 128})
    batch = processor(images, records, return_tensors="pt")
    sizes = {"num_proposals": 24, "num_stages": 2, "hidden_size": 32, "decoder_ffn_dim": 64}
    config = DrmmConfig.from_preset("drmm-sparse-rcnn-tiny", id2label={i: n for n, i in labels.items()}, **sizes)
    model = DrmmForObjectDetection(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=150)
    for _ in range(150):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    found = detect(model.eval(), processor, images)
    assert sum(len(one["scores"]) for one in found) >= 6, "the model has learned nothing to compare"
    return model, processor, images


@pytest.mark.parametrize("dtype", HALF)
def test_sparse_rcnn_detects_as_in_float32(trained, dtype) -> None:
    model, processor, images = trained
    expected = detect(model, processor, images)
    assert_same_detections(detect(copy.deepcopy(model).to(dtype), processor, images), expected)
    assert_same_detections(detect(model, processor, images, autocast=dtype), expected)


@pytest.fixture(scope="module")
def photos(bccd) -> list[Image.Image]:
    return [Image.open(path) for path in sorted(bccd.rglob("*.jpg"))[:6]]


@pytest.mark.parametrize("dtype", HALF)
def test_the_checkpoint_detects_as_in_float32(photos, dtype) -> None:
    processor = DrmmImageProcessor.from_pretrained(CHECKPOINT)
    exact = DrmmForObjectDetection.from_pretrained(CHECKPOINT).eval()
    expected = detect(exact, processor, photos)
    assert sum(len(one["scores"]) for one in expected) > 30
    half = DrmmForObjectDetection.from_pretrained(CHECKPOINT, dtype=dtype).eval()
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    assert_same_detections(detect(half, processor, photos), expected)
    assert_same_detections(detect(exact, processor, photos, autocast=dtype), expected)
    detector = pipeline("object-detection", model=str(CHECKPOINT), dtype=dtype)
    answers = detector(photos, threshold=0.5)
    assert all(abs(len(one) - len(exact["scores"])) <= 1 for one, exact in zip(answers, expected, strict=True))


@pytest.mark.parametrize(("dtype", "autocast"), [(torch.bfloat16, True), (torch.float16, False)])
@pytest.mark.parametrize(("system", "backbone"), FAMILIES)
def test_coordinates_and_the_mixture_are_float32_in_every_stage(system, backbone, dtype, autocast) -> None:
    """In training as well, with the loss of float32, whatever the type of the mask."""
    model, batch = build(system, backbone).train(), inputs()
    exact = model(**batch).loss
    model = model if autocast else model.to(dtype)
    regions = []
    for stage in model.model.stages:
        stage.register_forward_pre_hook(lambda _, arguments: regions.append(arguments[1].dtype))
    with torch.autocast("cpu", dtype, enabled=autocast):
        stages = model.model(batch["pixel_values"], batch["pixel_mask"].to(dtype)).stages
        loss = model(**batch).loss
    assert {tensor.dtype for stage in stages for tensor in stage if tensor is not None} == {torch.float32}
    assert set(regions) == {torch.float32}
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_a_large_mask_in_half_precision_keeps_its_size() -> None:
    model = build("drmm-adamixer", "r50").eval()
    mask = torch.ones(1, 64, 1088)
    mask[:, :, 1067:] = 0  # bfloat16 has no 1067
    with torch.no_grad():
        outputs = model.model(torch.zeros(1, 3, 64, 1088), mask.bfloat16())
    assert outputs.image_sizes.tolist() == [[1067.0, 64.0]]
