"""Hosts whose addresses are not known beforehand: `pack` prepares them, `doctor` says how they will
be found.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from kit.command import Call, examine
from node.config import NodeConfig, load
from node.experiments import hosts

BARE = ("--host", "a", "--host", "b", "--host", "c")


def packed(peerpoise: Call, experiment: Path, out: Path, *options: str) -> dict[str, NodeConfig]:
    result = peerpoise("pack", experiment, *options, "--out", out)
    assert (result.code, result.err) == (0, "")
    return {name: load(NodeConfig, [out / name / "node.toml"], environ={}) for name in "abc"}


def addresses(out: Path) -> list[list[str]]:
    members: list[dict[str, Any]] = json.loads((out / "roster.json").read_text())["roster"][
        "members"
    ]
    return [member["addresses"] for member in members]


def test_pack_without_any_address(peerpoise: Call, experiment: Path, tmp_path: Path) -> None:
    nodes = packed(peerpoise, experiment, tmp_path / "out", *BARE, "--discovery", "mdns")
    assert addresses(tmp_path / "out") == [[], [], []]
    for node in nodes.values():
        assert node.peers.discovery == ("static", "mdns")
        assert (node.listen.address, node.listen.advertise) == (f"0.0.0.0:{hosts.PORT}", "")
    assert "Neighbors find it by mdns" in (tmp_path / "out" / "a" / "README.txt").read_text()


def test_pack_with_one_address_to_begin_with(
    peerpoise: Call, experiment: Path, tmp_path: Path
) -> None:
    options = (
        "--host",
        "a=host-a.example:7000",
        *BARE[2:],
        "--discovery",
        "mdns",
        "--discovery",
        "exchange",
    )
    nodes = packed(peerpoise, experiment, tmp_path / "out", *options)
    assert addresses(tmp_path / "out") == [["host-a.example:7000"], [], []]
    assert {node.peers.discovery for node in nodes.values()} == {("static", "exchange", "mdns")}


def test_packed_addresses_alone_stay_static(
    peerpoise: Call, experiment: Path, tmp_path: Path
) -> None:
    hosts = [
        word for k, name in enumerate("abc") for word in ("--host", f"{name}=10.0.0.{k + 1}:7443")
    ]
    nodes = packed(peerpoise, experiment, tmp_path / "out", *hosts)
    assert {node.peers.discovery for node in nodes.values()} == {("static",)}


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (BARE, "--discovery exchange or --discovery mdns"),
        ((*BARE, "--discovery", "static"), "--discovery exchange or --discovery mdns"),
        ((*BARE, "--discovery", "exchange"), "needs one address to begin with"),
        ((*BARE, "--discovery", "telepathy"), "telepathy is none of"),
        (
            ("--host", "a=0.0.0.0:7443", *BARE[2:], "--discovery", "mdns"),
            "write the address at which neighbors dial a",
        ),
    ],
)
def test_hosts_that_nobody_would_find(
    peerpoise: Call, experiment: Path, tmp_path: Path, options: tuple[str, ...], part: str
) -> None:
    result = peerpoise("pack", experiment, *options, "--out", tmp_path / "out")
    assert (result.code, part in result.err, result.err.count("\n")) == (78, True, 1), result.err
    assert not (tmp_path / "out").exists()


def test_doctor_says_how_neighbors_are_found(
    peerpoise: Call, experiment: Path, tmp_path: Path
) -> None:
    packed(peerpoise, experiment, tmp_path / "out", *BARE, "--discovery", "mdns")
    code, found = examine(
        peerpoise, "--config", tmp_path / "out" / "a" / "node.toml", "--set", "listen.advertise=h:1"
    )
    assert code == 0
    [discovery] = found["discovery"]
    assert (discovery["level"], discovery["text"]) == ("ok", "static, mdns; announces h:1")
    assert [(it["level"], "mdns will look for it" in it["text"]) for it in found["neighbor"]] == [
        ("ok", True)
    ] * 2
    _, found = examine(
        peerpoise,
        "--config",
        tmp_path / "out" / "a" / "node.toml",
        "--set",
        "peers.discovery=['mdns']",
    )
    assert [it["text"] for it in found["neighbor"]] == [
        "b: mdns will look for it",
        "c: mdns will look for it",
    ]


@pytest.mark.parametrize(
    ("settings", "level", "part"),
    [
        (["listen.address=127.0.0.1:7443"], "warning", "only this machine reaches it"),
        (["peers.discovery=['exchange']"], "warning", "one member's address to begin with"),
        (["peers.discovery=['dns']"], "fault", "set peers.dns"),
        (
            ["peers.discovery=['static', 'dns']", "peers.dns={name}.invalid"],
            "fault",
            "is not an address",
        ),
        (["peers.static.z='h:1'"], "fault", "not in the roster"),
    ],
)
def test_doctor_says_what_is_missing(
    peerpoise: Call, experiment: Path, tmp_path: Path, settings: list[str], level: str, part: str
) -> None:
    packed(peerpoise, experiment, tmp_path / "out", *BARE, "--discovery", "mdns")
    options = [word for each in settings for word in ("--set", each)]
    code, found = examine(peerpoise, "--config", tmp_path / "out" / "a" / "node.toml", *options)
    assert (found["discovery"][0]["level"], part in found["discovery"][0]["text"]) == (
        level,
        True,
    ), found["discovery"]
    assert code == (level == "fault")


def test_doctor_looks_host_names_up(peerpoise: Call, experiment: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        hosts = [
            "--host",
            "a=127.0.0.1:1",
            "--host",
            f"b=localhost:{port}",
            "--host",
            f"c={'x' * 70}.invalid:7443",
        ]
        packed(peerpoise, experiment, tmp_path / "out", *hosts)
        _, found = examine(peerpoise, "--config", tmp_path / "out" / "a" / "node.toml")
    said = {it["level"]: it["text"] for it in found["neighbor"]}
    assert said["ok"] == "b listens"
    assert "can't be found" in said["warning"]
