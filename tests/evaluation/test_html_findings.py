"""What the report says of scores, and that the numbers of a chart stay clear of its label."""

import copy
import json
import re
from pathlib import Path

import pytest

from drmm_hf.evaluation.html_scores import calibration_section
from drmm_hf.evaluation.svg_charts import Line, line_chart

ANALYSIS = Path(__file__).parents[2] / "checkpoints" / "drmm-adamixer-tiny-bccd" / "analysis.json"


@pytest.fixture
def model() -> dict:
    return json.loads(ANALYSIS.read_text())["checkpoints"][0]


def finding(model: dict) -> str:
    return re.search(r"scores of 0\.3 and more [^<]*", calibration_section([model])).group()


def test_errors_that_cancel_are_not_called_a_match(model: dict) -> None:
    """Too high in the lower bins and too low in the upper ones: the mean gap is small, D-ECE is not."""
    bins = copy.deepcopy(model["calibration"]["reliability"])
    scores = [0.05 + 0.1 * index for index in range(10)]
    bins.update(bin_counts=[100] * 10, bin_confidences=scores, bin_accuracies=list(scores))
    model["calibration"]["reliability"] = bins
    assert re.fullmatch(r"scores of 0\.3 and more match precision on average \(gap .0\.000\)\.", finding(model))
    for index, error in ((3, 0.14), (4, 0.14), (8, -0.14), (9, -0.14)):
        bins["bin_accuracies"][index] = scores[index] - error
    assert finding(model).endswith("0.000), but not bin by bin: they are 0.080 away from it.")


@pytest.mark.parametrize("values", [(0.0, 1.5), (-0.0143, 0.0006), (-12000.0, 8000.0)])
def test_the_label_of_the_axis_is_left_of_its_numbers(values: tuple[float, float]) -> None:
    chart = line_chart(
        [Line(list(enumerate(values)), 0)], {0: "0", 1: "1"}, title="title", x_label="x", y_label="change of AP"
    )
    label = float(re.search(r'<text x="([\d.]+)"[^>]*>change of AP<', chart).group(1))
    ends = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="end">([^<]+)<', chart)
    assert len(ends) >= 3
    for right, number in ends:
        assert float(right) - 6.5 * len(number) > label + 5, number
