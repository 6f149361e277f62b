"""The highest ledger entry each neighbor ever told: how a neighbor's rolled-back ledger is noticed.

What is kept is the neighbor's own signed statement; only it can tell whether that was true.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

from google.protobuf.message import DecodeError

from peer import files
from peer.v1.peer_pb2 import LedgerHead

FILE = "remembered.json"
LEDGERS_PER_NODE = 8
"""A node has few data sets; a neighbor that invents more makes this node forget its own oldest ones
only.
"""


class NeighborLedgerHeads:
    """node id -> label of a ledger -> its highest head; kept in the node's folder. A damaged file
    counts as none.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._heads: dict[str, dict[bytes, LedgerHead]] = self._read()
        self._changed = False

    def told(self, node_id: str, head: LedgerHead) -> LedgerHead:
        """Notes what the neighbor tells now and returns the highest that it told of that ledger
        before.
        """
        ledgers = self._heads.setdefault(node_id, {})
        before = ledgers.get(head.label, LedgerHead())
        if head.sequence > before.sequence:
            ledgers.pop(head.label, None)
            ledgers[head.label] = LedgerHead.FromString(head.SerializeToString())
            if len(ledgers) > LEDGERS_PER_NODE:
                del ledgers[next(iter(ledgers))]
            self._changed = True
        return before

    def save(self) -> None:
        """Writes the file if something was learnt.

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

    def _read(self) -> dict[str, dict[bytes, LedgerHead]]:
        try:
            found: dict[str, dict[bytes, LedgerHead]] = {}
            for node_id, encoded in json.loads(self._path.read_text(encoding="utf-8")).items():
                heads = [LedgerHead.FromString(base64.b64decode(text)) for text in encoded]
                found[node_id] = {head.label: head for head in heads}
            return found
        except (OSError, ValueError, TypeError, AttributeError, DecodeError):
            return {}
