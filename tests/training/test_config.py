"""Settings: checked by name, given as options, recipes or both."""

import re
from pathlib import Path
from typing import Any

import pytest

from drmm_hf import DrmmConfig
from drmm_hf.cli import main
from drmm_hf.presets import PRESETS
from drmm_hf.training import TrainConfig, parse_config, read_recipe, recipe_names, write_recipe


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data": ""}, "data"),
        ({"train_images": None}, "epochs"),
        ({"epochs": 2.0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": "2"}, "batch_size"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"warmup_ratio": 1.0}, "warmup_ratio"),
        ({"horizontal_flip": 1.5}, "horizontal_flip"),
        ({"scale_min": 1.2}, "scale_min"),
        ({"schedule": "cosin"}, "schedule"),
        ({"schedule": "multi_step"}, "milestones"),
        ({"mixed_precision": "int8"}, "mixed_precision"),
        ({"model": "a", "warm_start": "b"}, "warm_start"),
        ({"model": ""}, "--model"),
        ({"overwrite": True, "resume": True}, "overwrite"),
        ({"epoch_images": 5}, "epoch_images"),
        ({"patience": 3}, "patience"),
        ({"patience": 3, "eval_every": 5, "eval_split": ""}, "eval_split"),
        ({"image_size": [640, 640, 3]}, "image_size"),
        ({"image_size": [16]}, "image_size"),
        ({"image_size": [64, 96], "augmentation": "resize"}, "image_size"),
        ({"streaming": True, "shuffle_buffer": 0}, "shuffle_buffer"),
    ],
)
def test_a_bad_value_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        TrainConfig(**{"data": "folder", "train_images": 8, **change})


@pytest.mark.parametrize("option", ["--preset=drmm-adamixer-tiny", "--backbone-weights=package"])
def test_a_checkpoint_and_what_it_brings_are_not_both_given(option: str) -> None:
    words = ["--recipe", "finetune-photos", "--data", "d", "--model", "m"]
    assert parse_config(words).model == "m"  # of the recipe's own preset nothing is taken
    with pytest.raises(ValueError, match=option.split("=")[0]):
        parse_config([*words, option])


def test_options_in_both_spellings() -> None:
    words = "--data d --epochs 1.5 --batch-size 3 --learning_rate 1e-4 --no-decay-norms --cpu --model m --classes a b"
    words += " --image-size 480 640"
    expected = {"data": "d", "epochs": 1.5, "batch_size": 3, "learning_rate": 1e-4, "decay_norms": False, "cpu": True}
    assert parse_config(words.split()) == TrainConfig(**expected, model="m", classes=["a", "b"], image_size=[480, 640])


def test_the_help_has_every_option_once_and_the_recipe_first(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    options = re.findall(r"^  (?:-h, )?(--\S+)", capsys.readouterr().out, flags=re.MULTILINE)
    assert options[:2] == ["--help", "--recipe"]
    assert {"--learning-rate", "--no-decay-norms", "--config"} <= {*options}
    assert len({*options}) == len(options)
    assert not any("_" in option for option in options)


def test_fields_of_the_model_are_given_as_assignments() -> None:
    options = [
        "--data",
        "d",
        "--epochs",
        "1",
        "--config",
        "objective=nll",
        "mcm_weight=1e-1",
        "--config",
        "pyramid_levels=[0, 1]",
    ]
    config = parse_config([*options, "learn_proposal_boxes=false"]).config
    expected = {"objective": "nll", "mcm_weight": 0.1, "pyramid_levels": [0, 1], "learn_proposal_boxes": False}
    assert config == expected


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--config objective", "objective"),
        ("--config =nll", "=nll"),
        ("--config pyramid_levels=[0", "pyramid_levels"),
        ("--schedule step", "schedule"),
        ("--recipe drmm-adamixr-r50-3x", "drmm-adamixer-r50-3x"),
        ("--recipe no/where.yaml", "no/where.yaml"),
        ("--warmup-ratio 2", "warmup_ratio"),
        ("--data nowhere", "nowhere"),
        ("--report-to tensorbord", "tensorbord"),
        ("--preset drmm-sparse", "drmm-sparse"),
        ("--warm-start no/such/folder", "no/such/folder"),
        ("--output /proc/out", "--output /proc/out"),
        ("--model no/such/folder", "no/such/folder"),
        ("--config objectiv=nll", "objectiv"),
        ("--config num_stages=many", "num_stages"),
    ],
)
def test_a_bad_option_ends_with_one_message_and_status_2(scenes, tmp_path, capsys, words: str, named: str) -> None:
    given = ["--data", str(scenes), "--train-images", "4", "--cpu", "--output", str(tmp_path / "out")]
    try:
        status = main(["train", *given, *words.split()])
    except SystemExit as stop:  # argparse's own, with the usage above it
        status = stop.code
    assert status == 2
    errors = capsys.readouterr().err
    assert named in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


FROM_A_CHECKPOINT = ("finetune-small", "finetune-detr")


@pytest.mark.parametrize("name", sorted({*recipe_names()} - {*FROM_A_CHECKPOINT}))
def test_every_recipe_is_a_complete_training(name: str) -> None:
    config = parse_config(["--recipe", name, "--data", "folder"])
    DrmmConfig.from_preset(config.preset, **(config.config or {}))


@pytest.mark.parametrize("name", FROM_A_CHECKPOINT)
def test_a_recipe_that_fine_tunes_needs_a_checkpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"base: {name}\nlearning_rate: 1e-5\n")
    for recipe in (name, str(tmp_path / "mine.yaml")):
        words = ["--recipe", recipe, "--data", "d"]
        with pytest.raises(ValueError, match="--model"):
            parse_config(words)
        assert parse_config([*words, "--model", "m"]).model == "m"
        assert parse_config([*words, "--warm-start", "w"]).model is None


