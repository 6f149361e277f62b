"""`peerpoise run`: one daemon from its files to its summary, here alone, so that it needs
nobody.
"""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jsonschema
import pytest

from kit.command import Call, Result
from node.daemon import bootstrap
from node.records import journal
from peer.errors import ConfigurationError, TaskError

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "summary.schema.json").read_text())


@pytest.fixture
def home(peerpoise: Call, experiment: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A federation of one; with these settings, if a test has any."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = (
        "privacy.epsilon=",
        "privacy.sigma=2.0",
        "start.timeout_s=0.2",
        *getattr(request, "param", ()),
    )
    options = [word for it in settings for word in ("--set", it)]
    result = peerpoise(
        "pack", experiment, *options, "--host", f"a=127.0.0.1:{port}", "--out", tmp_path / "packed"
    )
    assert result.code == 0, result.err
    return tmp_path / "packed" / "a"


def run(peerpoise: Call, home: Path, *options: str) -> Result:
    words = ("--quiet", "--config", home / "node.toml", "--set", "metrics.listen=127.0.0.1:0")
    return peerpoise("run", *words, *options)


def summary(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.out)
    jsonschema.validate(found, SCHEMA)
    return found


def test_it_prints_the_summary_it_wrote(peerpoise: Call, home: Path) -> None:
    result = run(peerpoise, home, "--json")
    assert (result.code, result.err) == (0, "")
    found = summary(result)
    assert found == json.loads((home / "state" / "summary.json").read_text())
    assert (found["complete"], found["nodes"], found["rounds"]) == (True, 1, 2)
    assert found["privacy"]["epsilon"]["total"] > 0
    assert [len(it["digest"]) for it in events(home) if it["event"] == "data"] == [64]
    assert summary(run(peerpoise, home, "--json")) == found, "a run that is over is not run again"


@pytest.mark.parametrize("content", [b"", b"\xff", b"-7", b"9" * 30, b"9" * 5000])
def test_a_damaged_incarnation_counts_as_none(peerpoise: Call, home: Path, content: bytes) -> None:
    (home / "state").mkdir()
    (home / "state" / "incarnation").write_bytes(content)
    result = run(peerpoise, home)
    assert (result.code, result.err) == (0, "")


def test_a_budget_that_ends_is_code_3_and_a_sentence(peerpoise: Call, home: Path) -> None:
    """The run goes to its end without releasing more, and what it learned is there. One
    of its two releases costs .41, both .56.
    """
    result = run(
        peerpoise, home, "--json", "--set", "budget.epsilon=0.5", "--set", "budget.delta=1e-3"
    )
    assert result.code == 3
    said = result.err.splitlines()
    assert (
        said[-1]
        == "peerpoise: The privacy budget of the data is spent: nothing more may be released."
    )
    found = summary(result)
    assert 0 < found["privacy"]["epsilon"]["total"] <= 0.5
    assert found["privacy"]["budget_reached"] == ["a"]
    assert any("Budget reached: still mixing, no releases" in line for line in said)
    assert (home / "state" / "model.safetensors").exists()
    assert (since_start(home, "release"), since_start(home, "withheld")) == ([0], [1])
    [withheld] = [it for it in events(home) if it["event"] == "withheld"]
    assert (withheld["recipient"], withheld["reason"]) == (
        "a",
        "the privacy budget of the data is spent",
    )


def test_a_budget_for_nothing_is_code_3_before_anything(peerpoise: Call, home: Path) -> None:
    result = run(peerpoise, home, "--set", "budget.epsilon=0.001", "--set", "budget.delta=1e-3")
    assert (result.code, "leaves no release to this run" in result.err) == (3, True)
    assert "listening" not in [it["event"] for it in events(home)]
    assert not (home / "state" / "summary.json").exists()


