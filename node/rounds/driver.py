"""The daemon's driver: plays one node's conversation with its neighbors over a session.

`lockstep.py` is the same in a plain loop. Here every verb becomes transfers, and waiting is a
policy (`[sync]`): round (all live neighbors, each with a deadline that measures progress), quorum
(a share of them), async (nobody). All tensor work runs in the compute thread; this file only waits,
counts and decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from node.algorithms import Algorithm
from node.config import MixSection, StartSection, SyncSection
from node.maths.mixing import (
    AggregationRule,
    accumulate,
    accumulator,
    agreed,
    consensus_distance,
    mixed,
)
from node.maths.robust import MEAN, distance, is_mean, rule_for
from node.rounds.bounds import RMS_ONLY, Bounds, outliers
from node.rounds.buffers import SendBuffer, parts_of
from node.rounds.compute import Compute
from node.rounds.phase import Exchange, Kept
from node.rounds.waiting import FAR, RoundObserver, Waiting
from peer.codec import frames
from peer.errors import Diverged, PeersUnavailable
from peer.failpoint import failpoint
from peer.membership import majority
from peer.message import Ask, Conversation, Layout, Mix, Peer, Replies, Say, Verb, Withheld, step
from peer.neighborhood import Neighborhood, Views
from peer.session.interfaces import NoPayload
from peer.session.mailbox import Key, Role
from peer.session.session import Session


class Driver:
    """Create it on the event loop's thread; `wait_for_neighbors`, then `run`."""

    def __init__(
        self,
        *,
        algorithm: Algorithm,
        views: Views,
        layout: Layout,
        session: Session,
        compute: Compute,
        sync: SyncSection,
        mix: MixSection = MEAN,
        bounds: Bounds = RMS_ONLY,
        honest: bool = True,
        rounds: int,
        watcher: RoundObserver | None = None,
        completed: Callable[[int], None] = lambda t: None,
        after_round: Callable[[int], None] = lambda t: None,
    ) -> None:
        """Both callbacks run in the compute thread: `completed` with the very step that makes the
        state round t's, `after_round` when the round's sending is over too. `honest`: what this
        node says is held to the bounds as well, before it leaves; an attacker's lies are not."""
        self.algorithm, self.views, self.layout = algorithm, views, layout
        self.view = views.at(0)
        """Of the present round; one that is adopted in the middle of it counts from the next on."""
        self.session, self.table, self.compute = session, session.table, compute
        self.membership = session.table.membership
        self.sync, self.mix, self.rounds, self.completed, self.after_round = (
            sync,
            mix,
            rounds,
            completed,
            after_round,
        )
        self.bounds, self.honest = bounds, honest
        self.watcher = watcher or RoundObserver()
        self.waiting = Waiting(session, sync, self.watcher)
        self.heard: frozenset[Peer] = frozenset()
        """Whom this node heard in its previous phase."""
        self._kept: Kept = {}
        self._quickest: float | None = None
        """Seconds of the shortest round so far."""
        self._playing = False
        self._sending: dict[tuple[int, Role, Peer], asyncio.Task[None]] = {}
        self._of_round: set[asyncio.Task[None]] = set()

    @property
    def neighborhood(self) -> Neighborhood:
        """That of the present round."""
        return self.view.neighborhood

    # ------------------------------------------------------------------------------------------------- life

    async def wait_for_neighbors(self, start: StartSection) -> None:
        """Waits for the neighbors. A run that is under way is joined without the missing ones: when
        most are there, or at the end of a deadline. That it is under way, this node knows of
        itself, having played before; or most say so.

        Raises:
            PeersUnavailable: fewer than `min_neighbors` shook hands until the timeout.
        """
        position = self.table.progress
        end = self.table.now + start.timeout_s
        soon = min(end, self.table.now + self.membership.deadline)
        while (missing := (around := self._around()) - self._settled()) and self.table.now < end:
            late, there, needed = (
                self.table.now >= soon,
                len(around - missing),
                majority(len(self.neighborhood.neighbors)),
            )
            known = 1 if position.first > 0 else needed
            if (
                there >= start.min_neighbors
                and self._under_way() >= known
                and (late or there >= needed)
            ):
                break
            position.waiting_for = missing
            await self.table.changed.wait((end if late else soon) - self.table.now)
        position.waiting_for = frozenset()
        if len(around - missing) < min(start.min_neighbors, len(around)):
            raise PeersUnavailable(
                f"Only {len(around - missing)} of {len(around)} neighbors shook hands within {start.timeout_s:g} s; "
                f"start the others, or lower start.min_neighbors. {self._why(missing)}"
            )

    def _around(self) -> frozenset[Peer]:
        """The neighbors, without those that were removed from the roster."""
        return frozenset(self.neighborhood.neighbors) - self.membership.removed()

    def _why(self, missing: frozenset[Peer]) -> str:
        """What kept them away, of the first few."""
        errors = {
            peer: self.membership.neighbors[peer].trouble or "No answer yet." for peer in missing
        }
        return " ".join(f"{peer}: {errors[peer]}" for peer in sorted(errors)[:3])

    def _settled(self) -> frozenset[Peer]:
        """Neighbors with whom an edge is agreed on, or who are done with all their rounds
        already.
        """
        return frozenset(self.membership.agreed()) | self.membership.finished()

    def _under_way(self) -> int:
        """Neighbors that are in a round and will wait for this node in their next."""
        return sum(
            self.membership.neighbors[peer].round >= r - 1 >= 0
            for peer, r in self.membership.agreed().items()
        )

    async def run(self, first: int) -> None:
        """Plays the rounds first … rounds − 1.

        Raises (in a group of the tasks of a round):
            Diverged: what this node would say is beyond the bounds; nothing of it has left.
        """
        async with asyncio.TaskGroup() as self._tasks:
            self._playing = True
            try:
                t = first
                while t < self.rounds:
                    t = self._enter(t)
                    await self._round(t)
                    t += 1
            finally:
                self._playing = False
                self._cancel()
        self.table.progress.first = self.rounds
        self.session.transfers.end()

    async def linger(self, seconds: float) -> None:
        """After the last round: stays reachable until every neighbor is done too, or gone."""
        end = self.table.now + seconds
        while around := self.membership.agreed():
            heard = max(self.membership.neighbors[peer].last_heard for peer in around)
            left = min(end, heard + self.membership.deadline) - self.table.now
            if left <= 0:
                break
            await self.table.changed.wait(left)

    def _enter(self, t: int) -> int:
        """t, or the later round at which most neighbors are if this node is behind: it has no edge
        to use yet, they went on without it (quorum), or a partition has healed. Who is behind fewer
        than that plays its rounds alone, which is quick, and is waited for at the round agreed
        on."""
        quorum = self.sync.mode == "quorum"
        near = FAR if self.membership.live(t) and not quorum else 2
        there = self.membership.most_have_reached(
            self.table.now, quickest=self._quickest, heartbeats=quorum
        )
        if not t + near < there < self.rounds:
            return t
        self.watcher.skipped(t, there - 1)
        return there

    async def _round(self, t: int) -> None:
        self.session.transfers.begin(t)
        self.view = self.views.at(t)
        failpoint("round_start")
        self.waiting.begin(t)
        newly = frozenset(
            peer for peer in self.waiting.live if self.membership.neighbors[peer].live_from == t
        )
        self.heard = (self.heard & self.waiting.live) | newly
        talk, phase = self.algorithm.round(t, self.view), 0
        verb = await self.compute.own(self._advance, t, talk, None)
        while verb is not None:
            since = self.table.now
            reply = await self._speak(t, phase, verb)
            self.watcher.phase(t, phase, verb.kind, self.table.now - since)
            verb = await self.compute.own(self._advance, t, talk, reply)
            phase += 1
        if self.sync.mode != "async":
            self._cancel()
        failpoint("before_round_commit")
        await self.compute.own(self.after_round, t)
        seconds = self.waiting.end()
        self._quickest = min(seconds, self._quickest or seconds)
        self.watcher.round(t, seconds)

    def _advance(self, t: int, talk: Conversation, reply: Any) -> Verb | None:
        verb = step(talk, reply)
        if verb is None:
            self.completed(t)
        return verb

    # ------------------------------------------------------------------------------------------------ verbs

    async def _speak(self, t: int, phase: int, verb: Verb) -> Any:
        self.waiting.enter(phase)
        match verb:
            case Say():
                return await self._say(t, phase, verb)
            case Ask():
                return await self._ask(t, phase, verb)
            case Mix(streaming=True) if self.sync.mode == "round" and is_mean(verb.rule, self.mix):
                return await self._stream(t, phase, verb)
            case Mix():
                return await self._mix(t, phase, verb)

    async def _say(self, t: int, phase: int, verb: Say[Tensor]) -> Replies[Any]:
        exchange = self._exchange(Key(t, phase, Role.SAY), verb, await self._said(verb))
        await self._swap(exchange)
        self.heard = exchange.heard()
        self._report(t, verb.kind, exchange.norms(self.heard))
        return exchange.received(self.neighborhood.neighbors)

    async def _ask(self, t: int, phase: int, verb: Ask[Tensor]) -> Replies[Any]:
        questions = self._exchange(Key(t, phase, Role.QUESTION), verb, await self._said(verb))
        answers = self._exchange(Key(t, phase, Role.ANSWER), verb)
        computing: set[Peer] = set()
        answered: set[Peer] = set()

        async def answer(peer: Peer, asked_in: int, asked: Exchange) -> None:
            computing.add(peer)
            try:
                said: SendBuffer | NoPayload = await self.compute.answer(
                    compute_answer, peer, asked.take(peer)
                )
            except Withheld:
                said = NoPayload()
            finally:
                computing.discard(peer)
            if await answers.deliver(
                peer, said, round=asked_in, withheld=isinstance(said, NoPayload)
            ):
                answered.add(peer)
                self.table.changed.notify()
            else:
                self.waiting.refused_by(peer, answers.key)

        def compute_answer(peer: Peer, question: Any) -> SendBuffer:
            try:
                most = self._own_most(answers.most)
                return SendBuffer(
                    verb.answer(peer, question),
                    answers.layout,
                    self.compute,
                    most=most,
                    stated=False,
                )
            except Diverged:  # at the neighbor's model, so it is not this node that has
                why = "The gradient at that model is not finite, or beyond limits.rms."
                self.watcher.withheld(t, peer, why)
                raise Withheld(why) from None

        questions.on_arrival = lambda peer, *asked: self._send(
            phase, Role.ANSWER, peer, answer(peer, *asked)
        )
        present = self.waiting.present
        answers.open(self.waiting.live)
        questions.open(self.waiting.live)
        self._send_all(questions)
        both = lambda peer: answers.came(peer) and peer in answered  # noqa: E731
        excused = lambda peer: answers.came(peer) and peer in computing  # noqa: E731
        await self.waiting.until(present, both, answers.came, excused)
        self._close(answers)  # questions stay answerable until the round ends
        self.heard = answers.heard()
        self._report(t, verb.kind, answers.norms(self.heard))
        return answers.received(self.neighborhood.neighbors)

    async def _mix(self, t: int, phase: int, verb: Mix[Tensor]) -> Any:
        said = await self._said(verb)
        exchange = self._exchange(Key(t, phase, Role.MIX), verb, said)
        await self._swap(exchange, self.heard)
        await said.until(said.flat.nbytes)
        came = exchange.heard()
        keep = self._keep(t, phase, came, exchange.their_heard)
        self.heard = came
        weight = self.neighborhood.without(frozenset(self.neighborhood.neighbors) - keep).weight
        failpoint("before_aggregate")
        rule = rule_for(verb.rule, self.mix, self.neighborhood.me)
        reply, consensus, apart = await self.compute.own(_mixed, weight, exchange, rule)
        failpoint("after_aggregate")
        self._report(t, verb.kind, apart)
        self.watcher.mixed(t, weight, consensus)
        return reply

    async def _stream(self, t: int, phase: int, verb: Mix[Tensor]) -> Tensor:
        """Frames are folded in sorted order of peers as they come; what is lost on the way goes to
        self.
        """
        me, said = self.neighborhood.me, await self._said(verb)
        exchange = self._exchange(Key(t, phase, Role.MIX), verb, said, streaming=True)
        present = self.waiting.present
        exchange.open(self.waiting.live)
        self._send_all(exchange, self.heard)
        await self.waiting.until(present, exchange.came, exchange.came)
        partners = self._keep(t, phase, exchange.heard(), exchange.their_heard)
        exchange.ignore(exchange.heard() - partners)
        weight = dict(
            self.neighborhood.without(frozenset(self.neighborhood.neighbors) - partners).weight
        )
        into, size = accumulator(said.flat), said.flat.itemsize
        for offset, length in frames(said.flat.nbytes):
            await said.until(offset + length)
            await self.waiting.until(partners, exchange.frame_came, exchange.frame_came)
            gone = frozenset(peer for peer in partners if not exchange.frame_came(peer))
            if gone:
                self.watcher.dropped(t, phase, gone, True)
                exchange.ignore(gone)
                partners -= gone
                weight[me] += sum(weight.pop(peer) for peer in sorted(gone))
            place = slice(offset // size, (offset + length) // size)
            frame = {peer: exchange.streams[peer].take() for peer in partners} | {
                me: said.flat[place]
            }
            await self.compute.own(_fold_frame, into[place], dict(weight), frame)
        await self.waiting.until(partners, exchange.served.__contains__, exchange.came)
        self._close(exchange)
        self.heard = partners
        self._report(t, verb.kind, exchange.norms(partners))
        self.watcher.mixed(t, weight, float("nan"))
        return into

    def _keep(
        self, t: int, phase: int, came: frozenset[Peer], said: Mapping[Peer, frozenset[Peer]]
    ) -> frozenset[Peer]:
        """Whom to mix with: in round mode those that both ends agree on; otherwise all that
        came.
        """
        keep = came
        if self.sync.mode == "round":
            keep = agreed(self.neighborhood.me, self.heard, {peer: said[peer] for peer in came})
        if self.waiting.live - keep:
            self.watcher.dropped(t, phase, self.waiting.live - keep, False)
        return keep

    # -------------------------------------------------------------------------------------------- transfers

    async def _said(self, verb: Verb) -> SendBuffer:
        layout = verb.layout or self.layout
        most = self._own_most(self.bounds.norm(parts_of(verb.tensors) * layout.size))
        said = await self.compute.own(
            partial(SendBuffer, verb.tensors, layout, self.compute, most=most)
        )
        if not said.complete:
            self._spawn(said.fill())
        return said

    def _own_most(self, most: float | None) -> float | None:
        return most if self.honest else None

    def _report(self, t: int, kind: str, distances: Mapping[Peer, float]) -> None:
        for peer, times in outliers(distances).items():
            self.watcher.outlier(t, kind, peer, times)

    def _exchange(
        self, key: Key, verb: Verb, said: SendBuffer | None = None, *, streaming: bool = False
    ) -> Exchange:
        """A question may be anything: the gate bounds what its gradient can tell."""
        answer = isinstance(verb, Ask) and key.role is Role.ANSWER
        layout = (
            (verb.answer_layout if isinstance(verb, Ask) and answer else None)
            or verb.layout
            or self.layout
        )
        elements = layout.size * (1 if answer else parts_of(verb.tensors))
        return Exchange(
            self.session.transfers,
            key,
            kind=verb.kind,
            layout=layout,
            form=() if answer else verb.tensors,
            said=said,
            most=None if key.role is Role.QUESTION else self.bounds.norm(elements, key.role),
            streaming=streaming,
            kept=self._kept,
            staleness=self.sync.staleness if self.sync.mode == "async" else None,
        )

    async def _swap(self, exchange: Exchange, heard: frozenset[Peer] = frozenset()) -> None:
        """Opens the phase, sends to all who were live when the round began, waits as the policy
        says, closes.
        """
        present = self.waiting.present
        exchange.open(self.waiting.live)
        self._send_all(exchange, heard)
        await self.waiting.until(present, exchange.done, exchange.came)
        self._close(exchange)

    def _close(self, exchange: Exchange) -> None:
        """async: what comes later is kept for the next rounds."""
        if self.sync.mode != "async":
            exchange.close()

    def _send_all(self, exchange: Exchange, heard: frozenset[Peer] = frozenset()) -> None:
        async def serve(peer: Peer) -> None:
            if not await exchange.serve(peer, heard):
                self.waiting.refused_by(peer, exchange.key)

        for peer in sorted(self.waiting.live):
            self._send(exchange.key.phase, exchange.key.role, peer, serve(peer))

    def _send(self, phase: int, role: Role, peer: Peer, work: Coroutine[Any, Any, None]) -> None:
        """In a task of the round. async: a neighbor that is still being sent the previous one is
        left out. Nothing is sent any more when the last round is over."""
        before = self._sending.get((phase, role, peer))
        busy = self.sync.mode == "async" and before is not None and not before.done()
        if busy or not self._playing:
            work.close()
            return
        self._sending[phase, role, peer] = self._spawn(work)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._tasks.create_task(work)
        self._of_round.add(task)
        task.add_done_callback(self._of_round.discard)
        return task

    def _cancel(self) -> None:
        for task in list(self._of_round):
            task.cancel()


def _mixed(
    weight: Mapping[Peer, float], exchange: Exchange, rule: AggregationRule
) -> tuple[Any, float, dict[Peer, float]]:
    """The average; of the payloads' first vectors the consensus distance, and each neighbor's
    distance from the own.
    """
    me = exchange.transfers.table.me
    payloads = {peer: exchange.own() if peer == me else exchange.take(peer) for peer in weight}
    parameters = {peer: it[0] if isinstance(it, tuple) else it for peer, it in payloads.items()}
    apart = {
        peer: float(distance(x, parameters[me])) for peer, x in parameters.items() if peer != me
    }
    return mixed(weight, payloads, rule), consensus_distance([*parameters.values()]), apart


def _fold_frame(into: Tensor, weight: Mapping[Peer, float], frame: Mapping[Peer, Tensor]) -> None:
    for peer in sorted(weight):
        accumulate(into, frame[peer], weight[peer])
