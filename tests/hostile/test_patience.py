"""What one neighbor can cost by being slow is bounded for the whole run, and nobody honest is
cut.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit import LONG
from kit.lying_nodes import sends_nothing
from kit.mesh import alive, mesh
from kit.toys import cluster
from node.config import SyncSection
from node.rounds.waiting import GIVEN_BACK, Patience

N1 = frozenset({"n1"})
STEP = 1 / 64
"""Seconds between two looks."""


def account(patience: float = 10.0, slowest: float = 10.0, deadline: float = 2.0) -> Patience:
    """After ten rounds of 0.1 s in which nobody was late."""
    found = Patience(SyncSection(patience_s=patience, slowest=slowest, deadline_s=deadline))
    for _ in range(10):
        found.round(0.1, N1)
    return found


def late(it: Patience, seconds: float, blamed: bool = True) -> float:
    """A round in which n1 is waited for, so long if it may; the seconds that took. It is lost if
    that is too long.
    """
    waited = 0.0
    while waited < seconds:
        it.wait(STEP, N1, N1 if blamed else frozenset())
        waited += STEP
        if it.spent("n1", 0.1 + waited) > it.left("n1", 0.1 + waited):
            it.lost("n1")
            it.round(0.1 + waited, frozenset())
            return waited
    it.round(0.1 + waited, N1)
    return waited


ROUNDS = st.lists(st.one_of(st.floats(0.01, 100.0), st.just(0.0)), max_size=80)


@given(ROUNDS)
def test_it_costs_twice_the_patience_at_most(rounds: list[float]) -> None:
    """And what it earned by being on time, and what a slow machine may always take."""
    it, cost, on_time = account(), 0.0, 0.0
    free = it.sync.slowest * 0.1
    for seconds in rounds:
        waited = late(it, seconds) if seconds else 0.0
        if not seconds:
            it.round(0.1, N1)
        cost += max(0.0, waited - free)
        on_time += 0.1 + waited if waited <= free else 0.0
    assert cost <= 2 * 10.0 + GIVEN_BACK * on_time + STEP * len(rounds)


def test_power_without_a_memory_it_costs_without_bound() -> None:
    cost = 0.0
    for _ in range(10):
        it = account()
        cost += late(it, 100.0)
    assert cost > 2 * 10.0 + 2.0


def test_each_loss_halves_what_is_left_and_doubles_the_time_until_it_is_taken_back() -> None:
    it = account()
    costs = [late(it, 1000.0) - 1.0 for _ in range(4)]
    assert costs == pytest.approx([10.0, 5.0, 2.5, 1.25], rel=0.1)
    assert [it.lost("n1") for _ in range(3)] == [2.0 * 2**k for k in (3, 4, 5)]


def test_the_first_loss_bars_nobody_and_being_on_time_makes_up_for_it() -> None:
    it = account()
    assert it.lost("n1") == 0.0
    assert it.lost("n1") == 2.0
    it.round(0.1, N1)
    assert it.lost("n1") == 0.0, "nothing is owed"
    owed = late(it, 5.0) - 1.0
    for _ in range(int(owed / GIVEN_BACK / 0.1) + 2):
        it.round(0.1, N1)
    assert it.left("n1", 0.0) == pytest.approx(10.0)


def test_a_machine_ten_times_slower_costs_nothing() -> None:
    it = account()
    for _ in range(1000):
        late(it, 0.9)
    assert it.left("n1", 0.0) == 10.0


def test_who_evaluates_is_given_the_time_that_it_takes_here() -> None:
    it = account(patience=1.0)
    it.round(6.0, N1)  # an evaluation
    assert late(it, 50.0) == pytest.approx(50.0, rel=0.01)
    assert it.left("n1", 0.0) == 1.0


def test_who_waits_for_others_is_blamed_for_half() -> None:
    it = account(patience=4.0)
    assert late(it, 9.0, blamed=False) == pytest.approx(9.0, rel=0.01)
    assert it.left("n1", 0.0) == pytest.approx((2 * 4.0 - (4.5 - 1.0)) / 2, rel=0.05)


@pytest.mark.parametrize(
    ("pace", "deadline", "patience"), [(0.001, 10.0, 30.0), (2.0, 10.0, 60.0), (100.0, 10.0, 900.0)]
)
def test_patience_that_is_not_configured_follows_the_pace(
    pace: float, deadline: float, patience: float
) -> None:
    it = Patience(SyncSection(deadline_s=deadline))
    for _ in range(5):
        it.round(pace, N1)
    assert it.left("n1", 0.0) == pytest.approx(patience)


async def seconds_of(rounds: int, liar: bool, **sync: Any) -> tuple[float, list[tuple[int, str]]]:
    """What rounds 5 … of four nodes on a full graph take the honest; whom n0 lost."""
    nodes, neighborhoods = cluster(("dpdl", {"lr": 0.02}), "full")
    together = mesh(nodes, neighborhoods, rounds, sync=SyncSection(**sync), heartbeat_seconds=0.02)
    if liar:
        sends_nothing(together["n1"], first=5)
    async with alive(together) as tasks:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.wait_for(asyncio.gather(*(tasks[name] for name in ("n0", "n2", "n3"))), 200)
        took = loop.time() - began
    assert all(together[name].notes.rounds == list(range(rounds)) for name in ("n0", "n2", "n3"))
    return took, together["n0"].notes.losses


@pytest.mark.virtual_time
async def test_who_shows_progress_and_sends_nothing() -> None:
    rounds, patience = (3000 if LONG else 100), 0.5
    sync = {"patience_s": patience, "deadline_s": 5.0}
    rest, none = await seconds_of(rounds, liar=False, **sync)
    took, lost = await seconds_of(rounds, liar=True, **sync)
    assert none == []
    assert {peer for _, peer in lost} == {"n1"}
    assert took <= 1.5 * rest + 2 * patience + 1.0, f"{took:.1f} s, {rest:.1f} s without the liar"
