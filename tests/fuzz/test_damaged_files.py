"""Damaged files of every kind: each ends in one line that names the file, and no traceback."""

import io
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import safetensors.torch
import timm
import torch

from drmm_hf import DrmmConfig, DrmmForObjectDetection
from drmm_hf.cli import main
from drmm_hf.conversion import released_state_dict
from drmm_hf.data import open_image
from fuzz.inputs import COCO, RESULTS, changed, write, write_model
from model_fixtures import NAMES, small_model

DEEP, LONG, HUGE = "[" * 100_000, "x" * 5000, int("9" * 400)


def refused(argv: list[Any], named: str | tuple[str, ...], capsys: pytest.CaptureFixture) -> None:
    """The command ends with status 2 and one error of moderate length, which names the file (or what it holds)."""
    try:
        status = main([str(word) for word in argv])
    except SystemExit as stop:  # argparse
        status = stop.code
    assert status == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    last = printed.splitlines()[-1]
    assert "error: " in last
    assert any(name in last for name in ((named,) if isinstance(named, str) else named))
    assert len(last) < 3000


# tests/data/test_coco.py has what is wrong in a COCO file
BAD_TRUTH = {
    "cut": json.dumps(COCO)[:-40],
    "too deep": DEEP,
    "three numbers": changed(COCO, "annotations", 0, "bbox", to=[1, 2, 3]),
    "area is a text": changed(COCO, "annotations", 0, "area", to=LONG),
    "id beyond 64 bits": changed(COCO, "images", 0, "id", to=2**70),
}


@pytest.mark.parametrize("name", BAD_TRUTH)
def test_ground_truth_of_an_evaluation(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    truth, found = write(tmp_path / "truth.json", BAD_TRUTH[name]), write(tmp_path / "found.json", RESULTS)
    refused(["evaluate", "--results", found, "--annotations", truth], "truth.json", capsys)


@pytest.mark.parametrize(
    "content",
    [
        *("", '{"a": ', DEEP, {"detections": RESULTS}, ["box"], [[]]),
        *(changed(RESULTS, 0, "image_id", to=value) for value in (99, "seven", None, 2**70)),
        *(changed(RESULTS, 0, "category_id", to=value) for value in (5, "dog", [9])),
        *(changed(RESULTS, 0, "score", to=value) for value in (1.5, -0.1, float("nan"), "0.9", None, HUGE)),
        *(
            changed(RESULTS, 0, "bbox", to=value)
            for value in ([1, 2, 3], "abcd", [1, 2, "3", 4], [HUGE, 2, 3, 4], None)
        ),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_results(content: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    truth, found = write(tmp_path / "truth.json", COCO), write(tmp_path / "found.json", content)
    refused(["evaluate", "--results", found, "--annotations", truth], ("found.json", "results"), capsys)


def noise(suffix: str) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.effect_noise((40, 40), 90).convert("RGB").save(buffer, suffix)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(50), b"GIF89a", b"%!PS-Adobe"),
        *(noise(suffix)[:size] for suffix, size in (("png", 700), ("jpeg", 700), ("webp", 100), ("tiff", 2000))),
    ],
    ids=lambda content: ascii(content[:9]),
)
def test_pictures(content: bytes, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=r"picture\.png"):
        open_image(write(tmp_path / "picture.png", content))


class Evil:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("made",)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def checkpoint(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    PIL.Image.new("RGB", (64, 48)).save("picture.png")
    return Path(shutil.copytree(model, "model"))


def one_tensor(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict], dict]:
    def apply(state: dict) -> dict:
        name = next(name for name in state if name.endswith("running_mean"))
        return {**state, name: change(state[name])}

    return apply


WRONG_STATES: dict[str, Callable[[dict], dict]] = {
    "one is missing": lambda state: dict(list(state.items())[1:]),
    "one too many": lambda state: {**state, "model.x": torch.ones(1)},
    "shorter": one_tensor(lambda value: value[:-1].clone()),
    "whole numbers": one_tensor(lambda value: value.int()),
    "complex": one_tensor(lambda value: value.to(torch.complex64)),
    "NaN": one_tensor(lambda value: torch.full_like(value, torch.nan)),
    "infinity": one_tensor(lambda value: torch.full_like(value, torch.inf)),
}
WRONG_BYTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-1000],
    "a page": lambda content: b"<html>404</html>",
    "huge header": lambda content: struct.pack("<Q", 2**63) + content[8:],
}
WRONG_JSON = ["", DEEP, [1, 2], True, '"text"', b'{"a": "\xff"}']
WRONG_FIELDS: dict[str, dict[str, list[Any]]] = {
    "config.json": {
        "model_type": [{"a": 1}],
        "num_stages": [-1, 1],
        "density": [3],
        "id2label": [True, {"a": "b"}],
        "hidden_size": [1.5, HUGE],
        "backbone_config": ["x"],
    },
    "preprocessor_config.json": {
        "size": ["large", {"height": "a"}, {"height": -1}, 3.5],
        "image_mean": [[1, 2], [[0.5]] * 3, "abc"],
        **{name: ["x"] for name in ("resample", "do_resize", "size_divisor", "image_std")},
    },
}
WRONG_SETTINGS = [
    *((file, None, content) for file in WRONG_FIELDS for content in WRONG_JSON),
    *((file, name, value) for file, names in WRONG_FIELDS.items() for name in names for value in names[name]),
]


