"""The roster is the federation's word on who takes part; nobody else's counts."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from peer.discovery import DiscoveryContext
from peer.discovery.static import Static
from peer.endpoint import endpoint
from peer.errors import ConfigurationError, IdentityError
from peer.identity import roster
from peer.identity.authority import CertificateAuthority
from peer.identity.roster import Member, Roster

MEMBERS = (Member("b", "id-b", ("10.0.0.2:7443", "[::1]:7443")), Member("a", "id-a"))


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority.create(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def path(ca: CertificateAuthority, tmp_path: Path) -> Path:
    Roster(3, 10, MEMBERS).save(tmp_path / "roster.json", ca.key)
    return tmp_path / "roster.json"


def test_a_roster_survives_the_file(ca: CertificateAuthority, path: Path) -> None:
    roster = Roster.load(path, ca.federation)
    assert roster == Roster(3, 10, MEMBERS)
    assert roster.names == ("a", "b")
    assert roster.by_name["b"] == MEMBERS[0]


def test_every_change_of_a_signed_roster_is_noticed(ca: CertificateAuthority, path: Path) -> None:
    signed = json.loads(path.read_text(encoding="utf-8"))
    for change in (
        {"version": 4},
        {"effective_round": 0},
        {"members": signed["roster"]["members"][:1]},
        {"more": 1},
    ):
        path.write_text(
            json.dumps({**signed, "roster": signed["roster"] | change}), encoding="utf-8"
        )
        with pytest.raises(IdentityError, match="not signed by the federation"):
            Roster.load(path, ca.federation)


def test_another_federations_signature_does_not_count(path: Path, tmp_path: Path) -> None:
    stranger = CertificateAuthority.create(tmp_path / "stranger")
    with pytest.raises(IdentityError, match="not signed by the federation"):
        Roster.load(path, stranger.federation)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"roster": 1, "signature": "AA=="}', '{"roster": {}}', "[" * 100_000]
)
def test_a_file_that_is_no_roster_gives_a_sentence(
    ca: CertificateAuthority, tmp_path: Path, text: str
) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ConfigurationError, match="is not a roster"):
        Roster.load(tmp_path / "r.json", ca.federation)


def test_absent_file_and_unusable_key_give_a_sentence(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't be read"):
        Roster.load(tmp_path / "absent", "")
    for key in ("", "AAAA", "not base64"):
        with pytest.raises(ConfigurationError, match="is not a public key"):
            Roster.load(path, key)


@pytest.mark.parametrize(
    ("version", "start", "members", "expected"),
    [
        (0, 0, MEMBERS, "version starts at 1"),
        (1, -1, MEMBERS, "effective_round at 0"),
        (1, 0, (), "at least one member"),
        (1, 0, (Member("a", "x"), Member("a", "y")), "the name a twice"),
        (1, 0, (Member("a", "x"), Member("b", "x")), "the id x twice"),
        (1, 0, (Member("a/b", "x"),), "no name for a node"),
        (1, 0, (Member("a", ""),), "which is none"),
        (1, 0, (Member("a", "x", ("nowhere",)),), "is not an address"),
    ],
)
def test_a_roster_does_not_contradict_itself(
    version: int, start: int, members: tuple[Member, ...], expected: str
) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        Roster(version, start, members)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b:7443", ("a.b", 7443)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert endpoint(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "a", ":1", "a:", "a:b", "a:65536", "a:-1", "::1:80", "[::1]", "a b:1", "a:١", "[a]:1"],
)
def test_what_is_no_address_gives_a_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"address|port"):
        endpoint(text)


async def test_static_addresses_put_the_nodes_own_first() -> None:
    static = Static.of(
        DiscoveryContext(
            roster=Roster(1, 0, MEMBERS), static={"b": "[::1]:7443", "a": "10.0.0.9:1"}
        )
    )
    assert await static.addresses("id-b") == ("[::1]:7443", "10.0.0.2:7443")
    assert await static.addresses("id-a") == ("10.0.0.9:1",)
    assert await static.addresses("nobody") == ()
    with pytest.raises(ConfigurationError, match="not in the roster"):
        Static.of(DiscoveryContext(roster=Roster(1, 0, MEMBERS), static={"c": "10.0.0.9:1"}))
    with pytest.raises(ConfigurationError, match="is not an address"):
        Static({"x": ["nonsense"]})


def test_a_next_version_removes_members_and_changes_nothing_else(
    ca: CertificateAuthority, path: Path
) -> None:
    first = Roster.load(path, ca.federation)
    second = first.without(["b"])
    second.save(path, ca.key)
    assert Roster.load(path, ca.federation) == second
    assert (second.version, second.names, second.removed, second.ids) == (
        4,
        ("a", "b"),
        ("b",),
        frozenset({"id-a"}),
    )
    assert second.digest == first.digest
    assert first.gone(second) == {"b"}


def test_what_no_run_can_do_is_refused_in_a_sentence() -> None:
    first = Roster(1, 0, MEMBERS)
    second = first.without(["b"])
    for older, newer, said in (
        (second, first, "of version 1, and version 2 is in force"),
        (first, Roster(2, 0, (*MEMBERS, Member("c", "id-c"))), "adds or changes members"),
        (first, Roster(2, 0, (MEMBERS[0], Member("a", "id-x"))), "adds or changes members"),
        (second, Roster(3, 0, MEMBERS), "takes b back"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            older.gone(newer)
    for names, said in ((["c"], "which is not a member"), (["a", "b"], "Nobody would be left")):
        with pytest.raises(ConfigurationError, match=said):
            first.without(names)
    with pytest.raises(ConfigurationError, match="removed from the roster before"):
        second.without(["b"])


def test_a_roster_of_an_earlier_release_removes_nobody(
    ca: CertificateAuthority, path: Path
) -> None:
    body = {
        "version": 1,
        "effective_round": 0,
        "members": [{"name": "a", "id": "id-a", "addresses": []}],
    }
    signature = ca.key.sign(roster._signed(body), ec.ECDSA(hashes.SHA256()))
    path.write_text(
        json.dumps({"roster": body, "signature": base64.b64encode(signature).decode()}),
        encoding="utf-8",
    )
    assert Roster.load(path, ca.federation) == Roster(1, 0, (Member("a", "id-a"),))
