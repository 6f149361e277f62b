"""The highest ledger entry each neighbor ever stated: how a ledger that was set back to an older
copy is noticed, also in a later run.

What is kept is the neighbor's own signed statement; only it can tell whether that was true.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from google.protobuf.message import DecodeError

from node.privacy.ledger import Ledger
from peer import files
from peer.identity.keys import Identity
from peer.message import Peer
from peer.v1.peer_pb2 import SignedHead

FILE = "remembered.json"
LEDGERS_PER_NODE = 8
"""A node has few data sets; a neighbor that invents more makes this node forget its own oldest ones
only.
"""


class NeighborLedgerHeads:
    """node id -> label of a ledger -> its highest head; kept in a file. A damaged one counts as
    none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._heads: dict[str, dict[bytes, SignedHead]] = self._read()
        self._changed = False

    def observe(self, node_id: str, head: SignedHead) -> SignedHead:
        """Notes what the neighbor states now and returns the highest that it stated of that ledger
        before.
        """
        ledgers = self._heads.setdefault(node_id, {})
        before = ledgers.get(head.label, SignedHead())
        if head.sequence > before.sequence:
            ledgers.pop(head.label, None)
            ledgers[head.label] = SignedHead.FromString(head.SerializeToString())
            if len(ledgers) > LEDGERS_PER_NODE:
                del ledgers[next(iter(ledgers))]
            self._changed = True
        return before

    def save(self) -> None:
        """Writes the file if something new was heard.

        Raises:
            StorageError: the disk refuses; the old file stays.
        """
        if self._changed:
            encoded = {
                node_id: [
                    base64.b64encode(head.SerializeToString()).decode()
                    for head in list(ledgers.values())
                ]
                for node_id, ledgers in list(self._heads.items())
            }
            files.atomic_write(self._path, json.dumps(encoded).encode())
            self._changed = False

    def _read(self) -> dict[str, dict[bytes, SignedHead]]:
        try:
            heads: dict[str, dict[bytes, SignedHead]] = {}
            for node_id, encoded in json.loads(self._path.read_text(encoding="utf-8")).items():
                signed = [SignedHead.FromString(base64.b64decode(text)) for text in encoded]
                heads[node_id] = {head.label: head for head in signed}
            return heads
        except (OSError, ValueError, TypeError, AttributeError, DecodeError):
            return {}


class LedgerWitness:
    """States this node's ledger head to its neighbors and remembers theirs: the
    `peer.session.interfaces.Witness` of a daemon.
    """

    def __init__(
        self,
        ledger: Ledger | None,
        identity: Identity,
        *,
        ids: Mapping[Peer, str],
        heads: NeighborLedgerHeads,
        check: Callable[[int, bytes], None],
    ) -> None:
        """`check` gets (sequence, digest) of what a neighbor remembers, if this node did state
        it.
        """
        self._ledger, self._identity, self._check = ledger, identity, check
        self._ids, self._heads = ids, heads
        self._stated = SignedHead(label=identity.label(ledger.first_name) if ledger else b"")

    def current(self) -> SignedHead:
        """This node's head, signed once per entry."""
        if self._ledger is None:
            return self._stated
        sequence, digest = self._ledger.head
        if (sequence, digest) != (self._stated.sequence, self._stated.digest):
            label = self._stated.label
            signature = self._identity.sign_head(label, sequence, digest)
            self._stated = SignedHead(
                sequence=sequence, digest=digest, label=label, signature=signature
            )
        return self._stated

    def observe(self, peer: Peer, statement: SignedHead) -> SignedHead:
        """Remembers a neighbor's head; returns the highest remembered before."""
        return self._heads.observe(self._ids[peer], statement)

    def challenge(self, statement: SignedHead) -> None:
        """Checks what a neighbor remembers of this ledger, unless this node never signed it: one
        lie would end all releases.
        """
        if statement.sequence == 0 or statement.label != self._stated.label:
            return
        if self._identity.verify_own_head(
            statement.label, statement.sequence, statement.digest, statement.signature
        ):
            self._check(statement.sequence, statement.digest)
