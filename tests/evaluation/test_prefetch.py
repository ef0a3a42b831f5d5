"""Work ahead by threads: in order, and not far ahead."""

import threading

import pytest

from drmm_hf.evaluation.prefetch import prefetch


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_all_values_in_order(workers: int) -> None:
    assert list(prefetch(lambda item: item * item, range(20), workers)) == [item * item for item in range(20)]
    assert list(prefetch(str, [], workers)) == []


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_no_more_is_begun_than_workers_ahead(workers: int) -> None:
    begun: list[int] = []
    for taken, value in enumerate(prefetch(lambda item: begun.append(item) or item, range(50), workers)):
        assert value == taken
        assert len(begun) <= taken + 1 + workers


def test_the_work_is_done_while_the_caller_works() -> None:
    reached = threading.Event()

    def work(item: int) -> int:
        if item == 1:
            reached.set()
        return item

    values = prefetch(work, range(3), 1)
    assert next(values) == 0
    assert reached.wait(timeout=10), "the second item is worked on before it is asked for"


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_where_its_value_would(workers: int) -> None:
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("item 2 is bad")
        return item

    values = prefetch(work, range(5), workers)
    assert [next(values), next(values)] == [0, 1]
    with pytest.raises(ValueError, match="item 2 is bad"):
        next(values)
