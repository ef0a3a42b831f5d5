"""`drmm presets`: sizes and arithmetic of the named configurations, against the paper's Table 11."""

import pytest

from drmm_hf import DrmmConfig
from drmm_hf.cli import main
from drmm_hf.evaluation.complexity import count_complexity
from drmm_hf.presets import PRESETS

# The paper leaves out the batched products of the dynamic convolution and the adaptive mixing, as mmdet does: those of
# 6 stages of 300 queries.
DYNAMIC_CONVOLUTION, ADAPTIVE_MIXING = 49 * 256 * 64 * 2, 4 * (32 * 64 * 64 + 128 * 32 * 64)


@pytest.mark.parametrize(
    ("preset", "millions", "paper_gflops", "batched_products"),
    [
        ("drmm-sparse-rcnn-r50", 106.1, 165.5, DYNAMIC_CONVOLUTION),
        ("drmm-adamixer-r50", 134.6, 124.6, ADAPTIVE_MIXING),
    ],
)
def test_parameters_and_arithmetic_are_the_papers(preset, millions, paper_gflops, batched_products) -> None:
    counts = count_complexity(DrmmConfig.from_preset(preset), 800, 1280)
    assert counts.trainable / 1e6 == pytest.approx(millions, abs=0.05)
    expected = paper_gflops + 6 * 300 * batched_products / 1e9
    assert counts.multiply_adds / 1e9 == pytest.approx(expected, abs=0.15)


def test_the_table_has_a_row_for_each_preset(capsys) -> None:
    names = [name for name in PRESETS if name.endswith("tiny")]
    assert main(["presets", *names, "--height", "288", "--width", "384"]) == 0
    rows = capsys.readouterr().out.splitlines()[1 : 1 + len(names)]
    assert [row.split()[0] for row in rows] == names
    assert all(float(row.split()[3]) > 0.5 for row in rows)
    for arguments, message in ((["drmm-r50"], "drmm-r50"), (["--height", "500"], "--height")):
        assert main(["presets", *arguments]) == 2
        assert message in (error := capsys.readouterr().err)
        assert "Traceback" not in error
