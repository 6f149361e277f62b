"""The daemon's driver: runs one node's conversation with its neighbors over a session.

`lockstep.py` is the same in a plain loop. Here every verb becomes transfers, and waiting is a
policy (`[sync]`): round (all live neighbors, each with a deadline that measures progress), quorum
(a share of them), async (nobody). All tensor work runs in the compute thread; this file only waits,
counts and decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from node.algorithms import Algorithm
from node.config import MixSection, StartSection, SyncSection
from node.maths.mixing import (
    AggregationRule,
    accumulator,
    agreed,
    average_into,
    consensus_distance,
    mixed,
    mixing_row,
)
from node.maths.robust import MEAN, distance, is_mean, rule_of
from node.rounds.bounds import RMS_ONLY, Bounds, outliers
from node.rounds.buffers import SendBuffer, parts_of
from node.rounds.compute import Compute
from node.rounds.phase import Form, Latest, Phase, StreamingPhase
from node.rounds.questions import QuestionPhase
from node.rounds.tasks import RoundTasks
from node.rounds.waiting import FAR, RoundObserver, Waiting
from peer.codec import frames
from peer.errors import Diverged, PeersUnavailable
from peer.failpoint import failpoint
from peer.membership import majority
from peer.message import (
    Ask,
    Conversation,
    Layout,
    Mix,
    Peer,
    Replies,
    Say,
    Verb,
    WholePayload,
    Withheld,
    step,
)
from peer.neighborhood import Neighborhood, Views
from peer.session.interfaces import Key, Role
from peer.session.session import Session

ANY_VECTOR = torch.empty(0)
"""The shape of an answer: one vector of its layout."""


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
        self.table, self.membership = session.table, session.table.membership
        self.transfers, self.progress = session.transfers, session.progress
        self.compute, self.sync, self.mix, self.rounds = compute, sync, mix, rounds
        self.bounds, self.honest = bounds, honest
        self.completed, self.after_round = completed, after_round
        self.watcher = watcher or RoundObserver()
        self.waiting = Waiting(self.table, self.progress, sync, self.watcher)
        self.heard: frozenset[Peer] = frozenset()
        """Whom this node heard in its previous phase."""
        self._latest = Latest(sync.staleness) if sync.mode == "async" else None
        self._tasks = RoundTasks(skip_busy=sync.mode == "async")
        self._quickest: float | None = None
        """Seconds of the shortest round so far."""

    @property
    def neighborhood(self) -> Neighborhood:
        """That of the present round."""
        return self.view.neighborhood

    # life

    async def wait_for_neighbors(self, start: StartSection) -> None:
        """Waits for the neighbors. A run that is under way is joined without the missing ones: when
        most are there, or at the end of a deadline. That it is under way, this node knows of
        itself, having run before; or most say so.

        Raises:
            PeersUnavailable: fewer than `min_neighbors` shook hands until the timeout.
        """
        end = self.table.now + start.timeout_s
        soon = min(end, self.table.now + self.membership.deadline)
        self.progress.gathering = (self.table.now, end)
        while (missing := self._around() - self._settled()) and self.table.now < end:
            late = self.table.now >= soon
            if self._enough(missing, start, late):
                break
            self.progress.waiting_for = missing
            await self.table.changed.wait((end if late else soon) - self.table.now)
        self.progress.waiting_for = frozenset()
        around = len(self._around())
        there = around - len(missing)
        if there < min(start.min_neighbors, around):
            raise PeersUnavailable(
                f"Only {there} of {around} neighbors shook hands within {start.timeout_s:g} s; "
                f"start the others, or lower start.min_neighbors. {self._why(missing)}"
            )

    def _enough(self, missing: frozenset[Peer], start: StartSection, late: bool) -> bool:
        """May a run that is under way be joined without these? `late`: a deadline has passed."""
        there = len(self._around() - missing)
        most = majority(len(self.neighborhood.neighbors))
        witnesses = 1 if self.progress.first > 0 else most
        if there < start.min_neighbors or self._under_way() < witnesses:
            return False
        return late or there >= most

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
        """Neighbors with whom an edge is agreed on, or who are done with all their rounds."""
        return frozenset(self.membership.agreed()) | self.membership.finished()

    def _under_way(self) -> int:
        """Neighbors that are in a round and will wait for this node in their next."""
        return sum(
            self.membership.neighbors[peer].round >= r - 1 >= 0
            for peer, r in self.membership.agreed().items()
        )

    async def run(self, first: int) -> None:
        """Runs the rounds first … rounds − 1.

        Raises (in a group of the tasks of a round):
            Diverged: what this node would say is beyond the bounds; nothing of it has left.
        """
        async with self._tasks:
            t = first
            while t < self.rounds:
                t = self._enter(t)
                await self._round(t)
                t += 1
        self.progress.running, self.progress.first = False, self.rounds
        self.table.changed.notify()

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
        than that runs its rounds alone, which is quick, and is waited for at the round agreed
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
        self.transfers.begin(t)
        self.view = self.views.at(t)
        self.progress.running = True
        failpoint("round_start")
        self.waiting.begin(t)
        newly = frozenset(
            peer for peer in self.waiting.live if self.membership.neighbors[peer].live_from == t
        )
        self.heard = (self.heard & self.waiting.live) | newly
        talk, phase = self.algorithm.round(t, self.view), 0
        verb = await self.compute.run(self._advance, t, talk, None)
        while verb is not None:
            since = self.table.now
            reply = await self._speak(t, phase, verb)
            self.watcher.phase(t, phase, verb.kind, self.table.now - since)
            verb = await self.compute.run(self._advance, t, talk, reply)
            phase += 1
        if self.sync.mode != "async":
            self._tasks.cancel()
        failpoint("before_round_commit")
        await self.compute.run(self.after_round, t)
        seconds = self.waiting.end()
        self._quickest = min(seconds, self._quickest or seconds)
        self.watcher.round(t, seconds)

    def _advance(self, t: int, talk: Conversation, reply: object) -> Verb | None:
        verb = step(talk, reply)
        if verb is None:
            self.completed(t)
        return verb

    # verbs

    async def _speak(self, t: int, phase: int, verb: Verb) -> object:
        self.waiting.enter(phase)
        match verb:
            case Say():
                return await self._say(t, phase, verb)
            case Ask():
                return await self._ask(t, phase, verb)
            case Mix(streaming=True) if self.sync.mode == "round" and is_mean(verb, self.mix):
                return await self._stream(t, phase, verb)
            case Mix():
                return await self._mix(t, phase, verb)

    async def _say(self, t: int, number: int, verb: Say[Tensor]) -> Replies[WholePayload[Tensor]]:
        phase = self._phase(Key(t, number, Role.SAY), verb, await self._outgoing(verb))
        await self._swap(phase)
        self.heard = phase.heard()
        self._report(t, verb.kind, phase.norms(self.heard))
        return phase.replies(self.neighborhood.neighbors)

    async def _ask(self, t: int, number: int, verb: Ask[Tensor]) -> Replies[WholePayload[Tensor]]:
        outgoing = await self._outgoing(verb)
        answers = self._phase(Key(t, number, Role.ANSWER), verb)
        questions = self._questions(Key(t, number, Role.QUESTION), verb, outgoing, answers)
        present = self.waiting.present
        answers.open(self.waiting.live)
        questions.open(self.waiting.live)
        self._send_all(questions)
        await self.waiting.until(present, questions.done, answers.came, questions.owes_nothing)
        self._close(answers)  # questions stay answerable until the round ends
        self.heard = answers.heard()
        self._report(t, verb.kind, answers.norms(self.heard))
        return answers.replies(self.neighborhood.neighbors, questions.notes)

    async def _mix(self, t: int, number: int, verb: Mix[Tensor]) -> WholePayload[Tensor]:
        outgoing = await self._outgoing(verb)
        phase = self._phase(Key(t, number, Role.MIX), verb, outgoing)
        await self._swap(phase, self.heard)
        await outgoing.until(outgoing.flat.nbytes)
        heard = phase.heard()
        weight = mixing_row(self.neighborhood, self._partners(t, phase), verb.weights)
        self.heard = heard
        failpoint("before_aggregate")
        me = self.neighborhood.me
        rule = rule_of(verb, self.mix, me)
        reply, consensus, apart = await self.compute.run(_mixed, me, weight, phase, rule)
        failpoint("after_aggregate")
        self._report(t, verb.kind, apart)
        self.watcher.mixed(t, weight, consensus)
        return reply

    async def _stream(self, t: int, number: int, verb: Mix[Tensor]) -> Tensor:
        """Frames are folded in sorted order of peers as they come; what is lost on the way goes to
        self.
        """
        me, outgoing = self.neighborhood.me, await self._outgoing(verb)
        key = Key(t, number, Role.MIX)
        phase = StreamingPhase(self.transfers, key, self._form(verb, key.role), outgoing)
        present = self.waiting.present
        phase.open(self.waiting.live)
        self._send_all(phase, self.heard)
        await self.waiting.until(present, phase.came, phase.came)
        partners = self._partners(t, phase)
        phase.ignore(phase.heard() - partners)
        weight = mixing_row(self.neighborhood, partners, verb.weights)
        into, size = accumulator(outgoing.flat), outgoing.flat.itemsize
        for offset, length in frames(outgoing.flat.nbytes):
            await outgoing.until(offset + length)
            await self.waiting.until(partners, phase.frame_came, phase.frame_came)
            gone = frozenset(peer for peer in partners if not phase.frame_came(peer))
            if gone:
                self.watcher.dropped(t, number, gone, True)
                phase.ignore(gone)
                partners -= gone
                weight[me] += sum(weight.pop(peer) for peer in sorted(gone))
            place = slice(offset // size, (offset + length) // size)
            frame = {peer: phase.streams[peer].take() for peer in partners}
            frame[me] = outgoing.flat[place]
            await self.compute.run(average_into, into[place], dict(weight), frame)
        await self.waiting.until(partners, phase.served.__contains__, phase.came)
        self._close(phase)
        self.heard = partners
        self._report(t, verb.kind, phase.norms(partners))
        self.watcher.mixed(t, weight, float("nan"))
        return into

    def _partners(self, t: int, phase: Phase) -> frozenset[Peer]:
        """Whom to mix with: in round mode those that both ends agree on; otherwise all that were
        heard.
        """
        partners = heard = phase.heard()
        if self.sync.mode == "round":
            headers = {peer: phase.heard_by[peer] for peer in heard}
            partners = agreed(self.neighborhood.me, self.heard, headers)
        if self.waiting.live - partners:
            self.watcher.dropped(t, phase.key.phase, self.waiting.live - partners, False)
        return partners

    # phases

    async def _outgoing(self, verb: Verb) -> SendBuffer:
        """What the verb says, as bytes. Of an incremental payload the beginning."""
        layout = verb.layout or self.layout
        note = b"" if isinstance(verb, Mix) else verb.note
        most = self.bounds.norm(parts_of(verb.tensors) * layout.size) if self.honest else None
        outgoing = await self.compute.run(
            partial(SendBuffer, verb.tensors, layout, self.compute, most=most, note=note)
        )
        if not outgoing.complete:
            self._tasks.start(outgoing.fill())
        return outgoing

    def _form(self, verb: Verb, role: Role) -> Form:
        """Questions are not bounded: the gate bounds what their gradient can reveal."""
        layout, tensors = verb.layout or self.layout, verb.tensors
        if isinstance(verb, Ask) and role is Role.ANSWER:
            layout, tensors = verb.answer_layout or layout, ANY_VECTOR
        elements = parts_of(tensors) * layout.size
        most = None if role is Role.QUESTION else self.bounds.norm(elements, role)
        return Form(kind=verb.kind, layout=layout, tensors=tensors, most=most)

    def _phase(self, key: Key, verb: Verb, outgoing: SendBuffer | None = None) -> Phase:
        form = self._form(verb, key.role)
        return Phase(self.transfers, key, form, outgoing, self._latest)

    def _questions(
        self, key: Key, verb: Ask[Tensor], outgoing: SendBuffer, answers: Phase
    ) -> QuestionPhase:
        most = answers.form.most if self.honest else None

        def answer(peer: Peer, question: Any) -> SendBuffer:
            layout = answers.form.layout
            try:
                vector = verb.answer(peer, question)
                return SendBuffer(vector, layout, self.compute, most=most, stated=False)
            except Diverged:  # at the neighbor's model, so it is not this node that has
                why = "The gradient at that model is not finite, or beyond limits.rms."
                self.watcher.withheld(key.round, peer, why)
                raise Withheld(why) from None

        return QuestionPhase(
            self.transfers,
            key,
            self._form(verb, key.role),
            outgoing,
            self._latest,
            answers=answers,
            answer=answer,
            compute=self.compute,
            tasks=self._tasks,
            waiting=self.waiting,
        )

    async def _swap(self, phase: Phase, heard: frozenset[Peer] = frozenset()) -> None:
        """Opens the phase, sends to all who were live when the round began, waits as the policy
        says, closes.
        """
        present = self.waiting.present
        phase.open(self.waiting.live)
        self._send_all(phase, heard)
        await self.waiting.until(present, phase.done, phase.came)
        self._close(phase)

    def _close(self, phase: Phase) -> None:
        """async: what comes later is kept for the next rounds."""
        if self.sync.mode != "async":
            phase.close()

    def _send_all(self, phase: Phase, heard: frozenset[Peer] = frozenset()) -> None:
        async def serve(peer: Peer) -> None:
            if not await phase.serve(peer, heard):
                self.waiting.refused_by(peer, phase.key)

        for peer in sorted(self.waiting.live):
            self._tasks.send(phase.key, peer, serve(peer))

    def _report(self, t: int, kind: str, distances: Mapping[Peer, float]) -> None:
        for peer, times in outliers(distances).items():
            self.watcher.outlier(t, kind, peer, times)


def _mixed(
    me: Peer, weight: Mapping[Peer, float], phase: Phase, rule: AggregationRule
) -> tuple[WholePayload[Tensor], float, dict[Peer, float]]:
    """The average; of the payloads' first vectors the consensus distance, and each neighbor's
    distance from the own.
    """
    payloads: dict[Peer, Any] = {
        peer: phase.own() if peer == me else phase.take(peer) for peer in weight
    }
    parameters = {peer: it[0] if isinstance(it, tuple) else it for peer, it in payloads.items()}
    apart = {
        peer: float(distance(x, parameters[me])) for peer, x in parameters.items() if peer != me
    }
    return mixed(weight, payloads, rule), consensus_distance([*parameters.values()]), apart
