"""The report: its numbers, its page, and the command, on small random models and hand-made results."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from drmm_hf.cli import main
from drmm_hf.evaluation import evaluate_coco
from drmm_hf.evaluation.analysis import analyze_intervals, analyze_results, describe_data
from drmm_hf.evaluation.coco_input import prepare_ground_truth
from drmm_hf.evaluation.report import VERDICTS, compared_cells, render_report, verdict
from evaluation_fixtures import MIXED_RESULTS as RESULTS
from evaluation_fixtures import MIXED_TRUTH as TRUTH
from model_fixtures import save_small

HOSTILE = "<script>alert('x')</script>&\"star"


class Checked(HTMLParser):
    """Tags that balance, everything that is referred to, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "img", "br"):  # those never end
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")]
        assert not any(name.startswith("on") for name, _ in attrs)

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
    assert page.count("url(") == page.count("url(#"), "only what is in the page itself"
    assert "nan" not in checked.text.replace("explanation", "")
    return checked


def gathered(truth: dict, results: list[dict], density: str | None = "cauchy") -> dict:
    """The analysis of one model with these results."""
    prepared = prepare_ground_truth(truth)
    part, _ = analyze_results(prepared, results)
    model = {"name": "one", "checkpoint": "runs/one", "results": "results-one.json", **part}
    model["likelihood"] = {"stages": [], "settings": None, "note": "Not measured: no model."}
    model["uncertainty"] = analyze_intervals(prepared, results, density)
    return {"data": describe_data(prepared, "data", "val"), "top_k": 100, "checkpoints": [model], "worst_images": []}


def test_parts_of_the_scores_are_shown_where_they_are_known():
    with_parts = [{**one, "objectness": min(1.0, one["score"] + 0.05)} for one in RESULTS]
    page, heading = render_report(gathered(TRUTH, with_parts)), "Class probability and objectness by themselves"
    without = render_report(gathered(TRUTH, RESULTS))
    assert heading in check_page(page).text
    assert heading not in without
    assert page.count("<svg") == 2 + without.count("<svg")
    single = {**TRUTH, "categories": TRUTH["categories"][1:]}
    of_one = [one for one in with_parts if one["category_id"] == 7]
    assert heading not in render_report(gathered(single, of_one)), "the probability of the only class is no news"


