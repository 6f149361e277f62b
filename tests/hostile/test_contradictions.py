"""Who tells different neighbors different things: caught where two of them share an edge, with a
proof that anybody can check; and nobody honest is ever accused."""

from __future__ import annotations

import asyncio
from math import inf
from typing import Any

import pytest

from kit import LONG
from kit.lying_nodes import tells_otherwise
from kit.mesh import alive, mesh, play
from kit.toys import cluster
from node.config import SyncSection
from peer.errors import Malformed
from peer.identity.authority import CertificateAuthority
from peer.identity.keys import Identity, stated
from peer.message import Peer
from peer.session.interfaces import Role, SessionObserver
from peer.session.statements import PLACES, Statements, place
from peer.session.transfers import Transfers
from peer.transport.memory import Memory, Network
from peer.v1 import peer_pb2 as pb

LIES_FROM = 4
ROUNDS = 1000 if LONG else 60


class Proofs(SessionObserver):
    """What a node was told."""

    def __init__(self) -> None:
        self.found: list[tuple[Peer, Peer, bytes, pb.Statement, pb.Statement]] = []

    def contradicted(
        self, peer: Peer, told_by: Peer, public: bytes, one: pb.Statement, other: pb.Statement
    ) -> None:
        self.found.append((peer, told_by, public, one, other))


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Identity]:
    folder = tmp_path_factory.mktemp("people")
    ca = CertificateAuthority.create(folder / "ca")
    return {name: ca.enrol(folder / name) for name in (f"n{k}" for k in range(6))}


def together(
    people: dict[str, Identity],
    graph: str,
    nodes: int = 4,
    *,
    rounds: int = ROUNDS,
    mode: str = "round",
) -> dict[str, Any]:
    """A mesh whose nodes have keys, each with `Proofs`."""
    algorithms, neighborhoods = cluster(("dpdl", {"lr": 0.02}), graph, nodes)
    ids, network = (
        {name: people[name].id for name in neighborhoods},
        Network(1, delay=(0.001, 0.002)),
    )
    transports = {name: Memory(network, ids[name]) for name in neighborhoods}
    sync = SyncSection(deadline_s=10.0, mode=mode)  # type: ignore[arg-type]
    found = mesh(
        algorithms,
        neighborhoods,
        rounds,
        transports=transports,
        ids=ids,
        identities=people,
        sync=sync,
    )
    for node in found.values():
        node.session.table.observer = Proofs()
    return found


def proofs(node: Any) -> list[tuple[Peer, Peer, bytes, pb.Statement, pb.Statement]]:
    found: list[tuple[Peer, Peer, bytes, pb.Statement, pb.Statement]] = (
        node.session.table.observer.found
    )
    return found


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("role", "lie"),
    [
        (Role.QUESTION, {}),
        (Role.MIX, {}),
        (Role.QUESTION, {"by": 0.0, "note": b"another"}),
    ],
    ids=["question", "mix", "note"],
)
async def test_two_receivers_who_share_an_edge_catch_it_within_two_rounds(
    people: dict[str, Identity], role: Role, lie: dict[str, Any]
) -> None:
    nodes = together(people, "full")
    tells_otherwise(nodes["n1"], "n2", frozenset([role]), first=LIES_FROM, **lie)
    async with alive(nodes) as tasks:
        honest = [tasks[name] for name in ("n0", "n2", "n3")]
        await asyncio.wait_for(asyncio.gather(*honest), 60)
    for name in ("n0", "n2", "n3"):
        [(liar, told_by, public, one, other)] = proofs(nodes[name])
        assert (liar, place(one)) == ("n1", place(other))
        assert told_by in {"n0", "n2", "n3"} - {name}
        assert one.digest != other.digest
        assert stated(public, "run", one)
        assert stated(public, "run", other)
        assert nodes[name].session.table.membership.neighbors["n1"].barred_until == inf
        used = [t for t, weight in nodes[name].notes.weights.items() if "n1" in weight]
        assert max(used) <= LIES_FROM + 2
        assert nodes[name].notes.rounds == list(range(ROUNDS)), "the run goes on"


@pytest.mark.virtual_time
async def test_where_no_two_receivers_share_an_edge_nobody_sees_it(
    people: dict[str, Identity],
) -> None:
    nodes = together(people, "ring")
    tells_otherwise(nodes["n1"], "n2", frozenset([Role.MIX]), first=LIES_FROM)
    await play(nodes)
    assert not any(proofs(node) for node in nodes.values())


