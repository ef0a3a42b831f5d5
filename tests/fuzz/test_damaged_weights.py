"""Files of weights that are damaged, of something else, or made to do harm: one line that names file and reason."""

import io
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from drmm_hf import DrmmConfig, DrmmForObjectDetection, DrmmImageProcessor
from drmm_hf.conversion import released_state_dict
from drmm_hf.conversion.cli import main as convert
from drmm_hf.evaluation.loading import load_checkpoint
from model_fixtures import small_model

State = dict[str, Any]


def pth(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    return buffer.getvalue()


class Evil:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("made",)


def changed(change: Callable[[Tensor], Any]) -> Callable[[State], State]:
    """The state with one weight changed."""

    def apply(state: State) -> State:
        name = next(name for name in state if name.endswith("running_mean"))
        return {**state, name: change(state[name])}

    return apply


def without_one(state: State) -> State:
    return dict(list(state.items())[1:])


NAN = changed(lambda value: torch.full_like(value, torch.nan))
INFINITE = changed(lambda value: torch.full_like(value, torch.inf))
SHORTER = changed(lambda value: value[:-1].clone())
WHOLE = changed(lambda value: value.to(torch.int32))
COMPLEX = changed(lambda value: value.to(torch.complex64))
SPARSE = changed(lambda value: value.to_sparse())
META = changed(lambda value: value.to("meta"))
NOT_A_TENSOR = changed(lambda value: "text")

# content of a file with a suffix, and what is said of it by any reader
DAMAGED: dict[str, tuple[str, Callable[[State], bytes], str]] = {
    "cut": ("pth", lambda state: pth(state)[:-1000], "damaged or cut off"),
    "cut of the old format": (
        "pth",
        lambda state: pth(state, _use_new_zipfile_serialization=False)[:2000],
        "damaged or cut off",
    ),
    "empty": ("pth", lambda state: b"", "damaged or cut off"),
    "a web page": ("pth", lambda state: b"<html>404</html>", "not a checkpoint that torch can read"),
    "a list": ("pth", lambda state: pth([1, 2]), "holds a list, not a state dict"),
    "a tensor": ("pth", lambda state: pth(torch.ones(3)), "holds a Tensor, not a state dict"),
    "numbers as names": ("pth", lambda state: pth({**state, 7: torch.ones(2)}), "the key 7 is no name"),
    "code": ("pth", lambda state: pth({"state_dict": Evil()}), "reading it would run code of the file"),
    "bare code": ("pth", lambda state: pickle.dumps(Evil(), 2), "reading it would run code of the file"),
    "bomb": ("pth", lambda state: bomb(), "a compressed archive that unfolds to 10,000,000 bytes"),
    "sparse": ("pth", lambda state: pth(SPARSE(state)), "running_mean is no dense tensor"),
    "without data": ("pth", lambda state: pth(META(state)), "running_mean is no dense tensor"),
    "nan": ("pth", lambda state: pth(NAN(state)), r"NaN or infinity in 1 of \d+ tensors, such as .*running_mean"),
    "cut safetensors": ("safetensors", lambda state: saved(state)[:-1000], "damaged or cut off"),
    "huge header": ("safetensors", lambda state: struct.pack("<Q", 2**63) + saved(state)[8:], "damaged or cut off"),
    "empty safetensors": ("safetensors", lambda state: b"", "damaged or cut off"),
    "nan in safetensors": ("safetensors", lambda state: saved(NAN(state)), "NaN or infinity in 1 of"),
    "infinite": ("safetensors", lambda state: saved(INFINITE(state)), "NaN or infinity in 1 of"),
}


def saved(state: State) -> bytes:
    path = Path("saved.safetensors")
    save_file(state, path)
    return path.read_bytes()


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Files have short names, and code that ran would leave a folder here."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "made").exists()


@pytest.fixture(scope="module")
def model() -> DrmmForObjectDetection:
    return small_model()


def timm_state(model: DrmmForObjectDetection) -> State:
    backbone = model.model.backbone
    network = timm.create_model(backbone.model.config.backbone, **backbone.model_kwargs)
    return {name: value.contiguous() for name, value in network.state_dict().items()}


def assert_untouched(model: DrmmForObjectDetection, before: State) -> None:
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", DAMAGED)
def test_weights_of_a_backbone(name: str, model: DrmmForObjectDetection) -> None:
    suffix, content, message = DAMAGED[name]
    Path(f"file.{suffix}").write_bytes(content(timm_state(model)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"^file\.{suffix}: .*{message}"):
        model.load_backbone(f"file.{suffix}")
    assert_untouched(model, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {}, "holds no tensors; give a file of timm weights of resnet10t"),
        (without_one, "1 of its 70 tensors are not in the file, .* such as conv1.0.weight"),
        (WHOLE, "1 of its 70 tensors are not in the file, or not as floating point numbers, such as .*running_mean"),
        (COMPLEX, "1 of its 70 tensors are not in the file, or not as floating point numbers"),
        (NOT_A_TENSOR, "1 of its 70 tensors are not in the file"),
        (SHORTER, "size mismatch for conv1.1.running_mean"),
        (lambda state: {f"other.{name}": value for name, value in state.items()}, "70 of its 70 tensors are not in"),
    ],
)
def test_weights_that_do_not_suffice_for_a_backbone(change: Callable, message: str, model: Any) -> None:
    """timm itself says nothing of what a file lacks, and leaves it at random."""
    torch.save(change(timm_state(model)), "file.pth")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"^file\.pth: .*{message}"):
        model.load_backbone("file.pth")
    assert_untouched(model, before)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "state_dict_ema"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_whole_weights_of_a_backbone_are_read(wrapper: str | None, dtype: torch.dtype) -> None:
    model = small_model()
    state = {
        f"module.{name}": value.to(dtype) if value.is_floating_point() else value
        for name, value in timm_state(model).items()
    }
    state["head.other"] = torch.ones(2)
    torch.save({wrapper: state} if wrapper else state, "file.pth")
    model.load_backbone("file.pth")
    ours = model.model.backbone.model._backbone.state_dict()["layer4.0.conv1.weight"]
    assert torch.equal(ours, state["module.layer4.0.conv1.weight"].float())


