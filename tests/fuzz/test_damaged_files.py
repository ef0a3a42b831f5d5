"""Damaged files of every kind: each ends in one line that names the file, and no traceback."""

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
from drmm_hf.data import load_detection_dataset, open_image
from fuzz.inputs import COCO, RECIPE, RESULTS, changed, write, write_coco, write_model
from model_fixtures import NAMES, small_model

DEEP, LONG, HUGE = "[" * 100_000, "x" * 5000, int("9" * 400)
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


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


BAD_COCO: dict[str, Any] = {
    "empty": "",
    "cut": json.dumps(COCO)[:-40],
    "not UTF-8": b'{"images": "\xff\xfe"}',
    "too deep": DEEP,
    "a list": [COCO],
    "null": None,
    "no categories": {"images": COCO["images"], "annotations": []},
    "images are a dict": changed(COCO, "images", to={"id": 1}),
    "an image is a text": changed(COCO, "images", 0, to="a.png"),
    "id is a text": changed(COCO, "images", 0, "id", to="thirty"),
    "id twice": changed(COCO, "images", 0, "id", to=7),
    "id beyond 64 bits": changed(COCO, "images", 0, "id", to=2**70),
    "width of 0": changed(COCO, "images", 0, "width", to=0),
    "height is infinite": changed(COCO, "images", 0, "height", to=float("inf")),
    "file name is a number": changed(COCO, "images", 0, "file_name", to=3),
    "no such image": changed(COCO, "annotations", 0, "image_id", to=99),
    "no such category": changed(COCO, "annotations", 0, "category_id", to=1),
    "category of a list": changed(COCO, "annotations", 0, "category_id", to=[9]),
    "three numbers": changed(COCO, "annotations", 0, "bbox", to=[1, 2, 3]),
    "text in a box": changed(COCO, "annotations", 0, "bbox", to=[1, 2, "3", 4]),
    "NaN in a box": changed(COCO, "annotations", 0, "bbox", to=[1, 2, float("nan"), 4]),
    "negative width": changed(COCO, "annotations", 0, "bbox", to=[5, 2, -3, 4]),
    "area is a text": changed(COCO, "annotations", 0, "area", to=LONG),
    "crowd of 2": changed(COCO, "annotations", 0, "iscrowd", to=2),
    "crowd is infinite": changed(COCO, "annotations", 0, "iscrowd", to=float("inf")),
    "name twice": changed(COCO, "categories", 0, "name", to="cat"),
    "name is a number": changed(COCO, "categories", 0, "name", to=4),
}


@pytest.mark.parametrize("name", BAD_COCO)
def test_coco_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"instances_train\.json"):
        load_detection_dataset(write_coco(tmp_path, BAD_COCO[name]))


