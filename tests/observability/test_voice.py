"""What a daemon says on standard error: golden lines, and what strangers can't do with them."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from node.config import RunConfig
from node.daemon.waits import CHANGED_S, FIRST_S, LONG_S, MOST_S, Waits
from node.figures import ACCURACY, document
from node.observability.sentences import PULSE_S, Sentences, duration
from node.observability.status import Waiting
from node.observability.voice import AT_ONCE, EVERY_S, LONGEST, Voice
from node.records.journal import EVENTS

CONDITIONS = {
    "mode": "strict",
    "adjacency": "add/remove one example",
    "delta": 1e-5,
    "accountant": "RDP",
    "against": "any coalition of other nodes",
}
UNDER = "(strict, add/remove one example, δ = 1e-05, RDP, against any coalition of other nodes)"
RUN = RunConfig(run={"name": "digits"}, privacy={"sigma": 2.0})  # type: ignore[arg-type]
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
Hear = Callable[..., str]


@pytest.fixture
def sentences() -> Sentences:
    return Sentences("a", RUN, version="1.0", folder=Path("/srv/a b/state"))


@pytest.fixture
def hear(sentences: Sentences) -> Hear:
    """Gives it an event, so many seconds after noon."""

    def given(event: str, after: float = 0.0, **fields: Any) -> str:
        assert fields.keys() <= EVENTS[event], "the journal has no such event"
        return sentences.of(event, fields, NOON + timedelta(seconds=after))

    return given


def test_a_run_from_its_first_line_to_its_last(hear: Hear) -> None:
    lines = [
        hear("figures", metrics=document([ACCURACY]), diagnostics=[]),
        hear("resume", checkpoint=-1, round=1),
        hear("listening", address="0.0.0.0:7443", neighbors=["b", "c"]),
        hear("state", state="waiting for peers"),
        hear("peer", peer="b", state="live", round=-1),
        hear("waiting", peer="c", since_s=3, until_s=86400, reason="Nobody listens at h:1."),
        hear("state", state="running"),
        hear("phase", round=1, phase=0, kind="model", seconds=0.1),
        hear("test", round=1, metrics={"accuracy": 0.831}),
        hear("epsilon", round=1, total=1.234, lifetime=3.0, lifetime_delta=1e-5, **CONDITIONS),
        hear("budget", round=1, share=0.75, lifetime=3.0, limit=4.0, **CONDITIONS),
        hear("round", round=1, seconds=1.0),
        hear("state", state="lingering"),
        hear(
            "end",
            reason="finished",
            complete=False,
            wall_seconds=185.2,
            metrics={"accuracy": 0.9},
            epsilon={"total": 2.5, **CONDITIONS},
        ),
    ]
    assert list(filter(None, lines)) == [
        f"a listens at 0.0.0.0:7443 for b and c: run digits ({RUN.run_id[:8]}), dpdl, privacy mode "
        "strict, peerpoise 1.0; goes on at round 2, without a checkpoint, so from the model that all "
        "began with",
        "b is there",
        "waits for c since 11:59:57, until 2026-03-02 12:00:00: Nobody listens at h:1. If it has done "
        "all its rounds, stop this node, and take a neighbor's model.",
        "starts round 2 of 100 with b, without c",
        f"75% of the privacy budget of these data is spent: lifetime ε 3 of 4 {UNDER}",
        f"round 2 of 100: accuracy 83.1%, ε_total 1.23 {UNDER}",
        "all rounds are done; b may need this node a little longer",
        f"finished 100 rounds (not all of them were run) after 3 min 5 s: accuracy 90.0%, ε_total 2.5 "
        f"{UNDER}; summary and model are in '/srv/a b/state'; next: peerpoise export "
        "'/srv/a b/state' --out model.safetensors",
    ]


def test_a_neighbor_that_comes_and_goes(hear: Hear) -> None:
    live, away = {"peer": "b", "state": "live"}, {"peer": "b", "state": "not live"}
    lines = [
        hear("peer", **away),
        hear("peer", **live),
        hear("peer", **live),
        hear("waited", peer="b", seconds=1, round=3),
        hear("waiting", peer="b", since_s=8, until_s=2, reason="It is slow.", round=3),
        hear("waited", peer="b", seconds=9.1, round=3),
        hear("peer", reason="It made no progress for 10 s.", **away),
        hear("lost_edge", peer="b", round=3, phase=1, reason="It made no progress for 10 s."),
        hear("peer", **live),
        hear("lost_edge", peer="b", round=4, phase=1, reason="It is not mixed in this round."),
        hear("rejected", peer="b", round=4, code="CODE_MALFORMED"),
        hear("peer", **away),
    ]
    assert list(filter(None, lines)) == [
        "b is there",
        "waits for b since 11:59:52, until 12:00:02: It is slow.",
        "b came, after 9 s",
        "b is gone: It made no progress for 10 s.",
        "b is back",
        "round 5 goes on without b: It is not mixed in this round.",
        "b sent what can't be used (CODE_MALFORMED); it is dropped",
        "b has done all its rounds",
    ]


@pytest.mark.parametrize(
    ("total", "change"),
    [
        (float("inf"), {"mode": "paper", "against": "nobody: no guarantee"}),
        (1.0, {"against": "VOID: the noise is public"}),
        (None, {}),
    ],
)
def test_no_epsilon_is_said_that_does_not_hold(
    hear: Hear, total: float | None, change: dict[str, str]
) -> None:
    conditions = {**CONDITIONS, **change}
    hear("epsilon", round=0, total=total, **conditions)
    mode, against = conditions["mode"], conditions["against"]
    assert hear("round", round=0) == f"round 1 of 100: no ε (mode {mode}, against {against})"


def test_a_run_that_measures_nothing_shows_once_a_minute_that_it_lives(hear: Hear) -> None:
    hear("state", state="running")
    spoken = [t for t in range(200) if hear("round", after=t, round=t)]
    assert spoken == [PULSE_S, 2 * PULSE_S, 3 * PULSE_S]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (60, "1 min"), (3599.7, "1 h"), (7830, "2 h 10 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_every_event_that_is_said_is_one_of_the_journal(hear: Hear) -> None:
    """What is not on its list can't be said either: `hear` of the tests above asks."""
    assert hear("state", state="stopping", reason="SIGTERM") == "stops: SIGTERM"
    assert hear("state", state="stopping", reason="PeersUnavailable") == ""
    assert hear("end", reason="stopped", signal="SIGTERM", complete=False).startswith("stopped;")
    assert hear("end", reason="diverged") == "", "the error's own sentence follows"