def predict(model: Path) -> list[Any]:
    return ["predict", "--model", model, "picture.png", "--output", "out", "--device", "cpu"]


@pytest.mark.parametrize("name", [*WRONG_STATES, *WRONG_BYTES])
def test_weights(name: str, checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    weights = checkpoint / "model.safetensors"
    damage(weights, safetensors.torch.load_file(weights), name)
    refused(predict(checkpoint), "model", capsys)
    if name in WRONG_BYTES:
        with pytest.raises((ValueError, OSError), match="model"):
            DrmmForObjectDetection.from_pretrained(checkpoint)


def damage(path: Path, state: dict[str, torch.Tensor], name: str) -> None:
    """Write weights that are wrong in one of the ways above."""
    state = WRONG_STATES.get(name, lambda whole: whole)(state)
    safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    if name in WRONG_BYTES:
        path.write_bytes(WRONG_BYTES[name](path.read_bytes()))


@pytest.mark.parametrize(("file", "field", "value"), WRONG_SETTINGS, ids=lambda value: ascii(value)[:40])
def test_settings_of_a_checkpoint(file: str, field: str | None, value: Any, checkpoint: Path, capsys) -> None:
    content = json.loads((checkpoint / file).read_text())
    write(checkpoint / file, value if field is None else changed(content, field, to=value))
    refused(predict(checkpoint), "model", capsys)


@pytest.fixture(scope="module")
def released() -> dict[str, torch.Tensor]:
    config = DrmmConfig.from_preset("drmm-sparse-rcnn-tiny", id2label=NAMES, num_stages=1, num_proposals=5)
    return released_state_dict(DrmmForObjectDetection(config))


WRONG_CONTENT: dict[str, Callable[[dict], Any]] = {
    **{name: change for name, change in WRONG_STATES.items() if name != "one too many"},
    "code inside": lambda state: {"state_dict": Evil()},
    "a list": lambda state: [1, 2],
    "a tensor": lambda state: torch.ones(3),
    "a number as a name": lambda state: {**state, 7: torch.ones(2)},
    "sparse": lambda state: {name: value.to_sparse() for name, value in state.items()},
    "without values": lambda state: {name: value.to("meta") for name, value in state.items()},
}
WRONG_FILES = {**WRONG_BYTES, "code": lambda content: pickle.dumps(Evil(), 2)}


@pytest.mark.parametrize("old_format", [True, False])
@pytest.mark.parametrize("name", [*WRONG_CONTENT, *WRONG_FILES])
def test_released_weights(name: str, old_format: bool, released, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.pth"
    content = WRONG_CONTENT[name](released) if name in WRONG_CONTENT else released
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    if name in WRONG_FILES:
        path.write_bytes(WRONG_FILES[name](path.read_bytes()))
    refused(["convert", path, "out", "--preset", "drmm-sparse-rcnn-tiny"], "file.pth", capsys)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["file.pth"]


def timm_state(model: DrmmForObjectDetection) -> dict[str, torch.Tensor]:
    backbone = model.model.backbone
    network = timm.create_model(backbone.model.config.backbone, **backbone.model_kwargs)
    return {name: value.contiguous() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("name", [*WRONG_BYTES, *(state for state in WRONG_STATES if state != "one too many")])
def test_weights_of_a_backbone(name: str, tmp_path: Path) -> None:
    """timm itself says nothing of what a file lacks, and leaves it at random."""
    model, path = small_model(), tmp_path / "file.safetensors"
    before = {key: value.clone() for key, value in model.state_dict().items()}
    damage(path, timm_state(model), name)
    with pytest.raises(ValueError, match=r"file\.safetensors"):
        model.load_backbone(str(path))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "state_dict_ema"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_whole_weights_of_a_backbone_are_read(wrapper: str | None, dtype: torch.dtype, tmp_path: Path) -> None:
    model = small_model()
    state = {
        f"module.{name}": value.to(dtype) if value.is_floating_point() else value
        for name, value in timm_state(model).items()
    }
    state["head.other"] = torch.ones(2)
    torch.save({wrapper: state} if wrapper else state, tmp_path / "file.pth")
    model.load_backbone(str(tmp_path / "file.pth"))
    ours = [value for name, value in model.state_dict().items() if name.endswith("layer4.0.conv1.weight")]
    assert torch.equal(ours[0], state["module.layer4.0.conv1.weight"].float())
