"""Suite `data`: loading annotations, and image files to padded batches; more of it by scripts/benchmark_data.py."""

import tempfile
from pathlib import Path

from ..data.benchmark import LOADERS, benchmark_images, measure_loading, measure_throughput, write_coco
from .results import Row, Settings, Suite, Table
from .timing import Timing


def run(settings: Settings, num_images: int | None = None) -> Suite:
    """Measure the suite with annotations of `num_images` images."""
    num_images = num_images or (1000 if settings.quick else 10_000)
    with tempfile.TemporaryDirectory() as folder:
        return Suite([_loading(settings, Path(folder), num_images), _batches(settings, Path(folder))])


def _loading(settings: Settings, folder: Path, num_images: int) -> Table:
    root = folder / "annotations"
    write_coco(root, num_images)
    rows = {loader: Row(Timing()) for loader in LOADERS}
    for _ in range(1 if settings.quick else 3):
        for loader in LOADERS:
            found = measure_loading(root, loader)
            timing = rows[loader].timing
            assert timing is not None  # made above
            timing.cpu.append(found.seconds)
            rows[loader].extra = {"memory after (MB)": found.after, "before (MB)": found.before}
    note = f"COCO annotations of {num_images:,} generated images in a new process."
    return Table("Loading annotations", note, rows, base=LOADERS[-1])


def _batches(settings: Settings, folder: Path) -> Table:
    photos = benchmark_images(folder / "photos", 8 if settings.quick else 32)
    count = {"batch_size": 2, "batches": 1} if settings.quick else {}
    rates = measure_throughput(photos, rounds=settings.rounds, **count)
    rows = {name: Row(Timing(cpu=[1 / rate for rate in values])) for name, values in rates.items()}
    note = (
        "Image files of 640x480 pixels to a padded batch with the augmentation of the 3x schedule; time of one image."
    )
    return Table("From image files to batches", note, rows, base=list(rows)[-1])
