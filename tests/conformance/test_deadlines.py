"""What is lost, and when: deadlines, patience and the policies of `[sync]`, in virtual time
(`kit.clock`). Both ends lose an edge, or none does.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from kit import clock
from kit.mesh import alive, mesh, play
from kit.toys import (
    LAYOUT,
    TALKING,
    Still,
    Toy,
    cluster,
    results,
    simulated,
    stream,
)
from node.config import MixSection, StartSection, SyncSection
from node.rounds import lockstep
from node.rounds.phase import WINDOW, StreamingPhase
from peer import codec
from peer.errors import PeersUnavailable, Unreachable
from peer.message import MAX_NOTE, Ask, IncrementalPayload, Layout, Mix, Say
from peer.session.interfaces import Incoming, Key, Role, SessionObserver
from peer.topology import GraphOptions, make_neighborhoods
from peer.transport.memory import Memory, Network
from peer.v1 import peer_pb2 as pb

pytestmark = pytest.mark.virtual_time
ROUNDS = 6
LATENCY = (0.001, 0.002)
"""Without it rounds would take next to no time, and whoever looks now and then would come too late."""


# --------------------------------------------------------------------------------------- lost edges


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  (what is waited for happens in other threads too)
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("variant", TALKING[-1:] + TALKING[:1], ids=str)
async def test_a_dead_neighbor_costs_one_deadline_and_its_edges_at_both_ends(variant):
    nodes, neighborhoods = cluster(variant, "ring")
    network = Network(1, delay=LATENCY)
    together = mesh(nodes, neighborhoods, 40, network=network, sync=SyncSection(deadline_s=1.5))
    async with alive(together) as tasks:
        await until(lambda: len(together["n1"].notes.rounds) >= 3)
        network.kill("n2")
        tasks["n2"].cancel()
        await asyncio.wait_for(asyncio.gather(tasks["n0"], tasks["n1"], tasks["n3"]), 60)
    for name in ("n1", "n3"):
        notes = together[name].notes
        assert [peer for _, peer in notes.losses] == ["n2"]
        assert notes.weights[39] == pytest.approx({name: 2 / 3, "n0": 1 / 3})
        assert notes.rounds == list(range(40))
    assert together["n0"].notes.losses == []


class Gate:
    """An algorithm that stands still at the beginning of a round until the gate is opened."""

    def __init__(self, algorithm, at):
        self.algorithm, self.at, self.here, self.go = (
            algorithm,
            at,
            clock.Event(),
            clock.Event(),
        )

    def round(self, t, view):
        if t == self.at:
            self.here.set()
            self.go.wait()
        yield from self.algorithm.round(t, view)

    def __getattr__(self, name):
        return getattr(self.algorithm, name)


async def test_an_edge_that_is_cut_is_lost_at_both_ends_and_the_mean_is_kept():
    nodes, neighborhoods = cluster(("d-psgd", {"lr": 0.1}), "ring", gate=Still)
    before = results(nodes).double().mean(0)
    gates = {
        name: Gate(node, at=3) if name in ("n0", "n1") else node for name, node in nodes.items()
    }
    network = Network(1, delay=LATENCY)
    together = mesh(gates, neighborhoods, 12, network=network, sync=SyncSection(deadline_s=1.5))
    async with alive(together) as tasks:
        await until(lambda: gates["n0"].here.is_set() and gates["n1"].here.is_set())
        network.partition(["n0"], ["n1"])
        for name in ("n0", "n1"):
            gates[name].go.set()
        await asyncio.wait_for(asyncio.gather(*tasks.values()), 60)
    for t in range(12):
        w = {name: node.notes.weights[t] for name, node in together.items()}
        assert ("n1" in w["n0"]) == ("n0" in w["n1"]) == (t < 3), t
    assert torch.allclose(results(nodes).double().mean(0), before, atol=1e-6)


class Unanswering(Memory):
    """Its answers to n0 are lost in round 3. Everything else arrives, also what it hears from
    n0.
    """

    def link(self, node_id, address):
        link = super().link(node_id, address)
        send = link.transfer

        async def transfer(messages):
            first = await anext(messages)
            header = codec.decode(pb.Header, first)
            if (node_id, header.round, header.role) == ("n0", 3, pb.ROLE_ANSWER):
                await messages.aclose()
                raise Unreachable("lost")

            async def all_of_them():
                yield first
                async for message in messages:
                    yield message

            return await send(all_of_them())

        setattr(link, "transfer", transfer)  # noqa: B010
        return link


async def test_an_answer_that_is_lost_at_one_end_costs_the_edge_at_both():
    """n1 heard n0, n0 did not hear n1; both send what is mixed. What each says it heard is what
    keeps it from being mixed at one end only."""
    nodes, neighborhoods = cluster(("dpdl", {}), "ring")
    network = Network(1, delay=LATENCY)
    transports = {
        name: (Unanswering if name == "n1" else Memory)(network, name) for name in neighborhoods
    }
    together = mesh(
        nodes, neighborhoods, 5, transports=transports, sync=SyncSection(deadline_s=2.0)
    )
    await play(together)
    weights = {name: node.notes.weights[3] for name, node in together.items()}
    assert "n1" not in weights["n0"]
    assert "n0" not in weights["n1"]
    assert any(t == 3 and "n0" in peers for t, peers, _ in together["n1"].notes.drops)


async def test_a_healed_edge_is_used_again_by_both_ends_from_the_same_round_on():
    nodes, neighborhoods = cluster(("d-psgd", {}), "ring")
    network = Network(1, delay=LATENCY)
    together = mesh(nodes, neighborhoods, 4000, network=network, sync=SyncSection(deadline_s=1.0))
    async with alive(together):
        await until(lambda: len(together["n0"].notes.rounds) >= 2)
        network.partition(["n0"], ["n1"])
        await until(lambda: together["n0"].notes.losses and together["n1"].notes.losses)
        network.heal()
        lost = together["n0"].notes.losses[-1][0]

        def rejoined(name, peer):
            weights = list(together[name].notes.weights.items())
            return [t for t, w in weights if t > lost and peer in w]

        await until(lambda: len(rejoined("n0", "n1")) > 5 and len(rejoined("n1", "n0")) > 5)
        assert rejoined("n0", "n1")[:5] == rejoined("n1", "n0")[:5]


async def test_a_restarted_node_enters_ahead_and_nobody_replays():
    variant = TALKING[-1]
    nodes, neighborhoods = cluster(variant, "ring")
    again, _ = cluster(variant, "ring")
    network = Network(1, delay=LATENCY)
    sync = SyncSection(deadline_s=1.5)
    together = mesh(nodes, neighborhoods, 3000, network=network, sync=sync)
    async with alive(together) as tasks:
        await until(lambda: len(together["n1"].notes.rounds) >= 3)
        tasks["n2"].cancel()
        await asyncio.gather(tasks["n2"], return_exceptions=True)
        await until(lambda: together["n1"].notes.losses and together["n3"].notes.losses)
        back = mesh(
            {"n2": again["n2"]}, neighborhoods, 3000, network=network, sync=sync, incarnation=2
        )["n2"]
        back.book.table |= together["n1"].book.table
        together["n1"].book.table.clear()
        together["n1"].book.table |= back.book.table
        task = asyncio.create_task(back.live())
        await until(lambda: len(back.notes.rounds) >= 5)
        entered = back.notes.rounds[0]
        assert entered > together["n1"].notes.losses[0][0]

        def first(node, peer):
            weights = list(node.notes.weights.items())
            return min((t for t, w in weights if t >= entered and peer in w), default=0)

        for name in ("n1", "n3"):
            await until(lambda name=name: first(back, name) and first(together[name], "n2"))
            assert first(back, name) == first(together[name], "n2")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_one_neighbor_alone_does_not_say_where_to_enter():
    """n1 is first to shake hands, and claims the last round but one; honest n2 and n3 come a moment
    later.
    """
    nodes, neighborhoods = cluster(("d-psgd", {}), "full", 5)
    together = mesh(nodes, neighborhoods, 1000, sync=SyncSection(deadline_s=3))
    victim, said = together["n0"], {"incarnation": 1, "now": 0.0}
    gathering = asyncio.create_task(victim.driver.wait_for_neighbors(StartSection(timeout_s=20)))
    for peer, live_from in (("n1", 999), ("n2", 7)):
        victim.session.table.membership.agree(
            peer, live_from=live_from, round=live_from - 1, **said
        )
        victim.session.table.changed.notify()
        await asyncio.wait({gathering}, timeout=0.1)
        assert not gathering.done()
        assert victim.driver._enter(0) == 0
    victim.session.table.membership.agree("n3", live_from=8, round=7, **said)
    victim.session.table.changed.notify()
    await asyncio.wait_for(gathering, 2)
    assert victim.driver._enter(0) == 7


@pytest.mark.parametrize(("first", "waits"), [(3, False), (0, True)], ids=["played before", "new"])
async def test_who_played_before_knows_by_itself_that_the_run_is_under_way(first, waits):
    """One neighbor is there, the others are gone. A new node has nothing but this one's word, and
    waits.
    """
    nodes, neighborhoods = cluster(("d-psgd", {}), "full", 5)
    late = mesh(nodes, neighborhoods, 1000, sync=SyncSection(deadline_s=0.2))["n0"]
    late.session.progress.first = first
    gathering = asyncio.create_task(late.driver.wait_for_neighbors(StartSection(timeout_s=60)))
    late.session.table.membership.agree("n1", live_from=7, round=6, incarnation=1, now=0.0)
    late.session.table.changed.notify()
    await asyncio.wait({gathering}, timeout=1.0)
    assert gathering.done() is not waits
    assert late.driver._enter(first) == first, "one neighbor's word moves nobody"
    gathering.cancel()


async def test_rounds_that_are_much_faster_than_beats_lose_no_edge():
    """What a beat said of a neighbor's round is long out of date then; that its part of each round
    came is not.
    """
    nodes, neighborhoods = cluster(("d-psgd", {}), "ring")
    together = mesh(nodes, neighborhoods, 400, heartbeat_seconds=0.01)
    async with alive(together) as tasks:
        await until(lambda: together["n0"].notes.rounds)
        for node in together.values():
            node.session.heartbeat_seconds = 60.0
        await asyncio.wait_for(asyncio.gather(*tasks.values()), 60)
    assert [node.notes.losses + node.notes.drops for node in together.values()] == [[], [], [], []]
    assert torch.equal(results(nodes), simulated(("d-psgd", {}), "ring", rounds=400))


# --------------------------------------------------------------------------------- slow is not dead


class Slow(Toy):
    """Works in chunks between which it breathes, four deadlines for each gradient."""

    __slots__ = ("chunk", "yield_point")

    chunk: float
    yield_point: Callable[[], None]

    def __call__(self, x, t, to):
        for _ in range(20):
            clock.sleep(self.chunk)
            self.yield_point()
        return super().__call__(x, t, to)


async def test_a_ten_times_slower_node_loses_no_edge_in_round_mode():
    nodes, neighborhoods = cluster(
        ("dpdl", {}), "ring", gate=lambda i: Slow(i) if i == "n1" else Toy(i)
    )
    together = mesh(
        nodes,
        neighborhoods,
        1,
        sync=SyncSection(deadline_s=1.0, patience_s=60.0),
        heartbeat_seconds=0.05,
    )
    gate = nodes["n1"].gradients
    gate.chunk, gate.yield_point = 0.2, together["n1"].compute.yield_point
    await play(together)
    assert all(node.notes.losses == [] for node in together.values())
    assert torch.equal(results(nodes), simulated(("dpdl", {}), "ring", rounds=1))


class Stuck(Toy):
    """Hangs without any sign of progress."""

    __slots__ = ("event",)

    event: Any

    def __call__(self, x, t, to):
        if t == 1 and to == "n0":
            self.event.wait()
        return super().__call__(x, t, to)


async def test_a_stuck_node_is_lost_after_the_deadline_though_it_beats():
    nodes, neighborhoods = cluster(
        ("dpdl", {}), "ring", gate=lambda i: Stuck(i) if i == "n1" else Toy(i)
    )
    nodes["n1"].gradients.event = release = clock.Event()
    together = mesh(
        nodes, neighborhoods, 4, sync=SyncSection(deadline_s=1.0), heartbeat_seconds=0.05
    )
    async with alive(together) as tasks:
        await asyncio.wait_for(asyncio.gather(tasks["n0"], tasks["n2"], tasks["n3"]), 2.5)
        release.set()
    assert (1, "n1") in together["n0"].notes.losses
    assert "n1" in {peer for _, peer in together["n2"].notes.losses}


# ---------------------------------------------------------------------------- the rest of the verbs

BLOCK = Layout((("block", (700_001,)),))


class Streamer:
    """Mixes a block in a stream while it is computed, or the same block collected."""

    def __init__(self, neighborhood, streaming, pieces=7, layout=BLOCK):
        self.neighborhood, self.streaming, self.n, self.layout = (
            neighborhood,
            streaming,
            pieces,
            layout,
        )
        self.parameters = torch.randn(layout.size, generator=stream(neighborhood.me))

    def filling(self):
        into = torch.full_like(self.parameters, float("nan"))
        return IncrementalPayload(into, self.steps(into))

    def steps(self, into):
        for here, piece in zip(
            torch.tensor_split(into, self.n),
            torch.tensor_split(self.parameters, self.n),
            strict=True,
        ):
            here.copy_(piece)
            yield len(here)

    def round(self, t, view):
        self.t = t
        said = self.filling() if self.streaming else self.parameters
        self.parameters = yield Mix("block", said, streaming=self.streaming, layout=self.layout)


@pytest.mark.parametrize("jitter", [(0.0, 0.0), (0.0, 0.01)])
async def test_a_streaming_mix_gives_the_bits_of_a_collected_one(jitter):
    neighborhoods = make_neighborhoods("full", ["n0", "n1", "n2"])
    collected = {
        name: Streamer(neighborhood, False) for name, neighborhood in neighborhoods.items()
    }
    lockstep.run(collected, neighborhoods, 3)
    streamed = {name: Streamer(neighborhood, True) for name, neighborhood in neighborhoods.items()}
    lockstep.run(streamed, neighborhoods, 3)
    assert torch.equal(results(streamed), results(collected))
    live = {name: Streamer(neighborhood, True) for name, neighborhood in neighborhoods.items()}
    await play(mesh(live, neighborhoods, 3, layout=BLOCK, network=Network(1, delay=jitter)))
    assert torch.equal(results(live), results(collected))


async def test_a_block_that_would_be_streamed_is_collected_for_a_robust_rule():
    neighborhoods, mix = make_neighborhoods("full", ["n0", "n1", "n2"]), MixSection(rule="median")
    collected = {
        name: Streamer(neighborhood, False) for name, neighborhood in neighborhoods.items()
    }
    lockstep.run(collected, neighborhoods, 2, mix=mix)
    live = {name: Streamer(neighborhood, True) for name, neighborhood in neighborhoods.items()}
    await play(mesh(live, neighborhoods, 2, layout=BLOCK, mix=mix))
    assert torch.equal(results(live), results(collected))


class Halting(Streamer):
    """Stops filling after two pieces."""

    def __init__(self, *how):
        super().__init__(*how)
        self.event, self.halted = clock.Event(), clock.Event()

    def steps(self, into):
        for k, done in enumerate(super().steps(into)):
            yield done
            if k == 1:
                self.halted.set()
                self.event.wait()


async def test_who_stalls_in_a_streaming_mix_is_lost_from_a_frame_on_and_self_takes_its_weight():
    neighborhoods = make_neighborhoods("full", ["n0", "n1", "n2"])
    big = Layout((("block", (1_000_000,)),))
    nodes: dict[str, Any] = {
        name: (Halting if name == "n1" else Streamer)(neighborhood, True, 4, big)
        for name, neighborhood in neighborhoods.items()
    }
    start = {name: node.parameters.clone() for name, node in nodes.items()}
    together = mesh(nodes, neighborhoods, 1, layout=big, sync=SyncSection(deadline_s=0.5))
    async with alive(together) as tasks:
        await asyncio.wait_for(asyncio.gather(tasks["n0"], tasks["n2"]), 20)
        nodes["n1"].event.set()
    assert any(after_header for _, _, after_header in together["n0"].notes.drops)
    first = 1 << 18  # elements of the first frame, which came from all three
    whole = sum(start[name] for name in start) / 3
    assert torch.allclose(nodes["n0"].parameters[:first], whole[:first], atol=1e-6)
    late = (start["n0"] * 2 + start["n2"]) / 3
    assert torch.allclose(nodes["n0"].parameters[-first:], late[-first:], atol=1e-6)


FRAMES = Layout((("block", (8 << 18,)),))
"""A block of eight frames."""


class Trickling(Streamer):
    """Makes some progress always, a frame at a time. `pauses`: seconds for a block, by node and
    round.
    """

    def __init__(self, neighborhood, pauses):
        super().__init__(neighborhood, True, 8, FRAMES)
        self.pauses, self.event = pauses, clock.Event()

    def steps(self, into):
        for done in super().steps(into):
            self.event.wait(self.pauses.get((self.neighborhood.me, self.t), 0) / 8)
            yield done


def trickling(neighborhoods, rounds, patience, pauses):
    nodes = {name: Trickling(neighborhood, pauses) for name, neighborhood in neighborhoods.items()}
    sync = SyncSection(deadline_s=10.0, patience_s=patience)
    return nodes, mesh(nodes, neighborhoods, rounds, layout=FRAMES, sync=sync)


async def test_patience_is_for_a_whole_phase_however_many_frames_come_in_it():
    neighborhoods = make_neighborhoods("full", ["n0", "n1", "n2"])
    nodes, together = trickling(neighborhoods, 1, 1.2, {("n1", 0): 4.8})
    async with alive(together) as tasks:
        await asyncio.wait_for(asyncio.gather(tasks["n0"], tasks["n2"]), 20)
        nodes["n1"].event.set()
    assert together["n0"].notes.losses == together["n2"].notes.losses == [(0, "n1")]


async def test_who_is_slower_by_less_than_slowest_uses_no_patience_up():
    """Everybody takes a while, n1 several times as long, round after round."""
    neighborhoods = make_neighborhoods("full", ["n0", "n1", "n2"])
    pauses = {(name, t): 0.5 if name == "n1" else 0.2 for name in neighborhoods for t in range(6)}
    _, together = trickling(neighborhoods, 6, 0.2, pauses)
    await play(together)
    assert not any(node.notes.losses for node in together.values())


class Pausing(Streamer):
    """Pauses before it mixes. `pauses`: seconds, by node and round."""

    def __init__(self, neighborhood, pauses):
        super().__init__(neighborhood, False)
        self.pauses, self.event = pauses, clock.Event()

    def round(self, t, view):
        self.event.wait(self.pauses.get((self.neighborhood.me, t), 0))
        yield from super().round(t, view)


async def test_who_waited_for_others_is_given_the_whole_patience_for_its_own_work():
    """On a line: in round 2 n0 waits for n1, while that waits in round 1 for n2, and that in round
    0 for n3; and then while n1 works itself."""
    line = list(pairwise(["n0", "n1", "n2", "n3"]))
    neighborhoods = make_neighborhoods("edges", ["n0", "n1", "n2", "n3"], GraphOptions(edges=line))
    nodes = {
        name: Pausing(neighborhood, {("n3", 0): 2.0, ("n1", 2): 2.0})
        for name, neighborhood in neighborhoods.items()
    }
    together = mesh(
        nodes, neighborhoods, 3, layout=BLOCK, sync=SyncSection(deadline_s=10.0, patience_s=3.0)
    )
    await play(together)
    assert not any(node.notes.losses for node in together.values())


async def test_seconds_in_which_a_node_stands_still_are_no_test_of_patience():
    """The whole loop does, longer than patience and deadline, while a neighbor is waited for."""
    neighborhoods = make_neighborhoods("full", ["n0", "n1"])
    nodes: dict[str, Any] = {
        name: (Halting if name == "n1" else Streamer)(neighborhood, True, 7)
        for name, neighborhood in neighborhoods.items()
    }
    together = mesh(
        nodes, neighborhoods, 1, layout=BLOCK, sync=SyncSection(deadline_s=1.0, patience_s=1.5)
    )
    async with alive(together) as tasks:
        session = together["n0"].session
        while not (nodes["n1"].halted.is_set() and "n1" in session.progress.waiting_for):
            await session.table.changed.wait(0.01)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, clock.Loop)
        loop.jump(2.0)
        for _ in range(10):  # it looks after its neighbors again
            session.table.changed.notify()
            await asyncio.sleep(0)
        nodes["n1"].event.set()
        await asyncio.wait_for(asyncio.gather(*tasks.values()), 20)
    assert not together["n0"].notes.losses


async def test_a_stream_that_began_too_late_to_be_folded_holds_nobody_up_when_its_phase_is_over():
    neighborhoods = make_neighborhoods("full", ["n0", "n1"])
    together = mesh(
        {name: Streamer(neighborhood, True) for name, neighborhood in neighborhoods.items()},
        neighborhoods,
        1,
        layout=BLOCK,
    )
    node = together["n0"]
    verb = Mix("block", torch.ones(BLOCK.size), layout=BLOCK)
    form = node.driver._form(verb, Role.MIX)
    outgoing = await node.driver._outgoing(verb)
    phase = StreamingPhase(node.session.transfers, Key(0, 0, Role.MIX), form, outgoing)
    node.session.transfers.begin(0)
    phase.open(["n1"])
    late, frame = phase.receive("n1", Incoming(round=0)), memoryview(bytes(1 << 10))

    async def writing():
        for k in range(2 * WINDOW):
            await late.write(k << 10, frame)

    writer = asyncio.create_task(writing())
    await asyncio.wait([writer], timeout=0.1)
    assert not writer.done(), "its window is full"
    phase.close()
    await asyncio.wait_for(writer, 5)
    for each in together.values():
        each.compute.stop()
        await each.compute.join(5.0)


class Sayer:
    """Says its name's number and keeps the sum of what it hears."""

    def __init__(self, neighborhood):
        self.neighborhood, self.parameters = neighborhood, torch.zeros(LAYOUT.size)

    def round(self, t, view):
        heard = yield Say("number", torch.full((LAYOUT.size,), float(self.neighborhood.me[1:])))
        assert list(heard) == sorted(heard)
        self.parameters = sum(heard.values())


