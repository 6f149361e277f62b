"""The members: names, node ids and addresses, signed by the federation's key.

The graph and every mixing weight follow from the sorted names, so all nodes must hold the same
members. N is their number, also while some are down. A higher version may remove members: they stay
in the list, so that nobody's weights change, but their edges are not used any more, and nobody lets
them in. Nothing else can change during a run.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from peer import files
from peer.codec import MAX_ROUND, NAME
from peer.endpoint import endpoint
from peer.errors import ConfigurationError, IdentityError
from peer.identity.keys import PrivateKey

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
    """All that the run began with, the removed ones too."""
    removed: tuple[str, ...] = ()
    """Names."""

    def __post_init__(self) -> None:
        """Raises ConfigurationError for a version or round below its minimum, no members, a name or
        id twice, or a removed member that never was one."""
        if self.version < 1 or not 0 <= self.effective_round < MAX_ROUND:
            raise ConfigurationError("A roster's version starts at 1 and its effective_round at 0.")
        if not self.members:
            raise ConfigurationError("A roster needs at least one member.")
        for member in self.members:
            _check(member)
        for what in ("name", "id"):
            seen = [getattr(member, what) for member in self.members]
            twice = (
                sorted({value for value in seen if seen.count(value) > 1})
                if len(set(seen)) < len(seen)
                else []
            )
            if twice:
                raise ConfigurationError(f"The roster has the {what} {twice[0]} twice.")
        if strangers := sorted(set(self.removed) - {member.name for member in self.members}):
            raise ConfigurationError(f"The roster removes {strangers[0]}, which is not a member.")
        object.__setattr__(
            self, "members", tuple(sorted(self.members, key=lambda member: member.name))
        )
        object.__setattr__(self, "removed", tuple(sorted(self.removed)))

    @property
    def names(self) -> tuple[str, ...]:
        """Sorted."""
        return tuple(member.name for member in self.members)

    @property
    def by_name(self) -> Mapping[str, Member]:
        return {member.name: member for member in self.members}

    @property
    def ids(self) -> frozenset[str]:
        """Node ids of those who take part: all but the removed ones."""
        return frozenset(member.id for member in self.members if member.name not in self.removed)

    @property
    def digest(self) -> bytes:
        """SHA-256 of what graph and weights follow from: the same in every version of one run (32
        bytes).
        """
        return hashlib.sha256(
            json.dumps([(member.name, member.id) for member in self.members]).encode()
        ).digest()

    def without(self, names: Collection[str]) -> Roster:
        """The next version, with these members removed too.

        Raises:
            ConfigurationError: one of them is no member, or was removed before, or nobody would be
                left.
        """
        for name in names:
            if name in self.removed:
                raise ConfigurationError(f"{name} was removed from the roster before.")
        removed = {*self.removed, *names}
        if len(removed) >= len(self.members):
            raise ConfigurationError(
                "Nobody would be left in the roster; to end a run, stop its nodes."
            )
        return replace(self, version=self.version + 1, removed=tuple(removed))

    def gone(self, newer: Roster) -> frozenset[str]:
        """The names of those whom a newer version removes.

        Raises:
            ConfigurationError: it is older, or changes something else, which no run can do.
        """
        if newer.version <= self.version:
            raise ConfigurationError(
                f"it is of version {newer.version}, and version {self.version} is in force"
            )
        if newer.digest != self.digest:
            raise ConfigurationError("it adds or changes members, which needs a new run")
        if back := sorted(set(self.removed) - set(newer.removed)):
            raise ConfigurationError(f"it takes {back[0]} back, which was removed for good")
        return frozenset(newer.removed) - frozenset(self.removed)

    def save(self, path: Path, key: PrivateKey) -> None:
        """Writes JSON signed with the federation's key (`CertificateAuthority.key`).

        Raises:
            StorageError: the folder or disk refuses.
        """
        body = asdict(self)
        signature = key.sign(_signed(body), ec.ECDSA(hashes.SHA256()))
        document = {"roster": body, "signature": base64.b64encode(signature).decode()}
        files.atomic_write(path, json.dumps(document, indent=1).encode() + b"\n", public=True)

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
            raise ConfigurationError(
                "run.federation is not a public key; copy it from the federation's CA."
            ) from None
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
            f"{member.name!r} is no name for a node; use up to 64 letters, digits, dots, dashes "
            "and underscores."
        )
    if not NAME.fullmatch(member.id):
        raise ConfigurationError(f"{member.name} has the id {member.id!r}, which is none.")
    for address in member.addresses:
        endpoint(address)


def _signed(body: Mapping[str, object]) -> bytes:
    return f"{FORMAT}\n{json.dumps(body, sort_keys=True, separators=(',', ':'))}".encode()


def _parse(path: Path) -> tuple[dict[str, object], bytes]:
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
        members = tuple(
            Member(str(m["name"]), str(m["id"]), tuple(map(str, m["addresses"])))
            for m in body["members"]
        )
        removed = tuple(map(str, body.get("removed", ())))
        return Roster(int(body["version"]), int(body["effective_round"]), members, removed)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(
            f"{path} is signed but lacks what a roster needs; update peerpoise."
        ) from None
