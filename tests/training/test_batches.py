import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from drmm_hf import DrmmImageProcessor
from drmm_hf.data import TrainTransform, load_detection_dataset
from drmm_hf.training.batches import TrainingSamples, canvas_size, collate, normalize, training_loader
from drmm_hf.training.sampling import TrainingOrder

SIZE = {"shortest_edge": 96, "longest_edge": 128}


def still(size: tuple[int, int]) -> TrainTransform:
    """The transform without any chance in it."""
    return TrainTransform(size, horizontal_flip=0.0, scale_range=(1.0, 1.0), translate=0.0, color_jitter=0.0)


def test_a_training_batch_equals_the_processor_at_rest(scenes: Path) -> None:
    """Without augmentation, training shows the model what inference shows it: pixels, mask and labels."""
    dataset = load_detection_dataset(scenes, "train")
    rows = [dataset.dataset[i] for i in range(3)]
    batch = collate([still(canvas_size(1.0, SIZE))(row) for row in rows])
    processor = DrmmImageProcessor(size=SIZE)
    annotations = [
        {
            "image_id": row["image_id"],
            "annotations": [
                {"bbox": box, "category_id": label}
                for box, label in zip(row["objects"]["bbox"], row["objects"]["category"], strict=True)
            ],
        }
        for row in rows
    ]
    images = [Image.open(row["image"]["path"]) for row in rows]
    expected = processor(images, annotations=annotations, return_tensors="pt")
    pixels = normalize(batch["image"], batch["pixel_mask"], processor.image_mean, processor.image_std)
    torch.testing.assert_close(pixels, expected["pixel_values"], atol=1e-5, rtol=0)
    assert torch.equal(batch["pixel_mask"], expected["pixel_mask"])
    for ours, theirs in zip(batch["labels"], expected["labels"], strict=True):
        assert torch.equal(ours["class_labels"], theirs["class_labels"])
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], atol=1e-6, rtol=0)


def test_padding_is_zero_after_normalization_and_masked() -> None:
    sample = {
        "image": torch.full((3, 40, 50), 9, dtype=torch.uint8),
        "boxes": torch.tensor([[10.0, 20.0, 20.0, 40.0]]),
        "labels": torch.tensor([2]),
    }
    batch = collate([sample])
    assert batch["image"].shape == (1, 3, 64, 64)
    assert batch["pixel_mask"].sum() == 40 * 50
    pixels = normalize(batch["image"], batch["pixel_mask"], [0.5] * 3, [0.25] * 3)
    assert pixels[..., 40:, :].abs().max() == 0
    assert pixels[..., 50:].abs().max() == 0
    torch.testing.assert_close(pixels[0, 0, 0, 0], torch.tensor((9 / 255 - 0.5) / 0.25))
    torch.testing.assert_close(batch["labels"][0]["boxes"], torch.tensor([[0.3, 0.75, 0.2, 0.5]]))


@pytest.mark.parametrize(
    ("landscape_share", "size", "expected"),
    [
        (1.0, SIZE, (96, 128)),
        (0.0, SIZE, (128, 96)),
        (0.5, SIZE, (128, 128)),
        (0.0, {"height": 64, "width": 96}, (64, 96)),
    ],
)
def test_the_canvas_lies_as_the_images_do(landscape_share: float, size: dict, expected: tuple) -> None:
    assert canvas_size(landscape_share, size) == expected


def test_the_order_of_an_epoch_is_set_by_the_seed(scenes: Path) -> None:
    dataset = load_detection_dataset(scenes, "train")

    def first_images(seed: int) -> torch.Tensor:
        samples = TrainingSamples(dataset, still((96, 128)), seed)
        loader = iter(training_loader(samples, order=TrainingOrder(len(samples), 4, seed)))
        return torch.cat([next(loader)["image"] for _ in range(3)])

    once = first_images(1)
    assert len(once) == 12
    assert torch.equal(once, first_images(1))
    assert not torch.equal(once, first_images(2))


def test_augmentation_depends_on_seed_epoch_and_index_alone(scenes: Path) -> None:
    dataset = load_detection_dataset(scenes, "train")
    transform = TrainTransform((96, 128))
    samples = TrainingSamples(dataset, transform, seed=3)
    before = torch.get_rng_state()
    first = samples[0, 5]["image"]
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers go on as before"
    torch.rand(7)
    assert torch.equal(samples[0, 5]["image"], first)
    assert not torch.equal(samples[1, 5]["image"], first)
    assert not torch.equal(TrainingSamples(dataset, transform, seed=4)[0, 5]["image"], first)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_make_the_same_batches(scenes: Path, num_workers: int) -> None:
    samples = TrainingSamples(load_detection_dataset(scenes, "train"), TrainTransform((96, 128)), seed=0)

    def batches(workers: int, first_step: int, count: int) -> list[torch.Tensor]:
        loader = iter(training_loader(samples, workers, order=TrainingOrder(12, 4, 0, first_step=first_step)))
        return [next(loader)["image"] for _ in range(count)]

    expected = batches(0, 0, 5)
    for got, want in zip(batches(num_workers, 2, 3), expected[2:], strict=True):
        assert torch.equal(got, want)


def test_images_of_different_sizes_are_padded_to_the_largest() -> None:
    def sample(height: int, width: int) -> dict:
        box = torch.tensor([[0.0, 0.0, width / 2, height / 4]])
        return {
            "image": torch.full((3, height, width), 9, dtype=torch.uint8),
            "boxes": box,
            "labels": torch.tensor([1]),
        }

    batch = collate([sample(40, 70), sample(64, 20)])
    assert batch["image"].shape == (2, 3, 64, 96)
    assert batch["pixel_mask"].sum(dim=(1, 2)).tolist() == [40 * 70, 64 * 20]
    assert batch["image"][1, :, :, 20:].max() == 0
    for label in batch["labels"]:
        torch.testing.assert_close(label["boxes"], torch.tensor([[0.25, 0.125, 0.5, 0.25]]))


def test_unreadable_images_are_replaced_and_named(scenes: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    pictures = sorted((data / "images").glob("*train*"))
    pictures[3].write_bytes(pictures[3].read_bytes()[:300])
    dataset = load_detection_dataset(data, "train")
    samples = TrainingSamples(dataset, still((96, 128)))
    replaced, following = samples[0, 3], samples[0, 4]
    assert torch.equal(replaced["image"], following["image"])
    assert len(replaced["skipped"]) == 1
    assert pictures[3].name in replaced["skipped"][0]
    assert collate([replaced, following])["skipped"] == replaced["skipped"]
    strict = TrainingSamples(dataset, still((96, 128)), strict=True)
    assert isinstance(strict[0, 3], ValueError)
    for picture in pictures:
        picture.write_bytes(b"")
    with_nothing = samples[0, 0]
    assert isinstance(with_nothing, ValueError)
    assert "10 images in a row cannot be read" in str(with_nothing)
