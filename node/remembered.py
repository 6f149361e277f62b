"""The highest ledger entry each neighbour ever told: how a neighbour's rolled-back ledger is noticed."""

from __future__ import annotations

import json
from pathlib import Path

from node import disk

FILE = "remembered.json"


class Remembered:
    """Node id -> (sequence, digest), kept in the node's folder across restarts. A damaged file counts as none."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._saved = self._highest = self._read()

    def told(self, node_id: str, sequence: int, digest: bytes) -> tuple[int, bytes]:
        """Notes what the neighbour tells now and returns the highest that it told before."""
        before = self._highest.get(node_id, (0, b""))
        if sequence > before[0]:
            self._highest = {**self._highest, node_id: (sequence, digest)}
        return before

    def save(self) -> None:
        """Writes the file if something was learnt."""
        if self._highest is not self._saved:
            self._saved = self._highest
            plain = {node_id: [sequence, digest.hex()] for node_id, (sequence, digest) in self._saved.items()}
            disk.replace(self._path, json.dumps(plain).encode())

    def _read(self) -> dict[str, tuple[int, bytes]]:
        try:
            plain = json.loads(self._path.read_text())
            return {str(i): (int(sequence), bytes.fromhex(digest)) for i, (sequence, digest) in plain.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}
