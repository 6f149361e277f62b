"""A federation: its authority, its members and its roster.

Its folder outlives runs:
    ca.key ca.pem          the authority
    members/NAME.pem       the certificate of each member that was ever packed, and so its id
    members/NAME.key       its key, where `pack` made it; a host that sent a request keeps its own
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from node.config import RunConfig, load
from peer import files
from peer.errors import IdentityError
from peer.identity import requests
from peer.identity.authority import CertificateAuthority
from peer.identity.keys import (
    PublicKey,
    create_key,
    is_issued_by,
    load_certificate,
    load_key,
    names,
    node_id,
    p256,
)
from peer.identity.roster import Roster


@dataclass(frozen=True, slots=True)
class Federation:
    """The folder of the module's docstring."""

    folder: Path
    authority: CertificateAuthority

    @classmethod
    def create(cls, folder: Path) -> Federation:
        """A new one.

        Raises:
            StorageError: the folder is not empty, or can't be made.
        """
        return cls(folder, CertificateAuthority.create(files.new_dir(folder)))

    @classmethod
    def load(cls, folder: Path) -> Federation:
        """An earlier one.

        Raises:
            IdentityError: there is none, or its files can't be used.
        """
        if not (folder / "ca.key").exists():
            raise IdentityError(
                f"There is no CA in {folder}: name the federation folder that an earlier pack "
                f"made, or make one with peerpoise ca create {folder}"
            )
        return cls(folder, CertificateAuthority.load(folder))

    def key(self, name: str) -> Path:
        """A member's key, if it was made here."""
        return self.folder / "members" / f"{name}.key"

    def certificate(self, name: str) -> Path:
        """A member's last certificate, if it has had one."""
        return self.folder / "members" / f"{name}.pem"

    def member(self, name: str) -> PublicKey | None:
        """A known member's public key.

        Raises:
            IdentityError: its certificate can't be used.
        """
        if not self.certificate(name).exists():
            return None
        return own_member(self.certificate(name), self.authority)

    def enrol(self, name: str, home: Path, requested: PublicKey | None = None) -> str:
        """Writes a member's certificate and the CA's to `home`, and its key where that is made
        here; returns its id. `requested`: the key that its host made.

        Raises:
            IdentityError: what is kept of it can't be used.
            StorageError: the disk refuses.
        """
        kept = self.key(name)
        if requested is not None and requested != self.member(name):
            kept.unlink(missing_ok=True)  # of the member's last identity
        public = requested or self.member(name)
        if public is None:
            public = (load_key(kept) if kept.exists() else create_key(kept)).public_key()
        pem = self.authority.issue(public)
        files.ensure_dir(kept.parent)
        for path in (self.certificate(name), home / "node.pem"):
            files.atomic_write(path, pem, public=True)
        files.atomic_write(home / "ca.pem", self.authority.pem, public=True)
        if kept.exists():
            files.atomic_write(home / "node.key", kept.read_bytes())
        return node_id(public)


def own_member(path: Path, authority: CertificateAuthority) -> PublicKey:
    """The key in a certificate that this CA issued, be it expired.

    Raises:
        IdentityError: another CA issued it, or it can't be read.
    """
    certificate = load_certificate(path)
    key = p256(certificate)
    if key is None or not is_issued_by(certificate, authority.certificate):
        raise IdentityError(f"{path} was not issued by this CA.")
    return key


def renew(folder: Path, name: str, out: Path, days: int) -> dict[str, object]:
    """A new certificate of a member for the key that it has, written to `out` and kept.

    Raises:
        IdentityError: there is no such member, or the CA can't be used.
    """
    federation = Federation.load(folder)
    key = federation.member(name)
    if key is None:
        raise IdentityError(
            f"{folder} knows no member {name}; certify its request instead: peerpoise ca issue "
            f"{folder} --request {name}.csr --out {name}"
        )
    pem = federation.authority.issue(key, days)
    for path in (federation.certificate(name), out):
        files.atomic_write(path, pem, public=True)
    return show_certificate(out)


def create_authority(folder: Path) -> dict[str, object]:
    authority = CertificateAuthority.create(files.new_dir(folder))
    return {"folder": str(folder), "federation": authority.federation}


def issue(folder: Path, out: Path, request: Path | None, days: int) -> dict[str, object]:
    """A node's certificate in `out`; with `request` the key stays where it was made."""
    authority = CertificateAuthority.load(folder)
    if request is None:
        return {"folder": str(out), "id": authority.enrol(out, days).id}
    key = requests.read(request)
    files.atomic_write(files.ensure_dir(out) / "node.pem", authority.issue(key, days), public=True)
    files.atomic_write(out / "ca.pem", authority.pem, public=True)
    return {"folder": str(out), "id": node_id(key)}


def show_certificate(place: Path) -> dict[str, object]:
    """What a certificate says; of a folder, its node.pem, otherwise its ca.pem."""
    if place.is_dir():
        place = place / ("node.pem" if (place / "node.pem").exists() else "ca.pem")
    certificate = load_certificate(place)
    key = p256(certificate)
    return {
        "file": str(place),
        "id": node_id(key) if key else "not a P-256 key",
        "names": ", ".join(names(certificate)) or "none: a CA",
        "issuer": certificate.issuer.rfc4514_string(),
        "valid_from": certificate.not_valid_before_utc.isoformat(),
        "valid_until": certificate.not_valid_after_utc.isoformat(),
    }


def show_roster(folder: Path) -> dict[str, object]:
    """What the roster in this folder says; run.toml beside it has the key that it must be signed
    with.
    """
    file, roster = _roster_in(folder)
    return {
        "file": str(file),
        "version": roster.version,
        "members": ", ".join(name for name in roster.names if name not in roster.removed),
        "removed": ", ".join(roster.removed) or "nobody",
    }


def remove_members(folder: Path, names: Sequence[str], authority: Path) -> dict[str, object]:
    """Writes the next version of the roster in this folder, without these members.

    Raises:
        ConfigurationError: one of them is no member, or none would be left.
        IdentityError: the CA is not there, or not this run's.
    """
    file, roster = _roster_in(folder)
    newer = roster.without(names)
    signer = CertificateAuthority.load(authority)
    if signer.federation != load(RunConfig, [folder / "run.toml"], environ={}).run.federation:
        raise IdentityError(f"The CA in {authority} is not the one of the run in {folder}.")
    newer.save(file, signer.key)
    return show_roster(folder)


def _roster_in(folder: Path) -> tuple[Path, Roster]:
    run = load(RunConfig, [folder / "run.toml"], environ={})
    file = folder / "roster.json"
    return file, Roster.load(file, run.run.federation)
