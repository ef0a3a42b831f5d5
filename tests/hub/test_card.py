"""Cards: of presets what their data say, of a trained run what its own files say, and nothing of the machine."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from transformers import RTDetrImageProcessor

from detector_fixtures import small_detector
from drmm_hf import DrmmDetrForObjectDetection
from drmm_hf.cli import main
from drmm_hf.hub import plan_upload, write_checkpoint_card
from drmm_hf.training import parse_config

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "checkpoints" / "drmm-adamixer-tiny-bccd"
PRESETS = sorted((ROOT / "model_cards").iterdir())
METRICS = {"AP": 0.6122, "AP50": 0.8943, "AP75": 0.7082, "AR100": 0.7202, "ECE": 0.0165, "D-ECE": 0.0752, "seed": 3}


def section(folder: Path, heading: str) -> str:
    text = (folder / "README.md").read_text()
    return text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def indexed(card: ModelCard, split: str = "val") -> dict[str, float]:
    results = [result for result in card.data.eval_results if result.dataset_split == split]
    return {result.metric_name.split()[0]: result.metric_value for result in results}


@pytest.mark.parametrize("folder", [*PRESETS, CHECKPOINT], ids=lambda folder: folder.name)
def test_the_training_commands_on_a_card_are_understood(folder: Path) -> None:
    assert ModelCard.load(folder / "README.md").data.model_name == folder.name
    text = section(folder, "Training").replace("\\\n", " ")
    commands = re.findall(r"^ {4}.*train(?:\.py)? (.+)$", text, flags=re.MULTILINE)
    first, *later = (parse_config(shlex.split(command)) for command in commands)
    assert first.preset == folder.name.removesuffix("-bccd")
    assert [Path(config.model).parent for config in later] == [Path(first.output)] * len(later)


@pytest.mark.parametrize("folder", [ROOT / "model_cards" / "drmm-sparse-rcnn-r50", CHECKPOINT])
def test_the_snippet_runs(folder: Path, checkpoint, tmp_path, monkeypatch) -> None:
    snippet = re.search(r"```python\n(.*?)```", section(folder, "Use"), flags=re.DOTALL).group(1)
    place = tmp_path / re.search(r'model="([^"]+)"', snippet).group(1)
    place.parent.mkdir(parents=True)
    place.symlink_to(CHECKPOINT if folder == CHECKPOINT else checkpoint)
    Image.new("RGB", (96, 64), (120, 30, 30)).save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    exec(snippet, found := {})
    assert found["detector"].model.config.model_type == "drmm"


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path) -> Path:
    """The output folder of a training."""
    output = tmp_path / "secret-home" / "stars"
    output.mkdir(parents=True)
    shutil.move(checkpoint, output / "model")
    (output / "model" / "README.md").unlink()
    recipe = {
        "data": str(tmp_path / "secret-home" / "Discs_and|stars"),
        "output": str(output),
        "preset": "drmm-adamixer-tiny",
        "epochs": 4.0,
        "batch_size": 3,
        "vertical_flip": 0.5,
        "config": {"objective": "nll", "mcm_weight": 1.0},
        "annotations": str(tmp_path / "secret-home" / "train.json"),
        "images": str(tmp_path / "secret-home" / "pictures"),
        "eval_annotations": str(tmp_path / "secret-home" / "val.json"),
        "decay_norms": False,
        "seed": 3,
    }
    (output / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (output / "metrics.json").write_text(json.dumps(METRICS))
    return output


def written(folder: Path, **options) -> ModelCard:
    return ModelCard.load(write_checkpoint_card(folder, overwrite=True, **options))


def test_the_card_of_a_run_can_be_published(run, capsys) -> None:
    pytest.importorskip("matplotlib")
    options = ["--analysis", str(CHECKPOINT / "analysis.json"), "--repo-id", "me/stars", "--license", "cc-by-nc-4.0"]
    assert main(["cards", str(run), *options]) == 0
    card = ModelCard.load(run / "model" / "README.md")
    assert "secret-home" not in card.content
    assert "for Discs\\_and\\|stars" in card.text
    assert indexed(card) == {name: value for name, value in METRICS.items() if name != "seed"}
    known = json.loads((CHECKPOINT / "analysis.json").read_text())["checkpoints"][0]["thresholds"]["per_class"]["WBC"]
    assert f"| WBC | 87 | {known['score_threshold']:.3f} |" in card.text
    assert "disc, ring, star" in card.text
    assert 'model="me/stars", revision="COMMIT"' in card.text
    assert card.data.license == "cc-by-nc-4.0"
    assert "The weights: cc-by-nc-4.0." in card.text
    assert {"README.md", "images/reliability.png"} <= set(plan_upload(run / "model").files)
    for options in ([], ["--overwrite", "--license", "CC BY 4.0"]):
        assert main(["cards", str(run), *options]) == 2
    assert "README.md" in capsys.readouterr().err, "a card that is there is kept"


def test_the_recipe_on_the_card_repeats_the_training(run, tmp_path) -> None:
    text = re.search(r"```yaml\n(.*?)```", written(run).text, flags=re.DOTALL).group(1)
    (tmp_path / "shown.yaml").write_text(text)
    shown = parse_config(["--recipe", str(tmp_path / "shown.yaml"), "--output", "out"])
    data = ["--data", "Discs_and|stars", "--output", "out", "--annotations", "train.json"]
    data += ["--images", "pictures", "--eval-annotations", "val.json"]
    assert shown == parse_config(["--recipe", str(run / "recipe.yaml"), *data])


def test_a_checkpoint_alone_says_what_is_not_known(run) -> None:
    for name in ("recipe.yaml", "metrics.json"):
        (run / name).unlink()
    card = written(run / "model")
    assert card.data.eval_results is None
    assert "recipe is not known" in card.text
    assert "nothing was measured" in card.text


def test_the_card_of_a_detector_of_transformers(tmp_path) -> None:
    small_detector("rt_detr_v2").save_pretrained(tmp_path / "stock")
    DrmmDetrForObjectDetection.from_detector(str(tmp_path / "stock")).save_pretrained(tmp_path / "mine")
    RTDetrImageProcessor().save_pretrained(tmp_path / "mine")
    card = written(tmp_path / "mine")
    assert "# D-RMM on RT-DETR v2: `mine`" in card.text
    assert "8 proposals, 2 refinement stages" in card.text
    assert "rt-detr-v2" in card.data.tags
    plan = plan_upload(tmp_path / "mine")
    assert sorted(plan.files) == ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    with pytest.raises(ValueError, match="drmm_detr"):  # its code is not flat
        plan_upload(tmp_path / "mine", with_code=True)


def test_the_best_weights_have_their_own_numbers(run) -> None:
    shutil.copytree(run / "model", run / "best")
    assert written(run / "best").data.eval_results is None
    (run / "best" / "metrics.json").write_text(json.dumps({**METRICS, "AP": 0.7}))
    assert indexed(written(run / "best"))["AP"] == 0.7
    assert indexed(written(run / "model"))["AP"] == METRICS["AP"]


def test_the_card_of_a_deployed_detector(run, tmp_path) -> None:
    shutil.rmtree(run / "model")
    detector = small_detector("rt_detr_v2")
    detector.save_pretrained(run / "deployed")
    DrmmDetrForObjectDetection.from_detector(str(run / "deployed")).save_pretrained(run / "model")
    RTDetrImageProcessor().save_pretrained(run / "deployed")
    card = written(run / "deployed")
    assert "# D-RMM on RT-DETR v2" in card.text
    assert "drmm_hf" not in section(run / "deployed", "Use")
    assert indexed(card)["AP"] == METRICS["AP"]
    assert "README.md" in plan_upload(run / "deployed").files


def test_an_analysis_of_another_model_is_refused(run) -> None:
    (run / "metrics.json").write_text(json.dumps({**METRICS, "AP": 0.3}))
    with pytest.raises(ValueError, match=r"analysis\.json.*metrics\.json"):
        written(run, analysis=CHECKPOINT / "analysis.json")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model/config.json", '{"model_type": "detr"}'),
        ("model/config.json", "{"),
        ("metrics.json", "{"),
        ("recipe.yaml", "epochs: ["),
        ("recipe.yaml", "data: x\nepoch: 3\n"),
        ("analysis.json", '{"AP": 0.6}'),
        ("analysis.json", "[]"),
    ],
)
def test_wrong_files_are_one_line(run, name, text, capsys) -> None:
    (run / name).write_text(text)
    analysis = ["--analysis", str(run / name)] if "analysis" in name else []
    assert main(["cards", str(run), *analysis]) == 2
    error = capsys.readouterr().err
    assert name in error
    assert error.count("\n") == 1