def test_another_users_folder_for_sockets_is_no_reason_not_to_start(
    peerpoise: Call, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TemporaryDirectory(prefix="pp", dir="/tmp") as name:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        monkeypatch.setattr("tempfile.tempdir", name)
        taken = Path(name) / f"peerpoise-{os.getuid()}"
        taken.symlink_to(home)
        result = run(peerpoise, home, "--json", "--set", f"folder={name}/state")
        assert (result.code, summary(result)["complete"]) == (0, True)
        assert f"ask peerpoise status {name}/state" in result.err
        asked = peerpoise("status")
        assert (asked.code, "peerpoise status ./FOLDER" in asked.err) == (73, True)


def test_the_default_loop_is_uvloop_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    uvloop = pytest.importorskip("uvloop", reason="uvloop does not exist on this platform")
    assert bootstrap._loop("auto") is bootstrap._loop("uvloop") is uvloop.new_event_loop
    assert bootstrap._loop("asyncio") is asyncio.new_event_loop
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert bootstrap._loop("auto") is asyncio.new_event_loop
    with pytest.raises(ConfigurationError, match="use --loop asyncio"):
        bootstrap._loop("uvloop")


def killed(home: Path, point: str) -> None:
    """A process of this daemon that dies at the failpoint."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "peerpoise",
        "run",
        "--i-am-testing",
        "--config",
        str(home / "node.toml"),
    ]
    done = subprocess.run(
        command, env={**os.environ, "PEERPOISE_FAILPOINTS": point}, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def events(home: Path) -> list[dict[str, Any]]:
    return journal.read(home / "state" / "journal.jsonl")


def since_start(home: Path, kind: str) -> list[int]:
    """The rounds of these events in the last process's part of the journal."""
    all_of_them = events(home)
    last = max(i for i, event in enumerate(all_of_them) if event["event"] == "header")
    return [event["round"] for event in all_of_them[last:] if event["event"] == kind]


LONG = ("train.rounds=5", "train.checkpoint_every=1")


@pytest.mark.parametrize("home", [LONG], indirect=True)
def test_a_round_that_was_debited_is_not_played_again(peerpoise: Call, home: Path) -> None:
    """Nobody is ahead of it: what its ledger says is all that keeps it from its third round."""
    killed(home, "after_ledger_fsync=kill@3")
    assert run(peerpoise, home).code == 0
    assert since_start(home, "resume") == [3]
    assert since_start(home, "round") == since_start(home, "release") == [3, 4]


@pytest.mark.parametrize("home", [(*LONG, "privacy.mode=none", "privacy.sigma=")], indirect=True)
def test_without_noise_a_restart_changes_no_bit(
    peerpoise: Call, home: Path, tmp_path: Path
) -> None:
    shutil.copytree(home, tmp_path / "straight")
    straight = summary(run(peerpoise, tmp_path / "straight", "--json"))
    killed(home, "round_start=kill@4")
    found = summary(run(peerpoise, home, "--json"))
    assert since_start(home, "round") == [3, 4]
    assert found["params_digest"] == straight["params_digest"]
    seconds = [it["seconds"] for it in events(home) if it["event"] == "round"]
    assert len(seconds) == 5
    assert found["wall_seconds"] == pytest.approx(sum(seconds)), "of all processes"


@pytest.mark.cluster
@pytest.mark.parametrize(
    "number", [signal.SIGHUP, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
@pytest.mark.parametrize(
    "home", [("train.rounds=100000", "train.checkpoint_every=100000")], indirect=True
)
def test_a_closed_terminal_keeps_the_last_round(home: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-P", "-m", "peerpoise", "run", "--config", str(home / "node.toml")]
    journal = home / "state" / "journal.jsonl"
    ends = pty.openpty()
    silent = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=ends[1], stdout=silent, stderr=silent) as process:
        try:
            while not journal.exists() or b'"event": "round"' not in journal.read_bytes():
                assert process.poll() is None
            process.send_signal(number)
            assert process.wait(60) == 0
        finally:
            process.kill()
            for end in ends:
                os.close(end)
    assert since_start(home, "checkpoint")[-1] >= since_start(home, "round")[-1]
    assert events(home)[-1]["signal"] == number.name


def test_what_it_says_to_a_program(peerpoise: Call, home: Path) -> None:
    words = ("--config", home / "node.toml", "--set", "metrics.listen=127.0.0.1:0")
    result = peerpoise("run", *words, "--log", "json")
    lines = [json.loads(line) for line in result.err.splitlines()]
    assert [line["event"] for line in lines] == ["listening", "state", "round", "end"]
    assert lines[-1]["text"].endswith(f"peerpoise export {home}/state --out model.safetensors")
    assert {line["level"] for line in lines} == {"info"}
    assert result.out == ""


def test_what_it_says_on_a_terminal(home: Path) -> None:
    """With the time only, and all of it before it ends."""
    command = [sys.executable, "-P", "-m", "peerpoise", "run", "--config", str(home / "node.toml")]
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        with suppress(OSError):  # how a terminal ends on Linux
            while part := os.read(ours, 4096):
                said += part
        os.close(ours)
    assert process.returncode == 0
    lines = said.decode().splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d \S", line) for line in lines), lines
    assert [line.split()[1] for line in lines] == ["a", "starts", "round", "finished"]


@pytest.mark.parametrize(
    ("terminal", "options", "quoted"),
    [(False, (), False), (True, (), True), (False, ("--until-eof",), True)],
)
def test_what_an_own_task_raises_is_quoted_to_a_terminal_only(
    peerpoise: Call,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    options: tuple[str, ...],
    quoted: bool,
) -> None:
    """Else it would go on to journalctl; `up` keeps it in its run folder."""

    def serve(*_: object, **__: object) -> int:
        try:
            raise KeyError("patient 4711")
        except KeyError as error:
            raise TaskError("batch raised KeyError: 4711", "batch raised KeyError.") from error

    monkeypatch.setattr(bootstrap, "serve", serve)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    ended = peerpoise("run", "--config", home / "node.toml", "--json", *options)
    assert ended.code == TaskError.exit_code
    assert "batch raised KeyError" in ended.err
    for text in (ended.err, ended.out):
        assert ("4711" in text) == quoted
    (kept,) = home.glob("peerpoise-task-*.txt")
    assert "4711" in kept.read_text(encoding="utf-8")
