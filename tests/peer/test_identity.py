"""Ids are fingerprints; a certificate is worth what the CA computed from the key, and nothing the
holder wrote.
"""

from __future__ import annotations

import base64
import hashlib
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from peer.errors import IdentityError, Refused, StorageError
from peer.identity import authority, keys, requests
from peer.identity.authority import CertificateAuthority
from peer.identity.keys import Identity
from peer.v1 import peer_pb2


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority.create(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def folder(ca: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("node")
    ca.enrol(place)
    return place


def load(folder: Path, **changes: Path) -> Identity:
    files = {
        "key": folder / "node.key",
        "certificate": folder / "node.pem",
        "ca": folder / "ca.pem",
    } | changes
    return Identity.load(files["key"], files["certificate"], files["ca"])


def test_the_id_is_the_fingerprint_of_the_key(folder: Path) -> None:
    node = load(folder)
    digest = hashlib.sha256(node.spki).digest()
    assert node.id == base64.b32encode(digest).decode().lower().rstrip("=")
    assert len(node.id) == 52
    assert keys.spki_id(node.certificate_pem) == (node.id, (f"{node.id}.peerpoise",))


def test_the_ca_certificate_is_one_and_the_leaf_is_not(
    ca: CertificateAuthority, folder: Path
) -> None:
    leaf = x509.load_pem_x509_certificate(load(folder).certificate_pem)
    constraints = [
        c.extensions.get_extension_for_class(x509.BasicConstraints) for c in (ca.certificate, leaf)
    ]
    assert [c.value.ca for c in constraints] == [True, False]
    assert all(c.critical for c in constraints)
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {u._name for u in usages} == {"serverAuth", "clientAuth"}


def test_a_request_can_ask_for_no_name(ca: CertificateAuthority) -> None:
    key, victim = ec.generate_private_key(ec.SECP256R1()), "v" * 52
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, victim)]))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(f"{victim}.peerpoise")]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    issued = ca.sign_request(request.public_bytes(serialization.Encoding.PEM))
    own = keys.node_id(key.public_key())
    assert keys.spki_id(issued) == (own, (f"{own}.peerpoise",))
    assert victim.encode() not in issued