async def test_say_hears_every_neighbor_in_sorted_order():
    neighborhoods = make_neighborhoods("full", [f"n{i}" for i in range(5)])
    nodes = {name: Sayer(neighborhood) for name, neighborhood in neighborhoods.items()}
    await play(mesh(nodes, neighborhoods, 2))
    assert [float(nodes[name].parameters[0]) for name in sorted(nodes)] == [10, 9, 8, 7, 6]


class Noter:
    """Writes a note on what it says and asks; every second node writes none."""

    def __init__(self, neighborhood):
        self.me, self.parameters = neighborhood.me, torch.zeros(LAYOUT.size)
        self.notes = []

    def round(self, t, view):
        note = f"{self.me} {t}".encode() if int(self.me[1:]) % 2 else b""
        said = yield Say("number", self.parameters, note=note)
        asked = yield Ask("number", self.parameters, lambda peer, x: x, note=note * 2)
        self.notes.append((said.notes, asked.notes))


async def test_notes_reach_the_neighbors_in_both_drivers():
    neighborhoods = make_neighborhoods("full", ["n0", "n1", "n2", "n3"])
    alone, live = ({name: Noter(it) for name, it in neighborhoods.items()} for _ in range(2))
    lockstep.run(alone, neighborhoods, 2)
    await play(mesh(live, neighborhoods, 2))
    assert live["n0"].notes[1] == (
        {"n1": b"n1 1", "n3": b"n3 1"},
        {"n1": b"n1 1n1 1", "n3": b"n3 1n3 1"},
    )
    assert {name: it.notes for name, it in live.items()} == {
        name: it.notes for name, it in alone.items()
    }


