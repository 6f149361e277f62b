"""Who a node is: a P-256 key, whose fingerprint is the node's id, and a certificate of the
federation's CA.

id = base32 of SHA-256 of the public key (SPKI, DER), lower case, unpadded: 52 characters, one DNS
label. The certificate carries `<id>.peerpoise` as its only name, computed by the CA from the key: a
request can't ask for one. TLS then checks the chain and that name; that the key itself belongs to
the id is checked on top (`spki_id` by the listening side on every call, `verify_welcome` by the
dialling side in the handshake).

Not covered: a stolen key (it is the node until the roster drops its id), and the CA's own key,
which can enrol anybody.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from peer import files
from peer.errors import IdentityError, Refused
from peer.v1 import peer_pb2

DOMAIN = "peerpoise"
"""Names in certificates are `<id>.peerpoise`; no DNS is asked about them."""
NODE_DAYS = 365
CA_DAYS = 3650
BOTH_ENDS = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
SKEW = timedelta(minutes=10)
"""Certificates are valid from this long before they are issued, because clocks differ."""

PublicKey = ec.EllipticCurvePublicKey
PrivateKey = ec.EllipticCurvePrivateKey


def spki(public_key: PublicKey) -> bytes:
    """The public key as DER SubjectPublicKeyInfo (91 bytes)."""
    return public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def id_of(der: bytes) -> str:
    """The node id of a public key in DER: 52 characters."""
    return base64.b32encode(hashlib.sha256(der).digest()).decode().lower().rstrip("=")


def node_id(public_key: PublicKey) -> str:
    """The node id of a public key: 52 characters."""
    return id_of(spki(public_key))


def create_key(path: Path) -> PrivateKey:
    """Makes a new P-256 key and writes it as PEM, mode 0600.

    Raises:
        IdentityError: there is a key already; losing it would lose the node's identity.
        StorageError: the folder or disk refuses, or others can write to the folder.
    """
    if path.exists():
        raise IdentityError(
            f"{path} exists already; move it away if this node is to get another identity."
        )
    key = ec.generate_private_key(ec.SECP256R1())
    files.ensure_dir(path.parent)
    files.atomic_write(path, key_pem(key))
    return key


def key_pem(key: PrivateKey) -> bytes:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())


def load_key(path: Path) -> PrivateKey:
    """Reads a private key that nobody else can read or exchange.

    Raises:
        IdentityError: absent, readable by group or others, in a folder that they can write to,
        encrypted, or no P-256
            key.
    """
    data = _read(path)
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise IdentityError(f"{path} can be read by others; run: chmod 600 {path}")
    if os.name == "posix" and (text := files.unsafe(path.parent)):
        raise IdentityError(text)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise IdentityError(f"{path} is not an unencrypted private key in PEM form.") from None
    if not isinstance(key, PrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError(f"{path} holds another kind of key than P-256, the only one used here.")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise IdentityError(f"{path} can't be read: {error.strerror}.") from None


def load_certificate(path: Path) -> x509.Certificate:
    """Reads one certificate in PEM form.

    Raises:
        IdentityError: absent or no certificate.
    """
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError:
        raise IdentityError(f"{path} is not a certificate in PEM form.") from None


def p256(certificate: x509.Certificate) -> PublicKey | None:
    """The certificate's public key, if it is of our kind."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, PublicKey) and isinstance(key.curve, ec.SECP256R1) else None


def names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names a certificate carries."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return tuple(found.value.get_values_for_type(x509.DNSName))


