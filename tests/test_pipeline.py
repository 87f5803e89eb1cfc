"""ahead(): order, exceptions, an end when nobody listens any more; StageTimes."""

from __future__ import annotations

import itertools
import threading
import time
import traceback
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchpredict.run.pipeline import StageTimes, ahead


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def running(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


@settings(max_examples=30)
@given(st.lists(st.one_of(st.none(), st.integers()), max_size=30), st.integers(1, 4))
def test_items_come_in_order_none_included(items: list[int | None], depth: int) -> None:
    assert list(ahead(iter(items), depth, "kept")) == items


def test_stages_can_be_chained() -> None:
    stage = ahead((n * 2 for n in ahead(iter(range(100)), 1, "first")), 2, "second")
    assert list(stage) == list(range(0, 200, 2))


def test_an_exception_comes_in_its_turn_with_its_traceback() -> None:
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        deep_inside()

    def deep_inside() -> None:
        raise KeyError("what happened")

    stage = ahead(failing(), 5, "failing")
    assert [next(stage), next(stage)] == [1, 2]
    with pytest.raises(KeyError, match="what happened") as caught:
        next(stage)
    assert "deep_inside" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert wait_until(lambda: not running("failing"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, StopAsyncIteration])
def test_no_kind_of_exception_is_lost(error: type[BaseException]) -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise error

    with pytest.raises(error):
        list(ahead(failing(), 2, "failing"))


def test_an_exception_crosses_two_stages() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("from the first stage")

    second = ahead((item for item in ahead(failing(), 2, "first")), 2, "second")
    assert next(second) == 1
    with pytest.raises(ValueError, match="from the first stage"):
        next(second)


def test_the_thread_ends_and_its_generator_is_closed_when_the_consumer_leaves() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    stage = ahead(endless(), 2, "left alone")
    assert [next(stage), next(stage)] == [0, 1]
    assert running("left alone")
    stage.close()
    assert closed.is_set()
    assert not running("left alone")


def test_stages_behind_stages_end_too() -> None:
    first = ahead(itertools.count(), 2, "inner")
    second = ahead((item for item in first), 2, "outer")
    next(second)
    second.close()
    del first
    assert wait_until(lambda: not running("inner") and not running("outer"))


def test_an_exception_in_the_consumer_ends_the_thread() -> None:
    def consume() -> None:
        for item in ahead(itertools.count(), 2, "consumer failed"):
            assert item < 3

    with pytest.raises(AssertionError):
        consume()
    assert wait_until(lambda: not running("consumer failed"))


def test_a_stage_that_waits_for_a_pipe_does_not_hold_the_consumer() -> None:
    never = threading.Event()

    def blocked() -> Iterator[int]:
        yield 1
        never.wait(60)

    stage = ahead(blocked(), 1, "blocked")
    next(stage)
    begin = time.monotonic()
    stage.close()
    assert time.monotonic() - begin < 10
    never.set()


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_than_depth_items_wait(depth: int) -> None:
    made = 0

    def counted() -> Iterator[int]:
        nonlocal made
        for number in range(1, 1000):
            made = number
            yield number

    stage = ahead(counted(), depth, "bounded")
    next(stage)
    # One is with the consumer, `depth` wait, one is in the thread's hand.
    assert wait_until(lambda: made == depth + 2)
    time.sleep(0.3)
    assert made == depth + 2
    stage.close()


def test_nothing_starts_before_the_first_item_is_asked_for() -> None:
    stage = ahead(iter([1]), 1, "unused")
    assert not running("unused")
    stage.close()


def test_seconds_are_summed_over_threads() -> None:
    times = StageTimes()

    def work() -> None:
        with times.measure("infer"):
            time.sleep(0.05)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert times.seconds["infer"] >= 0.2
    assert times.elapsed() >= 0.05


def test_time_is_counted_where_a_stage_fails() -> None:
    times = StageTimes()
    with pytest.raises(ValueError, match="no"), times.measure("finish"):
        raise ValueError("no")
    assert times.seconds["finish"] > 0


def test_each_counts_the_making_and_not_the_using() -> None:
    def slow() -> Iterator[int]:
        for item in range(3):
            time.sleep(0.02)
            yield item

    times = StageTimes()
    taken = []
    used = 0.0
    for item in times.each("read", slow()):
        begin = time.perf_counter()
        time.sleep(0.05)
        taken.append(item)
        used += time.perf_counter() - begin
    assert taken == [0, 1, 2]
    assert 0.06 <= times.seconds["read"] <= times.elapsed() - used