def test_a_note_that_is_too_long_is_refused_where_it_is_written():
    with pytest.raises(ValueError, match="4096"):
        Say("number", torch.zeros(1), note=bytes(MAX_NOTE + 1))


@pytest.mark.parametrize(
    ("weights", "rule", "why"),
    [
        ({"n0": -0.1}, "mean", "not negative"),
        ({"n0": float("inf")}, "mean", "finite"),
        ({"n0": float("nan")}, "mean", "finite"),
        ({"n0": 1.0}, "median", "can't follow the rule median"),
    ],
)
def test_weights_that_are_none_are_refused_where_they_are_written(weights, rule, why):
    with pytest.raises(ValueError, match=why):
        Mix("block", torch.zeros(1), rule, weights=weights)


class Weigher(Streamer):
    """Mixes by weights of its own, of which one neighbor has none."""

    def round(self, t, view):
        weights = {"n0": 0.5, "n1": 0.25, "n2": 0.0, "n3": 0.75}
        said = self.filling() if self.streaming else self.parameters
        self.parameters = yield Mix(
            "block", said, streaming=self.streaming, layout=self.layout, weights=weights
        )


@pytest.mark.parametrize("mix", [MixSection(), MixSection(rule="median")], ids=["W", "median"])
async def test_a_mix_by_its_own_weights_streams_whatever_the_run_says(mix):
    neighborhoods = make_neighborhoods("ring", ["n0", "n1", "n2", "n3"])
    collected = {name: Weigher(it, False) for name, it in neighborhoods.items()}
    before = {name: it.parameters for name, it in collected.items()}
    lockstep.run(collected, neighborhoods, 1, mix=mix)
    expected = (0.5 * before["n0"] + 0.25 * before["n1"] + 0.75 * before["n3"]) / 1.5
    assert torch.allclose(collected["n0"].parameters, expected, atol=1e-6)
    live = {name: Weigher(it, True) for name, it in neighborhoods.items()}
    together = mesh(live, neighborhoods, 1, layout=BLOCK, mix=mix)
    await play(together)
    assert torch.equal(results(live), results(collected))
    assert together["n0"].notes.weights[0] == pytest.approx({"n0": 1 / 3, "n1": 1 / 6, "n3": 0.5})


