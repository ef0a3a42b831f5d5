"""The cards of the presets are what their data say, and no number of the paper is passed off as measured."""

import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image

from drmm_hf import DrmmConfig
from drmm_hf.evaluation.complexity import count_complexity
from drmm_hf.hub.card import preset_card
from drmm_hf.hub.card_cli import main, write_preset_cards
from drmm_hf.hub.card_facts import condense_analysis, reliability
from drmm_hf.hub.card_preset import read_card_data
from drmm_hf.reproduction.paper import PAPER
from drmm_hf.training import parse_config

ROOT = Path(__file__).parents[2]
CARDS = ROOT / "model_cards"
NAMES = sorted(path.stem for path in (CARDS / "data").glob("*.yaml"))
MEASURED = [name for name in NAMES if name.endswith("-tiny")]


def place(name: str, root: Path = ROOT) -> Path:
    """The folder of the card."""
    return root / read_card_data(CARDS / "data" / f"{name}.yaml").card_folder


def section(name: str, heading: str) -> str:
    text = (place(name) / "README.md").read_text()
    return text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def test_there_is_a_card_for_each_model_of_the_paper_its_baselines_and_the_tiny_ones() -> None:
    six = {f"drmm-{d}-{b}" for d in ("sparse-rcnn", "adamixer") for b in ("r50", "r101", "swin-t", "tiny")}
    assert set(NAMES) == six | {f"{d}-{b}" for d in ("sparse-rcnn", "adamixer") for b in ("r50", "r101")}
    in_checkpoints = {name for name in NAMES if read_card_data(CARDS / "data" / f"{name}.yaml").checkpoint}
    assert in_checkpoints == {"drmm-adamixer-tiny"}
    assert {path.name for path in CARDS.iterdir() if path.is_dir()} == {*NAMES, "data"} - in_checkpoints


def test_the_committed_cards_are_those_that_the_command_writes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert write_preset_cards(ROOT, tmp_path) == [place(name, tmp_path) / "README.md" for name in NAMES]
    for name in NAMES:
        assert (place(name) / "README.md").read_text() == (place(name, tmp_path) / "README.md").read_text(), name
    for name in MEASURED:
        old, new = (Image.open(place(name, root) / "images" / "reliability.png") for root in (ROOT, tmp_path))
        assert old.size[0] > 300
        if old.info["Software"] == new.info["Software"]:  # other versions of matplotlib draw a little differently
            assert np.array_equal(np.asarray(old), np.asarray(new))


@pytest.mark.parametrize("name", NAMES)
def test_the_header_is_read_back_as_it_was_written(name: str) -> None:
    card = ModelCard.load(place(name) / "README.md")
    assert (card.data.license, card.data.pipeline_tag) == ("apache-2.0", "object-detection")
    assert card.data.library_name == "transformers"
    again = ModelCardData(**yaml.safe_load(io.StringIO(card.data.to_yaml())))
    assert again.to_dict() == card.data.to_dict()
    assert card.data.model_name == place(name).name


@pytest.mark.parametrize("name", NAMES)
def test_only_what_was_measured_is_in_the_model_index(name: str) -> None:
    results = ModelCard.load(place(name) / "README.md").data.eval_results
    if name not in MEASURED:
        assert results is None
        assert section(name, "Measured results").startswith("None: ")
        assert "**Reported by the paper**" in section(name, "Results that the paper reports")
        return
    assert all(result.dataset_type == "bccd" and result.verified is None for result in results)
    data = yaml.safe_load((CARDS / "data" / f"{name}.yaml").read_text())
    run = json.loads((ROOT / data["measured"]["runs"][0]).read_text())
    shown = {result.metric_name.split()[0]: result.metric_value for result in results if result.dataset_split == "val"}
    assert shown == {column: run[column] for column in ("AP", "AP50", "AP75", "AR100", "ECE", "D-ECE")}
    test = {result.metric_name.split()[0]: result.metric_value for result in results if result.dataset_split == "test"}
    extract = json.loads((CARDS / "data" / f"{name}-test.json").read_text())
    assert test["AP"] == round(extract["accuracy"]["metrics"]["AP"], 4)


