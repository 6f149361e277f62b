"""A member gone bad among real daemons: processes of their own, gRPC with mutual TLS."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from kit.clusters import Cluster, Witness
from kit.lying_nodes import Lie, claim, tells_otherwise
from peer.identity.keys import stated
from peer.session.interfaces import Role
from peer.v1 import peer_pb2 as pb

pytestmark = pytest.mark.cluster
ROUNDS = 30
HONEST = ("n0", "n2")


def bad(c: Cluster, turn: Callable[[Witness], None]) -> Witness:
    """n1, whose session is turned bad as soon as it is made."""
    witness = c.witness("n1")
    made = witness._session

    def session(*given: Any) -> Any:
        witness.session = made(*given)
        turn(witness)
        return witness.session

    witness._session = session  # type: ignore[method-assign]
    return witness


@pytest.mark.parametrize(("mode", "lie"), [("round", Lie.AT_THE_START), ("quorum", Lie.IN_BEATS)])
async def test_claims_of_other_rounds(daemons: Any, mode: str, lie: Lie) -> None:
    """They cost no round; in quorum mode, where nobody waits, they bring nobody beyond the other
    honest node.
    """
    async with daemons(kind="ring", rounds=ROUNDS, sync={"mode": mode, "deadline_s": 5.0}) as c:
        bad(
            c,
            lambda node: claim(
                node, lie, (1 << 31) - 5 if lie is Lie.IN_BEATS else ROUNDS - 1, after=lambda: True
            ),
        )
        processes = [c.start(name) for name in HONEST]
        for process in processes:
            assert await process.ended() == 0, process.log
            summary = json.loads((process.home / "summary.json").read_text())
            rounds = [it["round"] for it in process.events("round")]
            skipped = [it["skipped"] for it in process.events("resume") if "skipped" in it]
            assert summary["rounds_run"] == {process.home.name: len(rounds)}
            assert summary["complete"] == (len(rounds) == ROUNDS)
            assert rounds[-1] == ROUNDS - 1
            if mode == "round":
                assert rounds == list(range(ROUNDS))
            assert all(last - first < ROUNDS / 2 for first, last in skipped), "nobody is that far"


async def test_different_things_told_to_different_neighbors_are_proved(daemons: Any) -> None:
    async with daemons(kind="full", rounds=ROUNDS) as c:
        witness = bad(c, lambda node: tells_otherwise(node, "n2", frozenset([Role.MIX]), first=3))
        processes = [c.start(name) for name in HONEST]
        for process in processes:
            assert await process.ended() == 0, process.log
            [event] = process.events("contradiction")
            assert (event["peer"], event["round"]) == ("n1", 3)
            assert event["told_by"] in HONEST
            proof = json.loads((process.home / "contradiction-n1.json").read_text())
            public = base64.b64decode(proof["public_key"])
            one, other = (ParseDict(said, pb.Statement()) for said in proof["statements"])
            assert one.digest != other.digest
            assert all(stated(public, proof["run"], said) for said in (one, other))
            assert one.sender == witness.identity.id
            assert "told this node and" in process.log