class Poisoner(Streamer):
    def round(self, t, view):
        bad = self.parameters.clone()
        bad[-1] = float("nan")
        yield Mix("block", bad, layout=BLOCK)


class Rejections(SessionObserver):
    def __init__(self):
        self.rejections: Counter[tuple[str, int]] = Counter()

    def rejected(self, peer, code):
        self.rejections[peer, code] += 1


async def test_a_tensor_that_is_not_finite_is_refused_and_reaches_nobody():
    neighborhoods = make_neighborhoods("ring", ["n0", "n1", "n2"])
    nodes = {
        name: (Poisoner if name == "n1" else Streamer)(neighborhood, False)
        for name, neighborhood in neighborhoods.items()
    }
    together = mesh(nodes, neighborhoods, 1, layout=BLOCK, sync=SyncSection(deadline_s=1.0))
    together["n1"].driver.honest = False  # it lies; who diverges itself stops before it says so
    told = together["n0"].session.table.observer = Rejections()
    async with alive(together) as tasks:
        await asyncio.wait_for(asyncio.gather(tasks["n0"], tasks["n2"]), 20)
    assert told.rejections == {("n1", pb.CODE_MALFORMED): 1}, "and its sender is counted, once"
    for name in ("n0", "n2"):
        assert torch.isfinite(nodes[name].parameters).all()
        assert "n1" not in together[name].notes.weights[0]


