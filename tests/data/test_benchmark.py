import sys

import numpy as np
import pytest

from drmm_hf.data import decode_image, load_detection_dataset
from drmm_hf.data.benchmark import (
    LOADERS,
    PIPELINES,
    _load,
    benchmark_images,
    measure_loading,
    measure_throughput,
    write_coco,
)


def test_the_generated_data_set_is_read_without_a_repair(tmp_path):
    file = write_coco(tmp_path, 60)
    report = load_detection_dataset(tmp_path, "train").report
    assert (report.images, report.changed_boxes, report.crowd) == (60, 0, report.boxes // 100)
    assert report.boxes / 60 == pytest.approx(7.3, rel=0.2)
    assert file.stat().st_size / report.boxes == pytest.approx(520, rel=0.2)  # bytes, as in COCO


@pytest.mark.parametrize("loader", LOADERS)
def test_memory_is_measured_in_a_worker(loader, tmp_path):
    write_coco(tmp_path, 5)
    found = _load(tmp_path, loader, read_rows=True)
    assert found.seconds > 0
    assert 0 < found.before <= found.peak
    for total, own in zip(found.worker, found.worker_own, strict=True):
        assert 0 < own < total


@pytest.mark.slow
def test_loading_is_measured_in_a_new_process(tmp_path):
    write_coco(tmp_path, 5)
    found = measure_loading(tmp_path, "drmm-hf")
    assert 0 < found.before <= found.peak


def test_every_pipeline_gives_images_of_the_same_sizes(tmp_path):
    pytest.importorskip("albumentations")
    photos = benchmark_images(tmp_path, 2)
    assert decode_image(photos.dataset[0]).size == (640, 480)
    rates = measure_throughput(photos, batch_size=1, batches=1, rounds=2)
    assert list(rates) == list(PIPELINES)
    assert all(len(values) == 2 and np.min(values) > 0 for values in rates.values())


def test_a_missing_albumentations_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(ValueError, match="pip install albumentations"):
        measure_throughput(benchmark_images(tmp_path, 1), batch_size=1, batches=1, rounds=1)


def test_other_image_sizes_are_refused(write, coco):
    with pytest.raises(ValueError, match="has no images of 640x480 pixels"):
        measure_throughput(load_detection_dataset(write(coco), "train"))
