"""Released checkpoints to ours and back, on small models written under the released names."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from transformers import pipeline

from drmm_hf import DrmmConfig, DrmmForObjectDetection, DrmmImageProcessor
from drmm_hf.cli import main
from drmm_hf.conversion import convert_checkpoint, released_state_dict, warm_start

TINY = ("drmm-sparse-rcnn-tiny", "drmm-adamixer-tiny", "sparse-rcnn-tiny", "adamixer-tiny")
NAMES = {0: "disc", 1: "ring", 2: "star"}


def tiny(preset: str, **overrides) -> DrmmForObjectDetection:
    torch.manual_seed(0)
    fields = {"id2label": NAMES, "num_stages": 2, "num_proposals": 10, **overrides}
    return DrmmForObjectDetection(DrmmConfig.from_preset(preset, **fields))


def write(path: Path, model: DrmmForObjectDetection, **changes) -> Path:
    """A checkpoint as mmdet writes it."""
    state = {f"module.{key}": value for key, value in released_state_dict(model).items()}
    content = {"meta": {"CLASSES": tuple(NAMES.values()), "epoch": 36}, "state_dict": state, "optimizer": {"state": {}}}
    torch.save({**content, **changes}, path)
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("released")
    return {preset: write(folder / f"{preset}.pth", tiny(preset)) for preset in TINY}


@pytest.mark.parametrize("preset", TINY)
def test_a_released_file_gives_the_same_weights_classes_and_sizes(checkpoints, preset) -> None:
    converted = convert_checkpoint(checkpoints[preset], preset)
    expected = tiny(preset)
    assert converted.model.config.id2label == NAMES
    assert (converted.model.config.num_stages, converted.model.config.num_proposals) == (2, 10)
    state = converted.model.state_dict()
    assert set(state) == set(expected.state_dict())
    for name, tensor in expected.state_dict().items():
        assert torch.equal(state[name], tensor), name
    assert converted.report.used == len(released_state_dict(expected))


def test_objectness_is_the_first_row(checkpoints) -> None:
    released = torch.load(checkpoints["drmm-sparse-rcnn-tiny"], weights_only=True)["state_dict"]
    head = convert_checkpoint(checkpoints["drmm-sparse-rcnn-tiny"], "drmm-sparse-rcnn-tiny").model.model.heads[0]
    matrix = released["module.roi_head.bbox_head.0.fc_cls.weight"]
    assert torch.equal(head.objectness.weight, matrix[:1])
    assert torch.equal(head.classifier.weight, matrix[1:])


@pytest.mark.parametrize("name", ["bare.pth", "weights.safetensors"])
def test_bare_state_dicts_and_safetensors_are_read_without_the_counters_that_old_files_lack(tmp_path, name) -> None:
    state = {key: value.contiguous() for key, value in released_state_dict(tiny("sparse-rcnn-tiny")).items()}
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    (torch.save if name.endswith("pth") else save_file)(old, tmp_path / name)
    converted = convert_checkpoint(tmp_path / name, "sparse-rcnn-tiny")
    assert converted.model.config.id2label == {0: "class_0", 1: "class_1", 2: "class_2"}
    assert len(converted.report.added) == len(state) - len(old) > 0
    assert converted.report.used == len(old)


def test_eighty_classes_without_names_are_cocos(tmp_path) -> None:
    model = tiny("sparse-rcnn-tiny", id2label={i: str(i) for i in range(80)})
    torch.save(released_state_dict(model), tmp_path / "coco.pth")
    names = convert_checkpoint(tmp_path / "coco.pth", "sparse-rcnn-tiny").model.config.id2label
    assert (names[0], names[11], names[79]) == ("person", "stop sign", "toothbrush")


@pytest.mark.parametrize("form", ["buffers of mmcv", "state dict of its own"])
def test_a_moving_average_is_left_out_or_taken(tmp_path, form) -> None:
    model = tiny("sparse-rcnn-tiny")
    state = released_state_dict(model)
    average = {key: value + 1 for key, value in state.items() if value.is_floating_point()}
    if form == "buffers of mmcv":
        content = {"state_dict": {**state, **{f"ema_{key.replace('.', '_')}": v for key, v in average.items()}}}
    else:
        content = {"state_dict": state, "ema_state_dict": {**state, **average}}
    torch.save(content, tmp_path / "ema.pth")
    for weights, expected in (("raw", 0.0), ("ema", 1.0)):
        converted = convert_checkpoint(tmp_path / "ema.pth", "sparse-rcnn-tiny", weights=weights)
        assert torch.equal(converted.model.model.proposals.features, model.model.proposals.features + expected)
        skipped = len(average) if form == "buffers of mmcv" and weights == "raw" else 0
        assert len(converted.report.skipped) == skipped


class TestRefusals:
    """Every refusal names the file; no code of a file is run."""

    @pytest.mark.parametrize(
        ("source", "preset", "named"),
        [
            ("sparse-rcnn-tiny", "drmm-sparse-rcnn-tiny", "sparse-rcnn-tiny"),
            ("drmm-adamixer-tiny", "drmm-sparse-rcnn-tiny", "drmm-adamixer-tiny"),
            ("sparse-rcnn-tiny", "sparse-rcn-tiny", "sparse-rcnn-tiny"),
        ],
    )
    def test_another_head_or_decoder_names_the_presets_that_fit(self, checkpoints, source, preset, named) -> None:
        with pytest.raises(ValueError, match=named):
            convert_checkpoint(checkpoints[source], preset)

    def test_no_moving_average(self, checkpoints) -> None:
        with pytest.raises(ValueError, match="raw"):
            convert_checkpoint(checkpoints["sparse-rcnn-tiny"], "sparse-rcnn-tiny", weights="ema")

    def test_keys_missing_left_over_or_of_another_shape_are_listed_up_to_ten(self, tmp_path) -> None:
        state = released_state_dict(tiny("sparse-rcnn-tiny"))
        del state["neck.lateral_convs.0.conv.bias"]
        state["neck.lateral_convs.1.conv.bias"] = torch.zeros(3)
        state |= {f"mask_head.{i}": torch.zeros(1) for i in range(12)}
        torch.save(state, tmp_path / "odd.pth")
        with pytest.raises(ValueError, match=r"odd\.pth") as caught:
            convert_checkpoint(tmp_path / "odd.pth", "sparse-rcnn-tiny")
        message = str(caught.value)
        assert "1 keys missing: neck.lateral_convs.0.conv.bias" in message
        assert "1 tensors of another shape: neck.lateral_convs.1.conv.bias" in message
        assert "12 unexpected keys" in message
        assert message.count("mask_head") == 10

    def test_a_pickle_with_code_is_not_run(self, tmp_path) -> None:
        class Harmful:
            def __reduce__(self):
                return (Path(tmp_path / "ran").touch, ())

        state = released_state_dict(tiny("sparse-rcnn-tiny"))
        torch.save({"state_dict": state, "meta": Harmful()}, tmp_path / "bad.pth")
        (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Harmful()))
        for name in ("bad.pth", "plain.pkl"):
            with pytest.raises(ValueError, match=name):
                convert_checkpoint(tmp_path / name, "sparse-rcnn-tiny")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_a_truncated_file(self, tmp_path, suffix) -> None:
        state = {k: v.contiguous() for k, v in released_state_dict(tiny("sparse-rcnn-tiny")).items()}
        whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
        save_file(state, whole) if suffix == ".safetensors" else torch.save(state, whole)
        cut.write_bytes(whole.read_bytes()[:100_000])
        with pytest.raises(ValueError, match=cut.name):
            convert_checkpoint(cut, "sparse-rcnn-tiny")

    @pytest.mark.parametrize("content", [{"state_dict": {"fc.weight": torch.zeros(2)}}, {"epoch": 3}, [1]])
    def test_a_file_that_is_no_detector(self, tmp_path, content, capsys) -> None:
        torch.save(content, tmp_path / "other.pth")
        command = ["convert", str(tmp_path / "other.pth"), str(tmp_path / "o"), "--preset", "sparse-rcnn-tiny"]
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "other.pth" in error
        assert error.count("\n") == 1
        assert not (tmp_path / "o").exists()


class TestCommand:
    def test_the_folder_works_in_a_pipeline(self, checkpoints, tmp_path) -> None:
        out = tmp_path / "out"
        source = str(checkpoints["sparse-rcnn-tiny"])
        assert main(["convert", source, str(out), "--preset", "sparse-rcnn-tiny"]) == 0
        assert DrmmImageProcessor.from_pretrained(out).size["shortest_edge"] == 288
        card = ModelCard.load(out / "README.md")
        assert card.data.eval_results is None
        assert "sparse-rcnn-tiny.pth" in card.text
        assert json.loads((out / "config.json").read_text())["id2label"]["2"] == "star"
        detector = pipeline("object-detection", model=str(out))
        assert detector.model.config.head == "set_prediction"

    def test_back_to_the_released_names(self, checkpoints, tmp_path, capsys) -> None:
        source = checkpoints["drmm-adamixer-tiny"]
        assert main(["convert", str(source), str(tmp_path / "ours"), "--preset", "drmm-adamixer-tiny"]) == 0
        assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "back.pth"), "--reverse"]) == 0
        original = torch.load(source, weights_only=True)["state_dict"]
        back = torch.load(tmp_path / "back.pth", weights_only=True)
        assert back["meta"]["CLASSES"] == list(NAMES.values())
        assert {f"module.{key}" for key in back["state_dict"]} == set(original)
        assert all(torch.equal(value, original[f"module.{key}"]) for key, value in back["state_dict"].items())

    def test_a_mistake_is_one_line(self, checkpoints, tmp_path, capsys) -> None:
        for source, options in (("none.pth", ["--preset", "sparse-rcnn-tiny"]), (checkpoints["sparse-rcnn-tiny"], [])):
            assert main(["convert", str(tmp_path / source), str(tmp_path / "o"), *options]) == 2
            error = capsys.readouterr().err
            assert error.startswith("error: ")
            assert error.count("\n") == 1


class TestWarmStart:
    @pytest.mark.parametrize("decoder", ["sparse-rcnn", "adamixer"])
    def test_keeps_everything_but_the_output_layers(self, tmp_path, decoder) -> None:
        baseline = tiny(f"{decoder}-tiny")
        baseline.save_pretrained(tmp_path)
        DrmmImageProcessor().save_pretrained(tmp_path)
        model = tiny(f"drmm-{decoder}-tiny", id2label={0: "cell"})
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        kept = warm_start(model, str(tmp_path))
        assert {name.split(".")[3] for name in kept} == {"classifier", "objectness", "box"}
        source = baseline.state_dict()
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name] if name in kept else source[name]), name

    def test_another_decoder_or_size_is_refused(self, tmp_path) -> None:
        tiny("adamixer-tiny").save_pretrained(tmp_path)
        DrmmImageProcessor().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="adamixer"):
            warm_start(tiny("drmm-sparse-rcnn-tiny"), str(tmp_path))
        with pytest.raises(ValueError, match=str(tmp_path)):
            warm_start(tiny("drmm-adamixer-tiny", num_stages=3, num_proposals=11), str(tmp_path))
