"""Certificate requests (PKCS#10): a key is made on its host and stays there; what travels is its
public half, signed by itself.

A request asks for nothing: the CA certifies the key and ignores every name and extension in it.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from peer import files
from peer.errors import DataError, IdentityError
from peer.identity.keys import PublicKey, create_key, load_key, node_id


def create(key: Path, request: Path, *, same_key: bool = False) -> str:
    """Writes a request for a new key, which is made at `key` (0600); returns the node's id.
    `same_key`: for the key that is there.

    Raises:
        IdentityError: there is a key already, or none of which to make a request.
        StorageError: a folder or disk refuses.
    """
    if key.exists() and not same_key:
        raise IdentityError(
            f"{key} exists already: for a request of that key add --same-key; move it away if this "
            "host is to get another identity."
        )
    private = load_key(key) if same_key else create_key(key)
    own = node_id(private.public_key())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, own)])  # for people
    signed = x509.CertificateSigningRequestBuilder(subject_name=subject)
    pem = signed.sign(private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    files.atomic_write(request, pem, public=True)
    return own


def public_key(pem: bytes) -> PublicKey:
    """The key that a request (PEM) is for.

    Raises:
        IdentityError: no request, not signed by its own key, or another kind of key than P-256.
    """
    try:
        request = x509.load_pem_x509_csr(pem)
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise IdentityError("This is not a certificate request in PEM form.") from None
    if not isinstance(key, PublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError("The certificate request holds another kind of key than P-256.")
    if not request.is_signature_valid:
        raise IdentityError("The certificate request is not signed by its own key.")
    return key


def read(path: Path) -> PublicKey:
    """The key that the request in this file is for.

    Raises:
        IdentityError: as `public_key`.
        DataError: the file can't be read.
    """
    try:
        return public_key(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}.") from None
    except IdentityError as error:
        raise IdentityError(f"{path}: {error}") from None
