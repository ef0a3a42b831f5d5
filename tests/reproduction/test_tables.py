"""The declared tables: every setting can be built, and the paper's numbers stand in rows that there are."""

import pytest

from drmm_hf import DrmmConfig
from drmm_hf.training import recipe_names
from reproduction.measurements import MEASURES
from reproduction.tables import TABLES, Cell

PRESETS = {"small": "drmm-sparse-rcnn-tiny", "coco": "drmm-sparse-rcnn-r50"}
LABELED = ("table2", "table7", "table10", "table11", "fig2", "anchor")


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


@pytest.mark.parametrize("scale", PRESETS)
def test_tables_that_share_a_run_mean_the_same_setting(scale: str) -> None:
    settings: dict[str, tuple] = {}
    for table in TABLES.values():
        cells = table.cells(scale)
        assert len({cell.name for cell in cells}) == len(cells), table.name
        for cell in cells:
            setting = (cell.config, cell.training, cell.preset(PRESETS[scale]))
            assert settings.setdefault(cell.name, setting) == setting, (table.name, cell.name)


@pytest.mark.parametrize("name", LABELED)
def test_the_papers_rows_are_rows_of_the_table(name: str) -> None:
    table = TABLES[name]
    assert set(table.paper) <= {cell.label for cell in table.cells("coco")}


@pytest.mark.parametrize("name", ["table8", "fig11"])
def test_the_papers_cells_are_cells_of_the_grid(name: str) -> None:
    table = TABLES[name]
    ours = {
        (row, f"{metric} {column}")
        for row, column in (cell.label.split(" | ") for cell in table.cells("coco"))
        for metric in ("AP", "AP50")
    }
    assert {(row, column) for row, columns in table.paper.items() for column in columns} <= ours


def test_baselines_follow_from_the_preset() -> None:
    assert Cell("a", "a", baseline=True).preset("drmm-adamixer-tiny") == "adamixer-tiny"
    assert Cell("a", "a", baseline=True, decoder="sparse-rcnn").preset("drmm-adamixer-tiny") == "sparse-rcnn-tiny"
    assert Cell("a", "a", decoder="adamixer").preset("drmm-sparse-rcnn-r50") == "drmm-adamixer-r50"
    with pytest.raises(ValueError, match="--preset sparse-rcnn-tiny"):
        Cell("a", "a").preset("sparse-rcnn-tiny")