class Said:
    """What a voice wrote to standard error, line by line."""

    def __init__(self, sentences: Sentences, capsys: pytest.CaptureFixture[str]) -> None:
        self.sentences, self.capsys = sentences, capsys
        self.now = NOON

    def of(self, *events: tuple[str, dict[str, Any]], **options: Any) -> list[str]:
        self.capsys.readouterr()
        voice = Voice(self.sentences, now=lambda: self.now, **options)
        for event, fields in events:
            voice.hear(event, fields)
        voice.close()
        return self.capsys.readouterr().err.splitlines()


@pytest.fixture
def said(sentences: Sentences, capsys: pytest.CaptureFixture[str]) -> Said:
    return Said(sentences, capsys)


def waiting(reason: str) -> tuple[str, dict[str, Any]]:
    return "waiting", {"peer": "b", "since_s": 1.0, "until_s": 1.0, "reason": reason, "round": 0}


def test_no_stranger_draws_on_the_terminal(said: Said) -> None:
    """Nor begins a line of its own, nor turns the direction of one."""
    rude = "\x1b[2J\x1b]0;title\x07\r\n2026 a is gone\u202e" + "x" * 10_000
    [line] = said.of(waiting(rude))
    assert line.isprintable()
    assert len(line) < LONGEST + 50
    assert line.startswith("2026-03-01 12:00:00 waits for b since 11:59:59, until 12:00:01:  [2J")
    [line] = said.of(waiting(rude), form="json")
    assert line.isprintable()
    assert json.loads(line)["reason"] == rude, "its reader has it as it came"


def test_lines_for_programs(said: Said) -> None:
    [line] = said.of(("warning", {"text": "Mind\nthis."}), form="json")
    assert json.loads(line) == {
        "time": "2026-03-01T12:00:00.000+00:00",
        "level": "warning",
        "node": "a",
        "run": RUN.run_id,
        "event": "warning",
        "text": "warning: Mind this.",
    }