@pytest.mark.parametrize("name", ["cut", "too deep", "three numbers", "no such image", "negative width"])
def test_ground_truth_of_an_evaluation(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    truth = write(tmp_path / "truth.json", BAD_COCO[name])
    found = write(tmp_path / "found.json", RESULTS)
    refused(["evaluate", "--results", found, "--annotations", truth], "truth.json", capsys)


@pytest.mark.parametrize(
    "content",
    [
        *("", '{"a": ', DEEP, {"detections": RESULTS}, ["box"], [[]]),
        *(changed(RESULTS, 0, "image_id", to=value) for value in (99, "seven", None, 2**70)),
        *(changed(RESULTS, 0, "category_id", to=value) for value in (1, "dog", [9])),
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


@pytest.mark.parametrize(
    "content",
    [
        *(
            "[" * 5000,
            "{a: " * 3000,
            "epochs: 2001-99-99",
            "a: !!python/object:os.system x",
            b"epochs: \xe4\xe9",
            "- a",
        ),
        *(LAUGHS, LAUGHS + "epochs: *i\n", "epochs: " + "9" * 6000, "no_such_field: 1"),
        *(changed(RECIPE, "epochs", to=value) for value in ("many", -1, [], None, float("nan"))),
        *(changed(RECIPE, "batch_size", to=value) for value in (0, 1.5, "a", 10**400)),
        *(changed(RECIPE, "config", to=value) for value in (3, {"no_such": 1}, {"num_proposals": -5}, ["a"])),
        *(changed(RECIPE, name, to=LONG) for name in ("augmentation", "schedule", "preset", "milestones")),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_recipes(content: Any, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_coco(tmp_path / "data")
    recipe = write(tmp_path / "my.yaml", content)
    refused(["train", "--recipe", recipe, "--data", data, "--output", tmp_path / "out", "--cpu"], "", capsys)
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(50), b"GIF89a", b"%!PS-Adobe"])
def test_pictures(content: bytes, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=r"picture\.png"):
        open_image(write(tmp_path / "picture.png", content))


@pytest.mark.parametrize(("suffix", "size"), [("png", 700), ("jpg", 700), ("webp", 100), ("tif", 2000)])
def test_pictures_that_are_cut_off(suffix: str, size: int, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{suffix}"
    PIL.Image.effect_noise((40, 40), 90).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises((ValueError, OSError), match=rf"picture\.{suffix}"):
        open_image(path)


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
WRONG_JSON: dict[str, Any] = {
    "empty": "",
    "too deep": DEEP,
    "a list": [1, 2],
    "true": True,
    "a text": '"text"',
    "not UTF-8": b'{"a": "\xff"}',
}
WRONG_FIELDS = [
    *(("config.json", name, value) for name, value in (("model_type", {"a": 1}), ("num_stages", -1), ("density", 3))),
    *(
        ("config.json", name, value)
        for name, value in (("id2label", True), ("id2label", {"a": "b"}), ("hidden_size", 1.5))
    ),
    *(
        ("config.json", name, value)
        for name, value in (("num_stages", 1), ("backbone_config", "x"), ("hidden_size", HUGE))
    ),
    *(("preprocessor_config.json", "size", value) for value in ("large", {"height": "a"}, {"height": -1}, 3.5)),
    *(("preprocessor_config.json", "image_mean", value) for value in ([1, 2], [[0.5]] * 3, "abc")),
    *(("preprocessor_config.json", name, "x") for name in ("resample", "do_resize", "size_divisor", "image_std")),
]


def predict(model: Path) -> list[Any]:
    return ["predict", "--model", model, "picture.png", "--output", "out", "--device", "cpu"]


@pytest.mark.parametrize("name", WRONG_STATES)
def test_weights_that_do_not_fit(name: str, checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    weights = checkpoint / "model.safetensors"
    state = WRONG_STATES[name](safetensors.torch.load_file(weights))
    safetensors.torch.save_file(state, weights, metadata={"format": "pt"})
    refused(predict(checkpoint), "model", capsys)


@pytest.mark.parametrize("name", WRONG_BYTES)
def test_damaged_weights(name: str, checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(WRONG_BYTES[name](weights.read_bytes()))
    refused(predict(checkpoint), "model", capsys)
    with pytest.raises((ValueError, OSError), match="model"):
        DrmmForObjectDetection.from_pretrained(checkpoint)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("name", WRONG_JSON)
def test_damaged_settings_of_a_checkpoint(file: str, name: str, checkpoint: Path, capsys) -> None:
    write(checkpoint / file, WRONG_JSON[name])
    refused(predict(checkpoint), "model", capsys)


@pytest.mark.parametrize(("file", "field", "value"), WRONG_FIELDS)
def test_wrong_fields_of_a_checkpoint(file: str, field: str, value: Any, checkpoint: Path, capsys) -> None:
    write(checkpoint / file, changed(json.loads((checkpoint / file).read_text()), field, to=value))
    refused(predict(checkpoint), "model", capsys)


@pytest.fixture(scope="module")
def released() -> dict[str, torch.Tensor]:
    config = DrmmConfig.from_preset("drmm-sparse-rcnn-tiny", id2label=NAMES, num_stages=1, num_proposals=5)
    return released_state_dict(DrmmForObjectDetection(config))


@pytest.mark.parametrize(
    "content",
    [
        *(lambda state, name=name: WRONG_STATES[name](state) for name in WRONG_STATES if name != "one too many"),
        lambda state: {"state_dict": Evil()},
        lambda state: [1, 2],
        lambda state: torch.ones(3),
        lambda state: {**state, 7: torch.ones(2)},
        lambda state: {name: value.to_sparse() for name, value in state.items()},
        lambda state: {name: value.to("meta") for name, value in state.items()},
    ],
)
def test_released_weights(content, released, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content(released), "file.pth")
    refused(["convert", "file.pth", "out", "--preset", "drmm-sparse-rcnn-tiny"], "file.pth", capsys)
    assert not Path("out").exists()
    assert not Path("made").exists()


@pytest.mark.parametrize("old_format", [True, False])
@pytest.mark.parametrize("name", [*WRONG_BYTES, "code"])
def test_damaged_released_weights(name, old_format, released, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(released, "file.pth", _use_new_zipfile_serialization=not old_format)
    content = Path("file.pth").read_bytes()
    write(Path("file.pth"), pickle.dumps(Evil(), 2) if name == "code" else WRONG_BYTES[name](content))
    refused(["convert", "file.pth", "out", "--preset", "drmm-sparse-rcnn-tiny"], "file.pth", capsys)
    assert not Path("made").exists()


def timm_state(model: DrmmForObjectDetection) -> dict[str, torch.Tensor]:
    backbone = model.model.backbone
    network = timm.create_model(backbone.model.config.backbone, **backbone.model_kwargs)
    return {name: value.contiguous() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("name", [*WRONG_BYTES, *(state for state in WRONG_STATES if state != "one too many")])
def test_weights_of_a_backbone(name: str, tmp_path: Path) -> None:
    """timm itself says nothing of what a file lacks, and leaves it at random."""
    model, path = small_model(), tmp_path / "file.safetensors"
    state = timm_state(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    safetensors.torch.save_file(WRONG_STATES[name](state) if name in WRONG_STATES else state, path)
    if name in WRONG_BYTES:
        path.write_bytes(WRONG_BYTES[name](path.read_bytes()))
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
