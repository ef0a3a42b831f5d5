"""The declared tables: every setting can be built, and the paper's numbers stand in rows that there are."""

import pytest

from drmm_hf import DrmmConfig
from drmm_hf.training import recipe_names
from reproduction.measurements import MEASURES
from reproduction.tables import TABLES, Cell

PRESETS = {"small": "drmm-sparse-rcnn-tiny", "coco": "drmm-sparse-rcnn-r50"}


@pytest.mark.parametrize("scale", PRESETS)
@pytest.mark.parametrize("name", TABLES)
def test_every_cell_is_a_model_with_a_recipe(name: str, scale: str) -> None:
    assert TABLES[name].measure in MEASURES
    for cell in TABLES[name].cells(scale):
        preset = cell.preset(PRESETS[scale])
        config = DrmmConfig.from_preset(preset, **cell.config)
        assert (config.head == "set_prediction") == cell.baseline, cell.name
        if scale == "coco":
            assert {f"{preset}-1x", f"{preset}-3x"} <= set(recipe_names())


@pytest.mark.parametrize("name", ["table2", "table7", "table8", "table10", "table11", "fig2", "fig11", "anchor"])
def test_the_papers_numbers_are_of_cells(name: str) -> None:
    cells = [cell.label.split(" | ") for cell in TABLES[name].cells("coco")]
    assert set(TABLES[name].paper) <= {row for row, *_ in cells}
    if TABLES[name].measure == "grid":
        ours = {(row, f"{metric} {column}") for row, column in cells for metric in ("AP", "AP50")}
        assert {(row, column) for row, columns in TABLES[name].paper.items() for column in columns} <= ours


def test_baselines_follow_from_the_preset() -> None:
    assert Cell("a", "a", baseline=True).preset("drmm-adamixer-tiny") == "adamixer-tiny"
    assert Cell("a", "a", baseline=True, decoder="sparse-rcnn").preset("drmm-adamixer-tiny") == "sparse-rcnn-tiny"
    assert Cell("a", "a", decoder="adamixer").preset("drmm-sparse-rcnn-r50") == "drmm-adamixer-r50"
    with pytest.raises(ValueError, match="--preset sparse-rcnn-tiny"):
        Cell("a", "a").preset("sparse-rcnn-tiny")
