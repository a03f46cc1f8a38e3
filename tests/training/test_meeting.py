"""Processes that are started again share keys with each other, and with no earlier start."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from aim_fast.training.meeting import meet

SOON = timedelta(seconds=20)


def start(store: dist.Store, delays: list[float]) -> list[dist.Store]:
    def process(rank: int) -> dist.Store:
        time.sleep(delays[rank])
        return meet(store, rank, len(delays), SOON)

    with ThreadPoolExecutor(len(delays)) as pool:
        return list(pool.map(process, range(len(delays))))


@pytest.mark.parametrize(
    "delays", [[0, 0, 0], [0.2, 0, 0], [0, 0.2, 0.1]], ids=["together", "first last", "first first"]
)
def test_a_start_reads_nothing_of_an_earlier_one(delays):
    store = dist.HashStore()
    for number in range(3):
        members = start(store, delays)
        assert not any(member.check(["address"]) for member in members)
        members[number].set("address", f"of start {number}")
        assert {member.get("address") for member in members} == {f"of start {number}".encode()}


def test_a_start_in_which_one_was_lost_before_it_answered_is_left_behind():
    store = dist.HashStore()
    with pytest.raises(Exception, match=r"(?i)timeout"):
        meet(store, 0, 2, timedelta(milliseconds=50))
    with pytest.raises(TimeoutError, match="process 1 of 2"):
        meet(store, 1, 2, timedelta(milliseconds=50))
    members = start(store, [0.1, 0])
    members[0].set("address", "here")
    assert members[1].get("address") == b"here"
