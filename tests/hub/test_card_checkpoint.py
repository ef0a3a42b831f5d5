"""The card of a trained run: what its own files say, and nothing of the machine it ran on."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from drmm_hf.hub.card import checkpoint_card
from drmm_hf.hub.card_cli import main
from drmm_hf.hub.plan import plan_upload
from drmm_hf.training import parse_config
from drmm_hf.training.options import write_recipe

ANALYSIS = Path(__file__).parents[2] / "checkpoints" / "drmm-adamixer-tiny-bccd" / "analysis.json"
METRICS = {"AP": 0.6122, "AP50": 0.8943, "AP75": 0.7082, "AR100": 0.7202, "ECE": 0.0165, "D-ECE": 0.0752, "seed": 3}
OPTIONS = (
    "--epochs 4 --batch-size 3 --vertical-flip 0.5 --seed 3 --config objective=nll mcm_weight=1.0 --no-decay-norms"
)


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path) -> Path:
    """The output folder of a training."""
    output = tmp_path / "secret-home" / "stars"
    output.mkdir(parents=True)
    shutil.move(checkpoint, output / "model")
    (output / "model" / "README.md").unlink()
    data = tmp_path / "secret-home" / "Discs_and|stars"
    config = parse_config([*shlex.split(OPTIONS), "--data", str(data), "--output", str(output)])
    write_recipe(config, output / "recipe.yaml")
    (output / "metrics.json").write_text(json.dumps(METRICS))
    return output


def test_the_card_of_a_run_can_be_published(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main([str(run), "--analysis", str(ANALYSIS), "--repo-id", "me/stars"]) == 0
    card = ModelCard.load(run / "model" / "README.md")
    assert "secret-home" not in card.content
    assert "for Discs\\_and\\|stars" in card.text
    assert {result.metric_name.split()[0]: result.metric_value for result in card.data.eval_results} == {
        name: value for name, value in METRICS.items() if name != "seed"
    }
    assert "| WBC | 87 | 0.508 |" in card.text
    assert 'model="me/stars", revision="COMMIT"' in card.text
    with plan_upload(run / "model") as plan:
        assert {"README.md", "images/reliability.png"} <= set(plan.files)
    assert main([str(run)]) == 2
    assert "README.md is there already; --overwrite replaces it" in capsys.readouterr().err


def test_the_command_on_the_card_repeats_the_recipe(run: Path) -> None:
    command = re.search(r"scripts/train\.py (.+)", checkpoint_card(run).text).group(1)
    config = parse_config(shlex.split(command))
    wanted = parse_config([*shlex.split(OPTIONS), "--data", "Discs_and|stars", "--output", "runs/stars"])
    assert config == wanted


def test_a_checkpoint_alone_says_what_is_not_known(run: Path) -> None:
    for name in ("recipe.yaml", "metrics.json"):
        (run / name).unlink()
    card = checkpoint_card(run / "model")
    assert card.data.eval_results is None
    assert "The recipe is not known" in card.text
    assert "nothing was measured for this card" in card.text


def test_an_analysis_of_another_model_is_refused(run: Path) -> None:
    (run / "metrics.json").write_text(json.dumps({**METRICS, "AP": 0.3}))
    with pytest.raises(ValueError, match=r"its AP is 0.61216, but .*metrics.json has 0.3"):
        checkpoint_card(run, analysis=ANALYSIS)


def test_wrong_files_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: no config.json in it or in its model/"):
        checkpoint_card(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"metrics.json: not an analysis \(no field 'data'\)"):
        checkpoint_card(run, analysis=run / "metrics.json")
    config = run / "model" / "config.json"
    config.write_text(json.dumps({"model_type": "detr"}))
    with pytest.raises(ValueError, match=r"config.json: field model_type is not 'drmm'"):
        checkpoint_card(run)


def test_the_license_of_the_weights(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--license", "cc-by-nc-4.0"]) == 0
    card = ModelCard.load(run / "model" / "README.md")
    assert card.data.license == "cc-by-nc-4.0"
    assert "The weights: cc-by-nc-4.0. The package drmm-hf: Apache-2.0." in card.text
    assert main([str(run), "--overwrite", "--license", "CC BY 4.0"]) == 2
    assert "license 'CC BY 4.0': give the Hub's name of it, such as apache-2.0, mit" in capsys.readouterr().err
    assert ModelCard.load(run / "model" / "README.md").data.license == "cc-by-nc-4.0"
