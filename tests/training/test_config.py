import dataclasses

import pytest

from drmm_hf.training import TrainConfig, parse_config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ""}, r"TrainConfig\.data is empty"),
        ({"train_images": None}, "exactly one of train_images and epochs"),
        ({"epochs": 2.0}, "exactly one of train_images and epochs"),
        ({"batch_size": 0}, r"TrainConfig\.batch_size=0 must be greater than 0"),
        ({"learning_rate": float("nan")}, r"TrainConfig\.learning_rate=nan"),
        ({"warmup_ratio": 1.0}, r"warmup_ratio=1\.0 must be in \[0, 1\)"),
        ({"schedule": "cosin"}, r"schedule='cosin'; choose one of cosine, linear"),
        ({"mixed_precision": "int8"}, r"mixed_precision='int8'; choose one of no, bf16, fp16"),
    ],
)
def test_a_bad_value_is_refused_by_name(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"data": "folder", "train_images": 8, **change})


def test_every_field_is_an_option() -> None:
    config = parse_config(
        ["--data", "d", "--epochs", "1.5", "--batch-size", "3", "--no-cache-images", "--cpu", "--model", "m"]
    )
    expected = TrainConfig(data="d", epochs=1.5, batch_size=3, cache_images=False, cpu=True, model="m")
    assert config == expected
    for field in dataclasses.fields(TrainConfig):
        assert field.metadata["help"], f"{field.name} has no help text"


def test_a_bad_option_ends_with_one_message_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_config(["--data", "d", "--epochs", "1", "--schedule", "step"])
    assert stop.value.code == 2
    assert "schedule='step'" in capsys.readouterr().err.splitlines()[-1]


def test_fields_of_the_model_are_given_as_assignments() -> None:
    options = ["--data", "d", "--epochs", "1", "--config", "objective=nll", "mcm_weight=1e-1", "pyramid_levels=[0, 1]"]
    config = parse_config([*options, "learn_proposal_boxes=false"])
    assert config.config == {
        "objective": "nll",
        "mcm_weight": 0.1,
        "pyramid_levels": [0, 1],
        "learn_proposal_boxes": False,
    }


@pytest.mark.parametrize("text", ["objective", "=nll", "pyramid_levels=[0"])
def test_a_bad_assignment_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(["--data", "d", "--epochs", "1", "--config", text])
    assert f"--config {text}: " in capsys.readouterr().err.splitlines()[-1]