@pytest.mark.virtual_time
async def test_power_of_passing_statements_on(
    people: dict[str, Identity], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Transfers, "_heard_of_others", lambda self, to: [])
    nodes = together(people, "full")
    tells_otherwise(nodes["n1"], "n2", frozenset([Role.MIX]), first=LIES_FROM)
    await play(nodes)
    assert not any(proofs(node) for node in nodes.values())


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("graph", "mode"),
    [("ring", "round"), ("full", "round"), ("full", "quorum"), ("ring", "async")],
)
async def test_nobody_honest_is_accused(people: dict[str, Identity], graph: str, mode: str) -> None:
    nodes = together(people, graph, mode=mode)
    await play(nodes)
    assert not any(proofs(node) for node in nodes.values())
    if mode == "round":
        assert all(node.notes.losses == [] for node in nodes.values())


@pytest.mark.virtual_time
async def test_who_starts_again_is_not_accused(people: dict[str, Identity]) -> None:
    """A new process may say another thing in a round that an old one has spoken in."""
    nodes = together(people, "full", rounds=4000)
    async with alive(nodes) as tasks:
        while len(nodes["n1"].notes.rounds) < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        tasks["n1"].cancel()
        await asyncio.gather(tasks["n1"], return_exceptions=True)
        again = together(people, "full", rounds=4000)["n1"]
        again.session.table.incarnation = 2
        again.transport.network = nodes["n0"].transport.network
        again.book.table = nodes["n0"].book.table
        task = asyncio.create_task(again.live(first=2))
        weights = nodes["n0"].notes.weights
        while sum("n1" in weights[t] for t in list(weights)[-5:]) < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert not any(proofs(node) for node in nodes.values())


async def test_a_statement_nobody_signed_proves_nothing(people: dict[str, Identity]) -> None:
    """A neighbor can't accuse another by what it makes up."""
    node = together(people, "full")["n0"]
    transfers, contact = node.session.transfers, node.session.table.states["n1"]
    contact.spki = people["n1"].spki
    said = pb.Statement(
        sender=people["n1"].id, incarnation=1, round=3, role="ROLE_MIX", digest=b"a" * 32
    )
    said.signature = people["n1"].sign_statement("run", said)
    transfers.statements.note("n1", said)
    forged = pb.Statement()
    forged.CopyFrom(said)
    forged.digest = b"b" * 32
    another = people["n1"].sign_statement("another run", forged)
    for signature in (said.signature, people["n2"].sign_statement("run", forged), another, b""):
        forged.signature = signature
        with pytest.raises(Malformed, match="did not sign"):
            transfers._compare("n2", [forged])
        assert proofs(node) == []
    forged.signature = people["n1"].sign_statement("run", forged)
    transfers._compare("n2", [forged])
    assert [(liar, told_by) for liar, told_by, *_ in proofs(node)] == [("n1", "n2")]


def test_statements_are_remembered_by_their_number_however_rounds_are_counted() -> None:
    statements = Statements()
    for t in (5, 1 << 30, *range(6, 200)):
        statements.note("a", pb.Statement(sender="a", round=t, digest=b"d" * 32))
    assert len(statements._of["a"]) == PLACES
    assert [said.round for said in statements.newer(statements.noted - 2, but=[])] == [198, 199]
    assert statements.newer(0, but=["a"]) == []
    other = pb.Statement(sender="a", round=199, digest=b"e" * 32)
    assert statements.contradicted("a", other) is not None
    assert statements.contradicted("nobody", other) is None


def test_who_says_two_things_in_one_place_to_one_neighbor_is_caught_by_it() -> None:
    statements = Statements()
    first, other = (pb.Statement(sender="a", round=3, digest=d * 32) for d in (b"d", b"e"))
    assert statements.note("a", first) is None
    assert statements.note("a", first) is None, "said again"
    assert statements.note("a", other) == first
    assert statements.noted == 1


def test_a_neighbor_is_told_what_is_new_once_it_took_it() -> None:
    statements = Statements()
    for k, peer in enumerate("abab"):
        statements.note(peer, pb.Statement(sender=peer, round=k, digest=b"d" * 32))
    assert [said.round for said in statements.newer(1, but=["a"])] == [1, 3]
    assert [said.round for said in statements.newer(3, but=["c"])] == [3]
