import time

import pytest

from drmm_hf.benchmark import timing
from drmm_hf.benchmark.timing import alternate, exponent, ratios, steady_clock


def test_candidates_take_turns_and_each_round_begins_with_another() -> None:
    calls: list[str] = []
    names = "abc"
    timings = alternate({name: lambda name=name: calls.append(name) for name in names}, rounds=4, warm_up=2)
    assert "".join(calls) == "aabbcc" + "abc" + "bca" + "cab" + "abc"
    assert all(len(timing.wall) == len(timing.cpu) == 4 and timing.device == [] for timing in timings.values())


class Clock:
    """Stands in for the module `time`: only what is timed lets it go on, working or waiting."""

    wall = cpu = 0.0

    def perf_counter(self) -> float:
        return self.wall

    def process_time(self) -> float:
        return self.cpu

    def work(self, seconds: float) -> None:
        self.wait(seconds)
        self.cpu += seconds

    def wait(self, seconds: float) -> None:
        self.wall += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_a_fast_candidate_is_called_several_times_for_one_number(clock: Clock) -> None:
    calls: list[str] = []

    def lasting(name: str, seconds: float) -> None:
        calls.append(name)
        clock.work(seconds)

    candidates = {"slow": lambda: lasting("slow", 0.03), "fast": lambda: lasting("fast", 0.003)}
    timings = alternate(candidates, rounds=1, min_seconds=0.02)
    assert calls == ["slow", "fast", "slow"] + 7 * ["fast"]
    assert [timings[name].wall for name in ("slow", "fast")] == [pytest.approx([0.03]), pytest.approx([0.003])]


def test_waiting_is_no_cpu_time(clock: Clock) -> None:
    timings = alternate({"both": lambda: (clock.work(1.0), clock.wait(2.0))}, rounds=2)
    assert (timings["both"].cpu, timings["both"].wall) == ([1.0, 1.0], [3.0, 3.0])


def test_the_clocks_are_the_system_s() -> None:
    timings = alternate({"sleep": lambda: time.sleep(0.01)}, rounds=1)
    assert timings["sleep"].wall[0] >= 0.01
    assert timings["sleep"].cpu[0] >= 0


@pytest.mark.parametrize("arguments", [({}, 1, 1), ({"a": int}, 0, 1), ({"a": int}, 1, 0)])
def test_nothing_to_time_is_refused(arguments: tuple) -> None:
    candidates, rounds, warm_up = arguments
    with pytest.raises(ValueError, match="alternate needs candidates, rounds and warm_up"):
        alternate(candidates, rounds, warm_up=warm_up)


def test_ratios_are_taken_round_by_round() -> None:
    assert ratios([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == (2.0, 1.0, 3.0)


def test_exponent_of_a_power() -> None:
    assert exponent([1, 2, 5, 9], [3 * x**1.7 for x in (1, 2, 5, 9)]) == pytest.approx(1.7)


def test_one_thread_goes_by_cpu_time() -> None:
    assert [steady_clock(*case) for case in (("cpu", 1), ("cpu", 2), ("cuda:0", 1))] == ["cpu", "wall", "wall"]
