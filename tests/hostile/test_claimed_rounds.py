"""No neighbor moves a node to another round: a claim counts where a strict majority of all
neighbors, two at least, make it, as far as it is plausible."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import peer.membership
from kit.lying_nodes import Lie, claim
from kit.mesh import alive, mesh
from kit.toys import cluster
from node.config import SyncSection
from peer.membership import FASTER, Heartbeat, Membership, majority
from peer.transport.memory import Network

ROUNDS = 60
SECONDS = 60.0


async def until(condition: Any) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@dataclass
class Played:
    rounds: dict[str, list[int]]
    """By honest node."""
    too_far: list[tuple[str, int]] = field(default_factory=list)
    """(node, round) where one was moved beyond the round of every honest node."""


async def played(lie: Lie, mode: str, graph: str, round: int) -> Played:
    """Four nodes, of which n1 is the liar."""
    nodes, neighborhoods = cluster(("d-psgd", {}), graph)
    sync = SyncSection(mode=mode, deadline_s=2.0)  # type: ignore[arg-type]
    together = mesh(nodes, neighborhoods, ROUNDS, sync=sync, heartbeat_seconds=0.02)
    honest = {name: node for name, node in together.items() if name != "n1"}
    found = Played({name: node.notes.rounds for name, node in honest.items()})
    liar = together["n1"]
    claim(liar, lie, round, after=lambda: len(liar.notes.rounds) >= 5)

    def watch(name: str) -> Callable[[int, int], None]:
        def skipped(first: int, last: int) -> None:
            if last > max(node.session.progress.round for node in honest.values()):
                found.too_far.append((name, last))

        return skipped

    for name, node in honest.items():
        node.notes.skipped = watch(name)
    async with alive(together) as tasks:
        await asyncio.wait_for(asyncio.gather(*(tasks[name] for name in honest)), SECONDS)
    return found


@pytest.mark.virtual_time
@pytest.mark.parametrize("graph", ["ring", "full"])
@pytest.mark.parametrize("mode", ["round", "async"])
@pytest.mark.parametrize("lie", Lie)
async def test_one_liar_costs_no_round(lie: Lie, mode: str, graph: str) -> None:
    found = await played(lie, mode, graph, ROUNDS - 1)
    assert found.rounds == {name: [*range(ROUNDS)] for name in found.rounds}


@pytest.mark.virtual_time
@pytest.mark.parametrize("graph", ["ring", "full"])
@pytest.mark.parametrize("lie", Lie)
@pytest.mark.parametrize("round", [ROUNDS - 1, (1 << 31) - 5])
async def test_in_quorum_nobody_is_moved_beyond_the_honest(
    lie: Lie, graph: str, round: int
) -> None:
    """Whoever is behind there goes where its neighbors are, also without a liar."""
    found = await played(lie, "quorum", graph, round)
    assert found.too_far == []
    assert all(rounds[-1] == ROUNDS - 1 for rounds in found.rounds.values())


@pytest.mark.virtual_time
@pytest.mark.parametrize("mode", ["round", "quorum"])
async def test_power_of_the_majority(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """With one claim taken for enough the liar has its way."""
    monkeypatch.setattr(peer.membership, "majority", lambda degree: 1)
    found = await played(
        Lie.IN_BEATS if mode == "quorum" else Lie.AT_THE_START, mode, "ring", ROUNDS - 1
    )
    assert any(len(rounds) < ROUNDS - 1 for rounds in found.rounds.values())


CLAIMS = st.integers(0, 1 << 62)
TOLD = st.lists(
    st.tuples(st.sampled_from(["agree", "beat", "transfer", "lose"]), CLAIMS), max_size=20
)


def agree(it: Membership, peer: str, live_from: int, now: float) -> None:
    it.agree(peer, live_from=live_from, incarnation=1, round=max(-1, live_from - 2), now=now)


@settings(max_examples=300, deadline=None)
@given(
    degree=st.integers(1, 8),
    t=st.integers(0, 1000),
    told=TOLD,
    heartbeats=st.booleans(),
    quickest=st.floats(1e-3, 10),
)
def test_whatever_one_neighbor_says(
    degree: int, t: int, told: list[tuple[str, int]], heartbeats: bool, quickest: float
) -> None:
    """The others are in round t + 1 at most, so this node, about to enter t, is moved by one round
    at most.
    """
    liar, *honest = (f"n{k}" for k in range(degree))
    it, now = Membership.of("me", [liar, *honest], 10.0), 1.0
    for k, name in enumerate(honest):
        agree(it, name, k % (t + 2), now=0.0)
        it.entered(name, t + k % 2, now=1.0)
    for order, (what, value) in enumerate(told):
        now += 1.0
        if what == "agree":
            agree(it, liar, value, now)
        elif what == "transfer":
            it.entered(liar, value, now)
        elif what == "lose":
            it.lose(liar, "")
        else:
            claim = Heartbeat(
                incarnation=1,
                order=order,
                round=value,
                phase=0,
                progress=order,
                waiting_for=frozenset(),
                idle=0.0,
                names_me=True,
            )
            it.heartbeat(liar, claim, now)
        assert it.most_have_reached(now, quickest=quickest, heartbeats=heartbeats) <= t + 2


def test_a_claim_counts_as_far_as_rounds_can_have_passed() -> None:
    """Two neighbors of two claim round 900; a hundred quick rounds can have passed since their last
    transfers.
    """
    it = Membership.of("me", ["a", "b"], 10.0)
    for name in ("a", "b"):
        agree(it, name, 0, now=0.0)
        it.entered(name, 50, now=1.0)
        it.lose(name, "The link was cut.")
        agree(it, name, 900, now=2.0)
    quickest = FASTER * 0.01
    assert it.most_have_reached(2.0, quickest=quickest, heartbeats=False) == pytest.approx(
        50 + 2 + 100, abs=1
    )
    assert it.most_have_reached(10.0, quickest=quickest, heartbeats=False) == pytest.approx(
        50 + 2 + 900 - 52, abs=1
    )
    assert it.most_have_reached(2.0, quickest=None, heartbeats=False) == 900, (
        "nothing is known of how long rounds take"
    )


@pytest.mark.parametrize(("degree", "needed"), [(1, 2), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4)])
def test_a_majority_is_of_all_neighbors_and_never_one_alone(degree: int, needed: int) -> None:
    assert majority(degree) == needed


@pytest.mark.virtual_time
async def test_a_lone_pair_heals_by_waiting() -> None:
    """Two nodes of a ring whose other neighbor is gone, cut apart and healed: who is behind plays
    its rounds alone, and is waited for at the round agreed on. Nobody skips."""
    nodes, neighborhoods = cluster(("d-psgd", {}), "ring")
    network = Network(1, delay=(0.001, 0.002))
    sync = SyncSection(deadline_s=1.0)
    together = mesh(nodes, neighborhoods, 1_000_000, network=network, sync=sync)
    async with alive(together) as tasks:
        await until(lambda: len(together["n0"].notes.rounds) >= 2)
        for gone in ("n2", "n3"):
            network.kill(gone)
            tasks[gone].cancel()
        network.partition(["n0"], ["n1"])
        await until(lambda: together["n0"].notes.losses and together["n1"].notes.losses)
        apart = max(len(together[name].notes.rounds) for name in ("n0", "n1"))
        await until(
            lambda: max(len(together[name].notes.rounds) for name in ("n0", "n1")) > apart + 5
        )
        network.heal()

        def together_again(name: str, peer: str) -> int:
            return max((t for t, w in together[name].notes.weights.items() if peer in w), default=0)

        await until(
            lambda: (
                together_again("n0", "n1") > apart + 5 and together_again("n1", "n0") > apart + 5
            )
        )
        for name in ("n0", "n1"):
            assert together[name].notes.rounds == list(range(len(together[name].notes.rounds)))
