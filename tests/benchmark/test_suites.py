"""Every suite runs at a small size, and its page has what it says."""

import json
from pathlib import Path

import pytest
import torch

from drmm_hf.benchmark import cli, data, evaluation, inference, loss, postprocessing, scaling, training
from drmm_hf.benchmark.models import PARTS
from drmm_hf.benchmark.peers import DETECTORS, build_criteria, build_detector, tiny_fields
from drmm_hf.benchmark.results import Settings, Suite

ONCE = Settings(rounds=1)
TINY = ("drmm-sparse-rcnn-tiny", "drmm-adamixer-tiny")


def timed(suite: Suite) -> list[str]:
    """Names of all rows; each has a positive time."""
    names = []
    for table in suite.tables:
        for name, row in table.rows.items():
            names.append(name)
            if row.timing is not None:
                assert min(row.timing.wall + row.timing.cpu) > 0
        assert table.base is None or table.base in table.rows
        assert all({over, under} <= table.rows.keys() for _, over, under in table.comparisons)
    return names


def test_loss() -> None:
    suite = loss.run(ONCE, loss.Sizes(batch=3, proposals=20, stages=2, sweep_proposals=(10, 20), sweep_batch=(2,)))
    rows = suite.tables[0].rows
    assert list(rows) == [loss.OURS, loss.LINEAR, loss.LOOKUP, "RT-DETR", "Deformable DETR", "DETR", "D-FINE"]
    assert all(row.extra["saved for backward (MB)"] > 0 and row.extra["peak (MB)"] > 0 for row in rows.values())
    assert [len(points) for points in suite.figures[0].curves.values()] == [2, 2, 2, 2]
    timed(suite)


def test_every_criterion_reaches_all_stages() -> None:
    case = loss.make_case(batch=3, proposals=20, stages=2)
    for name in build_criteria():
        loss.losses(case)[name]().backward()
        logits = case.detr_logits if name == "DETR" else case.logits
        for leaves in (logits, case.boxes):
            assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves), name
        for leaf in case.leaves():
            leaf.grad = None


def test_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {
        "DETR R50": {"decoder_layers": 1, "encoder_layers": 1, "backbone_config": tiny_fields()["backbone_config"]}
    }
    monkeypatch.setattr(inference, "build_detector", lambda name: build_detector(name, **small[name]))
    suite = inference.run(
        Settings(rounds=1, quick=True),
        inference.Sizes(height=64, width=96, presets=TINY, peers=("DETR R50",), released="drmm-sparse-rcnn-tiny"),
    )
    names = timed(suite)
    assert {*TINY, "DETR R50", f"{TINY[0]}, bfloat16", "stages, as released"} <= set(names)
    for row in suite.tables[0].rows.values():
        parts = [row.extra[f"{part} (ms)"] for part in (*PARTS, "rest")]
        assert min(parts) > 0
        clock = row.timing.cpu if torch.get_num_threads() == 1 else row.timing.wall
        assert sum(parts) == pytest.approx(clock[0] * 1e3, rel=0.3)


def test_training() -> None:
    suite = training.run(ONCE, (training.Case("tiny", TINY, True, batch=2, height=64, width=96),))
    row = suite.tables[0].rows["Deformable DETR, as small"]
    assert row.extra["images/s"] == pytest.approx(2 / row.timing.wall[0])
    assert row.extra["peak (MB)"] > 1
    timed(suite)


def test_a_training_step_trains() -> None:
    model = inference.build_preset(TINY[0])
    before = model.model.stages[0].fc1.weight.detach().clone()
    training.training_step(model, torch.randn(1, 3, 64, 96), training.random_labels(1, "cpu"))()
    assert not torch.equal(before, model.model.stages[0].fc1.weight)


def test_postprocessing() -> None:
    suite = postprocessing.run(ONCE, postprocessing.Sizes(cases=((2, 20),)))
    assert timed(suite) == [postprocessing.OURS, "RT-DETR", "Deformable DETR", "DETR", "per-class NMS (torchvision)"]


