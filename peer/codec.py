"""Messages to bytes and back, with limits: what arrives is checked before anybody looks at it.

Control messages and a transfer's header and trailer are protobufs (peer.proto); frames are raw
bytes, whose sizes both ends compute from the header's total. A peer chooses no shapes: it only says
how many bytes follow, and the receiver compares that with its own layout. Nothing here unpickles,
evaluates or allocates by a peer's number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, EncodeError, Message

from peer.endpoint import endpoint
from peer.errors import ConfigurationError, Malformed
from peer.message import MAX_NOTE
from peer.v1 import peer_pb2

PROTOCOL = 3
"""Version of the wire. Both ends must have the same one; the handshake says so in a sentence."""
FRAME = 1 << 20
"""Bytes of payload per frame: the best CPU per byte that keeps a heartbeat's p99 at 25 ms (4 MiB:
67 ms).
"""
MAX_MESSAGE = 2 << 20
"""Largest message a transport accepts: a frame and room to spare; also caps what a compressed bomb
unpacks to.
"""
MAX_CONTROL = 128 << 10
"""Largest protobuf: MAX_PEERS node ids and all other fields fit twice."""
MAX_PEERS = 1024
"""Most node ids in one list (`heard`, `live`, `waiting_for`): the largest closed neighborhood
foreseen.
"""
MAX_ROUND = 1 << 31
"""Rounds are below this, so they fit a signed 32-bit number everywhere."""
MAX_PHASE = 1 << 16
"""Verbs in one round; DECA's longest inner loop has some thousands."""
MAX_PARTS = 64
"""Vectors of one layout in one transfer; an optimizer's state has two or three."""
MAX_TRANSFER = 1 << 40
"""1 TiB of payload: above any layout, far below where sums of sizes could overflow."""
MAX_ADDRESSES = 4
"""Addresses in one announcement: a few networks, or one for each version of IP."""
MAX_ADDRESS = 262
"""Characters of "host:port": a DNS name has 253."""
MAX_ANNOUNCEMENTS = 64
"""Announcements, and ids looked for, in one exchange: the largest ones fit MAX_CONTROL."""
MAX_STATEMENTS = 64
"""Statements in one header, of so many neighbors; each has 250 bytes at most."""
MAX_DIGESTS = 32
"""Digests in one handshake."""
MAX_TEXT = 512
"""Characters of a sentence for people; longer ones belong into the sender's own log."""
DIGEST = 32
"""Bytes of SHA-256 and of a nonce."""
MAX_SPKI = 256
"""Bytes of a public key in DER; P-256 needs 91."""
MAX_SIGNATURE = 80
"""Bytes of an ECDSA signature in DER; P-256 needs at most 72."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Node ids (52 characters of base32 where there are certificates), names, run ids, kinds: safe to
print and log.
"""

M = TypeVar("M", bound=Message)
Rule: TypeAlias = Callable[[Any], bool]


def _name(text: str) -> bool:
    return NAME.fullmatch(text) is not None


def _names(texts: Sequence[str]) -> bool:
    return len(texts) <= MAX_PEERS and all(map(_name, texts))


def is_address(text: str) -> bool:
    """May a message carry it as an address: "host:port" in ASCII, not too long, with a port?"""
    try:
        return (
            len(text) <= MAX_ADDRESS
            and text.isascii()
            and text.isprintable()
            and endpoint(text)[1] > 0
        )
    except ConfigurationError:
        return False


def _digest(data: bytes) -> bool:
    return len(data) in (0, DIGEST)


def _digests(by_name: Mapping[str, bytes]) -> bool:
    return len(by_name) <= MAX_DIGESTS and all(
        _name(name) and len(digest) == DIGEST for name, digest in by_name.items()
    )


def _text(text: str) -> bool:
    return len(text) <= MAX_TEXT and (not text or text.isprintable())


def _free(_: object) -> bool:
    return True


