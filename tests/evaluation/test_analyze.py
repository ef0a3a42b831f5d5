"""The analysis: its numbers, its page, and the command, on small random models and hand-made results."""

import importlib.util
import json
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from drmm_hf.evaluation import (
    analyze_cli,
    calibration_report,
    count_duplicates,
    evaluate_coco,
    part_calibration_report,
    ranking_report,
)
from drmm_hf.evaluation.analyze import analyze_intervals, analyze_results, describe_data, operating_thresholds
from drmm_hf.evaluation.analyze import result_names as names_of
from drmm_hf.evaluation.coco_input import prepare_ground_truth
from drmm_hf.evaluation.html_page import Column, Row, cell_text, table
from drmm_hf.evaluation.html_report import render_report
from drmm_hf.evaluation.lrp import lrp_report
from drmm_hf.evaluation.svg_charts import Line, bar_chart, line_chart, nice_ticks, reliability_chart
from drmm_hf.evaluation.worst_images import rank_images
from drmm_hf.image_processing_drmm import DrmmImageProcessor
from model_fixtures import small_model

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "analyze.py"
HOSTILE = "<script>alert('x')</script>&\"star"

TRUTH = {
    "images": [{"id": 1}, {"id": 2}, {"id": 3}],
    "categories": [{"id": 7, "name": "cell"}, {"id": 9, "name": "disc"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 10, 10], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 7, "bbox": [50, 0, 10, 10], "iscrowd": 0},
        {"id": 3, "image_id": 2, "category_id": 7, "bbox": [0, 0, 40, 40], "iscrowd": 0},
        {"id": 4, "image_id": 3, "category_id": 7, "bbox": [0, 0, 80, 80], "iscrowd": 1},
    ],
}


def detection(image_id: int, score: float, bbox: list[float], category_id: int = 7) -> dict:
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score, "scales": [1.0] * 4}


RESULTS = [
    detection(1, 0.9, [0, 0, 10, 10]),
    detection(1, 0.8, [0, 0, 10, 9]),  # a duplicate
    detection(1, 0.7, [50, 0, 10, 5]),  # IoU 0.5
    detection(2, 0.6, [0, 0, 40, 40]),
    detection(2, 0.6, [60, 60, 5, 5], 9),  # of a class without objects
    detection(3, 0.9, [10, 10, 30, 30]),  # in the crowd region
]


class Checked(HTMLParser):
    """Tags that balance, everything that is referred to, and the text."""

    VOID = ("meta", "img", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "data", "action")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


def check_page(page: str) -> Checked:
    """The page is well formed, and needs no file, no script and no network."""
    checked = Checked(page)
    assert not {"script", "link", "iframe", "object"} & set(checked.tags)
    assert all(source.startswith(("data:image/", "#")) for source in checked.sources)
    assert "@import" not in page
    assert "url(" not in page
    assert "nan" not in checked.text.replace("explanation", "")
    return checked


def gathered(truth: dict, results: list[dict], density: str | None = "cauchy") -> dict:
    """The analysis of one model with these results."""
    prepared = prepare_ground_truth(truth)
    part = analyze_results(prepared, results)
    model = {"name": "one", "checkpoint": "runs/one", "results": "results-one.json", **part}
    model |= {"likelihood": analyze_cli.NO_LIKELIHOOD, "uncertainty": analyze_intervals(prepared, results, density)}
    return {"data": describe_data(prepared, "data", "val"), "top_k": 100, "checkpoints": [model], "worst_images": []}