class Disagreeing(Streamer):
    def round(self, t, view):
        self.parameters = yield Mix("another", self.parameters, layout=BLOCK)


async def test_another_kind_in_the_same_phase_is_refused_not_waited_out():
    neighborhoods = make_neighborhoods("ring", ["n0", "n1", "n2"])
    nodes = {
        name: (Disagreeing if name == "n1" else Streamer)(neighborhood, False)
        for name, neighborhood in neighborhoods.items()
    }
    together = mesh(nodes, neighborhoods, 1, layout=BLOCK, sync=SyncSection(deadline_s=300.0))
    async with alive(together) as tasks:
        await asyncio.wait_for(asyncio.gather(tasks["n0"], tasks["n2"]), 20)
    assert set(together["n0"].notes.weights[0]) == {"n0", "n2"}


# --------------------------------------------------------------------------------- waiting policies


async def test_quorum_goes_on_with_a_stalled_third_node():
    nodes, neighborhoods = cluster(
        ("dpdl", {}), "full", 4, gate=lambda i: Stuck(i) if i == "n1" else Toy(i)
    )
    nodes["n1"].gradients.event = release = clock.Event()
    sync = SyncSection(mode="quorum", quorum=0.6, deadline_s=60.0)
    together = mesh(nodes, neighborhoods, 6, sync=sync)
    async with alive(together) as tasks:
        await asyncio.wait_for(asyncio.gather(tasks["n0"], tasks["n2"], tasks["n3"]), 20)
        release.set()
    assert together["n0"].notes.losses == []