RULES: Mapping[str, Rule] = {
    "protocol": _free,  # another version is refused in words, by the session
    "run": _name,
    "roster": _free,
    "sender": _name,
    "receiver": _name,
    "incarnation": _free,
    "sequence": lambda n: n < 1 << 63,
    "label": _digest,
    "round": lambda n: -1 <= n < MAX_ROUND,
    "from_round": lambda n: n < MAX_ROUND,
    "phase": lambda n: n < MAX_PHASE,
    "role": lambda n: n in peer_pb2.Role.values() and n != peer_pb2.ROLE_UNSPECIFIED,
    "kind": _name,
    "layout": _digest,
    "digests": _digests,
    "digest": _digest,
    "parts": lambda n: n <= MAX_PARTS,
    "dtype": lambda n: n in peer_pb2.DType.values(),
    "bytes": lambda n: n <= MAX_TRANSFER,
    "heard": _names,
    "waiting_for": _names,
    "live": _names,
    "withheld": _free,
    "note": lambda data: len(data) <= MAX_NOTE,
    "code": _free,  # a newer peer may have more codes; `sentence` knows what to say then
    "detail": _text,
    "version": _text,
    "unreached": _text,
    "own_code": _digest,
    "nonce": lambda data: len(data) == DIGEST,
    "spki": lambda data: len(data) <= MAX_SPKI,
    "signature": lambda data: len(data) <= MAX_SIGNATURE,
    "progress": _free,
    "idle_ms": _free,
    "finished": _free,
    "propose": _free,
    "order": lambda n: n < 1 << 63,
    "member": _name,
    "issued": lambda n: n < 1 << 63,
    "addresses": lambda texts: len(texts) <= MAX_ADDRESSES and all(map(is_address, texts)),
    "known": lambda many: len(many) <= MAX_ANNOUNCEMENTS and not any(map(_broken, many)),
    "wanted": lambda texts: len(texts) <= MAX_ANNOUNCEMENTS and _names(texts),
    "head": lambda head: _broken(head) is None,
    "remembered": lambda head: _broken(head) is None,
    "statements": lambda many: len(many) <= MAX_STATEMENTS and not any(map(_broken, many)),
}
"""What each field may hold, by name: a name means the same in every message."""


def _broken(message: Message) -> str | None:
    """The first field that breaks its rule, or None."""
    for field in message.DESCRIPTOR.fields:
        if not RULES[field.name](getattr(message, field.name)):
            return field.name
    if (
        isinstance(message, peer_pb2.Header)
        and message.bytes
        and not (message.dtype and message.parts)
    ):
        return "dtype"
    return None


def _check(message: M) -> M:
    field = _broken(message)
    if field is not None:
        raise Malformed(
            f"A {message.DESCRIPTOR.name} has an unusable {field}.", peer_pb2.CODE_MALFORMED
        )
    return message


def decode(cls: type[M], data: bytes) -> M:
    """The checked message of type `cls`.

    Raises:
        Malformed: too long, not such a protobuf, or a field outside its limits.
    """
    if len(data) > MAX_CONTROL:
        raise Malformed(
            f"A {cls.DESCRIPTOR.name} of {len(data)} bytes is too long.", peer_pb2.CODE_MALFORMED
        )
    try:
        message = cls.FromString(data)
    except (DecodeError, UnicodeDecodeError):
        raise Malformed(
            f"The bytes are no {cls.DESCRIPTOR.name}.", peer_pb2.CODE_MALFORMED
        ) from None
    return _check(message)


def encode(message: Message) -> bytes:
    """The bytes of a message, held to the same limits as what is received.

    Raises:
        Malformed: a field is outside its limits, so any receiver would refuse it.
    """
    try:
        data = _check(message).SerializeToString()
    except EncodeError:
        raise Malformed(
            f"The {message.DESCRIPTOR.name} can't be encoded.", peer_pb2.CODE_MALFORMED
        ) from None
    if len(data) > MAX_CONTROL:
        raise Malformed(
            f"A {message.DESCRIPTOR.name} of {len(data)} bytes is too long.",
            peer_pb2.CODE_MALFORMED,
        )
    return data


def frames(total: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of each frame of a payload of `total` bytes, in order; all but the last have
    FRAME bytes.
    """
    for offset in range(0, total, FRAME):
        yield offset, min(FRAME, total - offset)


def frame(data: bytes, length: int) -> memoryview:
    """The received frame, which must have exactly the length that `frames` says.

    Raises:
        Malformed: another length.
    """
    if len(data) != length:
        raise Malformed(
            f"A frame has {len(data)} bytes instead of {length}.", peer_pb2.CODE_MALFORMED
        )
    return memoryview(data)


def sentence(code: int) -> str:
    """What the person in front of the machine reads for this code; a code of a newer peer reads as
    "no reason".
    """
    values = peer_pb2.Code.DESCRIPTOR.values_by_number
    value = values.get(code, values[peer_pb2.CODE_UNSPECIFIED])
    return str(value.GetOptions().Extensions[peer_pb2.sentence])  # type: ignore[index]  # protoc's .pyi is too coarse


def printable(text: str, longest: int = MAX_TEXT) -> str:
    """`text` as a `detail` may hold it: one line, not too long, no terminal escapes."""
    return "".join(c if c.isprintable() else " " for c in text[:longest])
