"""The questions of an Ask: each neighbor's is answered as soon as it is complete, until the round
ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from node.rounds.buffers import ReceiveBuffer, SendBuffer
from node.rounds.compute import Compute
from node.rounds.phase import Form, Latest, Phase
from node.rounds.tasks import RoundTasks
from node.rounds.waiting import Waiting
from peer.message import Peer, Withheld
from peer.session.interfaces import Incoming, Key, NoPayload, Sink
from peer.session.transfers import Transfers


class QuestionPhase(Phase):
    """What this node asks, what it is asked, and how far its answers are."""

    def __init__(
        self,
        transfers: Transfers,
        key: Key,
        form: Form,
        outgoing: SendBuffer,
        latest: Latest | None,
        *,
        answers: Phase,
        answer: Callable[[Peer, Any], SendBuffer],
        compute: Compute,
        tasks: RoundTasks,
        waiting: Waiting,
    ) -> None:
        """`answers`: the other half of the Ask. `answer` runs in the compute thread; it may raise
        Withheld."""
        super().__init__(transfers, key, form, outgoing, latest)
        self.answers, self.answer = answers, answer
        self.compute, self.tasks, self.waiting = compute, tasks, waiting
        self.computing: set[Peer] = set()
        """Neighbors whose answer is being computed, or waits to be."""
        self.answered: set[Peer] = set()
        """Neighbors that have taken their answer."""

    def complete(self, peer: Peer, message: Incoming, sink: Sink) -> None:
        """A neighbor's question came: its answer is computed and sent beside the round."""
        super().complete(peer, message, sink)
        if self._received.get(peer) is sink and isinstance(sink, ReceiveBuffer):
            self.tasks.send(self.answers.key, peer, self._answer(peer, message.round))

    def done(self, peer: Peer) -> bool:
        """Its answer came, and it has taken ours."""
        return self.answers.came(peer) and peer in self.answered

    def owes_nothing(self, peer: Peer) -> bool:
        """Its answer came, and ours is still being computed: that is this node's own work."""
        return self.answers.came(peer) and peer in self.computing

    async def _answer(self, peer: Peer, round: int) -> None:
        self.computing.add(peer)
        payload: SendBuffer | NoPayload
        try:
            payload = await self.compute.run_priority(self.answer, peer, self.take(peer))
        except Withheld:
            payload = NoPayload()
        finally:
            self.computing.discard(peer)
        withheld = isinstance(payload, NoPayload)
        if await self.answers.deliver(peer, payload, round=round, withheld=withheld):
            self.answered.add(peer)
            self.table.changed.notify()
        else:
            self.waiting.refused_by(peer, self.answers.key)
