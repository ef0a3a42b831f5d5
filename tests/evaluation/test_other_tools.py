"""COCO results as other frameworks write them: every measure takes them, and says so where their ids do not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drmm_hf.cli import main
from drmm_hf.data import generate_scenes
from drmm_hf.evaluation import evaluate_detections, fit_scale_factor, interval_report, split_half_report
from drmm_hf.evaluation.analysis import analyze_intervals, analyze_results
from drmm_hf.evaluation.coco_input import prepare_ground_truth, prepare_results
from evaluation_fixtures import scene

Rows = list[dict[str, Any]]
STEMS = {image_id: f"{100 + image_id:06}" if image_id % 2 else f"blood_{image_id}" for image_id in range(1, 13)}


@pytest.fixture(scope="module")
def truth() -> dict[str, Any]:
    content, _ = scene(crowd=True)
    for image in content["images"]:
        image["file_name"] = f"val/{STEMS[image['id']]}.jpg"
    content["categories"].append({"id": 12, "name": "never there"})
    return content


@pytest.fixture(scope="module")
def results() -> Rows:
    return scene(crowd=True)[1]


def stem_id(image_id: int) -> Any:
    """What ultralytics makes of a file's name."""
    stem = STEMS[image_id]
    return int(stem) if stem.isnumeric() else stem


def mmdet(results: Rows) -> Rows:
    """`results.bbox.json` of CocoMetric with `outfile_prefix`."""
    return [{name: row[name] for name in ("image_id", "bbox", "score", "category_id")} for row in results]


def ultralytics(results: Rows) -> Rows:
    """`predictions.json` of `val(save_json=True)` for a data set that is not COCO: classes from 1."""
    return [
        {"image_id": stem_id(row["image_id"]), "category_id": row["category_id"] - 6, "bbox": row["bbox"],
         "score": row["score"]}
        for row in results
    ]  # fmt: skip


def ultralytics_from_zero(results: Rows) -> Rows:
    """The same of releases that number classes from 0."""
    return [{**row, "category_id": row["category_id"] - 1} for row in ultralytics(results)]


def ultralytics_with_names(results: Rows) -> Rows:
    """The same of releases with the file's name beside the id, where digits of names may be ids of other images."""
    ids = {image_id: 13 - image_id for image_id in range(1, 13)}
    return [
        {**row, "image_id": ids[one["image_id"]], "file_name": f"{STEMS[one['image_id']]}.jpg"}
        for row, one in zip(ultralytics(results), results, strict=True)
    ]


def detectron2(results: Rows) -> Rows:
    """`coco_instances_results.json` of a model with masks."""
    return [{**row, "segmentation": {"size": [30, 40], "counts": "PP1"}} for row in results]


def detectron2_instances(results: Rows) -> Rows:
    """`instances_predictions`, as JSON: by image, classes from 0."""
    rows = [{**row, "category_id": row["category_id"] - 7} for row in results]
    images = range(1, 13)
    return [{"image_id": one, "instances": [row for row in rows if row["image_id"] == one]} for one in images]


def ids_as_text(results: Rows) -> Rows:
    """What passes through a table or a data frame."""
    return [{**row, "image_id": str(row["image_id"]), "category_id": float(row["category_id"])} for row in results]


def file_names(results: Rows) -> Rows:
    """What scripts write that know no ids."""
    return [{**row, "image_id": f"val/{STEMS[row['image_id']]}.jpg"} for row in results]


def sahi(results: Rows) -> Rows:
    """`result.json` of `predict(dataset_json_path=...)`: the model's own class numbers, here in another order."""
    names = {7: "cell", 8: "star"}
    return [
        {**row, "category_id": 8 - row["category_id"], "category_name": names[row["category_id"]]} for row in results
    ]


TOOLS = (
    ids_as_text, file_names, mmdet, ultralytics, ultralytics_from_zero, ultralytics_with_names, detectron2,
    detectron2_instances, sahi,
)  # fmt: skip


@pytest.mark.parametrize("tool", TOOLS)
def test_the_numbers_are_those_of_the_same_detections_in_the_ids_of_the_file(
    tool: Callable[[Rows], Rows], truth: dict[str, Any], results: Rows, tmp_path: Path
) -> None:
    (tmp_path / "results.json").write_text(json.dumps(tool(results)))
    expected = evaluate_detections(truth, results, per_class=True, details=True)
    report = evaluate_detections(truth, tmp_path / "results.json", per_class=True, details=True)
    assert (report.to_dict(), report.parts) == (expected.to_dict(), {})
    given = tool(results)
    assert split_half_report(truth, given).to_dict() == split_half_report(truth, results).to_dict()
    assert given == tool(results), "the caller's results are unchanged"
    prepared = prepare_ground_truth(truth)
    analysis, _ = analyze_results(prepared, given)
    assert analysis == analyze_results(prepared, results)[0]
    assert analysis["calibration"]["parts"] == {}
    assert analyze_intervals(prepared, given, "cauchy")["coverage"] == []
    for measure in (interval_report, fit_scale_factor):
        with pytest.raises(ValueError, match="scales"):
            measure(truth, given)