def test_quiet_leaves_warnings(said: Said) -> None:
    events = [waiting("late"), ("warning", {"text": "Mind this."})]
    assert said.of(*events, quiet=True) == ["2026-03-01 12:00:00 warning: Mind this."]


def test_one_neighbor_fills_no_log(said: Said) -> None:
    other = ("peer", {"peer": "c", "state": "live"})
    lines = said.of(*[waiting(f"{n}") for n in range(100)], other)
    assert len(lines) == AT_ONCE + 1
    assert lines[-1].endswith("c is there")


def test_what_was_left_out_is_counted(
    sentences: Sentences, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [NOON]
    voice = Voice(sentences, now=lambda: now[0])
    for n in range(AT_ONCE + 5):
        voice.hear(*waiting(f"{n}"))
    now[0] += timedelta(seconds=EVERY_S)
    voice.hear(*waiting("again"))
    voice.close()
    assert (
        capsys.readouterr().err.splitlines()[-1].endswith("again (5 lines about b were left out)")
    )


def test_in_the_systems_journal_lines_have_a_priority_and_no_time(
    sentences: Sentences, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    about = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{about.st_dev}:{about.st_ino}")
    voice = Voice(sentences, now=lambda: NOON)
    voice.hear("peer", {"peer": "b", "state": "live"})
    voice.hear("warning", {"text": "Mind this."})
    voice.close()
    assert capfd.readouterr().err == "<6>b is there\n<4>warning: Mind this.\n"


class Held(io.StringIO):
    """A terminal that is held, until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def write(self, text: str) -> int:
        self.go.wait()
        return super().write(text)


def test_a_terminal_that_is_held_holds_up_nobody(
    sentences: Sentences, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held()
    monkeypatch.setattr("sys.stderr", held)
    voice = Voice(sentences, now=lambda: NOON)
    for n in range(3000):
        voice.hear("warning", {"text": f"{n}"})
    held.go.set()
    voice.close()
    lines = held.getvalue().splitlines()
    assert lines[0].endswith("warning: 0")
    assert len(lines) <= 1001


def test_a_pipe_without_a_reader_costs_the_line_only(sentences: Sentences) -> None:
    reader, writer = os.pipe()
    kept = os.dup(2)
    os.close(reader)
    try:
        os.dup2(writer, 2)
        with (
            open(2, "w", closefd=False, encoding="utf-8") as stream,
            pytest.MonkeyPatch.context() as m,
        ):
            m.setattr("sys.stderr", stream)
            voice = Voice(sentences, now=lambda: NOON)
            voice.hear("warning", {"text": "Nobody reads this."})
            voice.close()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(writer)


def wait(since: float, until: float, why: str = "late") -> Waiting:
    return Waiting(peer="b", since_s=since, until_s=until, why=why)


def noted(waits: Waits, seconds: int, *, gathering: bool, until: float = 100.0) -> list[int]:
    return [t for t in range(seconds) if [*waits.due([wait(float(t), until)], gathering=gathering)]]


def test_a_wait_is_noted_ever_less_often() -> None:
    seen = noted(Waits(10.0), 4000, gathering=True)
    assert seen[:3] == [FIRST_S, FIRST_S + CHANGED_S, 2 * (FIRST_S + CHANGED_S)]
    assert seen[-1] - seen[-2] == MOST_S


def test_slow_is_not_worth_a_line_but_silent_is() -> None:
    assert noted(Waits(10.0), 100, gathering=False, until=9.0) == [LONG_S]
    assert noted(Waits(10.0), 5, gathering=False, until=4.9) == [FIRST_S]


def test_another_reason_is_noted_and_a_later_wait_is_another() -> None:
    waits = Waits(10.0)
    assert [*waits.due([wait(60.0, 4.0)], gathering=False)]
    assert not [*waits.due([wait(60.0 + CHANGED_S, 4.0)], gathering=False)]
    assert [*waits.due([wait(60.0 + CHANGED_S, 4.0, "other")], gathering=False)]
    assert not [*waits.due([wait(1.0, 4.0)], gathering=False)]
    assert [*waits.due([wait(3.0, 4.0)], gathering=False)]
    assert waits.ended("b")
    assert not waits.ended("b")