def test_evaluation() -> None:
    assert evaluation.PLAIN in timed(evaluation.run(ONCE, num_images=5))


@pytest.mark.slow
def test_data() -> None:
    pytest.importorskip("albumentations")
    suite = data.run(Settings(rounds=1, quick=True), num_images=5)
    assert [len(row.timing.cpu) for table in suite.tables for row in table.rows.values()] == [1] * 5


def test_scaling() -> None:
    suite = scaling.run(
        ONCE, scaling.Sizes("tiny", 64, 96, proposals=(8, 16), resolutions=((64, 96),), peers=(), matrix=64)
    )
    timed(suite)
    assert [point[0] for point in suite.figures[0].curves["AdaMixer"]] == [8.0, 16.0]
    for table in suite.tables[2:]:
        rows = {name: row.extra for name, row in table.rows.items()}
        total = rows.pop("all")
        for column in ("measured (ms)", "GFLOP", "bound (ms)"):
            assert sum(row[column] for row in rows.values()) == pytest.approx(total[column])
        assert rows["aten.convolution"]["GFLOP"] > 0


@pytest.mark.slow
def test_the_peer_trains_what_the_presets_train() -> None:
    ours = inference.build_preset("drmm-sparse-rcnn-r50").model.backbone
    frozen = [name for name, p in ours.named_parameters() if not p.requires_grad and name.endswith("conv1.weight")]
    theirs = [name for name, p in training.build_peer(tiny=False).named_parameters() if not p.requires_grad]
    assert sum(name.endswith("conv1.weight") for name in theirs) == len(frozen) == 4  # stem and three blocks
    assert all(p.requires_grad for p in training.build_peer(tiny=True).parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_every_peer_is_built_without_a_download(name: str) -> None:
    model = build_detector(name)
    with torch.inference_mode():
        logits = model(torch.randn(1, 3, 128, 160)).logits  # RT-DETR wants 300 cells
    assert logits.shape[-1] == 80 + (name == "DETR R50")


def test_command_writes_json_page_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(loss, "QUICK", loss.Sizes(2, 10, 2, sweep_proposals=(10, 20), sweep_batch=(2, 3)))
    page = tmp_path / "page.md"
    threads = torch.get_num_threads()
    arguments = ["loss", "--output", str(tmp_path / "runs"), "--page", str(page), "--quick", "--rounds", "2"]
    assert cli.main([*arguments, "--threads", "1"]) == 0
    assert torch.get_num_threads() == threads
    assert json.loads((tmp_path / "runs/loss.json").read_text())["environment"]["threads"] == 1
    text = page.read_text()
    assert "python scripts/benchmark.py loss --output DIR --rounds 2 --threads 1 --quick" in text
    assert "![Curves of the suite loss](runs/loss.png)" in text
    assert (tmp_path / "runs/loss.png").stat().st_size > 5000
    page.unlink()
    assert cli.main(["--output", str(tmp_path / "runs"), "--page", str(page)]) == 0  # only renders
    assert page.read_text() == text
    assert capsys.readouterr().out.splitlines()[0] == "loss ..."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["los"], "there is no suite 'los'; choose of loss, inference"),
        (["loss", "--device", "tpu9"], "--device tpu9: no such device"),
        (["loss", "--device", "meta"], "--device meta: only cpu and cuda are measured"),
        (["loss", "--device", "cuda:99"], "--device cuda:99: torch sees"),
        (["loss", "--page", "no/such/folder/speed.md"], "--page no/such/folder/speed.md: its folder does not exist"),
        ([], "has no results; name a suite to run"),
    ],
)
def test_a_users_mistake_is_one_line(arguments: list[str], message: str, tmp_path: Path, capsys) -> None:
    assert cli.main([*arguments, "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"suite": "loss"}', '{"tables": [{"rows": {}}]}'])
def test_a_foreign_json_is_named(content: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "x.json").write_text(content)
    assert cli.main(["--output", str(tmp_path)]) == 2
    assert "x.json: no result of scripts/benchmark.py" in capsys.readouterr().err