def test_the_numbers_are_those_of_the_functions():
    model = gathered(TRUTH, RESULTS)["checkpoints"][0]
    metrics = evaluate_coco(TRUTH, RESULTS, per_class=True)
    assert model["accuracy"]["metrics"]["AP"] == metrics["AP"]
    assert model["accuracy"]["metrics"]["APl"] is None, "no large objects"
    assert model["accuracy"]["per_class"]["cell"]["AP"] == metrics["AP/cell"]
    assert model["accuracy"]["per_class"]["disc"] == {"AP": None, "AP50": None, "AP75": None, "AR100": None}
    measures = model["calibration"]["measures"]
    assert measures["ECE"]["value"] == pytest.approx(calibration_report(TRUTH, RESULTS).ece)
    assert measures["D-ECE"]["value"] == pytest.approx(calibration_report(TRUTH, RESULTS, score_threshold=0.3).ece)
    assert all(measure["settings"] for measure in measures.values())
    lrp = lrp_report(TRUTH, RESULTS)
    best = model["thresholds"]["per_class"]["cell"]
    assert model["thresholds"]["moLRP"] == pytest.approx(lrp.lrp)
    assert best["score_threshold"] == lrp.thresholds[7]
    assert best["precision"] == best["true_positives"] / (best["true_positives"] + best["false_positives"])
    assert model["thresholds"]["per_class"]["disc"]["score_threshold"] is None
    at = {entry["score_threshold"]: entry["per_image"] for entry in model["duplicates"]["counts"]}
    assert at[0.1] == count_duplicates(TRUTH, RESULTS).duplicates_per_image == 1 / 3
    assert model["duplicates"]["nms"]["none"]["AP"] == metrics["AP"]
    assert model["duplicates"]["nms"]["0.5"]["AP"] > metrics["AP"]
    order = ranking_report(TRUTH, RESULTS)
    assert model["ranking"]["ap"] == metrics["AP"]
    assert metrics["AP"] < model["ranking"]["true_first"] == order.true_first
    assert model["ranking"]["best_first"] == order.best_first
    assert model["uncertainty"]["detections"] == 3


def test_parts_of_the_scores_are_shown_where_they_are_known():
    with_parts = [{**one, "objectness": min(1.0, one["score"] + 0.05)} for one in RESULTS]
    analysis = gathered(TRUTH, with_parts)
    parts = analysis["checkpoints"][0]["calibration"]["parts"]
    expected = part_calibration_report(TRUTH, with_parts)
    assert {name: part["ece"] for name, part in parts.items()} == {name: part.ece for name, part in expected.items()}
    page, heading = render_report(analysis), "Class probability and objectness by themselves"
    assert heading in check_page(page).text
    assert page.count("<svg") == 2 + render_report(gathered(TRUTH, RESULTS)).count("<svg")
    assert heading not in render_report(gathered(TRUTH, RESULTS))


def test_the_error_of_an_image_counts_what_is_missed_false_and_loose():
    model = gathered(TRUTH, RESULTS)["checkpoints"][0]
    thresholds = operating_thresholds(model, prepare_ground_truth(TRUTH))
    assert thresholds[7] == 0.6
    # Image 1: two right, one of them with an IoU of just 0.5 (error 1), and the duplicate.
    assert model["images"]["1"] == {"error": 2.0, "missed": 0, "false": 1, "right": 2}
    # Image 2: the class without objects is cut at 0.5, so that its detection counts as false.
    assert model["images"]["2"] == {"error": 1.0, "missed": 0, "false": 1, "right": 1}
    assert model["images"]["3"]["error"] == 0, "neither the crowd region nor what lies on it"
    other = {"2": {"error": 5.0}, "3": {"error": 0.0}}
    assert rank_images([model["images"]], 5) == ["1", "2"]
    assert rank_images([model["images"], other], 1) == ["2"]


def test_a_class_whose_best_is_to_keep_nothing_keeps_nothing():
    results = [detection(1, 0.9, [80, 80, 9, 9])]
    model = gathered(TRUTH, results)["checkpoints"][0]
    assert operating_thresholds(model, prepare_ground_truth(TRUTH))[7] > 1
    assert "keep none" in render_report(gathered(TRUTH, results))


@pytest.mark.parametrize("results", [[], RESULTS])
@pytest.mark.parametrize(
    "truth",
    [
        TRUTH,
        {**TRUTH, "annotations": []},
        {**TRUTH, "annotations": TRUTH["annotations"][-1:]},
        {**TRUTH, "images": TRUTH["images"][:1], "annotations": TRUTH["annotations"][:1]},
        {"images": [], "annotations": [], "categories": []},
    ],
    ids=["objects", "no objects", "crowd only", "one image", "nothing"],
)
def test_missing_objects_or_detections_still_give_a_page(truth, results):
    known = {image["id"] for image in truth["images"]}
    analysis = gathered(truth, [result for result in results if result["image_id"] in known])
    text = check_page(render_report(analysis)).text
    assert json.loads(json.dumps(analysis, allow_nan=False))["checkpoints"][0]["name"] == "one"
    if not results or not truth["annotations"]:
        assert "–" in text
    if len(known) < 2 or not results:
        assert "Not measured: " in text


def test_intervals_need_scales_and_a_density():
    truth = prepare_ground_truth(TRUTH)
    without = [{name: value for name, value in result.items() if name != "scales"} for result in RESULTS]
    assert "no scales" in analyze_intervals(truth, without, "cauchy")["note"]
    assert "no known density" in analyze_intervals(truth, RESULTS, None)["note"]
    part = analyze_intervals(truth, RESULTS, "cauchy")
    assert part["note"] is None
    assert part["coverage"][0] == 11 / 12, "only the bottom edge of the loose box is off by more than 1"