def test_a_reading_that_is_a_guess_is_told(truth: dict[str, Any], results: Rows, caplog: Any) -> None:
    prepared = prepare_ground_truth(truth)
    prepare_results(mmdet(results), prepared)
    assert not caplog.records
    prepare_results(ultralytics(results), prepared)
    assert len(caplog.records) == 2, "images and categories"
    unknown = prepare_results([{**row, "category_name": "Cell"} for row in results], prepared)
    analyze_results(prepared, unknown)
    assert len(caplog.records) == 3, "names that the file does not have, told once"


def test_names_with_folders_are_surer_than_numbers(truth: dict[str, Any], results: Rows, caplog: Any) -> None:
    """Those of `drmm predict`, whose images are numbered as they come and may be more than the data have."""
    prepared = prepare_ground_truth(truth)
    numbered = [
        {**row, "image_id": 13 - row["image_id"], "file_name": f"/home/me/val/{STEMS[row['image_id']]}.jpg"}
        for row in results
    ]
    assert prepare_results(numbered, prepared).rows == [
        {**row, "file_name": f"/home/me/val/{STEMS[row['image_id']]}.jpg"} for row in results
    ]
    assert not caplog.records
    more = [*numbered, {**numbered[0], "file_name": "/home/me/val/other.jpg"}]
    assert prepare_results(more, prepared).rows == prepare_results(numbered, prepared).rows
    assert len(caplog.records) == 1


def test_a_file_of_other_images_is_told(truth: dict[str, Any], results: Rows, tmp_path: Path, caplog: Any) -> None:
    """Images without a detection count as missed, which is wrong where nobody looked for one."""
    file, prepared = tmp_path / "results.json", prepare_ground_truth(truth)
    file.write_text(json.dumps(results))
    prepare_results(file, prepared)
    assert not caplog.records
    few = [one for one in results if one["image_id"] <= 4]
    file.write_text(json.dumps(few))
    prepare_results(few, prepared)  # half of the images is not a file
    assert not caplog.records
    prepare_results(file, prepared)
    assert "8 of the 12 images" in caplog.text


@pytest.mark.parametrize("root", [0, 6])
def test_detections_of_a_category_that_is_no_class_are_left_out(
    root: int, truth: dict[str, Any], results: Rows, caplog: Any
) -> None:
    """Their ids are those of the file: they make no other tool's numbers of the others."""
    classes = [{**one, "supercategory": "all"} for one in truth["categories"]]
    rooted = prepare_ground_truth({**truth, "categories": [*classes, {"id": root, "name": "all"}]})
    found = prepare_results([*results, {**results[0], "category_id": root}], rooted)
    assert found.rows == results
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ([{"category_id": 80}], ["category_id", "80", "7 cell", "8 star", "12 never there"]),
        ([{"category_id": 7}, {"category_id": 1}], ["category_id", "is 1", "7 cell", "1, 7"]),
        ([{"image_id": "blood_99"}], ["image_id", "blood_99", "1, 2, 3"]),
        ([{"image_id": stem_id(1)}, {"image_id": 5}], ["image_id", "is 101"]),
    ],
)
def test_ids_that_do_not_fit_are_one_line(
    changes: Rows, named: list[str], truth: dict[str, Any], results: Rows, tmp_path: Path, capsys: Any
) -> None:
    for name, content in (("truth", truth), ("results", [{**results[0], **change} for change in changes])):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    arguments = ["--results", str(tmp_path / "results.json"), "--annotations", str(tmp_path / "truth.json")]
    assert main(["evaluate", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(part in error for part in ("results.json", "truth.json", *named))


def test_the_page_of_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    generate_scenes(tmp_path / "data", num_train=1, num_val=3, image_size=(64, 96))
    content = json.loads((tmp_path / "data/annotations/instances_val.json").read_text())
    stems = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
    places = {one: place for place, one in enumerate(sorted(one["id"] for one in content["categories"]))}
    rows = [
        {
            "image_id": stems[one["image_id"]],
            "category_id": places[one["category_id"]],
            "bbox": one["bbox"],
            "score": 0.9,
        }
        for one in content["annotations"]
    ]
    (tmp_path / "predictions.json").write_text(json.dumps([*rows, {**rows[0], "bbox": [50, 50, 9, 9]}]))
    arguments = ["--results", str(tmp_path / "predictions.json"), "--data", str(tmp_path / "data")]
    assert main(["analyze", *arguments, "--output_dir", str(tmp_path / "page")]) == 0
    (model,) = json.loads((tmp_path / "page/analysis.json").read_text())["checkpoints"]
    assert model["accuracy"]["metrics"]["AR100"] == pytest.approx(1.0)
    assert "<svg" in (tmp_path / "page/report.html").read_text(encoding="utf-8")
