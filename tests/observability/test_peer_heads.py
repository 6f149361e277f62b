"""What neighbors told of their ledgers: the highest, of each ledger, across restarts, within
bounds.
"""

from node.records.peer_heads import FILE, LEDGERS_PER_NODE, NeighborLedgerHeads
from peer.v1.peer_pb2 import LedgerHead


def head(sequence, label=b"one", digest=b"d" * 32):
    return LedgerHead(sequence=sequence, digest=digest, label=label, signature=b"s")


def test_the_highest_of_before_is_returned_and_kept(tmp_path):
    it = NeighborLedgerHeads(tmp_path)
    assert it.told("a", head(3)) == LedgerHead()
    assert it.told("a", head(2)) == head(3)
    assert it.told("a", head(5)) == head(3)
    assert it.told("a", head(0)) == head(5)
    assert it.told("b", head(1)) == LedgerHead()


def test_it_outlives_the_process(tmp_path):
    it = NeighborLedgerHeads(tmp_path)
    it.told("a", head(3))
    it.save()
    assert NeighborLedgerHeads(tmp_path).told("a", head(1)) == head(3)


def test_another_ledger_of_the_same_node_is_another_memory(tmp_path):
    it = NeighborLedgerHeads(tmp_path)
    it.told("a", head(3))
    assert it.told("a", head(1, b"two")) == LedgerHead()
    assert it.told("a", head(1)) == head(3)


def test_invented_ledgers_take_no_more_room(tmp_path):
    it = NeighborLedgerHeads(tmp_path)
    for n in range(100):
        it.told("a", head(1, str(n).encode()))
    it.save()
    assert len((tmp_path / FILE).read_text()) < 200 * LEDGERS_PER_NODE


def test_a_damaged_file_counts_as_none(tmp_path):
    (tmp_path / FILE).write_text('{"a": ["???"]}')
    assert NeighborLedgerHeads(tmp_path).told("a", head(1)) == LedgerHead()