def test_names_are_short_unique_and_fit_for_files():
    assert names_of(["runs/a/model"]) == ["a"]
    assert names_of(["model"]) == ["model"]
    assert names_of(["runs/a", "/old/a/", "runs/b"]) == ["runs-a", "old-a", "b"]
    assert names_of(["runs/a", "runs/a"]) == ["runs-a", "runs-a-2"]
    assert names_of(["x/A", "y/a"]) == ["A", "a-2"]
    assert names_of(["../we ird:<name>"]) == ["we-ird--name"]
    assert names_of(["/"]) == ["checkpoint"]


def test_the_best_number_of_a_row_is_emphasised():
    columns = [Column(title, compare="all") for title in ("a", "b", "c")]
    html = table(columns, [Row("r<", [(0.5, ".2f"), (0.75, ".2f"), (None, ".2f")], "n&", "high")], "x")
    assert '<td>0.50</td><td class="best">0.75</td><td>–</td>' in html
    assert "r&lt;<small>n&amp;</small>" in html
    html = table(columns, [Row("r", [(0.5, ".2f"), (0.75, ".2f"), "text"], better="low")])
    assert '<td class="best">0.50</td>' in html
    assert 'class="best"' not in table(columns, [Row("r", [(0.5, ".2f"), None, None], better="low")])
    grouped = [Column("n"), Column("u", "g", series=0), Column("v", "g", series=0)]
    assert 'class="group" colspan="2"' in table(grouped, [Row("r", ["1", "2", "3"])])


def test_cells_show_numbers_and_dashes():
    assert [cell_text(cell) for cell in [None, "x", (None, ".1f"), (float("nan"), ".1f"), (-1.25, ".1f")]] == [
        "–",
        "x",
        "–",
        "–",
        "−1.2",
    ]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 0.0), (-0.013, 0.004), (11.6, 12.4), (0, 12345), (5, 5)])
