import time

import pytest

from drmm_hf.benchmark.timing import alternate, exponent, ratios, steady_clock


def test_candidates_take_turns_and_each_round_begins_with_another() -> None:
    calls: list[str] = []
    names = "abc"
    timings = alternate({name: lambda name=name: calls.append(name) for name in names}, rounds=4, warm_up=2)
    assert "".join(calls) == "aabbcc" + "abc" + "bca" + "cab" + "abc"
    assert all(len(timing.wall) == len(timing.cpu) == 4 and timing.device == [] for timing in timings.values())


def test_a_fast_candidate_is_called_several_times_for_one_number() -> None:
    calls: list[str] = []

    def slow() -> None:
        calls.append("slow")
        time.sleep(0.03)

    timings = alternate({"slow": slow, "fast": lambda: calls.append("fast")}, rounds=1, min_seconds=0.02)
    assert calls.count("slow") == 2
    assert calls.count("fast") > 10
    assert timings["fast"].wall[0] < 0.02 < timings["slow"].wall[0]


def test_waiting_is_no_cpu_time() -> None:
    timing = alternate({"sleep": lambda: time.sleep(0.05)}, rounds=1)["sleep"]
    assert timing.cpu[0] < 0.04 < timing.wall[0]


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
