"""From an image to picture, table and sentences."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from drmm_hf.data.scenes import CATEGORIES
from drmm_hf.demo import (
    Measured,
    example_scenes,
    load_measured,
    open_upload,
    show,
    threshold_text,
)
from drmm_hf.visualization import draw_view
from model_fixtures import small_config

IMAGE = Image.new("RGB", (480, 240), (10, 10, 10))
FOUND = {
    "scores": torch.tensor([0.8, 0.6, 0.5, 0.1]),
    "labels": torch.tensor([0, 0, 2, 1]),
    # The second is a duplicate of the first, the third has another class.
    "boxes": torch.tensor([[100.0, 50, 200, 150], [102, 50, 200, 150], [100, 50, 200, 150], [300, 100, 340, 200]]),
    "scales": torch.tensor([[4.0, 2, 4, 2], [4, 2, 4, 2], [1, 1, 1, 1], [1, 1, 1, 1]]),
}
CONFIG = small_config()


@pytest.fixture
def measured(report: dict, tmp_path: Path) -> Measured:
    (tmp_path / "analysis.json").write_text(json.dumps(report))
    return load_measured(tmp_path / "analysis.json", "model", ["disc", "ring", "star"])


def test_table_without_a_report() -> None:
    view = show(IMAGE, FOUND, CONFIG, level=0.5)
    assert view.columns == ["class", "score", "left", "top", "right", "bottom"]
    # The 50% interval of a Cauchy density reaches one γ to either side.
    assert view.rows[0] == ["disc", "0.80", "100.0 ± 4.0", "50.0 ± 2.0", "200.0 ± 4.0", "150.0 ± 2.0"]
    assert [row[0] for row in view.rows] == ["disc", "disc", "star"]
    assert "**3 detections** above 0.30. Their scores add up to 1.9" in view.text
    assert "probability of 50%" in view.text
    assert "Measured" not in view.text


def test_a_report_adds_precision_and_corrects_the_bands(measured: Measured) -> None:
    view = show(IMAGE, FOUND, CONFIG, measured, level=0.5)
    assert view.columns[2] == "expected precision"
    assert view.rows[0][2:4] == ["90%", "100.0 ± 2.0"]
    assert "γ times 0.50" in view.text
    assert "Measured: 40% of the edges inside" in view.text


def test_nms_is_shown_and_not_applied() -> None:
    plain, crossed = (show(IMAGE, FOUND, CONFIG, level=None, nms=nms) for nms in (False, True))
    assert [row[-1] for row in crossed.rows] == ["kept", "removed", "kept"]
    assert [row[:-1] for row in crossed.rows] == plain.rows
    assert "would remove 1 of them" in crossed.text
    assert "NMS" not in plain.text
    assert np.any(np.asarray(plain.picture) != np.asarray(crossed.picture))
    assert "would change nothing here" in show(IMAGE, FOUND, CONFIG, threshold=0.7, nms=True).text


def test_nothing_found_and_no_density(measured: Measured) -> None:
    view = show(IMAGE, FOUND, CONFIG, measured, threshold=0.9, nms=True)
    assert view.rows == []
    assert "No detection" in view.text
    bare = {name: values for name, values in FOUND.items() if name != "scales"}
    view = show(IMAGE, bare, CONFIG)
    assert view.rows[0][2] == "100.0"
    assert "bands" not in view.text


def test_bands_lie_where_the_intervals_say() -> None:
    one = {name: values[2:3] for name, values in FOUND.items()}
    ends = torch.stack([one["boxes"] - 10, one["boxes"] + torch.tensor([10.0, 10, 40, 10])], dim=1)
    drawn, plain = (np.asarray(draw_view(IMAGE, one, {2: "star"}, intervals=e)).astype(int) for e in (ends, None))
    assert drawn.shape == (480, 960, 3)  # twice the image
    changed = np.abs(drawn - plain).sum(axis=2) > 0
    columns = np.flatnonzero(changed[200])  # through the middle: the bands of the left and the right edge
    assert (columns.min(), columns.max()) == (180, 480)
    assert not changed[200, 225:375].any()
    rows = np.flatnonzero(changed[:, 300])
    assert (rows.min(), rows.max()) == (80, 320)
    wide, wider = (draw_view(IMAGE, one, {2: "star"}, intervals=reach * (ends - 100)) for reach in (1e2, 1e12))
    assert wide == wider, "what leaves the picture costs no time"


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((480, 240), (960, 480)), ((1200, 900), (1200, 900)), ((3200, 4), (1600, 2)), ((1, 9000), (1, 1600))],
)
def test_a_picture_is_drawn_at_a_size_for_the_page(size: tuple[int, int], drawn: tuple[int, int]) -> None:
    nothing = {name: values[:0] for name, values in FOUND.items()}
    assert draw_view(Image.new("RGB", size), nothing, {}).size == drawn


def test_what_is_said_of_a_threshold(measured: Measured) -> None:
    assert "score is its own expected precision" in threshold_text(0.3, None)
    text = threshold_text(0.25, measured)
    assert all(part in text for part in ("63%", "0.25", "7 images", "IoU 0.5"))
    assert "**Expected precision unknown**" in threshold_text(1.0, measured)


def test_examples_are_always_the_same_and_only_for_their_classes() -> None:
    first, again = example_scenes(CATEGORIES, 2), example_scenes(CATEGORIES, 3)
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=False))
    assert not np.array_equal(*first)
    some = example_scenes(["ring", "disc", "cell"], 2)
    assert not np.array_equal(some[1], first[1])
    assert example_scenes(["cell"]) == []


def test_an_upload_is_turned_as_the_browser_shows_it(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20))
    picture.getexif()[ExifTags.Base.Orientation] = 6
    picture.save(tmp_path / "turned.jpg", exif=picture.getexif())
    assert open_upload(str(tmp_path / "turned.jpg")).size == (20, 40)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no picture", "the image cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
    ],
)
def test_a_bad_upload_is_named_without_its_folders(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^bad.png: .*{reason}") as raised:
        open_upload(str(tmp_path / "bad.png"))
    assert str(tmp_path) not in str(raised.value)
