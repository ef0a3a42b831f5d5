"""`drmm presets`: sizes and arithmetic of the named configurations, against the paper's Table 11."""

import pytest

from drmm_hf import DrmmConfig
from drmm_hf.cli import main
from drmm_hf.evaluation.complexity import count_complexity
from drmm_hf.presets import PRESETS


@pytest.mark.parametrize(
    ("preset", "millions", "paper_gflops", "batched_products"),
    # The paper leaves out the batched products of the dynamic convolution and the adaptive mixing, as mmdet does.
    [("drmm-sparse-rcnn-r50", 106.1, 165.5, 2.89), ("drmm-adamixer-r50", 134.6, 124.6, 2.83)],
)
def test_parameters_and_arithmetic_are_the_papers(preset, millions, paper_gflops, batched_products) -> None:
    counts = count_complexity(DrmmConfig.from_preset(preset), 800, 1280)
    assert counts.trainable / 1e6 == pytest.approx(millions, abs=0.05)
    assert counts.multiply_adds / 1e9 == pytest.approx(paper_gflops + batched_products, abs=0.15)


def test_the_batched_products_are_what_they_are_said_to_be() -> None:
    stages, queries = 6, 300
    dynamic = queries * 49 * 256 * 64 * 2
    assert stages * dynamic / 1e9 == pytest.approx(2.89, abs=0.01)
    mixing = queries * 4 * (32 * 64 * 64 + 128 * 32 * 64)
    assert stages * mixing / 1e9 == pytest.approx(2.83, abs=0.01)


def test_the_table_has_a_row_for_each_preset(capsys) -> None:
    names = [name for name in PRESETS if name.endswith("tiny")]
    assert main(["presets", *names, "--height", "288", "--width", "384"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows[1 : 1 + len(names)]] == names
    assert all(float(row.split()[3]) > 0.5 for row in rows[1 : 1 + len(names)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["drmm-r50"], "drmm-r50"), (["--height", "500"], "--height")],
)
def test_mistakes_end_with_one_line(capsys, arguments, message) -> None:
    assert main(["presets", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
