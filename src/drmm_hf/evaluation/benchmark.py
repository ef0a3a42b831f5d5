"""What an evaluation costs besides the model: our own part against COCOeval's."""

import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..files import write_json, write_json_lines
from .coco import detections_to_coco
from .report import evaluate_detections
from .spool import ResultsSpool

NUM_CLASSES, WIDTH, HEIGHT = 80, 640, 480
OBJECTS_PER_IMAGE = 7.3
BATCH = 8


def generate_ground_truth(num_images: int, seed: int = 0) -> dict[str, Any]:
    """COCO annotations with the numbers of COCO: 80 classes, 7.3 objects an image, a hundredth of them crowd.

    A few classes are frequent, most are rare, and an image has few of them; box sides are log-uniform from 8 pixels to
    the image's own.
    """
    generator = np.random.default_rng(seed)
    frequency = 1.0 / np.arange(1, NUM_CLASSES + 1)
    annotations: list[dict[str, Any]] = []
    for image in range(num_images):
        classes = generator.choice(NUM_CLASSES, size=3, p=frequency / frequency.sum())
        # Geometric from zero: some images have nothing, some have 40 objects.
        for _ in range(generator.geometric(1.0 / (1.0 + OBJECTS_PER_IMAGE)) - 1):
            width, height = np.exp(generator.uniform(np.log(8), np.log((WIDTH, HEIGHT))))
            x, y = generator.uniform(0, (WIDTH - width, HEIGHT - height))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image + 1,
                    "category_id": int(generator.choice(classes)) + 1,
                    "bbox": [round(float(value), 2) for value in (x, y, width, height)],
                    "area": round(float(width * height), 2),
                    "iscrowd": int(generator.random() < 0.01),
                }
            )
    images = [
        {"id": i + 1, "file_name": f"{i + 1:012d}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(num_images)
    ]
    categories = [{"id": i + 1, "name": f"class {i + 1}"} for i in range(NUM_CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def generate_results(truth: dict[str, Any], per_image: int = 100, seed: int = 0) -> list[dict[str, Any]]:
    """COCO results: every object once well and twice badly, the rest anywhere with small scores."""
    generator = np.random.default_rng(seed)
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    results = []
    for image_id, present in objects.items():
        found = [(one, spread) for one in present for spread in (0.05, 0.2, 0.2)][:per_image]
        boxes = generator.uniform(0, (WIDTH / 2, HEIGHT / 2, WIDTH / 2, HEIGHT / 2), (per_image, 4))
        classes = generator.integers(1, NUM_CLASSES + 1, per_image)
        scores = generator.random(per_image) ** 4 * 0.5
        for row, (one, spread) in enumerate(found):
            size = one["bbox"][2:] * 2
            boxes[row] = np.maximum(one["bbox"] + spread * generator.normal(size=4) * size, 0.0)
            classes[row], scores[row] = one["category_id"], generator.random() ** (1.0 + 20.0 * (spread - 0.05))
        order = np.argsort(-scores)
        rows = zip(boxes[order].tolist(), classes[order].tolist(), scores[order].tolist(), strict=True)
        results += [{"image_id": image_id, "category_id": c, "bbox": box, "score": score} for box, c, score in rows]
    return results


@dataclass(frozen=True)
class EvaluationCost:
    """CPU seconds of evaluating saved results, medians of the rounds, and memory in MiB.

    Attributes:
        images, detections: what was evaluated.
        cocoeval: `COCOeval.evaluate` and `accumulate` alone, called as pycocotools documents it.
        inside: the same two within our evaluation.
        own: all else of our evaluation: reading and checking both files, indexing, ECE, D-ECE, LaECE, LRP, Brier score
            and writing the numbers.
        writing: from the model's detections to results.json, by way of the file that an interrupted run goes on from.
        memory_cocoeval, memory_ours: highest resident memory of a process that does nothing else.
        memory_before: of one that has imported the package only.
    """

    images: int
    detections: int
    cocoeval: float
    inside: float
    own: float
    writing: float
    memory_cocoeval: float
    memory_ours: float
    memory_before: float

    @property
    def share(self) -> float:
        """Our own part, with the writing, in units of COCOeval's."""
        return (self.own + self.writing) / self.cocoeval


def measure_evaluation(num_images: int = 5000, per_image: int = 100, rounds: int = 3) -> EvaluationCost:
    """Evaluate generated results with `COCOeval` and with `evaluate_detections`, in turn."""
    truth = generate_ground_truth(num_images)
    results = generate_results(truth, per_image)
    seconds: dict[str, list[float]] = {"cocoeval": [], "inside": [], "own": [], "writing": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        annotations, saved = folder / "annotations.json", folder / "results.json"
        write_json(annotations, truth)
        batches = _as_detections(results, per_image)
        del truth, results
        for _ in range(rounds):
            seconds["writing"].append(_cpu_seconds(lambda: _write(folder / "partial", batches, saved)))
            with _cocoeval_timed() as spent:
                _plain(str(annotations), str(saved))
            seconds["cocoeval"].append(sum(spent))
            with _cocoeval_timed() as spent:
                whole = _cpu_seconds(lambda: _ours(str(annotations), str(saved)))
            seconds["inside"].append(sum(spent))
            seconds["own"].append(whole - sum(spent))
        call = f"({str(annotations)!r}, {str(saved)!r})"
        memory = {
            "memory_before": _memory_of("pass"),
            "memory_cocoeval": _memory_of(f"benchmark._plain{call}"),
            "memory_ours": _memory_of(f"benchmark._ours{call}"),
        }
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    return EvaluationCost(num_images, num_images * per_image, **medians, **memory)


def _plain(annotations: str, saved: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotations)
        evaluation = COCOeval(truth, truth.loadRes(saved), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()


def _ours(annotations: str, saved: str) -> None:
    report = evaluate_detections(annotations, saved, per_class=True, details=True)
    write_json(Path(saved).with_name("metrics.json"), report.to_dict())


def _write(partial: Path, batches: Sequence[tuple[list[int], list[dict[str, torch.Tensor]]]], saved: Path) -> None:
    spool = ResultsSpool.begin(partial, {}, resume=False)
    categories = range(1, NUM_CLASSES + 1)
    for index, (image_ids, detections) in enumerate(batches):
        spool.append(index, detections_to_coco(detections, image_ids, categories))
    write_json_lines(saved, spool.result_lines())
    spool.remove()


def _as_detections(
    results: Sequence[dict[str, Any]], per_image: int
) -> list[tuple[list[int], list[dict[str, torch.Tensor]]]]:
    """Batches of image ids and of detections as `post_process_object_detection` returns them."""
    boxes = torch.tensor([result["bbox"] for result in results])
    boxes[:, 2:] += boxes[:, :2]
    columns = {
        "boxes": boxes,
        "scores": torch.tensor([result["score"] for result in results]),
        "labels": torch.tensor([result["category_id"] - 1 for result in results]),
    }
    images = [
        (results[start]["image_id"], {name: values[start : start + per_image] for name, values in columns.items()})
        for start in range(0, len(results), per_image)
    ]
    groups = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    return [([image_id for image_id, _ in group], [found for _, found in group]) for group in groups]


@contextlib.contextmanager
def _cocoeval_timed() -> Iterator[list[float]]:
    """CPU seconds of every call of `COCOeval.evaluate` and `accumulate` inside."""
    spent: list[float] = []
    originals = {name: getattr(COCOeval, name) for name in ("evaluate", "accumulate")}

    def timed(original: Callable[..., None]) -> Callable[..., None]:
        return lambda *arguments: spent.append(_cpu_seconds(lambda: original(*arguments)))

    try:
        for name, original in originals.items():
            setattr(COCOeval, name, timed(original))
        yield spent
    finally:
        for name, original in originals.items():
            setattr(COCOeval, name, original)


def _cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _memory_of(statement: str) -> float:
    """Highest resident memory in MiB of a fresh process that runs a statement; Linux only."""
    code = f"from drmm_hf.evaluation import benchmark; {statement}; print(benchmark._highest_memory())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def _highest_memory() -> float:
    # Not `ru_maxrss`, which begins with the memory of the process that started this one.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