class Late(Streamer):
    """Its header goes at once, its block later."""

    def steps(self, into):
        clock.sleep(0.3)
        yield from super().steps(into)


async def test_quorum_waits_for_whole_blocks_of_its_share():
    neighborhoods = make_neighborhoods("full", ["n0", "n1", "n2", "n3", "n4"])
    nodes: dict[str, Any] = {
        name: (Late if name == "n1" else Streamer)(neighborhood, True)
        for name, neighborhood in neighborhoods.items()
    }
    nodes |= {name: Gate(nodes[name], at=0) for name in ("n3", "n4")}
    together = mesh(
        nodes,
        neighborhoods,
        1,
        layout=BLOCK,
        sync=SyncSection(mode="quorum", quorum=0.5, deadline_s=60.0),
    )
    async with alive(together) as tasks:
        await until(lambda: 0 in together["n0"].notes.weights)
        for name in ("n3", "n4"):
            nodes[name].go.set()
        await asyncio.wait_for(asyncio.gather(*tasks.values()), 20)
    assert set(together["n0"].notes.weights[0]) == {"n0", "n1", "n2"}
    assert together["n0"].notes.drops == [(0, {"n3", "n4"}, False)]


async def test_async_mixes_what_was_heard_last_where_round_would_stream():
    class Slow(Toy):
        __slots__ = ()

        def __call__(self, x, t, to):
            clock.sleep(0.01)
            return super().__call__(x, t, to)

    nodes, neighborhoods = cluster(("dsgd-adam", {"lr": 0.05}), "ring", gate=Slow)
    together = mesh(nodes, neighborhoods, 40, sync=SyncSection(mode="async", deadline_s=5.0))
    await play(together)
    mixed = [
        len(weight) - 1 for node in together.values() for weight in node.notes.weights.values()
    ]
    assert sum(mixed) > len(mixed), "more than one of two neighbors in the mean"


