"""Settings and fixtures for all tests: no network, few threads, fixed seeds, and the optional real data."""

import os
import signal
import sys
from pathlib import Path

# Before torch and huggingface_hub are imported: both read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
# Threads that wait for work sleep: spinning would take the cores from the tests of another process.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# One thread in each of several processes of pytest-xdist, two in one.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")

# Scripts of the checkout are no part of the package; behind everything else, as their names are those of test folders.
sys.path.append(str(Path(__file__).parents[1] / "scripts"))

import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# A shell starts what runs in the background deaf to Ctrl-C, which tests press; their commands inherit what is set here.
signal.signal(signal.SIGINT, signal.default_int_handler)

DATA_VARIABLE = "DRMM_TEST_DATA"


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Seed torch, so that a failing test fails again."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real test data; skips where the user has none."""
    value = os.environ.get(DATA_VARIABLE)
    if not value:
        pytest.skip(f"{DATA_VARIABLE} is not set: it names a folder with the real images in bccd/ and coco/")
    folder = Path(value)
    if not folder.is_dir():
        pytest.fail(f"{DATA_VARIABLE}={value} is not a folder")
    return folder


def _part(folder: Path, name: str) -> Path:
    part = folder / name
    if not part.is_dir():
        pytest.skip(f"{DATA_VARIABLE} has no folder {name}/")
    return part


@pytest.fixture(scope="session")
def bccd(test_data: Path) -> Path:
    """BCCD blood cells in COCO format: 640x480 images, 3 classes."""
    return _part(test_data, "bccd")


@pytest.fixture(scope="session")
def coco(test_data: Path) -> Path:
    """A few real COCO 2017 images and records: sparse category ids, crowd, images without boxes."""
    return _part(test_data, "coco")
