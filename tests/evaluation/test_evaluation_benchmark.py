"""The benchmark of the evaluation on a small scale: what it generates, and that it runs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drmm_hf.evaluation import benchmark, evaluate_coco
from drmm_hf.evaluation.coco_input import read_json

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_evaluation.py"


def test_what_is_generated_is_like_coco() -> None:
    truth = benchmark.generate_ground_truth(400)
    assert len(truth["annotations"]) / 400 == pytest.approx(benchmark.OBJECTS_PER_IMAGE, rel=0.2)
    assert truth == benchmark.generate_ground_truth(400)
    results = benchmark.generate_results(truth)
    assert len(results) == 400 * 100
    metrics = evaluate_coco(truth, results)
    assert 0.1 < metrics["AP"] < 0.6, "neither perfect nor useless"
    assert metrics["AP75"] < metrics["AP50"]
    assert min(metrics[name] for name in ("APs", "APm", "APl")) > 0.0


def test_the_way_to_the_file_changes_nothing(tmp_path: Path) -> None:
    results = benchmark.generate_results(benchmark.generate_ground_truth(11), per_image=7)
    benchmark._write(tmp_path / "partial", benchmark._as_detections(results, 7), tmp_path / "results.json")
    written = read_json(tmp_path / "results.json")
    assert [row["image_id"] for row in written] == [row["image_id"] for row in results]
    assert [row["category_id"] for row in written] == [row["category_id"] for row in results]
    boxes = [np.array([row["bbox"] for row in rows]) for rows in (written, results)]
    assert boxes[0] == pytest.approx(boxes[1], abs=1e-3)
    assert not (tmp_path / "partial").exists()


@pytest.mark.slow
def test_memory_is_that_of_the_other_process() -> None:
    """Not of this one, which may hold more."""
    here = np.ones(100 * 2**20, dtype=np.uint8)
    before = benchmark._memory_of("pass")
    more = benchmark._memory_of(f"kept = bytearray(b'x') * {200 * 2**20}")
    assert more - before == pytest.approx(200, abs=20)
    assert here.nbytes == 100 * 2**20


@pytest.mark.slow
def test_the_page_is_written(tmp_path: Path) -> None:
    page = tmp_path / "evaluation.md"
    options = ["--images", "20", "--per-image", "10", "--rounds", "1", "--output", str(page)]
    subprocess.run([sys.executable, str(SCRIPT), *options], check=True)
    text = page.read_text()
    assert "20 images with 10\ndetections each: 200 detections" in text
    assert "{" not in text