async def test_async_never_waits_and_uses_nothing_older_than_tau():
    class Clock:
        """Says its round; what it hears is never older than τ."""

        def __init__(self, neighborhood):
            self.neighborhood, self.parameters, self.ages = (
                neighborhood,
                torch.zeros(LAYOUT.size),
                [],
            )

        def round(self, t, view):
            clock.sleep(0.02)
            heard = yield Say("round", torch.full((LAYOUT.size,), float(t)))
            self.ages += [t - float(x[0]) for x in heard.values()]

    neighborhoods = make_neighborhoods("ring", ["n0", "n1", "n2"])
    nodes = {name: Clock(neighborhood) for name, neighborhood in neighborhoods.items()}
    sync = SyncSection(mode="async", staleness=3, deadline_s=5.0)
    together = mesh(nodes, neighborhoods, 60, sync=sync, network=Network(3, delay=(0.0, 0.01)))
    await play(together)
    ages = [age for node in nodes.values() for age in node.ages]
    assert len(ages) > 10
    assert max(ages) <= 3


async def test_too_few_neighbors_at_the_start_is_one_sentence():
    nodes, neighborhoods = cluster(("dpdl", {}), "ring")
    lonely = mesh({"n0": nodes["n0"]}, neighborhoods, 2)["n0"]
    with pytest.raises(PeersUnavailable, match=r"Only 0 of 2 neighbors .* n1: .* n3: "):
        await lonely.live(start=StartSection(timeout_s=0.3, min_neighbors=1))


async def test_questions_and_models_travel_as_copies():
    class Vandal(Toy):
        __slots__ = ()

        def __call__(self, x, t, to):
            released = super().__call__(x, t, to)
            x.zero_() if to != self._me else None
            return released

    variant = ("dpdl", {"lr": 0.02})
    nodes, neighborhoods = cluster(variant, "ring", gate=Vandal)
    await play(mesh(nodes, neighborhoods, ROUNDS))
    assert torch.equal(results(nodes), simulated(variant, "ring"))
