"""A member that floods a neighbor, in a process of its own:
`python -m kit.flooding_member KIND FOLDER ADDRESS NODE_ID [MESSAGE…]`.

FOLDER holds its key and certificate; each MESSAGE is one in hexadecimal digits, sent over and over.
It attacks the daemon at ADDRESS, which the test started, until it is killed, and connects again
whenever it is cut. Its first line says that it has begun; then one line a second with what it has
sent.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from kit.raw_http2 import CONTINUATION, RST_STREAM, SERVICE, Raw, again, literal
from peer.identity.keys import Identity

OPEN = 100
"""Streams it opens before it looks whether any was answered."""
VALUE = "x" * 3800
"""Fills a table of 4,096 bytes."""

Flood = Callable[[Raw, list[bytes]], int]


def calls(method: str) -> Flood:
    """Calls as fast as they are answered; those that hang are never given up."""

    def flood(raw: Raw, messages: list[bytes]) -> int:
        opened = [raw.open(SERVICE + method) for _ in range(OPEN)]
        for stream in opened:
            raw.message(stream, messages[stream // 2 % len(messages)])
        return _answered(raw, opened)

    return flood


def resets(raw: Raw, messages: list[bytes]) -> int:
    """Streams that are reset as soon as they are open (CVE-2023-44487)."""
    for _ in range(OPEN):
        raw.reset(raw.open(SERVICE + "Beat"))
    raw.drain()
    return OPEN


def bombs(raw: Raw, messages: list[bytes]) -> int:
    """A header of 3,800 bytes that is kept once and named, a byte each time, as often as a frame
    has bytes.
    """
    opened = [
        raw.open(SERVICE + "Beat", literal("a", VALUE, indexed=True), again() * 12000)
        for _ in range(OPEN)
    ]
    return _answered(raw, opened)


def small_bombs(raw: Raw, messages: list[bytes]) -> int:
    """As many headers as just pass, in streams that stay open."""
    opened = [
        raw.open(SERVICE + "Beat", literal("a", VALUE, indexed=True), again()) for _ in range(OPEN)
    ]
    return _answered(raw, opened)


def endless_bombs(method: str) -> Flood:
    """A block of headers that never ends, from somebody that never acknowledges any settings."""

    def flood(raw: Raw, messages: list[bytes]) -> int:
        raw.open(SERVICE + method, literal("a", VALUE, indexed=True), ends=False)
        for _ in range(OPEN):
            raw.send(CONTINUATION, 0, raw.stream, again() * 12000)
            raw.drain()
        return OPEN

    return flood


def _answered(raw: Raw, opened: list[int]) -> int:
    """Waits until all are, or for a second."""
    left, end = set(opened), time.monotonic() + 1.0
    while left and time.monotonic() < end:
        left -= {
            stream for kind, flags, stream, _ in raw.drain(0.05) if flags & 1 or kind == RST_STREAM
        }
    return len(opened) - len(left)


FLOODS: dict[str, Flood] = {
    "beats": calls("Beat"),
    "handshakes": calls("Handshake"),
    "refused": calls("Transfer"),
    "unknown": calls("Nothing"),
    "resets": resets,
    "bombs": bombs,
    "small_bombs": small_bombs,
    "endless_bombs": endless_bombs("Beat"),
    "unknown_bombs": endless_bombs("Nothing"),
}


def connections(identity: Identity, address: str, node_id: str) -> int:
    """One TLS handshake and nothing else."""
    with Raw(identity, address, node_id):
        return 1


def main(kind: str, folder: str, address: str, node_id: str, *given: str) -> None:
    home = Path(folder)
    identity = Identity.load(home / "node.key", home / "node.pem", home / "ca.pem")
    messages = [bytes.fromhex(message) for message in given] or [b""]
    sent, cuts, told = 0, 0, 0.0
    while True:
        try:
            if kind == "connections":
                sent += connections(identity, address, node_id)
            else:
                with Raw(identity, address, node_id) as raw:
                    while True:
                        sent += FLOODS[kind](raw, messages)
                        told = _tell(told, sent, cuts)
        except OSError:
            cuts += 1
        told = _tell(told, sent, cuts)


def _tell(told: float, sent: int, cuts: int) -> float:
    if (now := time.monotonic()) - told < 1.0:
        return told
    print(f"sent {sent}, cut {cuts} times", flush=True)
    return now


if __name__ == "__main__":
    main(*sys.argv[1:])