@pytest.mark.parametrize("name", DAMAGED)
def test_released_files(name: str, model: DrmmForObjectDetection, capsys: pytest.CaptureFixture) -> None:
    suffix, content, message = DAMAGED[name]
    state = {key: value.contiguous() for key, value in released_state_dict(model).items()}
    Path(f"file.{suffix}").write_bytes(content(state))
    assert convert([f"file.{suffix}", "out", "--preset", "drmm-sparse-rcnn-tiny"]) == 2
    assert re.fullmatch(rf"error: file\.{suffix}: .*{message}.*\n", capsys.readouterr().err)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (WHOLE, r"1 tensors of another kind of numbers: .*running_mean is torch.int32, not torch.float32"),
        (COMPLEX, r"1 tensors of another kind of numbers: .*running_mean is torch.complex64"),
    ],
)
def test_released_numbers_of_another_kind(change: Callable, message: str, capsys: pytest.CaptureFixture) -> None:
    preset = "drmm-sparse-rcnn-tiny"
    config = DrmmConfig.from_preset(preset, num_labels=3, num_proposals=5, num_stages=1)
    torch.save(change(released_state_dict(DrmmForObjectDetection(config))), "file.pth")
    assert convert(["file.pth", "out", "--preset", preset]) == 2
    assert re.search(rf"file\.pth does not fit the configuration .*\)\. {message}", capsys.readouterr().err)


class TestCheckpoints:
    @pytest.fixture
    def weights(self, model: DrmmForObjectDetection) -> Path:
        model.save_pretrained("model")
        DrmmImageProcessor().save_pretrained("model")
        return Path("model/model.safetensors")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (without_one, r"the weights lack 1 tensors that config\.json asks for, such as model\."),
            (lambda state: {**state, "model.x": torch.ones(1)}, "hold 1 tensors that config.json does not ask for"),
            (SHORTER, r"1 tensors .* another shape .* such as .*running_mean, which is \(15,\), not \(16,\)"),
            (WHOLE, "running_mean has numbers of type I32, not floating point"),
            (COMPLEX, "running_mean has numbers of type C64, not floating point"),
            (NAN, "NaN or infinity in 1 of"),
        ],
    )
    def test_a_file_that_is_not_that_of_the_configuration(self, weights, change: Callable, message: str) -> None:
        save_file(change(load_file(weights)), weights, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"^model.*{message}"):
            load_checkpoint("model")

    def test_fewer_stages_than_the_weights_have(self, weights) -> None:
        config = Path("model/config.json")
        config.write_text(config.read_text().replace('"num_stages": 2', '"num_stages": 1'))
        with pytest.raises(ValueError, match=r"tensors that config\.json does not ask for, such as model\.heads\.1"):
            load_checkpoint("model")

    def test_half_precision_is_read(self, weights) -> None:
        state = {k: v.half() if v.is_floating_point() else v for k, v in load_file(weights).items()}
        save_file(state, weights, metadata={"format": "pt"})
        load_checkpoint("model")

    @pytest.mark.parametrize("content", [b"", b"not weights", struct.pack("<Q", 2**63)])
    def test_from_pretrained_names_the_folder(self, weights, content: bytes) -> None:
        weights.write_bytes(content)
        with pytest.raises(ValueError, match=r"^model: model\.safetensors is damaged or cut off \(.*\); download"):
            DrmmForObjectDetection.from_pretrained("model")

    def test_what_the_backbone_lacks_starts_as_timm_starts_it(self, weights) -> None:
        """transformers would leave memory as it is; the rest has its own initial values."""
        state = {name: value for name, value in load_file(weights).items() if "layer4" not in name}
        save_file(state, weights, metadata={"format": "pt"})
        loaded = DrmmForObjectDetection.from_pretrained("model").state_dict()
        for name, value in loaded.items():
            if "layer4" in name and name.endswith("conv1.weight"):
                fan_out = value.shape[0] * value.shape[2] * value.shape[3]
                assert value.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15), name
            elif "layer4" in name and name.endswith("bn1.weight"):
                assert (value == 1).all(), name
            elif name in state:
                assert torch.equal(value, state[name]), name