def test_the_papers_schedules() -> None:
    names = {*recipe_names()} - {*FROM_A_CHECKPOINT}
    recipes = {name: parse_config(["--recipe", name, "--data", "d"]) for name in names}
    assert len(recipes) == 18
    for name, config in recipes.items():
        if not name.endswith(("1x", "3x")):
            continue
        ours, threefold = name.startswith("drmm"), name.endswith("3x")
        assert config.preset == name[:-3]
        assert (config.learning_rate, config.weight_decay) == ((5e-5, 5e-5) if ours else (2.5e-5, 1e-4)), name
        assert (config.adam_beta2, config.batch_size, config.max_grad_norm) == (0.999, 2, 1.0)
        assert config.warmup_steps == (1000 if name == "drmm-adamixer-swin-t-3x" else 500)
        drops = [8, 11] if not threefold else [24, 33] if "adamixer" in name else [27, 33]
        assert (config.epochs, config.milestones) == (36 if threefold else 12, drops), name
        assert config.augmentation == ("multi_scale" if threefold else "resize")
        norm = (config.config or {}).get("backbone_norm") or DrmmConfig.from_preset(config.preset).backbone_norm
        assert norm == ("sync" if ours and threefold else "eval"), name
    assert PRESETS["drmm-sparse-rcnn-r50"]["backbone_norm"] == "sync"


def test_options_override_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("epochs: 12\nlearning_rate: 1e-4\nconfig: {mcm_weight: 2.0, num_stages: 2}\ndata: there\n")
    config = parse_config(["--recipe", str(recipe), "--batch_size", "3", "--config", "mcm_weight=1"])
    expected = {"mcm_weight": 1, "num_stages": 2}
    assert config == TrainConfig(data="there", epochs=12.0, learning_rate=1e-4, batch_size=3, config=expected)
    assert parse_config(["--recipe", str(recipe), "--train-images", "8"]).epochs is None
    paper = ["--recipe", "drmm-sparse-rcnn-r50-1x", "--data", "d"]
    assert parse_config(paper).warmup_steps
    assert parse_config([*paper, "--warmup-ratio", "0.1"]).warmup_steps is None  # which would override the share
    changed = parse_config(["--recipe", "drmm-sparse-rcnn-r50-1x", "--data", "d", "--schedule", "cosine"])
    assert changed.milestones is None


def test_a_recipe_goes_over_its_base(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base: drmm-sparse-rcnn-r50-1x\ntrain_images: 9\nschedule: cosine\nconfig: {num_stages: 2}\n")
    fields = read_recipe(str(recipe))
    assert fields["config"] == {"backbone_norm": "eval", "num_stages": 2}
    assert (fields["train_images"], fields["weight_decay"]) == (9, 5e-5)
    assert not {"epochs", "milestones", "base"} & set(fields)


def test_a_recipe_of_an_earlier_version_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: there\nepochs: 12\ncache_images: false\n")
    assert parse_config(["--recipe", str(recipe)]) == TrainConfig(data="there", epochs=12.0)
    assert len(caplog.records) == 1


def test_the_resolved_recipe_repeats_the_run(tmp_path: Path) -> None:
    words = "--recipe drmm-adamixer-r50-3x --data d --output o --resume --config density=cauchy"
    config = parse_config(words.split())
    write_recipe(config, tmp_path / "recipe.yaml")
    assert parse_config(["--recipe", str(tmp_path / "recipe.yaml"), "--resume"]) == config
    assert not parse_config(["--recipe", str(tmp_path / "recipe.yaml")]).resume


# `&i` stands for 9^9 letters, of which nothing may be unfolded
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD_RECIPES = {
    "learning_rat: 1": "learning_rate",
    "epochs: many": "epochs",
    "epochs: []": "epochs",
    "epochs: .nan": "epochs",
    "epochs: -1": "epochs",
    "epochs: 2001-99-99": "YAML",
    "epochs: " + "9" * 6000: "YAML",
    "batch_size: 0": "batch_size",
    "batch_size: 2.5": "batch_size",
    "batch_size: true": "batch_size",
    f"batch_size: {10**400}": "batch_size",
    "milestones: 27": "milestones",
    "milestones: [a]": "milestones",
    "config: [1]": "config",
    "config: {num_proposals: -5}": "num_proposals",
    "cpu: 1": "cpu",
    f"augmentation: {'x' * 5000}": "augmentation",
    f"preset: {'x' * 5000}": "preset",
    "- epochs": "fields",
    "epochs: [1": "YAML",
    "[" * 5000: "YAML",
    "a: !!python/object:os.system x": "YAML",
    LAUGHS: "unknown field",
    LAUGHS + "epochs: *i": "",
    "base: nothing-like-it": "nothing-like-it",
    "base: BAD": "base",
    "epochs: \xe4\xe9": "YAML",  # written as Latin-1
}


@pytest.mark.parametrize("text", BAD_RECIPES, ids=lambda text: ascii(text[:40]))
def test_a_bad_recipe_is_refused_by_field(scenes: Path, tmp_path: Path, capsys, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.replace("BAD", str(path)).encode("latin-1"))
    words = ["--data", str(scenes), "--output", str(tmp_path / "out"), "--cpu"]
    words += [] if "epochs" in text else ["--epochs", "1"]
    assert main(["train", "--recipe", str(path), *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert BAD_RECIPES[text] in line
    assert len(line) < 3000
    assert not (tmp_path / "out").exists()
