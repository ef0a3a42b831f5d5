"""Suite `evaluation`: COCO numbers and calibration of generated detections beside plain pycocotools."""

import contextlib
import copy
import io
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..evaluation import evaluate_coco, evaluate_detections
from ..evaluation.benchmark import generate_ground_truth, generate_results
from .results import Settings, Suite, Table, rows_of
from .timing import alternate

PLAIN = "pycocotools"


def run(settings: Settings, num_images: int | None = None) -> Suite:
    """Measure the suite on `num_images` generated images with 100 detections each."""
    num_images = num_images or (100 if settings.quick else 1000)
    truth = generate_ground_truth(num_images)
    results = generate_results(truth)
    runs = {
        "evaluate_coco": lambda: evaluate_coco(truth, results),
        "evaluate_detections (with calibration)": lambda: evaluate_detections(truth, results),
        PLAIN: lambda: _plain(truth, results),
    }
    timings = alternate(runs, min(settings.rounds, 3), device="cpu")
    note = (
        f"{num_images} generated images with 7.3 objects and 100 detections each, from Python lists to numbers; "
        "pycocotools is its own indexing, evaluation and summary. Ours checks every annotation and detection as well."
    )
    return Suite([Table("Evaluation", note, rows_of(timings), base=PLAIN)])


def _plain(truth: dict[str, Any], results: list[dict[str, Any]]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