@pytest.mark.parametrize("results", [[], RESULTS])
@pytest.mark.parametrize(
    "truth",
    [
        TRUTH,
        {**TRUTH, "annotations": []},
        {**TRUTH, "annotations": TRUTH["annotations"][-1:]},
        {**TRUTH, "images": TRUTH["images"][:1], "annotations": TRUTH["annotations"][:1]},
    ],
    ids=["objects", "no objects", "crowd only", "one image"],
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


@pytest.mark.parametrize(
    ("values", "options", "best"),
    [
        ([[0.5], [0.75], [None]], {"better": "high"}, [[False], [True], [False]]),
        ([[0.5], [0.75], ["text"]], {"better": "low"}, [[True], [False], [False]]),
        ([[0.5], [0.75]], {}, [[False], [False]]),
        ([[0.5], [None]], {"better": "low"}, [[False], [False]]),  # nothing to compare with
        ([[0.5, 0.5], [0.75, 0.75]], {"better": ["low", ""]}, [[True, False], [False, False]]),
        ([[0.5, 0.75], [0.75, 0.5]], {"better": "low", "within": True}, [[True, False], [False, True]]),
    ],
)
def test_the_best_number_of_a_row_is_marked(values, options, best) -> None:
    """Across checkpoints, or among the columns of each."""
    cells = compared_cells(values, [], columns=[(column,) for column in range(len(values[0]))], **options)
    assert [[marked for _, marked in own] for own in cells] == best


def test_cells_show_numbers_and_dashes() -> None:
    models = [{"a": {"b": value}} for value in ("x", None, float("nan"), -1.25)] + [{"a": None}]
    assert [own[0][0] for own in compared_cells(models, ["a", "b"], form=".1f")] == ["x", "–", "–", "−1.2", "–"]


def scored(*groups: tuple[float, int, int]) -> dict:
    """The analysis of detections of (score, number, right ones), each alone in an image with one object."""
    flags = [(score, index < right) for score, count, right in groups for index in range(count)]
    box = [0, 0, 10, 10]
    truth = {
        "images": [{"id": index} for index in range(len(flags))],
        "categories": [{"id": 7, "name": "cell"}],
        "annotations": [{"image_id": index, "category_id": 7, "bbox": box} for index in range(len(flags))],
    }
    found = [
        {"image_id": index, "category_id": 7, "bbox": box if right else [50, 50, 9, 9], "score": score}
        for index, (score, right) in enumerate(flags)
    ]
    return gathered(truth, found, None)


@pytest.mark.parametrize(
    ("groups", "known"),
    [
        ([(0.75, 400, 300)], "trusted"),
        ([(0.75, 30, 22)], "few"),  # as right, but of too few
        ([(0.05, 900, 45), (0.75, 1, 0)], "few"),  # the many with tiny scores do not count
        ([(0.75, 400, 200)], "not"),
        ([(0.75, 50, 29)], "care"),  # 0.17 too high, but of fifty
        ([(0.35, 200, 100), (0.85, 200, 140)], "not"),  # too low and too high: nothing is left on average
    ],
)
def test_the_page_begins_with_a_verdict(groups: list[tuple[float, int, int]], known: str) -> None:
    analysis = scored(*groups)
    measured = analysis["checkpoints"][0]["calibration"]["measures"]["D-ECE"]
    assert verdict(measured["value"], measured["detections"]) == known
    text = check_page(render_report(analysis)).text.partition("Accuracy")[0]
    assert [key for key, words in VERDICTS.items() if words in text] == [known]
    score, count, right = max(groups, key=lambda group: abs(group[0] * group[1] - group[2]))
    told = f"of the {count} detections with a score from {score - 0.05:.1f} to {score + 0.05:.1f}, {right} were right"
    assert (told in text) == (known != "few")


def test_few_detections_of_many_objects_are_no_lack_of_images() -> None:
    for groups, asked in ([(0.75, 30, 22)], True), ([(0.05, 900, 45), (0.75, 1, 0)], False):
        text = check_page(render_report(scored(*groups))).text.partition("Accuracy")[0]
        assert ("more labeled images" in text) == asked


def test_a_correction_has_to_lower_both_errors() -> None:
    """A fall of the Brier score alone is no reason: that is what a fit to many tiny scores brings."""
    analysis = scored((0.05, 200, 0), (0.75, 400, 200))
    values = analysis["checkpoints"][0]["recalibration"]["values"]
    values |= {"raw": {**values["raw"], "D-ECE": 0.25, "Brier": 0.2}, "isotonic": {**values["isotonic"], "Brier": 0.1}}
    del values["temperature"]
    for after, shown in ((0.05, 2), (0.2, 1), (0.35, 0)):  # advised at the top, if what is left is small; only told
        values["isotonic"]["D-ECE"] = after
        assert check_page(render_report(analysis)).text.count(f"from 0.250 to {after:.3f}") == shown


def test_names_of_others_cannot_break_the_page() -> None:
    """Neither as HTML nor as a formula."""
    hostile = HOSTILE + "$x_$"
    truth = {**TRUTH, "categories": [{"id": 7, "name": hostile}, {"id": 9, "name": "disc"}]}
    analysis = gathered(truth, RESULTS)
    analysis["checkpoints"][0]["name"] = hostile
    checked = check_page(render_report(analysis))
    assert checked.text.count(hostile) >= 10


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[str]:
    """Two folders of random models, one with a mixture head and one without, with a hostile class name."""
    folder = tmp_path_factory.mktemp("runs")
    classes = {"id2label": {0: "disc", 1: HOSTILE}, "label2id": {"disc": 0, HOSTILE: 1}}
    baseline = {"objective": "set_prediction", "head": "set_prediction"}
    return [
        save_small(folder / "mixture" / "model", **classes),
        save_small(folder / "baseline", 1, **classes, **baseline),
    ]


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


def analyze(arguments: list[str]) -> int:
    return main(["analyze", *arguments])


def fails(arguments: list[str], capsys) -> str:
    """Run the command, which must refuse its input; the one line it prints."""
    assert main(["analyze", *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_the_report_compares_checkpoints(checkpoints, data, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--model", *checkpoints, "--data", str(data), "--output", str(out)]
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
    # Once more from the predictions that are there, without a model: the same numbers.
    files = [str(out / f"results-{name}.json") for name in ("mixture", "baseline")]
    words = ["--results", *files, "--names", "mixture", "baseline", "--data", str(data), "--output", str(out / "again")]
    assert analyze(words) == 0
    again = json.loads((out / "again" / "analysis.json").read_text())["checkpoints"]
    assert [one["calibration"] for one in again] == [mixture["calibration"], baseline["calibration"]]


def test_results_from_elsewhere_can_be_analyzed(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Without a model, and without what only a mixture predicts."""
    rows = [{"image_id": 5, "category_id": 4, "bbox": [5, 5, 40, 40], "score": 0.9, "area": 1600, "segmentation": []}]
    (tmp_path / "theirs/yolo").mkdir(parents=True)
    (tmp_path / "theirs/yolo/results.json").write_text(json.dumps(rows))
    (tmp_path / "nothing.json").write_text("[]")
    out = tmp_path / "out"
    arguments = ["--results", str(tmp_path / "theirs/yolo/results.json"), str(tmp_path / "nothing.json"), "--data"]
    assert analyze([*arguments, str(data), "--output-dir", str(out), "--worst", "0"]) == 0
    assert "yolo: AP 0.500, 1 detections\nnothing: AP 0.000, 0 detections" in capsys.readouterr().out
    text = check_page((out / "report.html").read_text(encoding="utf-8")).text
    assert "No image to show." in text
    assert not any(words in text for words in ("Likelihood", "Uncertainty", "objectness"))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"--model": ["none"]}, "none"),
        ({"--model": [], "--results": []}, "--model"),
        ({"--results": ["none.json"]}, "none.json"),
        ({"--names": ["a", "b"]}, "--names"),
        ({"--names": ["../a"]}, "../a"),
        ({"--model": ["x/a", "y/a"], "--names": ["a", "A"]}, "--names"),
        ({"--data": ["nowhere"]}, "nowhere"),
        ({"--output": ["taken"]}, "taken"),
    ],
)
def test_bad_inputs_are_one_line(
    changed: dict[str, list[str]], named: str, checkpoints: list[str], data: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    options = {"--model": checkpoints[:1], "--data": [str(data)], "--output": ["out"], **changed}
    given = {name: values for name, values in options.items() if values}
    assert named in fails([word for name, values in given.items() for word in (name, *values)], capsys)
