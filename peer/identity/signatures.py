"""What nodes sign, as bytes: one form for each purpose, so that no signature can pass for another.

All signatures are ECDSA over SHA-256 with a P-256 key.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from peer.v1 import peer_pb2


def head(label: bytes, sequence: int, digest: bytes) -> bytes:
    """The newest entry of a record that a node only appends to."""
    return b"peerpoise ledger head 1\0" + label + sequence.to_bytes(8, "big") + digest


def welcome(nonce: bytes, client_id: str, server_id: str, run: str) -> bytes:
    """The answer to a handshake."""
    return _signed("welcome", nonce, client_id.encode(), server_id.encode(), run.encode())


def connection(nonce: bytes, client_id: str, server_id: str) -> bytes:
    """Who is at the other end of a connection for transfers."""
    return _signed("connection", nonce, client_id.encode(), server_id.encode())


def announcement(member: str, issued: int, addresses: Sequence[str]) -> bytes:
    """Where a member can be dialed."""
    return _signed(
        "announcement",
        member.encode(),
        issued.to_bytes(8, "big"),
        *(each.encode() for each in addresses),
    )


def statement(run: str, message: peer_pb2.Statement) -> bytes:
    """What a node says to all its neighbors alike."""
    place = (message.incarnation, message.round, message.phase, message.role)
    return _signed(
        "statement",
        run.encode(),
        message.sender.encode(),
        *(n.to_bytes(8, "big") for n in place),
        message.digest,
    )


def is_signed(public: bytes, signature: bytes, data: bytes) -> bool:
    """Did the key `public` (SPKI, DER) sign these bytes? False for another kind of key, too."""
    try:
        key = serialization.load_der_public_key(public)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except (ValueError, UnsupportedAlgorithm, InvalidSignature):
        return False
    return True


def _signed(purpose: str, *parts: bytes) -> bytes:
    """What is signed: a purpose, then each part behind its length, so that no two tuples give the
    same bytes.
    """
    return f"peerpoise {purpose} 1\0".encode() + b"".join(
        len(part).to_bytes(4, "big") + part for part in parts
    )
