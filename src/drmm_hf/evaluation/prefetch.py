"""Work done ahead by threads, but not far ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


def prefetch(function: Callable[[Item], Value], items: Iterable[Item], workers: int = 1) -> Iterator[Value]:
    """`function` of every item, in their order, computed by threads while the caller works on earlier ones.

    Args:
        function: its error is raised where its value would have come.
        items: taken one by one in the caller's thread.
        workers: threads; as many items are begun ahead of the one that is waited for, and no more, so that memory
            does not depend on the number of items. 0 computes in the caller's thread.
    """
    if workers == 0:
        yield from map(function, items)
        return
    waiting: deque[Future[Value]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