def spki_id(pem_certificate: bytes) -> tuple[str, tuple[str, ...]]:
    """(id computed from the key, DNS names written in the certificate): equal only if the CA did
    its work.

    Raises:
        IdentityError: no certificate, or another kind of key.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem_certificate)
    except ValueError:
        raise IdentityError("The peer's certificate can't be read.") from None
    key = p256(certificate)
    if key is None:
        raise IdentityError("The peer's certificate holds another kind of key than P-256.")
    return node_id(key), names(certificate)


def member_id(pem_certificate: bytes, ca_pem: bytes) -> str:
    """The id of the node that showed this certificate, computed from its key.

    Raises:
        IdentityError: it is not as `CertificateAuthority.issue` makes them.
    """
    own, written = spki_id(pem_certificate)
    if written != (f"{own}.{DOMAIN}",):
        raise IdentityError("The certificate's name does not belong to its key.")
    certificate, authority = map(x509.load_pem_x509_certificate, (pem_certificate, ca_pem))
    if not _is_issued_by(certificate, authority):
        raise IdentityError("The certificate was not issued by the federation's CA itself.")
    if not is_leaf(certificate):
        raise IdentityError("The certificate is not one for both ends of TLS and nothing else.")
    return own


def is_leaf(certificate: x509.Certificate) -> bool:
    """Is it for both ends of TLS, and no authority of its own?"""
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False
    return not constraints.ca and set(usages) == set(BOTH_ENDS)


def _is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """The federation: it alone enrols nodes and signs rosters. Its private key belongs on no
    node.
    """

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
        try:
            request = x509.load_pem_x509_csr(request_pem)
            key = request.public_key()
        except (ValueError, UnsupportedAlgorithm):
            raise IdentityError("This is not a certificate request in PEM form.") from None
        if not isinstance(key, PublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise IdentityError("The certificate request holds another kind of key than P-256.")
        if not request.is_signature_valid:
            raise IdentityError("The certificate request is not signed by its own key.")
        return self.issue(key, days)

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


@dataclass(frozen=True, slots=True)
class Identity:
    """One node's key and certificate, checked against each other and against the federation's
    CA.
    """

    id: str
    spki: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)
    certificate_pem: bytes = field(repr=False)
    ca_pem: bytes = field(repr=False)
    expires: datetime
    _key: PrivateKey = field(repr=False)

    @classmethod
    def load(
        cls, key: Path, certificate: Path, ca: Path, *, now: datetime | None = None
    ) -> Identity:
        """Reads the three files of `[identity]`; `now` is the time at which they have to be valid.

        Raises:
            IdentityError: one sentence on what is wrong with which file.
        """
        private, own, authority = load_key(key), load_certificate(certificate), load_certificate(ca)
        now = datetime.now(UTC) if now is None else now
        public, expected = private.public_key(), node_id(private.public_key())
        if p256(own) != public:
            raise IdentityError(f"{certificate} was issued for another key than {key}.")
        if not _is_issued_by(own, authority):
            raise IdentityError(f"{certificate} was not issued by the CA in {ca}.")
        for path, it in ((certificate, own), (ca, authority)):
            _check_dates(path, it, now)
        if names(own) != (f"{expected}.{DOMAIN}",):
            raise IdentityError(
                f"{certificate} does not carry the name that belongs to its key; issue it again."
            )
        if not is_leaf(own):
            raise IdentityError(
                f"{certificate} is not one for both ends of TLS and nothing else; issue it again."
            )
        pem = serialization.Encoding.PEM
        return cls(
            id=expected,
            spki=spki(public),
            key_pem=key_pem(private),
            certificate_pem=own.public_bytes(pem),
            ca_pem=authority.public_bytes(pem),
            expires=min(own.not_valid_after_utc, authority.not_valid_after_utc),
            _key=private,
        )

    def sign_welcome(self, nonce: bytes, client_id: str, server_id: str, run: str) -> bytes:
        """The handshake's proof (ECDSA over SHA-256, DER) that whoever answers as `server_id` holds
        its key.
        """
        return self._key.sign(_welcome(nonce, client_id, server_id, run), ec.ECDSA(hashes.SHA256()))

    def sign_connection(self, nonce: bytes, client_id: str) -> bytes:
        """The proof that whoever is at the other end of a connection for transfers holds this
        node's key.
        """
        return self._key.sign(_connection(nonce, client_id, self.id), ec.ECDSA(hashes.SHA256()))

    def sign_announcement(self, issued: int, addresses: Sequence[str]) -> bytes:
        """What makes it known that this node itself says where it can be dialed."""
        return self._key.sign(_announcement(self.id, issued, addresses), ec.ECDSA(hashes.SHA256()))

    def sign_head(self, label: bytes, sequence: int, digest: bytes) -> bytes:
        """What makes a ledger's head, told to neighbors, recognizable when it comes back."""
        return self._key.sign(_head(label, sequence, digest), ec.ECDSA(hashes.SHA256()))

    def verify_own_head(self, label: bytes, sequence: int, digest: bytes, signature: bytes) -> bool:
        """Was this head told by this node? A neighbor can't make one up."""
        try:
            self._key.public_key().verify(
                signature, _head(label, sequence, digest), ec.ECDSA(hashes.SHA256())
            )
        except InvalidSignature:
            return False
        return True

    def sign_statement(self, run: str, said: peer_pb2.Statement) -> bytes:
        """What makes a statement this node's own, also where a neighbor passes it on."""
        return self._key.sign(_statement(run, said), ec.ECDSA(hashes.SHA256()))

    def label(self, ledger: str) -> bytes:
        """A name for one of this node's ledgers that tells others nothing (32 bytes)."""
        return hmac.digest(self.key_pem, ledger.encode(), "sha256")


