"""The daemon's driver: plays one node's conversation with its neighbours over a session.

`simulate.py` is the same in a plain loop. Here every verb becomes transfers, and waiting is a policy (`[sync]`):
round (all live neighbours, each with a deadline that measures progress), quorum (a share of them), async (nobody).
All tensor work runs in the compute thread; this file only waits, counts and decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from math import ceil
from typing import Any

from torch import Tensor

from node.algorithms import Algorithm
from node.compute import Compute
from node.config import StartSection, SyncSection
from node.maths.mixing import accumulator, agreed, consensus_distance, fold, mixed
from node.payload import Said, Slot, Stream, parts_of, shape_of
from peer.codec import frames
from peer.errors import PeersUnavailable
from peer.exchange import Empty, Nowhere, Payload, Sink, names
from peer.failpoint import failpoint
from peer.mailbox import Key, Role, Shape
from peer.message import Ask, Conversation, Heard, Layout, Mix, Peer, Say, Verb, Withheld
from peer.neighborhood import Neighborhood
from peer.session import Session


class Watcher:
    """What the driver tells whoever watches. Every method does nothing; the daemon overrides them."""

    def phase(self, t: int, phase: int, kind: str, seconds: float) -> None: ...

    def waited(self, peer: Peer, seconds: float) -> None: ...

    def lost(self, t: int, phase: int, peer: Peer, why: str) -> None: ...

    def mixed(self, t: int, weight: Mapping[Peer, float], distance: float) -> None: ...

    def dropped(self, t: int, phase: int, peers: frozenset[Peer], after_header: bool) -> None: ...

    def round(self, t: int, seconds: float) -> None: ...

    def skipped(self, first: int, last: int) -> None: ...


class Driver:
    """Create it on the event loop's thread; `gather`, then `run`."""

    def __init__(
        self,
        *,
        algorithm: Algorithm,
        hood: Neighborhood,
        layout: Layout,
        session: Session,
        compute: Compute,
        sync: SyncSection,
        rounds: int,
        watcher: Watcher | None = None,
        after_round: Callable[[int], None] = lambda t: None,
    ) -> None:
        self.algorithm, self.hood, self.layout = algorithm, hood, layout
        self.session, self.membership, self.compute = session, session.membership, compute
        self.sync, self.rounds, self.after_round = sync, rounds, after_round
        self.watcher = watcher or Watcher()
        self.heard: frozenset[Peer] = frozenset()
        """Whom this node heard in its previous phase."""
        self._fresh: dict[tuple[int, Role, Peer], tuple[int, Any]] = {}
        """async: the newest payload of each phase, role and neighbour, with its round."""
        self._sending: dict[tuple[int, Role, Peer], asyncio.Task[None]] = {}
        self._of_round: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------------------------------------- life

    async def gather(self, start: StartSection) -> int:
        """Waits for the neighbours and returns the round to enter.

        Raises:
            PeersUnavailable: fewer than `min_neighbours` shook hands until the timeout.
        """
        around, position = frozenset(self.hood.neighbours), self.session.position
        end = self.session.now + start.timeout_s
        while (missing := around - self.membership.agreed().keys()) and self.session.now < end:
            position.waiting_for = missing
            await self.session.changed.wait(end - self.session.now)
        position.waiting_for = frozenset()
        if len(around - missing) < min(start.min_neighbours, len(around)):
            raise PeersUnavailable(
                f"Only {len(around - missing)} of {len(around)} neighbours shook hands within {start.timeout_s:g} s "
                f"({names(missing)} did not); start them, or lower start.min_neighbours."
            )
        return max([position.first, min(self.membership.agreed().values(), default=0)])

    async def run(self, first: int) -> None:
        """Plays the rounds first … rounds − 1."""
        async with asyncio.TaskGroup() as self._tasks:
            t = first
            while t < self.rounds:
                t = self._enter(t)
                await self._round(t)
                t += 1
            self._cancel(set(self._of_round) | set(self._sending.values()))
        self.session.position.first = self.rounds
        self.session.end()

    async def linger(self, seconds: float) -> None:
        """After the last round: stays reachable until every neighbour is done too, or gone."""
        end = self.session.now + seconds
        while self.membership.agreed() and self.session.now < end:
            await self.session.changed.wait(end - self.session.now)

    def _enter(self, t: int) -> int:
        """t, or the round in which the first edge is used again if this node is alone and far behind."""
        later = min((r for r in self.membership.agreed().values()), default=t)
        if self.membership.live(t) or later <= t + 2 or later >= self.rounds:
            return t
        self.watcher.skipped(t, later - 1)
        return later

    async def _round(self, t: int) -> None:
        began = self.session.now
        self.session.begin(t)
        failpoint("round_start")
        self._live = self.membership.live(t)
        newly = frozenset(peer for peer, first in self.membership.agreed().items() if first == t)
        self.heard = (self.heard | newly) & self._live
        talk, phase = self.algorithm.round(t), 0
        verb = await self.compute.own(_advance, talk, None)
        while verb is not None:
            since = self.session.now
            reply = await self._speak(t, phase, verb)
            self.watcher.phase(t, phase, verb.kind, self.session.now - since)
            verb = await self.compute.own(_advance, talk, reply)
            phase += 1
        if self.sync.mode != "async":
            self._cancel(self._of_round)
        failpoint("before_round_commit")
        await self.compute.own(self.after_round, t)
        self.watcher.round(t, self.session.now - began)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._tasks.create_task(work)
        self._of_round.add(task)
        task.add_done_callback(self._of_round.discard)
        return task

    def _cancel(self, tasks: Iterable[asyncio.Task[None]]) -> None:
        for task in list(tasks):
            task.cancel()

    # ------------------------------------------------------------------------------------------------ verbs

    async def _speak(self, t: int, phase: int, verb: Verb) -> Any:
        match verb:
            case Say():
                return await self._say(t, phase, verb)
            case Ask():
                return await self._ask(t, phase, verb)
            case Mix(streaming=True):
                return await self._stream(t, phase, verb)
            case Mix():
                return await self._mix(t, phase, verb)

    async def _say(self, t: int, phase: int, verb: Say[Tensor]) -> Heard[Any]:
        exchange = Exchange(self, Key(t, phase, Role.SAY), verb, self._said(verb))
        await exchange.run(self._present(t), self._live)
        return exchange.heard(self.hood.neighbours)

    async def _ask(self, t: int, phase: int, verb: Ask[Tensor]) -> Heard[Any]:
        questions = Exchange(self, Key(t, phase, Role.QUESTION), verb, self._said(verb), finite=False)
        layout = verb.answer_layout or questions.layout
        answers = Exchange(self, Key(t, phase, Role.ANSWER), verb, None, layout=layout)
        answered: set[Peer] = set()

        async def answer(peer: Peer) -> None:
            try:
                released = await self.compute.answer(verb.answer, peer, questions.take(peer))
            except Withheld:
                served = await answers.deliver(peer, Empty(), round=questions.rounds[peer], withheld=True)
            else:
                said = Said(released, layout, self.compute)
                served = await answers.deliver(peer, said, round=questions.rounds[peer])
            failpoint("after_answer")
            if served:
                answered.add(peer)
            else:
                self._lose(t, phase, peer, "It refused an answer.")
            self.session.changed.notify()

        questions.on_done = lambda peer: self._send_once(phase, Role.ANSWER, peer, answer(peer))
        present = self._present(t)
        answers.open(self._live)
        questions.open(self._live)
        questions.send(present)
        await self._wait(t, phase, present, lambda peer: answers.came(peer) and peer in answered, answers.came)
        answers.close()
        self.heard = answers.all_heard()
        return answers.heard(self.hood.neighbours)

    async def _mix(self, t: int, phase: int, verb: Mix[Tensor]) -> Any:
        assert verb.rule == "mean", f"no rule {verb.rule!r}"
        said = self._said(verb)
        exchange = Exchange(self, Key(t, phase, Role.MIX), verb, said)
        await exchange.run(self._present(t), self._live, heard=self.heard)
        came = exchange.all_heard()
        keep = self._keep(t, phase, came, exchange.said_heard)
        self.heard = came
        weight = self.hood.without(frozenset(self.hood.neighbours) - keep).weight
        failpoint("before_aggregate")
        reply, distance = await self.compute.own(self._fold, verb, weight, exchange)
        failpoint("after_aggregate")
        self.watcher.mixed(t, weight, distance)
        return reply

    def _fold(self, verb: Mix[Tensor], weight: Mapping[Peer, float], exchange: Exchange) -> tuple[Any, float]:
        assert exchange.said is not None
        tuple_or_vector = exchange.said.flat.float()
        own: Any = tuple_or_vector.chunk(exchange.parts) if isinstance(verb.tensors, tuple) else tuple_or_vector
        payloads = {peer: own if peer == self.hood.me else exchange.take(peer) for peer in weight}
        parameters = [it[0] if isinstance(it, tuple) else it for it in payloads.values()]
        return mixed(weight, payloads), consensus_distance(parameters)

    async def _stream(self, t: int, phase: int, verb: Mix[Tensor]) -> Tensor:
        """Frames are folded in sorted order of peers as they come; what is lost on the way goes to self."""
        assert verb.rule == "mean", f"a streaming Mix has no rule {verb.rule!r}"
        said, me = self._said(verb), self.hood.me
        exchange = Exchange(self, Key(t, phase, Role.MIX), verb, said, streaming=True)
        present = self._present(t)
        exchange.open(self._live)
        exchange.send(self._live, self.heard)
        await self._wait(t, phase, present, lambda peer: peer in exchange.said_heard, exchange.came)
        partners = set(self._keep(t, phase, frozenset(exchange.said_heard), exchange.said_heard))
        exchange.ignore(set(exchange.streams) - partners)
        weight = dict(self.hood.without(frozenset(self.hood.neighbours) - partners).weight)
        into = accumulator(said.flat)
        size = said.flat.itemsize
        for offset, length in frames(said.flat.nbytes):
            await said.until(offset + length)
            await self._wait(t, phase, frozenset(partners), lambda peer: exchange.streams[peer].waiting, exchange.came)
            gone = frozenset(peer for peer in partners if not exchange.streams[peer].waiting)
            if gone:
                self.watcher.dropped(t, phase, gone, True)
                exchange.ignore(gone)
                partners -= gone
                weight[me] += sum(weight.pop(peer) for peer in sorted(gone))
            place = slice(offset // size, (offset + length) // size)
            frame = {peer: exchange.streams[peer].take() for peer in partners} | {me: said.flat[place]}
            await self.compute.own(_fold_frame, into[place], dict(weight), frame)
        await self._wait(t, phase, frozenset(partners), exchange.served.__contains__, exchange.came)
        exchange.close()
        self.heard = frozenset(partners)
        self.watcher.mixed(t, weight, float("nan"))
        return into

    def _keep(self, t: int, phase: int, came: frozenset[Peer], said: Mapping[Peer, frozenset[Peer]]) -> frozenset[Peer]:
        """Whom to mix with: in round mode those that both ends agree on; otherwise all that came."""
        keep = came
        if self.sync.mode == "round":
            keep = agreed(self.hood.me, self.heard, {peer: said[peer] for peer in came})
        if self._live - keep:
            self.watcher.dropped(t, phase, self._live - keep, False)
        return keep

    # ---------------------------------------------------------------------------------------------- waiting

    def _present(self, t: int) -> frozenset[Peer]:
        """Whom to wait for: live when the round began, and still."""
        return self._live & self.membership.live(t)

    async def _wait(
        self,
        t: int,
        phase: int,
        peers: frozenset[Peer],
        done: Callable[[Peer], bool],
        came: Callable[[Peer], bool],
    ) -> None:
        """Until every peer is done, or lost; by the policy of `[sync]` perhaps for fewer of them."""
        if self.sync.mode == "async":
            return
        enough = ceil(self.sync.quorum * len(peers)) if self.sync.mode == "quorum" else len(peers) + 1
        began, position = self.session.now, self.session.position
        self.membership.start_waiting(peers, began)
        waiting = peers
        while True:
            still = frozenset(peer for peer in peers & self.membership.live(t) if not done(peer))
            for peer in sorted(waiting - still):
                self.watcher.waited(peer, self.session.now - began)
            waiting = position.waiting_for = still
            if not waiting or sum(1 for peer in peers if came(peer)) >= enough:
                break
            for peer in sorted(waiting):
                if self.membership.overdue(peer, self.session.now):
                    self._lose(t, phase, peer, f"It made no progress for {self.membership.deadline:g} s.")
            next_look = min(self.membership.until(peer) for peer in waiting) - self.session.now
            await self.session.changed.wait(max(0.001, next_look + 0.001))
        position.waiting_for = frozenset()

    def _lose(self, t: int, phase: int, peer: Peer, why: str) -> None:
        if peer in self.membership.live(t):
            self.session.lose(peer, why)
            self.watcher.lost(t, phase, peer, why)

    # --------------------------------------------------------------------------------------------- payloads

    def _said(self, verb: Verb) -> Said:
        said = Said(verb.tensors, verb.layout or self.layout, self.compute)
        if not said.complete:
            self._spawn(said.pull())
        return said

    def _send_once(self, phase: int, role: Role, peer: Peer, work: Coroutine[Any, Any, None]) -> None:
        """Sends in a task of the round. async: a neighbour that is still being sent the previous one is left out."""
        before = self._sending.get((phase, role, peer))
        if self.sync.mode == "async" and before is not None and not before.done():
            work.close()
            return
        self._sending[phase, role, peer] = self._spawn(work)


class Exchange:
    """One phase and role: what comes from each neighbour, and what is sent to it. It is the session's `Inbox`."""

    def __init__(
        self,
        driver: Driver,
        key: Key,
        verb: Verb,
        said: Said | None,
        *,
        layout: Layout | None = None,
        finite: bool = True,
        streaming: bool = False,
    ) -> None:
        self.driver, self.key, self.verb, self.said, self.finite = driver, key, verb, said, finite
        self.layout = layout or verb.layout or driver.layout
        self.parts = 1 if key.role is Role.ANSWER else parts_of(verb.tensors)
        self.shape: Shape = shape_of(verb.kind, self.layout, self.parts)
        self.said_heard: dict[Peer, frozenset[Peer]] = {}
        self.rounds: dict[Peer, int] = {}
        """The sender's round, of each header."""
        self.served: set[Peer] = set()
        self.streams: dict[Peer, Stream] = {}
        self.on_done: Callable[[Peer], None] = lambda peer: None
        self._streaming = streaming
        self._slots: dict[Peer, Slot | None] = {}

    async def run(self, wait_for: frozenset[Peer], live: frozenset[Peer], heard: frozenset[Peer] = frozenset()) -> None:
        """Opens the phase, sends to all who were live, waits as the policy says, closes."""
        self.open(live)
        self.send(live, heard)
        both = lambda peer: self.came(peer) and peer in self.served  # noqa: E731
        await self.driver._wait(self.key.round, self.key.phase, wait_for, both, self.came)
        self.close()

    def open(self, peers: frozenset[Peer]) -> None:
        self.driver.session.open(self.key, self.shape, peers, self)

    def close(self) -> None:
        self.driver.session.shut(self.key)

    def send(self, peers: Iterable[Peer], heard: frozenset[Peer] = frozenset()) -> None:
        for peer in sorted(peers):
            self.driver._send_once(self.key.phase, self.key.role, peer, self._serve(peer, heard))

    async def _serve(self, peer: Peer, heard: frozenset[Peer]) -> None:
        assert self.said is not None
        if await self.deliver(peer, self.said, heard=heard):
            self.served.add(peer)
            self.driver.session.changed.notify()
        else:
            self.driver._lose(self.key.round, self.key.phase, peer, "It refused what was sent.")

    async def deliver(
        self,
        peer: Peer,
        payload: Payload,
        *,
        round: int | None = None,
        heard: frozenset[Peer] = frozenset(),
        withheld: bool = False,
    ) -> bool:
        """`round`: of the question that is answered; it differs from this round in async mode only."""
        key = self.key if round is None else replace(self.key, round=round)
        return await self.driver.session.deliver(peer, key, self.shape, payload, heard=heard, withheld=withheld)

    def sink(self, peer: Peer, round: int, heard: frozenset[Peer], withheld: bool) -> Sink:
        """The session's question where an admitted transfer goes."""
        self.said_heard[peer], self.rounds[peer] = heard, round
        if withheld:
            self._slots[peer] = None
            self.on_done(peer)
            return Nowhere()
        if self._streaming:
            self.driver.session.changed.notify()
            return self.streams.setdefault(peer, Stream(peer, self.layout, self.driver.session.changed))
        slot = Slot(self.layout, self.parts, lambda: self._arrived(peer, slot), finite=self.finite)
        return slot

    def _arrived(self, peer: Peer, slot: Slot) -> None:
        self._slots[peer] = slot
        self.driver._fresh[self.key.phase, self.key.role, peer] = (self.rounds[peer], slot)
        self.on_done(peer)

    def ignore(self, peers: Iterable[Peer]) -> None:
        """These streams are not folded (any more)."""
        for peer in peers:
            self.streams[peer].ignore()

    def came(self, peer: Peer) -> bool:
        """Something was heard, be it that an answer is withheld."""
        return peer in self._slots or (self._streaming and peer in self.said_heard)

    def take(self, peer: Peer) -> Any:
        """The payload in the form of the verb's."""
        slot = self._slots.get(peer) or self._old(peer)
        assert slot is not None
        return slot.tensors(as_tuple=self.key.role is not Role.ANSWER and isinstance(self.verb.tensors, tuple))

    def all_heard(self) -> frozenset[Peer]:
        """Neighbours heard in this phase (async: recently enough), withheld answers included."""
        return frozenset(self._slots) | frozenset(peer for peer in self.driver.hood.neighbours if self._old(peer))

    def heard(self, neighbours: Iterable[Peer]) -> Heard[Any]:
        got = {peer for peer in self.all_heard() if self._slots.get(peer) or self._old(peer)}
        self.driver.heard = self.all_heard()
        return Heard(((peer, self.take(peer)) for peer in got), frozenset(neighbours) - got)

    def _old(self, peer: Peer) -> Slot | None:
        if self.driver.sync.mode != "async":
            return None
        t, slot = self.driver._fresh.get((self.key.phase, self.key.role, peer), (-1, None))
        return slot if self.key.round - t <= self.driver.sync.staleness else None


def _advance(talk: Conversation, reply: Any) -> Verb | None:
    try:
        return talk.send(reply)
    except StopIteration:
        return None


def _fold_frame(into: Tensor, weight: Mapping[Peer, float], frame: Mapping[Peer, Tensor]) -> None:
    for peer in sorted(weight):
        fold(into, frame[peer], weight[peer])