def test_ticks_enclose_the_values(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= high - 1e-9
    assert 2 <= len(ticks) <= 8


def test_charts_are_xml_and_survive_missing_numbers():
    nan = float("nan")
    empty = calibration_report(TRUTH, []).to_dict()
    ticks = {0: "a<", 1: "b"}
    charts = [
        reliability_chart(calibration_report(TRUTH, RESULTS).to_dict(), HOSTILE, 0),
        reliability_chart(empty, "empty", 8),
        bar_chart({HOSTILE: [0.5, None], "": [1.0, 0.0]}, title=HOSTILE),
        line_chart([Line([(0, 1.0), (1, nan)], 0), Line([], 1, True)], ticks, title="t", x_label="<", y_label="&"),
        line_chart([], {0: "a"}, title="t", x_label="x", y_label="y", diagonal=True),
    ]
    for chart in charts:
        assert ElementTree.fromstring(chart).tag == "svg"
        assert "nan" not in chart


def load_main():
    spec = importlib.util.spec_from_file_location("script_analyze", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


analyze = load_main()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[str]:
    """Two folders of random models, one with a mixture head and one without, with a hostile class name."""
    folder = tmp_path_factory.mktemp("runs")
    names = {0: "disc", 1: HOSTILE}
    options = {"id2label": names, "label2id": {name: label for label, name in names.items()}}
    small_model(0, **options).save_pretrained(folder / "mixture" / "model")
    small_model(1, **options, objective="set_prediction", head="set_prediction").save_pretrained(folder / "baseline")
    for name in ("mixture/model", "baseline"):
        DrmmImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder / name)
    return [str(folder / "mixture" / "model"), str(folder / "baseline")]


@pytest.fixture
def data(tmp_path) -> Path:
    """COCO-format folder with three images, one of them with a hostile file name."""
    (tmp_path / "data" / "annotations").mkdir(parents=True)
    (tmp_path / "data" / "images").mkdir()
    files = ["a.png", "<b>&'.png", "c.png"]
    for name in files:
        Image.new("RGB", (80, 60), (120, 90, 60)).save(tmp_path / "data" / "images" / name)
    content = {
        "images": [{"id": 5 - index, "file_name": name, "width": 80, "height": 60} for index, name in enumerate(files)],
        "categories": [{"id": 4, "name": HOSTILE}, {"id": 9, "name": "disc"}],
        "annotations": [
            {"id": image, "image_id": image, "category_id": category, "bbox": [5, 5, 40, 40]}
            for image, category in ((5, 4), (4, 9))
        ],
    }
    (tmp_path / "data" / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return tmp_path / "data"


def fails(arguments: list[str], capsys) -> str:
    """Run the command, which must refuse its input; the one line it prints."""
    assert analyze(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_the_report_compares_checkpoints(checkpoints, data, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    arguments = ["--checkpoint", *checkpoints, "--data", str(data), "--output_dir", str(out)]
    assert analyze([*arguments, "--worst", "2"]) == 0
    printed = capsys.readouterr().out
    assert "mixture: AP 0." in printed
    assert f"report: {out / 'report.html'}" in printed
    page = (out / "report.html").read_text(encoding="utf-8")
    checked = check_page(page)
    assert HOSTILE in checked.text
    assert "<b>&'.png" in checked.text
    images = [source for source in checked.sources if source.startswith("data:image/")]
    assert len(images) == 2 * 3, "two images, each with ground truth and two predictions"
    assert checked.tags.count("svg") >= 8
    numbers = json.loads((out / "analysis.json").read_text())
    mixture, baseline = numbers["checkpoints"]
    assert [mixture["name"], baseline["name"]] == ["mixture", "baseline"]
    assert len(mixture["likelihood"]["stages"]) == 2
    assert mixture["uncertainty"]["settings"]
    assert baseline["likelihood"]["stages"] == []
    assert baseline["uncertainty"]["note"]
    stored = json.loads((out / mixture["results"]).read_text())
    assert mixture["detections"] == len(stored)
    assert mixture["accuracy"]["metrics"]["AP"] == pytest.approx(
        evaluate_coco(data / "annotations" / "instances_val.json", stored)["AP"]
    )

    # Once more from the predictions that are there: the same page, and no model.
    monkeypatch.setattr(analyze_cli, "load_detector", None)
    assert analyze([*arguments, "--worst", "2", "--reuse"]) == 0
    assert (out / "report.html").read_text(encoding="utf-8") == page
    capsys.readouterr()
    described = out / "results-mixture.model.json"
    message = fails([*arguments, "--reuse", "--top-k", "7"], capsys)
    assert f"{described}: field top_k is 100, now 7; leave out --reuse" in message
    described.write_text("{}")
    assert f"{described}: field made_from is missing" in fails([*arguments, "--reuse"], capsys)
    described.unlink()
    results = out / "results-mixture.json"
    results.write_text(json.dumps([detection(99, 0.5, [0, 0, 5, 5], 4)]))
    assert f"{results}: results[0].image_id: 99 is no image of" in fails([*arguments, "--reuse"], capsys)
    results.write_text("[")
    assert f"{results}: not valid JSON" in fails([*arguments, "--reuse"], capsys)


def test_results_from_elsewhere_can_be_analyzed(checkpoints, data, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "results-nothing.json").write_text("[]")
    monkeypatch.setattr(analyze_cli, "load_detector", None)
    arguments = ["--checkpoint", checkpoints[0], "--names", "nothing", "--data", str(data), "--output-dir", str(out)]
    assert analyze([*arguments, "--reuse", "--worst", "0"]) == 0
    assert "nothing: AP 0.000, 0 detections" in capsys.readouterr().out
    text = check_page((out / "report.html").read_text(encoding="utf-8")).text
    assert "No image to show." in text
    assert "no known density" in text


def test_bad_inputs_are_one_line(checkpoints, data, tmp_path, capsys):
    out = str(tmp_path / "out")
    common = ["--data", str(data), "--output_dir", out]
    assert "none: no such model folder" in fails(["--checkpoint", str(tmp_path / "none"), *common], capsys)
    one = ["--checkpoint", checkpoints[0]]
    assert "--names: 2 names for 1 checkpoints" in fails([*one, *common, "--names", "a", "b"], capsys)
    assert "--names: '../a' becomes part of a file name" in fails([*one, *common, "--names", "../a"], capsys)
    twice = ["--checkpoint", *checkpoints, *common, "--names", "a", "A"]
    assert "two names are the same" in fails(twice, capsys)
    assert "nowhere" in fails([*one, "--data", str(tmp_path / "nowhere"), "--output_dir", out], capsys)
    taken = data / "annotations" / "instances_val.json"
    message = fails([*one, "--data", str(data), "--output_dir", str(taken)], capsys)
    assert f"--output_dir {taken}: a file is in the way" in message
