"""What neighbors do to a node is written down: once, with the code's name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from node.config import BudgetSection, RunConfig
from node.daemon.snapshot import snapshot
from node.daemon.telemetry import PER_ROUND, REFUSALS, WARNINGS, Telemetry
from node.learning.learner import Learner
from node.observability.metrics import Metrics
from node.observability.sentences import Sentences
from node.observability.voice import Voice
from node.records import journal
from peer.v1 import peer_pb2 as pb


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Telemetry]:
    run = RunConfig(privacy={"sigma": 2.0})  # type: ignore[arg-type]
    about = journal.header({}, node="a", run=run.run_id, seed=0, threads=1)
    written = journal.Journal(tmp_path / "journal.jsonl", about)
    metrics = Metrics(version="1", torch="2", python="3")
    yield Telemetry(
        run=run,
        name="a",
        journal=written,
        voice=Voice(Sentences("a", run, version="1", folder=tmp_path), quiet=True),
        metrics=metrics,
        budget=BudgetSection(epsilon="unlimited"),
    )
    written.close()


@pytest.mark.parametrize("public", [True, False])
def test_figures_of_a_private_test_set_are_not_for_those_who_scrape(
    watch: Telemetry, public: bool
) -> None:
    shown = Telemetry(
        run=watch.run,
        name="a",
        journal=watch.journal,
        voice=watch.voice,
        metrics=watch.metrics,
        budget=BudgetSection(epsilon="unlimited"),
        public_test=public,
    )
    shown.tested(3, {"accuracy": 0.75})
    scraped = watch.metrics.registry.get_sample_value(
        "peerpoise_task_metric", {"metric": "accuracy"}
    )
    assert scraped == (0.75 if public else None)
    [entry] = [it for it in journal.read(watch.journal.path) if it["event"] == "test"]
    assert entry["metrics"] == {"accuracy": 0.75}, "the host itself keeps them"
    assert shown.tested_metrics == {"accuracy": 0.75}


@pytest.mark.parametrize("public", [True, False])
def test_figures_of_a_private_test_set_are_not_said_where_words_are_kept(
    tmp_path: Path, public: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[object] = []
    run = RunConfig(privacy={"sigma": 2.0})  # type: ignore[arg-type]
    written = journal.Journal(
        tmp_path / "journal.jsonl",
        journal.header({}, node="a", run=run.run_id, seed=0, threads=1),
    )
    voice = Voice(Sentences("a", run, version="1", folder=tmp_path), quiet=True)
    monkeypatch.setattr(voice, "hear", lambda event, fields: heard.append(fields["metrics"]))
    shown = Telemetry(
        run=run,
        name="a",
        journal=written,
        voice=voice,
        metrics=Metrics(version="1", torch="2", python="3"),
        budget=BudgetSection(epsilon="unlimited"),
        public_test=public,
    )
    shown.tested(3, {"accuracy": 0.75})
    voice.on_terminal = True
    shown.tested(4, {"accuracy": 0.5})
    written.close()
    assert heard == [{"accuracy": 0.75} if public else {}, {"accuracy": 0.5}]


def noted(watch: Telemetry) -> list[tuple[str, str, str]]:
    return [
        (it["event"], it["peer"], it["code"])
        for it in journal.read(watch.journal.path)
        if "peer" in it
    ]


def test_a_refusal_is_written_once_and_counted_every_time(watch: Telemetry) -> None:
    for code in (pb.CODE_LAYOUT, pb.CODE_LAYOUT, 0, pb.CODE_BUSY, pb.CODE_BUSY, pb.CODE_LAYOUT):
        watch.wire_error("b", code)
    assert noted(watch) == [
        ("refused", "b", code) for code in ("CODE_LAYOUT", "CODE_BUSY", "CODE_LAYOUT")
    ]
    counted = watch.metrics.registry.get_sample_value
    assert counted("peerpoise_wire_errors_total", {"peer": "unknown", "code": "CODE_LAYOUT"}) == 3


def test_an_unusable_payload_is_written_and_counted_against_its_sender(watch: Telemetry) -> None:
    watch.metrics.neighbors(["b"], "a")
    watch.rejected("b", pb.CODE_MALFORMED)
    assert noted(watch) == [("rejected", "b", "CODE_MALFORMED")]
    assert watch.metrics.registry.get_sample_value("peerpoise_rejected_total", {"peer": "b"}) == 1


@pytest.mark.parametrize("what", ["peer", "refused", "rejected"])
def test_no_neighbor_fills_the_disk_with_lines_about_itself(watch: Telemetry, what: str) -> None:
    """It comes and goes, refuses with ever another code, or sends rubbish, a thousand times a
    second if it likes.
    """
    for n in range(1000):
        match what:
            case "peer":
                watch.presence("b", n % 2 == 0)
            case "refused":
                watch.wire_error("b", pb.CODE_BUSY if n % 2 else pb.CODE_LAYOUT)
            case _:
                watch.rejected("b", pb.CODE_MALFORMED)
    watch.presence("c", True)
    about = [(it["event"], it["peer"]) for it in journal.read(watch.journal.path) if "peer" in it]
    assert about == [(what, "b")] * PER_ROUND + [("peer", "c")]


def warned(watch: Telemetry) -> list[str]:
    return [it["text"] for it in journal.read(watch.journal.path) if it["event"] == "warning"]


def test_a_warning_that_differs_by_a_number_takes_the_place_of_the_one_before(
    watch: Telemetry,
) -> None:
    watch.warnings = []
    for n in range(1000):
        watch.warn(f"/run/checkpoint-{n}.safetensors can't be written after {n} rounds.")
        watch.warn(f"node-{n % 2} at 10.0.0.{n % 2}:7443 is odd.")
    assert watch.warnings == [
        "/run/checkpoint-999.safetensors can't be written after 999 rounds.",
        "node-0 at 10.0.0.0:7443 is odd.",
        "node-1 at 10.0.0.1:7443 is odd.",
    ], "parts of names and addresses are no numbers"
    assert len(warned(watch)) == 3


def test_warnings_are_bounded(watch: Telemetry) -> None:
    for n in range(1000):
        watch.warn(f"node-{n} is odd.")
    assert len(watch.warnings) == WARNINGS
    assert watch.warnings[-1] == "node-999 is odd."


def test_refusals_are_counted_by_kind_of_caller_and_told_above_a_rate(watch: Telemetry) -> None:
    for peer, times in (("b", REFUSALS - 1), ("c", REFUSALS), ("", 2 * REFUSALS)):
        for _ in range(times):
            watch.refused(peer, pb.CODE_MALFORMED)
    counted = watch.metrics.registry.get_sample_value
    for peer, times in (("member", 2 * REFUSALS - 1), ("stranger", 2 * REFUSALS)):
        assert counted("peerpoise_refused_total", {"peer": peer, "code": "CODE_MALFORMED"}) == times
    assert [text.split(",")[0] for text in warned(watch)] == ["c", "Somebody with a certificate"]


def test_connections_that_come_to_nothing_are_counted(watch: Telemetry) -> None:
    for begun, used in ((3, 1), (2, 2), (7, 2)):
        watch.connections(begun, used)
    counted = watch.metrics.registry.get_sample_value
    assert counted("peerpoise_connections_total", {"used": "yes"}) == 2
    assert counted("peerpoise_connections_total", {"used": "no"}) == 5
    watch._strangers = (0.0, 0)
    watch.connections(10 * REFUSALS, 2)
    assert "shows no certificate of its federation" in watch.warnings[-1]


def test_other_software_is_warned_of_once_for_each_neighbor(watch: Telemetry) -> None:
    for n in range(100):
        watch.software("b", f"{n}.{'9' * 500}", same_code=False)
        watch.software("c", "", same_code=True)
    version, code = warned(watch)
    assert version.startswith("b runs peerpoise 0.9999")
    assert len(version) < 150
    assert code.startswith("b and a run different code of your own")


def test_the_budget_is_an_event_at_each_step(watch: Telemetry) -> None:
    watch.limit = 8.0
    conditions = {
        "round": 3,
        "mode": "strict",
        "adjacency": "add/remove one example",
        "accountant": "RDP",
        "against": "any coalition of other nodes",
        "link": 1.0,
    }
    asked: list[int] = []

    def use(compositions: int, by_pld: float) -> None:
        def lifetime(delta: float) -> float:
            asked.append(compositions)
            return by_pld

        learner = SimpleNamespace(compositions=compositions, lifetime=lifetime)
        watch.learner = cast(Learner, learner)
        watch._note_budget(1.25 * by_pld, conditions)

    for t in range(1, 1001):
        use(t, 8 * (t / 1000) ** 0.5)
    events = [it for it in journal.read(watch.journal.path) if it["event"] == "budget"]
    assert [it["share"] for it in events] == [0.5, 0.75, 0.9]
    assert [it["lifetime"] for it in events] == pytest.approx([4.0, 6.0, 7.2], rel=0.01)
    assert {(it["delta"], it["accountant"]) for it in events} == {(watch.lifetime_delta, "PLD")}
    assert len(asked) < 30, "PLD is slow"


def test_one_event_where_several_steps_are_reached_at_once(watch: Telemetry) -> None:
    watch.limit = 8.0
    conditions = dict.fromkeys(("round", "mode", "adjacency", "against"), "")
    learner = SimpleNamespace(compositions=3, lifetime=lambda delta: 9.0)
    watch.learner = cast(Learner, learner)
    for _ in range(2):
        watch._note_budget(9.5, conditions)
    events = [it for it in journal.read(watch.journal.path) if it["event"] == "budget"]
    assert [(it["share"], it["lifetime"]) for it in events] == [(0.9, 9.0)]


def test_before_the_ledger_is_read_the_status_names_no_epsilon(watch: Telemetry) -> None:
    document = snapshot(watch)
    assert document["state"] == "starting"
    assert document["epsilon"] is not None
    assert document["epsilon"]["run"] == {"total": None, "link": None}


def test_the_status_says_that_the_budget_is_reached(watch: Telemetry) -> None:
    for exhausted in (False, True):
        gate = SimpleNamespace(exhausted=exhausted)
        learner = SimpleNamespace(gate=gate, task=SimpleNamespace(metrics=()))
        watch.learner = cast(Learner, learner)
        epsilon = snapshot(watch)["epsilon"]
        assert epsilon is not None
        assert epsilon["reached"] is exhausted


@pytest.mark.parametrize("shown", [True, False])
def test_figures_per_neighbor_are_shown_only_where_they_do_not_leak(
    watch: Telemetry, monkeypatch: pytest.MonkeyPatch, shown: bool
) -> None:
    """In mode paper they are made with clean gradients."""
    learner = SimpleNamespace(
        diagnostics=lambda: {"cosine": {"b": -0.5}, "step": 3},
        neighborhood=SimpleNamespace(neighbors=["b"]),
    )
    monkeypatch.setattr(Telemetry, "learner", learner)
    watch.metrics.neighbors(["b"], "a")
    watch.metrics.diagnostics = shown
    watch.round(0, 0.1)
    value = watch.metrics.registry.get_sample_value
    figure = value("peerpoise_diagnostic", {"name": "cosine", "peer": "b"})
    assert figure == (-0.5 if shown else None)
    [line] = [it for it in journal.read(watch.journal.path) if it["event"] == "round"]
    own = {"step": 3}
    assert line["diagnostics"] == ({"cosine": {"b": -0.5}, **own} if shown else own)
