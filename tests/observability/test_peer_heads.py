"""What neighbors told of their ledgers: the highest, of each ledger, across restarts, within
bounds.
"""

import pytest

from node.config import BudgetSection, DataSection, NodeConfig
from node.daemon.startup import heads_file
from node.experiments.provisioning import OWN
from node.privacy.ledger import Ledger
from node.privacy.rename import rename
from node.records.peer_heads import FILE, LEDGERS_PER_NODE, LedgerWitness, NeighborLedgerHeads
from peer.identity.authority import CertificateAuthority
from peer.v1.peer_pb2 import SignedHead


def head(sequence, label=b"one", digest=b"d" * 32):
    return SignedHead(sequence=sequence, digest=digest, label=label, signature=b"s")


def test_the_highest_of_before_is_returned_and_kept(tmp_path):
    it = NeighborLedgerHeads(tmp_path / FILE)
    assert it.observe("a", head(3)) == SignedHead()
    assert it.observe("a", head(2)) == head(3)
    assert it.observe("a", head(5)) == head(3)
    assert it.observe("a", head(0)) == head(5)
    assert it.observe("b", head(1)) == SignedHead()


def test_it_outlives_the_process(tmp_path):
    it = NeighborLedgerHeads(tmp_path / FILE)
    it.observe("a", head(3))
    it.save()
    assert NeighborLedgerHeads(tmp_path / FILE).observe("a", head(1)) == head(3)


def test_memories_lie_beside_the_own_ledger(tmp_path, monkeypatch):
    """So that the next run has them; a temporary ledger ends with its run."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    data = DataSection(name="ward")
    node = NodeConfig(name="a", identity=OWN, data=data, budget=BudgetSection(epsilon=1.0))
    assert heads_file(node) == tmp_path / "peerpoise" / "ledger" / f"ward.{FILE}"
    temporary = node.model_copy(update={"budget": BudgetSection(experiment=True)})
    assert heads_file(temporary) == node.folder / FILE


def test_another_ledger_of_the_same_node_is_another_memory(tmp_path):
    it = NeighborLedgerHeads(tmp_path / FILE)
    it.observe("a", head(3))
    assert it.observe("a", head(1, b"two")) == SignedHead()
    assert it.observe("a", head(1)) == head(3)


def test_invented_ledgers_take_no_more_room(tmp_path):
    it = NeighborLedgerHeads(tmp_path / FILE)
    for n in range(100):
        it.observe("a", head(1, str(n).encode()))
    it.save()
    assert len((tmp_path / FILE).read_text()) < 200 * LEDGERS_PER_NODE


def test_a_damaged_file_counts_as_none(tmp_path):
    (tmp_path / FILE).write_text('{"a": ["???"]}')
    assert NeighborLedgerHeads(tmp_path / FILE).observe("a", head(1)) == SignedHead()


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation")
    ca = CertificateAuthority.create(folder / "ca")
    return {name: ca.enrol(folder / name) for name in ("me", "a")}


def test_only_a_head_that_this_node_stated_is_checked(people, tmp_path):
    """A neighbor can't make one up: one lie would end all releases."""
    checked = []
    with Ledger.in_memory() as ledger:
        ledger.mark("run", "none")
        witness = LedgerWitness(
            ledger,
            people["me"],
            ids={"a": people["a"].id},
            heads=NeighborLedgerHeads(tmp_path / FILE),
            check=lambda sequence, digest: checked.append((sequence, digest)),
        )
        own = witness.current()
        assert (own.sequence, own.digest) == ledger.head
        assert witness.current() is own, "signed once per entry"
    label, lie = own.label, b"x" * 32
    for statement in (
        SignedHead(sequence=9, digest=lie, label=label, signature=own.signature),
        SignedHead(sequence=1, digest=own.digest, label=b"M" * 32, signature=own.signature),
        SignedHead(sequence=1, digest=lie, label=label),
        SignedHead(
            sequence=9, digest=lie, label=label, signature=people["a"].sign_head(label, 9, lie)
        ),
        SignedHead(label=label),
    ):
        witness.challenge(statement)
    assert checked == []
    witness.challenge(own)
    assert checked == [(own.sequence, own.digest)]
    assert witness.observe("a", own) == SignedHead()
    assert witness.observe("a", own) == own


def test_a_renamed_ledger_is_held_to_what_was_stated_before(people, tmp_path):
    """Its label is made of its first name, so neighbors' memory is of the same ledger."""
    checked = []

    def witness(ledger):
        heads = NeighborLedgerHeads(tmp_path / FILE)
        return LedgerWitness(
            ledger, people["me"], ids={}, heads=heads, check=lambda *head: checked.append(head)
        )

    with Ledger.open(tmp_path, "old") as ledger:
        ledger.mark("run", "none")
        remembered = witness(ledger).current()
    rename(tmp_path, "old", "new")
    with Ledger.open(tmp_path, "new") as ledger:
        assert witness(ledger).current().label == remembered.label
        witness(ledger).challenge(remembered)
        assert checked == [ledger.head]
    with Ledger.open(tmp_path, "other") as ledger:
        assert witness(ledger).current().label != remembered.label
