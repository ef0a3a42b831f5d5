"""A data set predicted into a spool, and COCO results and ground truth read from it."""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import nn

from ..data import StreamingDetectionDataset
from ..files import to_json
from .batches import Batch, Dataset, read_batches
from .coco import detections_to_coco
from .predict import predict_batches
from .processes import Processes
from .spool import ResultsSpool


def predict_to_spool(
    spool: ResultsSpool,
    model: nn.Module,
    processor: Any,
    dataset: Dataset,
    processes: Processes,
    *,
    finished: Collection[int] = (),
    batch_size: int,
    top_k: int,
    num_workers: int = 0,
    with_scales: bool = False,
    with_parts: bool = False,
) -> None:
    """Predict this process's share of the batches that the spool has not, and append them as they come.

    Of a stream the ground truth goes into the spool as well, and images are numbered by their place in it.

    Args:
        spool: the same folder on all processes, each with its part.
        model, processor, batch_size, top_k, num_workers, with_scales, with_parts: as in `predict_dataset`.
        dataset: with the labels of the model.
        finished: the batches that the spool had, of all processes, before any of them began.

    Raises:
        FileNotFoundError, ValueError: an image cannot be read; the message names the file.
    """
    batches = read_batches(
        dataset,
        processor,
        batch_size,
        num_workers=num_workers,
        skipped=finished,
        num_processes=processes.count,
        process_index=processes.index,
    )
    streamed, total = True, None
    if not isinstance(dataset, StreamingDetectionDataset):
        streamed, total = False, max(0, len(dataset) - len(finished) * batch_size) // processes.count
    for batch, detections in predict_batches(
        model, batches, processor, top_k=top_k, total=total, progress=processes.is_main
    ):
        first = batch.index * batch_size
        ids = [first + place if streamed else row["image_id"] for place, row in enumerate(batch.rows)]
        results = detections_to_coco(detections, ids, category_ids_of(dataset), with_scales, with_parts)
        truth = {"truth": _truth(batch)} if streamed else {}
        spool.append(batch.index, results, **truth)


def category_ids_of(dataset: Dataset) -> list[int]:
    """Category id of each label; of a stream the label itself, -1 where the stream is known not to have it."""
    if not isinstance(dataset, StreamingDetectionDataset):
        return dataset.category_ids
    present = dataset.class_names
    return [label if present is None or name in present else -1 for label, name in dataset.id2label.items()]


def spooled_results(spool: ResultsSpool, image_ids: list[int] | None = None) -> Iterator[str]:
    """All COCO results in the order of the data set, as JSON; `image_ids` are those of the places in a stream."""
    if image_ids is None:
        yield from spool.result_lines()
        return
    for line in spool.result_lines():
        result = json.loads(line)
        yield to_json({**result, "image_id": image_ids[result["image_id"]]})


def streamed_ground_truth(spool: ResultsSpool, dataset: StreamingDetectionDataset) -> dict[str, Any]:
    """COCO ground truth of the images that were read from a stream, of its cleaned boxes.

    Image ids are those of the stream if all have one and no two the same, and else their places in it.
    """
    rows = [row for entry in spool.entries() for row in entry["truth"]]
    ids = [row["image_id"] for row in rows]
    if len(set(ids)) < len(ids) or min(ids, default=0) < 0:
        ids = list(range(len(ids)))
    category_ids = category_ids_of(dataset)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, row in zip(ids, rows, strict=True):
        images.append({"id": image_id, "width": row["width"], "height": row["height"]})
        for one in row["objects"]:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **one})
    categories = [
        {"id": category_id, "name": dataset.id2label[label]}
        for label, category_id in enumerate(category_ids)
        if category_id != -1
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def _truth(batch: Batch) -> list[dict[str, Any]]:
    return [
        {"image_id": row["image_id"], "height": height, "width": width, "objects": _objects(row["objects"])}
        for row, (height, width) in zip(batch.rows, batch.sizes, strict=True)
    ]


def _objects(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    names = {"bbox": "bbox", "category": "category_id", "area": "area", "iscrowd": "iscrowd"}
    count = len(columns["bbox"])
    return [{own: columns[name][place] for name, own in names.items()} for place in range(count)]