def test_requests_of_other_kinds_are_refused(ca: CertificateAuthority) -> None:
    other = ed25519.Ed25519PrivateKey.generate()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(other, None)
    with pytest.raises(IdentityError, match="P-256"):
        ca.sign_request(request.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(IdentityError, match="not a certificate request"):
        ca.sign_request(b"hello")


def test_a_request_is_of_a_key_that_stays(ca: CertificateAuthority, tmp_path: Path) -> None:
    key, request = tmp_path / "state" / "node.key", tmp_path / "a.csr"
    own = requests.create(key, request)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert b"PRIVATE" not in request.read_bytes()
    assert (
        keys.node_id(requests.read(request)) == own == keys.node_id(keys.load_key(key).public_key())
    )
    before = key.read_bytes()
    with pytest.raises(IdentityError, match="--same-key"):
        requests.create(key, tmp_path / "b.csr")
    assert requests.create(key, tmp_path / "b.csr", same_key=True) == own
    assert key.read_bytes() == before
    with pytest.raises(IdentityError, match="can't be read"):
        requests.create(tmp_path / "none.key", tmp_path / "c.csr", same_key=True)


def test_a_request_signed_by_another_key_is_refused(tmp_path: Path) -> None:
    requests.create(tmp_path / "a.key", tmp_path / "a.csr")
    request = x509.load_pem_x509_csr((tmp_path / "a.csr").read_bytes())
    der = bytearray(request.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1  # in the signature
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(IdentityError, match="not signed by its own key"):
        requests.public_key(forged)


def test_private_keys_are_readable_by_their_owner_only(folder: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE((folder / "node.key").stat().st_mode) == 0o600
    path = tmp_path / "k" / "node.key"
    keys.create_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["node.key"]
    for mode in (0o640, 0o604, 0o660):
        path.chmod(mode)
        with pytest.raises(IdentityError, match="chmod 600"):
            keys.load_key(path)
    path.chmod(0o400)
    keys.load_key(path)


def test_an_existing_key_is_never_overwritten(folder: Path, ca: CertificateAuthority) -> None:
    before = (folder / "node.key").read_bytes()
    with pytest.raises(IdentityError, match="exists already"):
        ca.enrol(folder)
    assert (folder / "node.key").read_bytes() == before


def test_a_folder_that_refuses_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="can't be made"):
        keys.create_key(tmp_path / "file" / "node.key")


def test_secrets_do_not_show(ca: CertificateAuthority, folder: Path) -> None:
    node = load(folder)
    scalar = serialization.load_pem_private_key(node.key_pem, None).private_numbers().private_value  # type: ignore[union-attr]
    for shown in (repr(node), str(node), repr(ca)):
        assert "PRIVATE" not in shown
        assert str(scalar) not in shown


def rewrite(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def test_each_unusable_file_gives_a_sentence(
    ca: CertificateAuthority, folder: Path, tmp_path: Path
) -> None:
    stranger = CertificateAuthority.create(tmp_path / "stranger")
    stranger.enrol(tmp_path / "other")
    key = ec.generate_private_key(ec.SECP384R1())
    wide = rewrite(tmp_path / "wide.key", keys.key_pem(key))
    locked = rewrite(
        tmp_path / "locked.key",
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        ),
    )
    nothing = rewrite(tmp_path / "nothing", b"nothing")
    cases: list[tuple[dict[str, Path], str]] = [
        ({"key": tmp_path / "absent"}, "can't be read"),
        ({"key": nothing}, "not an unencrypted private key"),
        ({"key": locked}, "not an unencrypted private key"),
        ({"key": wide}, "P-256"),
        ({"key": tmp_path / "other" / "node.key"}, "another key"),
        ({"certificate": nothing}, "not a certificate"),
        ({"ca": tmp_path / "other" / "ca.pem"}, "not issued by the CA"),
        ({"ca": folder / "node.pem"}, "not issued by the CA"),
    ]
    for changes, expected in cases:
        with pytest.raises(IdentityError, match=expected) as caught:
            load(folder, **changes)
        assert str(caught.value).count("\n") == 0
    rewrite(tmp_path / "stranger" / "ca.pem", ca.pem)
    with pytest.raises(IdentityError, match="don't belong together"):
        CertificateAuthority.load(tmp_path / "stranger")


def test_dates_are_checked(folder: Path) -> None:
    files = (folder / "node.key", folder / "node.pem", folder / "ca.pem")
    now = datetime.now(UTC)
    assert Identity.load(*files, now=now).expires > now + timedelta(days=300)
    with pytest.raises(IdentityError, match="expired on"):
        Identity.load(*files, now=now + timedelta(days=366))
    with pytest.raises(IdentityError, match="valid only from"):
        Identity.load(*files, now=now - timedelta(days=1))


def test_a_certificate_with_another_name_is_refused(
    ca: CertificateAuthority, folder: Path, tmp_path: Path
) -> None:
    key = keys.load_key(folder / "node.key").public_key()
    name = x509.Name([])
    wrong = authority._builder(name, ca.certificate.subject, key, 1, authority=False).add_extension(
        x509.SubjectAlternativeName([x509.DNSName("other.peerpoise")]), critical=False
    )
    pem = wrong.sign(ca.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(IdentityError, match="does not carry the name"):
        load(folder, certificate=rewrite(tmp_path / "wrong.pem", pem))


def test_the_ca_survives_a_restart(ca: CertificateAuthority, tmp_path: Path) -> None:
    made = CertificateAuthority.create(tmp_path)
    again = CertificateAuthority.load(tmp_path)
    assert again.federation == made.federation != ca.federation
    assert again.pem == made.pem
    with pytest.raises(IdentityError, match="exists already"):
        CertificateAuthority.create(tmp_path)


def test_a_welcome_proves_the_key_for_this_call_only(
    ca: CertificateAuthority, folder: Path, tmp_path: Path
) -> None:
    server, other = load(folder), ca.enrol(tmp_path)
    call = {"nonce": bytes(range(32)), "client_id": other.id, "run": "r1"}
    signature = server.sign_welcome(call["nonce"], other.id, server.id, "r1")  # type: ignore[arg-type]
    keys.verify_welcome(server.spki, signature, expected_id=server.id, **call)  # type: ignore[arg-type]
    wrong: list[tuple[bytes, bytes, dict[str, object]]] = [
        (other.spki, signature, {}),
        (b"", signature, {}),
        (server.spki, signature[:-1], {}),
        (server.spki, b"", {}),
        (server.spki, other.sign_welcome(bytes(range(32)), other.id, server.id, "r1"), {}),
        (server.spki, signature, {"nonce": bytes(32)}),
        (server.spki, signature, {"client_id": server.id}),
        (server.spki, signature, {"run": "r2"}),
        (server.spki, signature, {"client_id": other.id + "r", "run": "1"}),
    ]
    for spki, signed, changes in wrong:
        with pytest.raises(Refused) as caught:
            keys.verify_welcome(spki, signed, expected_id=server.id, **(call | changes))  # type: ignore[arg-type]
        assert caught.value.code == peer_pb2.CODE_IDENTITY
    with pytest.raises(Refused):  # a key of the right fingerprint that is none of ours
        keys.verify_welcome(b"junk", signature, expected_id=keys.id_of(b"junk"), **call)  # type: ignore[arg-type]
