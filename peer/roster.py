"""Who takes part: names, node ids and addresses, signed by the federation's key.

The graph and every mixing weight follow from the sorted names, so all nodes must hold the same roster; a new one has
a higher version and takes effect from a stated round on. N is its size, also while members are down.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from peer import disk
from peer.codec import MAX_ROUND, NAME
from peer.endpoint import endpoint
from peer.errors import ConfigurationError, IdentityError
from peer.identity import PrivateKey

FORMAT = "peerpoise roster 1"
"""Signed along, so that no other signature of the federation's key can pass for a roster."""
MAX_BYTES = 16 << 20
"""Largest roster file: some ten thousand members."""


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    id: str
    addresses: tuple[str, ...] = ()
    """"host:port", best first; may be empty where another discovery finds them."""


@dataclass(frozen=True, slots=True)
class Roster:
    version: int
    effective_round: int
    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        """Raises ConfigurationError for a version or round below its minimum, no members, or a name or id twice."""
        if self.version < 1 or not 0 <= self.effective_round < MAX_ROUND:
            raise ConfigurationError("A roster's version starts at 1 and its effective_round at 0.")
        if not self.members:
            raise ConfigurationError("A roster needs at least one member.")
        for member in self.members:
            _check(member)
        for what in ("name", "id"):
            seen = [getattr(member, what) for member in self.members]
            twice = sorted({value for value in seen if seen.count(value) > 1}) if len(set(seen)) < len(seen) else []
            if twice:
                raise ConfigurationError(f"The roster has the {what} {twice[0]} twice.")
        object.__setattr__(self, "members", tuple(sorted(self.members, key=lambda member: member.name)))

    @property
    def names(self) -> tuple[str, ...]:
        """Sorted."""
        return tuple(member.name for member in self.members)

    @property
    def by_id(self) -> Mapping[str, Member]:
        return {member.id: member for member in self.members}

    @property
    def by_name(self) -> Mapping[str, Member]:
        return {member.name: member for member in self.members}

    def save(self, path: Path, key: PrivateKey) -> None:
        """Writes JSON signed with the federation's key (`CertificateAuthority.key`).

        Raises:
            StorageError: the folder or disk refuses.
        """
        body = asdict(self)
        signature = key.sign(_signed(body), ec.ECDSA(hashes.SHA256()))
        document = {"roster": body, "signature": base64.b64encode(signature).decode()}
        disk.replace(path, json.dumps(document, indent=1).encode() + b"\n", public=True)

    @classmethod
    def load(cls, path: Path, federation: str) -> Roster:
        """Reads a roster and checks it against `run.federation` (base64 of the public key in DER).

        Raises:
            IdentityError: not signed by that key.
            ConfigurationError: absent, no roster, or it contradicts itself.
        """
        body, signature = _parse(path)
        try:
            key = serialization.load_der_public_key(base64.b64decode(federation, validate=True))
        except (ValueError, binascii.Error, UnsupportedAlgorithm):
            raise ConfigurationError("run.federation is not a public key; copy it from the federation's CA.") from None
        try:
            if not isinstance(key, ec.EllipticCurvePublicKey):
                raise InvalidSignature
            key.verify(signature, _signed(body), ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise IdentityError(f"{path} is not signed by the federation of this run.") from None
        return _roster(path, body)


def _check(member: Member) -> None:
    if not NAME.fullmatch(member.name):
        raise ConfigurationError(
            f"{member.name!r} is no name for a node; use up to 64 letters, digits, dots, dashes and underscores."
        )
    if not NAME.fullmatch(member.id):
        raise ConfigurationError(f"{member.name} has the id {member.id!r}, which is none.")
    for address in member.addresses:
        endpoint(address)


def _signed(body: Mapping[str, Any]) -> bytes:
    return f"{FORMAT}\n{json.dumps(body, sort_keys=True, separators=(',', ':'))}".encode()


def _parse(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigurationError(f"{path} is too large for a roster.")
        document = json.loads(path.read_bytes())
        body, signature = document["roster"], base64.b64decode(document["signature"], validate=True)
    except OSError as error:
        raise ConfigurationError(f"The roster {path} can't be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigurationError(f"{path} is not a roster.") from None
    if not isinstance(body, dict):
        raise ConfigurationError(f"{path} is not a roster.")
    return body, signature


def _roster(path: Path, body: Mapping[str, Any]) -> Roster:
    try:
        members = tuple(Member(str(m["name"]), str(m["id"]), tuple(map(str, m["addresses"]))) for m in body["members"])
        return Roster(int(body["version"]), int(body["effective_round"]), members)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"{path} is signed but lacks what a roster needs; update peerpoise.") from None
