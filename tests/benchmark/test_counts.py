import torch

from drmm_hf.benchmark.counts import gpu_counts, peak_memory, saved_memory

MEGABYTE = 250_000  # float32 numbers


def test_peak_counts_what_is_held_at_once() -> None:
    def run() -> None:
        for _ in range(3):
            torch.ones(MEGABYTE) + torch.ones(2 * MEGABYTE)[:MEGABYTE]  # 1 + 2 + 1, then all are freed

    assert round(peak_memory(run), 2) == 4.0


def test_a_saved_storage_counts_once() -> None:
    x = torch.ones(MEGABYTE, requires_grad=True)
    y = torch.ones(2 * MEGABYTE)
    assert round(saved_memory(lambda: x.exp()), 2) == 1.0  # its result
    assert round(saved_memory(lambda: (x * y[:MEGABYTE], x * y[MEGABYTE:])), 2) == 2.0  # y, under two views
    with torch.no_grad():
        assert saved_memory(lambda: x.exp()) == 0


def test_there_are_no_launches_on_a_cpu() -> None:
    assert gpu_counts(lambda: torch.ones(1), "cpu") == {}
