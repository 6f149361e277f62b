"""Who a node is: a P-256 key, whose fingerprint is the node's id, and a certificate of the
federation's CA (`authority.py`).

id = base32 of SHA-256 of the public key (SPKI, DER), lower case, unpadded: 52 characters, one DNS
label. The certificate carries `<id>.peerpoise` as its only name, computed by the CA from the key: a
request can't ask for one. TLS then checks the chain and that name; that the key itself belongs to
the id is checked on top (`spki_id` by the listening side on every call, `verify_welcome` by the
dialling side in the handshake).

Not covered: a stolen key, which is the node until the roster drops its id.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from peer import files
from peer.errors import IdentityError, Refused
from peer.identity import signatures
from peer.v1 import peer_pb2

DOMAIN = "peerpoise"
"""Names in certificates are `<id>.peerpoise`; no DNS is asked about them."""
BOTH_ENDS = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)

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
            encrypted, or no P-256 key.
    """
    data = _read(path)
    if text := files.exposed(path):
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
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return tuple(extension.value.get_values_for_type(x509.DNSName))


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
    if not is_issued_by(certificate, authority):
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


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Is the certificate signed by this authority itself?"""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


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
        if not key.exists():
            raise IdentityError(
                f"The key {key} can't be read: there is none; if this host's key lies elsewhere, "
                "set identity.key in the node's file."
            )
        private, own, authority = load_key(key), load_certificate(certificate), load_certificate(ca)
        now = datetime.now(UTC) if now is None else now
        public, expected = private.public_key(), node_id(private.public_key())
        if p256(own) != public:
            raise IdentityError(
                f"{certificate} was issued for another key than {key}; is this another host's "
                "folder?"
            )
        if not is_issued_by(own, authority):
            raise IdentityError(f"{certificate} was not issued by the CA in {ca}.")
        for path, loaded in ((certificate, own), (ca, authority)):
            _check_dates(path, loaded, now)
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
        return self._key.sign(
            signatures.welcome(nonce, client_id, server_id, run), ec.ECDSA(hashes.SHA256())
        )

    def sign_connection(self, nonce: bytes, client_id: str) -> bytes:
        """The proof that whoever is at the other end of a connection for transfers holds this
        node's key.
        """
        return self._key.sign(
            signatures.connection(nonce, client_id, self.id), ec.ECDSA(hashes.SHA256())
        )

    def sign_announcement(self, issued: int, addresses: Sequence[str]) -> bytes:
        """What makes it known that this node itself says where it can be dialed."""
        return self._key.sign(
            signatures.announcement(self.id, issued, addresses), ec.ECDSA(hashes.SHA256())
        )

    def sign_head(self, label: bytes, sequence: int, digest: bytes) -> bytes:
        """What makes a ledger's head, told to neighbors, recognizable when it comes back."""
        return self._key.sign(signatures.head(label, sequence, digest), ec.ECDSA(hashes.SHA256()))

    def verify_own_head(self, label: bytes, sequence: int, digest: bytes, signature: bytes) -> bool:
        """Was this head told by this node? A neighbor can't make one up."""
        try:
            self._key.public_key().verify(
                signature, signatures.head(label, sequence, digest), ec.ECDSA(hashes.SHA256())
            )
        except InvalidSignature:
            return False
        return True

    def sign_statement(self, run: str, statement: peer_pb2.Statement) -> bytes:
        """What makes a statement this node's own, also where a neighbor passes it on."""
        return self._key.sign(signatures.statement(run, statement), ec.ECDSA(hashes.SHA256()))

    def label(self, ledger: str) -> bytes:
        """A name for one of this node's ledgers that tells others nothing (32 bytes)."""
        return hmac.digest(self.key_pem, ledger.encode(), "sha256")


def _check_dates(path: Path, certificate: x509.Certificate, now: datetime) -> None:
    if now < certificate.not_valid_before_utc:
        since = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M}"
        raise IdentityError(
            f"{path} is valid only from {since} UTC on; is this clock right, which says "
            f"{now:%Y-%m-%d %H:%M}?"
        )
    if now > certificate.not_valid_after_utc:
        raise IdentityError(
            f"{path} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; issue it "
            "again."
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
    if not signatures.is_signed(
        public, signature, signatures.welcome(nonce, client_id, expected_id, run)
    ):
        raise Refused(
            "The peer could not prove that it holds the key of its id.", peer_pb2.CODE_IDENTITY
        )


def verify_connection(
    public: bytes, signature: bytes, *, nonce: bytes, client_id: str, expected_id: str
) -> bool:
    """Is `public` (SPKI, DER) the key of `expected_id`, and did it sign for this very
    connection?
    """
    return id_of(public) == expected_id and signatures.is_signed(
        public, signature, signatures.connection(nonce, client_id, expected_id)
    )


def announced(
    public: bytes, signature: bytes, *, member: str, issued: int, addresses: Sequence[str]
) -> bool:
    """Did the member itself announce these addresses? `public` (SPKI, DER) must be the key of its
    id.
    """
    return id_of(public) == member and signatures.is_signed(
        public, signature, signatures.announcement(member, issued, addresses)
    )


def stated(public: bytes, run: str, statement: peer_pb2.Statement) -> bool:
    """Did its sender sign this statement? `public` (SPKI, DER) must be the key of the sender's
    id.
    """
    return id_of(public) == statement.sender and signatures.is_signed(
        public, statement.signature, signatures.statement(run, statement)
    )
