"""A federation's authority and its roster: what `peerpoise ca` and `peerpoise roster` do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from node.config import RunConfig, load
from node.experiments.provisioning import make_folder
from peer import files
from peer.errors import DataError, IdentityError
from peer.identity.authority import CertificateAuthority
from peer.identity.keys import load_certificate, names, node_id, p256
from peer.identity.roster import Roster


def create_authority(folder: Path) -> dict[str, object]:
    authority = CertificateAuthority.create(make_folder(folder))
    return {"folder": str(folder), "federation": authority.federation}


def issue(folder: Path, out: Path, request: Path | None, days: int) -> dict[str, object]:
    """A node's certificate in `out`; with `request` the key stays where it was made."""
    authority = CertificateAuthority.load(folder)
    if request is None:
        return {"folder": str(out), "id": authority.enrol(out, days).id}
    try:
        certificate = authority.sign_request(request.read_bytes(), days)
    except OSError as error:
        raise DataError(f"{request} can't be read: {error.strerror}.") from None
    files.atomic_write(files.ensure_dir(out) / "node.pem", certificate, public=True)
    files.atomic_write(out / "ca.pem", authority.pem, public=True)
    return {"folder": str(out), "id": show_certificate(out / "node.pem")["id"]}


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