def _check_dates(path: Path, certificate: x509.Certificate, now: datetime) -> None:
    if now < certificate.not_valid_before_utc:
        since = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M}"
        raise IdentityError(
            f"{path} is valid only from {since} UTC on; is this clock right, which says {now:%Y-%m-%d %H:%M}?"
        )
    if now > certificate.not_valid_after_utc:
        raise IdentityError(
            f"{path} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; issue it again."
        )


def _head(label: bytes, sequence: int, digest: bytes) -> bytes:
    return b"peerpoise ledger head 1\0" + label + sequence.to_bytes(8, "big") + digest


def _welcome(nonce: bytes, client_id: str, server_id: str, run: str) -> bytes:
    return _signed("welcome", nonce, client_id.encode(), server_id.encode(), run.encode())


def _connection(nonce: bytes, client_id: str, server_id: str) -> bytes:
    return _signed("connection", nonce, client_id.encode(), server_id.encode())


def _announcement(member: str, issued: int, addresses: Sequence[str]) -> bytes:
    return _signed(
        "announcement",
        member.encode(),
        issued.to_bytes(8, "big"),
        *(each.encode() for each in addresses),
    )


def _statement(run: str, said: peer_pb2.Statement) -> bytes:
    place = (said.incarnation, said.round, said.phase, said.role)
    return _signed(
        "statement",
        run.encode(),
        said.sender.encode(),
        *(n.to_bytes(8, "big") for n in place),
        said.digest,
    )


def _signed(purpose: str, *parts: bytes) -> bytes:
    """What is signed: a purpose, then each part behind its length, so that no two tuples give the
    same bytes.
    """
    return f"peerpoise {purpose} 1\0".encode() + b"".join(
        len(part).to_bytes(4, "big") + part for part in parts
    )


def verify_welcome(
    public: bytes, signature: bytes, *, nonce: bytes, client_id: str, run: str, expected_id: str
) -> None:
    """Checks the handshake's reply: `public` (SPKI, DER) is the key of `expected_id`, and it signed
    for this very call.

    Raises:
        Refused: (CODE_IDENTITY) another key, or a signature over something else.
    """
    if id_of(public) != expected_id:
        raise Refused("The peer answered with the key of another node.", peer_pb2.CODE_IDENTITY)
    if not _is_signed(public, signature, _welcome(nonce, client_id, expected_id, run)):
        raise Refused(
            "The peer could not prove that it holds the key of its id.", peer_pb2.CODE_IDENTITY
        )


def verify_connection(
    public: bytes, signature: bytes, *, nonce: bytes, client_id: str, expected_id: str
) -> bool:
    """Is `public` (SPKI, DER) the key of `expected_id`, and did it sign for this very
    connection?
    """
    return id_of(public) == expected_id and _is_signed(
        public, signature, _connection(nonce, client_id, expected_id)
    )


def announced(
    public: bytes, signature: bytes, *, member: str, issued: int, addresses: Sequence[str]
) -> bool:
    """Did the member itself announce these addresses? `public` (SPKI, DER) must be the key of its
    id.
    """
    return id_of(public) == member and _is_signed(
        public, signature, _announcement(member, issued, addresses)
    )


def stated(public: bytes, run: str, said: peer_pb2.Statement) -> bool:
    """Did its sender sign this statement? `public` (SPKI, DER) must be the key of the sender's
    id.
    """
    return id_of(public) == said.sender and _is_signed(
        public, said.signature, _statement(run, said)
    )


def _is_signed(public: bytes, signature: bytes, data: bytes) -> bool:
    try:
        key = serialization.load_der_public_key(public)
        if not isinstance(key, PublicKey):
            return False
        key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except (ValueError, UnsupportedAlgorithm, InvalidSignature):
        return False
    return True
