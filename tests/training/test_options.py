"""Recipes and command-line options."""

from pathlib import Path

import pytest
import yaml

from drmm_hf import DrmmConfig
from drmm_hf.presets import PRESETS
from drmm_hf.training import TrainConfig, parse_config, read_recipe, recipe_names
from drmm_hf.training.options import write_recipe


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_a_complete_training(name: str) -> None:
    config = parse_config(["--recipe", name, "--data", "folder"])
    fields = {} if config.config is None else dict(config.config)
    if config.model is None and name != "finetune-small":
        DrmmConfig.from_preset(config.preset, **fields)
    header = (Path(__file__).parents[2] / f"src/drmm_hf/training/recipes/{name}.yaml").read_text().split("\n\n")[0]
    comment = " ".join(line for line in header.splitlines() if line.startswith("#"))
    assert f"--recipe {name} " in comment
    for word in ("Hardware:", "Time:", "Expected"):
        assert word in comment, word
    if name.endswith("3x"):
        assert "reported by the paper" in comment or "no number here" in comment


def test_the_papers_schedules() -> None:
    sparse, ada = (parse_config(["--recipe", f"drmm-{d}-r50-3x", "--data", "d"]) for d in ("sparse-rcnn", "adamixer"))
    for config in (sparse, ada):
        assert (config.learning_rate, config.weight_decay, config.adam_beta2) == (5e-5, 5e-5, 0.999)
        assert (config.epochs, config.batch_size, config.max_grad_norm, config.warmup_steps) == (36, 2, 1.0, 500)
        assert config.augmentation == "multi_scale"
        assert PRESETS[config.preset]["backbone_norm"] == "sync"
    assert (sparse.milestones, ada.milestones) == ([27, 33], [24, 33])
    once = parse_config(["--recipe", "drmm-sparse-rcnn-r50-1x", "--data", "d"])
    assert (once.epochs, once.milestones, once.augmentation, once.config) == (
        12,
        [8, 11],
        "resize",
        {"backbone_norm": "eval"},
    )
    baseline = parse_config(["--recipe", "sparse-rcnn-r50-3x", "--data", "d"])
    assert (baseline.learning_rate, baseline.weight_decay) == (2.5e-5, 1e-4)
    assert DrmmConfig.from_preset(baseline.preset).backbone_norm == "eval"


def test_options_override_the_recipe_and_both_spellings_are_known(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("epochs: 12\nlearning_rate: 1e-4\nconfig: {mcm_weight: 2.0, num_stages: 2}\ndata: there\n")
    config = parse_config(["--recipe", str(recipe), "--batch_size", "3", "--config", "mcm_weight=1"])
    expected = {"mcm_weight": 1, "num_stages": 2}
    assert config == TrainConfig(data="there", epochs=12.0, learning_rate=1e-4, batch_size=3, config=expected)
    assert parse_config(["--recipe", str(recipe), "--train-images", "8"]).epochs is None
    changed = parse_config(["--recipe", "drmm-sparse-rcnn-r50-1x", "--data", "d", "--schedule", "cosine"])
    assert changed.milestones is None


def test_the_resolved_recipe_repeats_the_run(tmp_path: Path) -> None:
    config = parse_config(
        ["--recipe", "drmm-adamixer-r50-3x", "--data", "d", "--output", "o", "--config", "density=cauchy"]
    )
    write_recipe(config, tmp_path / "recipe.yaml")
    assert parse_config(["--recipe", str(tmp_path / "recipe.yaml")]) == config
    assert "resume" not in yaml.safe_load((tmp_path / "recipe.yaml").read_text())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "unknown field 'learning_rat'; did you mean 'learning_rate'?"),
        ("resume: true", "unknown field 'resume'"),
        ("epochs: many", "field 'epochs' is 'many', but must be of type float or nothing"),
        ("batch_size: 2.5", "field 'batch_size' is 2.5, but must be of type int"),
        ("batch_size: true", "field 'batch_size' is True, but must be of type int"),
        ("milestones: 27", "field 'milestones' is 27, but must be of type Sequence or nothing"),
        ("config: [1]", "field 'config' is [1], but must be of type Mapping or nothing"),
        ("cpu: 1", "field 'cpu' is 1, but must be of type bool"),
        ("- epochs", "holds no fields"),
        ("epochs: [1", "not valid YAML"),
    ],
)
def test_a_bad_recipe_is_refused_by_field(tmp_path: Path, capsys, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        parse_config(["--recipe", str(path), "--data", "d"])
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert message in last
    assert "bad.yaml" in last


def test_a_recipe_that_is_not_there_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Nearest: drmm-adamixer-r50-3x"):
        read_recipe("drmm-adamixr-r50-3x")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml: no such file"):
        read_recipe(str(tmp_path / "nowhere.yaml"))
