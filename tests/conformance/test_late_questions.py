"""A question is answered until the round ends, and not after it: its answer would be a release of a
round that is over.
"""

import asyncio
from typing import Any

import pytest
import torch

from kit import clock
from kit.toys import LAYOUT
from node.rounds.buffers import SendBuffer
from node.rounds.phase import Form, Phase
from node.rounds.questions import QuestionPhase
from node.rounds.tasks import RoundTasks
from peer import codec
from peer.membership import Membership
from peer.session.interfaces import Key, Role
from peer.session.mailbox import Mailbox
from peer.session.peers import PeerTable, RunParameters
from peer.session.transfers import Transfers
from peer.v1 import peer_pb2 as pb

pytestmark = pytest.mark.virtual_time
QUESTION = torch.ones(LAYOUT.size)
FORM = Form(kind="model", layout=LAYOUT, tensors=QUESTION, most=None)
NOBODY: Any = None


def transfers_of_b() -> Transfers:
    membership = Membership.of("b", ["a"], 5.0)
    membership.agree("a", live_from=0, incarnation=1, round=0, now=0.0)
    table = PeerTable(
        me="b",
        ids={name: name for name in "ab"},
        parameters=RunParameters(run="run", roster=1),
        incarnation=1,
        membership=membership,
    )
    table.states["a"].renew(1)
    return Transfers(table, Mailbox(), link=NOBODY)


def question(phase: Phase) -> list[bytes]:
    """Header, frame and trailer of a's question in round 0."""
    payload = QUESTION.numpy().tobytes()
    header = pb.Header(
        protocol=codec.PROTOCOL,
        run="run",
        sender="a",
        receiver="b",
        incarnation=1,
        sequence=1,
        role=pb.ROLE_QUESTION,
        kind=FORM.kind,
        layout=LAYOUT.digest,
        parts=1,
        dtype=pb.DTYPE_FLOAT32,
        bytes=len(payload),
    )
    trailer = pb.Trailer(bytes=len(payload))
    return [codec.encode(header), payload, codec.encode(trailer)]


@pytest.mark.parametrize("late", [False, True])
async def test_a_question_is_answered_until_its_round_ends(late):
    transfers, asked = transfers_of_b(), []
    compute = clock.compute()
    async with RoundTasks(skip_busy=False) as tasks:

        def answer(peer, question):
            asked.append((peer, question.tolist()))
            return SendBuffer(QUESTION, LAYOUT, compute)

        phase = QuestionPhase(
            transfers,
            Key(0, 0, Role.QUESTION),
            FORM,
            SendBuffer(QUESTION, LAYOUT, compute),
            latest=None,
            answers=Phase(transfers, Key(0, 0, Role.ANSWER), FORM),
            answer=answer,
            compute=compute,
            tasks=tasks,
            waiting=NOBODY,
        )
        transfers.begin(0)
        phase.open(["a"])
        header, *rest = question(phase)

        async def stream():
            yield header
            if late:  # the round ends while the question is on its way
                phase.close()
                transfers.begin(1)
            for part in rest:
                yield part

        verdict = codec.decode(pb.Verdict, await transfers.receive("a", stream()))
        assert verdict.code == pb.CODE_OK
        await asyncio.sleep(1)
    assert asked == ([] if late else [("a", QUESTION.tolist())])
    compute.stop()
    await compute.join(5.0)
