"""Drawing ahead: order, errors, and an end that leaves nothing running."""

from __future__ import annotations

import threading
import time
import weakref

import pytest

from aim_fast.data.prefetch import Prefetcher


def prefetch_threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def test_items_come_in_order_and_then_the_end():
    assert list(Prefetcher(2).start(iter(x for x in range(50)))) == list(range(50))
    assert prefetch_threads() == 0


def test_drawing_begins_before_the_first_item_is_asked_for():
    begun = threading.Event()

    def items():
        begun.set()
        yield 1

    prefetcher = Prefetcher(2)
    given = prefetcher.start(items())
    assert begun.wait(5)
    assert list(given) == [1]


def test_no_more_than_the_depth_is_drawn_ahead():
    drawn = []

    def items():
        for i in range(20):
            drawn.append(i)
            yield i

    prefetcher = Prefetcher(3)
    given = prefetcher.start(items())
    assert next(given) == 0
    time.sleep(0.5)
    assert len(drawn) <= 1 + 3 + 1  # given out, ready, and in the thread's hand
    prefetcher.stop()


def test_an_error_comes_out_after_the_items_before_it():
    def items():
        yield 1
        raise ValueError("broken")

    given = Prefetcher(2).start(items())
    assert next(given) == 1
    with pytest.raises(ValueError, match="broken"):
        next(given)
    assert prefetch_threads() == 0


def test_stopping_closes_the_source_and_lets_go_of_what_was_ready():
    closed = threading.Event()
    held = []

    class Item:
        pass

    def items():
        try:
            while True:
                item = Item()
                held.append(weakref.ref(item))
                yield item
                del item
        finally:
            closed.set()

    prefetcher = Prefetcher(2)
    given = prefetcher.start(items())
    next(given)
    prefetcher.stop()
    assert closed.is_set()
    assert prefetch_threads() == 0
    assert all(ref() is None for ref in held[1:])  # the first was given out


def test_another_start_ends_the_one_before():
    prefetcher = Prefetcher(1)
    first = prefetcher.start(iter(x for x in range(100)))
    assert next(first) == 0
    second = prefetcher.start(iter(x for x in "ab"))
    assert list(second) == ["a", "b"]
    assert list(first) == []
