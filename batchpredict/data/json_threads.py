"""Work done on several items side by side, with results in the order of the items."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    items: Iterator[Item], work: Callable[[Item], Result], threads: int
) -> Generator[Result]:
    """`work(item)` for each item, at most `threads` + 1 items ahead of the consumer.

    An error in `items` or `work` reaches the consumer behind the results before it. Closing
    the generator ends the threads with the items they are at.
    """
    if threads == 1:
        yield from map(work, items)
        return
    failure: Exception | None = None
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, "parse")
    try:
        while True:
            try:
                item = next(items)
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001 - raised below, in its turn
                failure = error
                break
            pending.append(pool.submit(work, item))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
