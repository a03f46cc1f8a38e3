"""What is held at once stays below the bound, and what is larger than it goes alone."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from aim_fast.data.room import Room


def test_threads_hold_no_more_than_there_is_room_for():
    room, lock = Room(10), threading.Lock()
    held, most = 0, 0

    def work(size: int) -> None:
        nonlocal held, most
        with room.taken(size):
            with lock:
                held += size
                most = max(most, held)
            time.sleep(0.005)
            with lock:
                held -= size

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [4, 3, 10, 1, 4, 4, 2, 6] * 4))
    assert 4 < most <= 10
    with room.taken(1000):
        assert room.free == 0
    assert room.free == 10
