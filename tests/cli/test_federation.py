"""Keys stay at home, and a federation outlives its runs: request, pack --request, --federation,
ca renew.
"""

from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path

import pytest

from kit.command import Call, examine
from node.config import NodeConfig, RunConfig, load
from peer.identity import keys
from peer.identity.keys import Identity
from peer.identity.roster import Roster

ADDRESS = {name: f"127.0.0.1:{7643 + k}" for k, name in enumerate("abcd")}


def requested(peerpoise: Call, folder: Path, name: str) -> Path:
    """The request of a host whose state is FOLDER/state-NAME."""
    request = folder / f"{name}.csr"
    made = peerpoise("request", request, "--key", folder / f"state-{name}" / "peerpoise/node.key")
    assert made.code == 0, made.err
    return request


def pack(peerpoise: Call, experiment: Path, out: Path, hosts: str, *options: str | Path) -> Roster:
    """The roster of what was packed."""
    named = [word for name in hosts for word in ("--host", f"{name}={ADDRESS[name]}")]
    packed = peerpoise("pack", experiment, *named, "--out", out, *options)
    assert packed.code == 0, packed.err
    return Roster.load(out / "roster.json", load(RunConfig, [out / "run.toml"]).run.federation)


def test_a_packed_host_keeps_its_key(
    peerpoise: Call, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key is in its folder, and the commands there find the one of the host."""
    request = requested(peerpoise, tmp_path, "a")
    out = tmp_path / "out"
    roster = pack(peerpoise, experiment, out, "abc", "--request", f"a={request}")
    key = tmp_path / "state-a" / "peerpoise" / "node.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert roster.by_name["a"].id == keys.node_id(keys.load_key(key).public_key())
    assert [name for name in "abc" if (out / name / "node.key").exists()] == ["b", "c"]
    kept = {path.name for path in (out / "federation" / "members").iterdir()}
    assert kept == {"a.pem", "b.pem", "b.key", "c.pem", "c.key"}
    secret = key.read_bytes()
    assert [path for path in out.rglob("*") if path.is_file() and secret in path.read_bytes()] == []

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-a"))
    _, found = examine(peerpoise, "--config", out / "a" / "node.toml")
    assert [it["level"] for it in found["certificate"] + found["roster"]] == ["ok", "ok"]
    assert load(NodeConfig, [out / "a" / "node.toml"]).identity.files[0] == key


def test_the_next_run_keeps_ca_keys_and_ids(
    peerpoise: Call, experiment: Path, tmp_path: Path
) -> None:
    """One leaves, one joins; who stays is who it was, with its key where that was."""
    first, second = tmp_path / "first", tmp_path / "second"
    request = f"a={requested(peerpoise, tmp_path, 'a')}"
    before = pack(peerpoise, experiment, first, "abc", "--request", request)
    request = f"d={requested(peerpoise, tmp_path, 'd')}"
    options = ("--federation", first / "federation", "--request", request)
    after = pack(peerpoise, experiment, second, "acd", *options)
    assert before.names == ("a", "b", "c")
    assert after.names == ("a", "c", "d")
    for name in "ac":
        assert before.by_name[name].id == after.by_name[name].id
    assert not (second / "federation").exists()
    assert not (second / "a" / "node.key").exists()
    assert (first / "c" / "node.key").read_bytes() == (second / "c" / "node.key").read_bytes()
    runs = [load(RunConfig, [out / "run.toml"]) for out in (first, second)]
    assert runs[0].run.federation == runs[1].run.federation
    assert runs[0].run_id != runs[1].run_id


def test_a_new_request_of_a_known_member_is_a_new_identity(
    peerpoise: Call, experiment: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    before = pack(peerpoise, experiment, first, "ab")
    request = f"a={requested(peerpoise, tmp_path, 'a')}"
    options = ("--federation", first / "federation", "--request", request)
    after = pack(peerpoise, experiment, second, "ab", *options)
    assert before.by_name["a"].id != after.by_name["a"].id
    assert not (second / "a" / "node.key").exists(), "the old one is no key of its certificate"


def test_a_certificate_is_renewed_for_the_key_on_the_host(
    peerpoise: Call, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, key = tmp_path / "out", tmp_path / "state-a" / "peerpoise" / "node.key"
    request = f"a={requested(peerpoise, tmp_path, 'a')}"
    pack(peerpoise, experiment, out, "ab", "--request", request)
    monkeypatch.chdir(tmp_path)
    files = key, Path("a.pem"), out / "a" / "ca.pem"
    before = Identity.load(key, out / "a" / "node.pem", files[2])
    assert peerpoise("ca", "renew", out / "federation", "a", "--days", "700").code == 0
    after = Identity.load(*files)
    assert after.id == before.id
    assert after.expires > before.expires + timedelta(days=300)
    assert (out / "federation" / "members" / "a.pem").read_bytes() == files[1].read_bytes()


def test_the_owner_of_the_data_is_asked_for_the_budget_of_a_second_run(
    peerpoise: Call, experiment: Path, tmp_path: Path
) -> None:
    """pack does not know what these data have spent."""
    own = ("--set", "task.data=own", "--set", "train.rounds=3")
    named = [word for name in "ab" for word in ("--host", f"{name}={ADDRESS[name]}")]
    named += [word for name in "ab" for word in ("--data", f"{name}=cases:/srv/{name}.npz")]
    first, second = tmp_path / "first", tmp_path / "second"
    packed = peerpoise("pack", experiment, *named, *own, "--out", first)
    assert (packed.code, packed.err) == (0, "")
    assert load(NodeConfig, [first / "a" / "node.toml"]).budget.limit == 8.0
    assert "budget.epsilon" not in packed.out
    again = ("--federation", first / "federation", "--out", second)
    packed = peerpoise("pack", experiment, *named, *own, *again)
    assert packed.code == 0, packed.err
    asked = "Write budget.epsilon into node.toml before you start"
    assert asked in packed.out
    assert asked in (second / "a" / "README.txt").read_text(encoding="utf-8")
    assert asked in (second / "a" / "node.toml").read_text(encoding="utf-8")
    ended = peerpoise("run", "--config", second / "a" / "node.toml")
    assert ended.code == 78
    assert "budget.epsilon is missing in the node's file" in ended.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--host=a=north.example:7443", "--host=b=NORTH.example:7443"],
            "--host a and b have one address",
        ),
        (["--host=a=[::1]:7443", "--host=b=[0:0::1]:7443"], "--host a and b have one address"),
        (["--host=10.0.0.1:7443", "--host=b=10.0.0.2:7443"], "write NAME=10.0.0.1:7443"),
        (
            ["--host=a=10.0.0.1:7443", "--data=a=/srv/a.npz"],
            "--data a=/srv/a.npz: write a=NAME:PATH",
        ),
        (
            ["--host=a=10.0.0.1:7443", "--data=a=:/srv/a.npz"],
            "data.name '' must be 1 to 64 letters",
        ),
        (
            ["--host=a=10.0.0.1:7443", "--data=a=d:/srv/a.npz", "--set", "task.model=nosuch"],
            "Unknown model 'nosuch'",
        ),
        (
            ["--host=a=10.0.0.1:7443", "--data=a=d:/srv/a.npz", f"--request=a={'0f' * 32}"],
            "a fingerprint is not enough",
        ),
    ],
)
def test_a_mistake_in_packing_is_a_sentence(
    peerpoise: Call, experiment: Path, tmp_path: Path, words: list[str], sentence: str
) -> None:
    hosts = [word[len("--host=") :].partition("=")[0] for word in words if "--host" in word]
    if not any("--data" in word for word in words):
        words = [*words, *(f"--data={name}=d:/srv/{name}.npz" for name in hosts)]
    out = tmp_path / "out"
    packed = peerpoise("pack", experiment, "--set", "task.data=own", *words, "--out", out)
    assert packed.code == 78, packed.err
    assert sentence in packed.err
    assert not out.exists()