@pytest.mark.parametrize("name", MEASURED)
def test_the_extract_is_of_the_run_whose_numbers_are_shown(name: str) -> None:
    data = yaml.safe_load((CARDS / "data" / f"{name}.yaml").read_text())["measured"]
    run = json.loads((ROOT / data["runs"][0]).read_text())
    facts = condense_analysis(CARDS / "data" / data["analyses"]["val"])
    assert round(facts["accuracy"]["metrics"]["AP"], 4) == run["AP"]
    assert round(reliability(facts).ece, 4) == run["ECE"]
    threshold = facts["thresholds"]["per_class"]["WBC"]["score_threshold"]
    assert f"| WBC | 87 | {threshold:.3f} |" in section(name, "Calibration and thresholds")


def test_the_papers_numbers_are_those_of_the_other_tables_kept_here() -> None:
    def paper_ap(name: str) -> list[float]:
        return [row["AP"] for row in read_card_data(CARDS / "data" / f"{name}.yaml").paper if "val" in row["data"]]

    assert paper_ap("drmm-sparse-rcnn-r50") == [100 * PAPER["table2"]["nll_mcm"]["AP"]]
    assert paper_ap("sparse-rcnn-r50") == [100 * PAPER["table2"]["set_prediction"]["AP"]]
    assert paper_ap("drmm-adamixer-r50") == [100 * PAPER["table11"]["adamixer nll_mcm"]["AP"]]


@pytest.mark.parametrize("name", NAMES)
def test_training_commands_are_understood_and_train_the_preset(name: str) -> None:
    commands = re.findall(r"^ {4}.*scripts/train\.py (.+)$", section(name, "Training"), flags=re.MULTILINE)
    assert len(commands) == 1
    config = parse_config(shlex.split(commands[0]))
    assert config.preset == name
    if name in MEASURED:
        data = yaml.safe_load((CARDS / "data" / f"{name}.yaml").read_text())["measured"]
        run = json.loads((ROOT / data["runs"][0]).read_text())
        assert (config.train_images, config.seed) == (run["train_images"], run["seed"])


@pytest.mark.parametrize("name", ["drmm-sparse-rcnn-r50", *MEASURED])
def test_the_snippet_runs(name: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snippet = re.search(r"```python\n(.*?)```", section(name, "Use"), flags=re.DOTALL).group(1)
    folder = tmp_path / re.search(r'model="([^"]+)"', snippet).group(1)
    folder.parent.mkdir(parents=True)
    committed = read_card_data(CARDS / "data" / f"{name}.yaml").checkpoint
    if committed:
        folder.symlink_to(ROOT / committed)
    else:
        checkpoint.rename(folder)
    Image.new("RGB", (96, 64), (120, 30, 30)).save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    exec(snippet, found := {})
    assert found["detector"].model.config.model_type == "drmm"


@pytest.mark.parametrize("name", [*MEASURED, *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES[:-1])])
def test_the_number_of_parameters(name: str) -> None:
    counted = count_complexity(DrmmConfig.from_preset(name), 64, 64).parameters / 1e6
    assert read_card_data(CARDS / "data" / f"{name}.yaml").parameters == pytest.approx(counted, abs=0.005)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset: drmm-adamixer-tiny\nparameters: 1\nAP: 47\n", "x.yaml: unknown field 'AP'; known are"),
        ("preset: drmm-adamixer-tny\nparameters: 1\n", "x.yaml: There is no preset 'drmm-adamixer-tny'"),
        ("- 1\n", "x.yaml: holds no fields"),
        ("preset: [\n", "x.yaml: while parsing"),
        (
            "preset: sparse-rcnn-r50\nparameters: 1\nrecipe: sparse-rcnn-r50-3x\npaper: [{table: 1, mAP: 4}]\n",
            "x.yaml: field paper: unknown column 'mAP'",
        ),
        ("preset: sparse-rcnn-r50\nparameters: 1\n", "x.yaml: give recipe, measured or both"),
        (
            "preset: sparse-rcnn-r50\nparameters: 1\nrecipe: sparse-rcnn-r50-3x\ncheckpoint: checkpoints/x\n",
            "x.yaml: field checkpoint: give measured, too",
        ),
        ("preset: drmm-adamixer-tiny\nparameters: 1\nmeasured: {runs: [], x: 1}\n", "field measured has no 'train'"),
    ],
)
def test_wrong_data_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        preset_card(tmp_path / "x.yaml", ROOT)


def test_the_command_outside_of_the_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(tmp_path)]) == 2
    assert "no data of cards; run this in the repository" in capsys.readouterr().err
