"""The federation's certificate authority: it alone enrols nodes and signs rosters.

Not covered: whoever has its key can enrol anybody.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from peer import files
from peer.errors import IdentityError
from peer.identity import requests
from peer.identity.keys import (
    BOTH_ENDS,
    DOMAIN,
    Identity,
    PrivateKey,
    PublicKey,
    create_key,
    load_certificate,
    load_key,
    node_id,
    p256,
    spki,
)

NODE_DAYS = 365
CA_DAYS = 3650
SKEW = timedelta(minutes=10)
"""Certificates are valid from this long before they are issued, because clocks differ."""


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """The federation's key and certificate. The key belongs on no node."""

    key: PrivateKey = field(repr=False)
    certificate: x509.Certificate

    @classmethod
    def create(cls, folder: Path, days: int = CA_DAYS) -> CertificateAuthority:
        """Makes `ca.key` (0600) and `ca.pem` in `folder`.

        Raises:
            IdentityError: there is one already.
            StorageError: the folder or disk refuses.
        """
        key = create_key(folder / "ca.key")
        name = x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, f"peerpoise {node_id(key.public_key())[:16]}")]
        )
        builder = _builder(name, name, key.public_key(), days, authority=True)
        certificate = builder.sign(key, hashes.SHA256())
        files.atomic_write(
            folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM), public=True
        )
        return cls(key, certificate)

    @classmethod
    def load(cls, folder: Path) -> CertificateAuthority:
        """Reads what `create` wrote.

        Raises:
            IdentityError: absent, readable by others, or the two files don't belong together.
        """
        key, certificate = load_key(folder / "ca.key"), load_certificate(folder / "ca.pem")
        if p256(certificate) != key.public_key():
            raise IdentityError(f"ca.key and ca.pem in {folder} don't belong together.")
        return cls(key, certificate)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def federation(self) -> str:
        """The public key that checks rosters, for run.toml (base64 of DER)."""
        return base64.b64encode(spki(self.key.public_key())).decode()

    def issue(self, public_key: PublicKey, days: int = NODE_DAYS) -> bytes:
        """A node's certificate (PEM); its name is computed from the key."""
        own = node_id(public_key)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, own)])
        builder = _builder(subject, self.certificate.subject, public_key, days, authority=False)
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(f"{own}.{DOMAIN}")]), critical=False
        )
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = builder.add_extension(issuer, critical=False).sign(self.key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM)

    def sign_request(self, request_pem: bytes, days: int = NODE_DAYS) -> bytes:
        """A certificate (PEM) for the key of a PKCS#10 request; every name in the request is
        ignored.

        Raises:
            IdentityError: no request, not signed by its own key, or another kind of key than P-256.
        """
        return self.issue(requests.public_key(request_pem), days)

    def enrol(self, folder: Path, days: int = NODE_DAYS) -> Identity:
        """A new node: `node.key` (0600), `node.pem` and `ca.pem` in `folder`.

        Raises:
            IdentityError: there is a key already.
            StorageError: the folder or disk refuses.
        """
        key = create_key(folder / "node.key")
        files.atomic_write(folder / "node.pem", self.issue(key.public_key(), days), public=True)
        files.atomic_write(folder / "ca.pem", self.pem, public=True)
        return Identity.load(folder / "node.key", folder / "node.pem", folder / "ca.pem")


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PublicKey, days: int, *, authority: bool
) -> x509.CertificateBuilder:
    now = datetime.now(UTC).replace(microsecond=0)
    usage = x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(
            x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True
        )
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
    if authority:
        return builder
    return builder.add_extension(x509.ExtendedKeyUsage(BOTH_ENDS), critical=False)
