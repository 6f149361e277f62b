"""Nothing leaves a node under a name that docs/leaks.md does not have: whoever adds a field has to
say there what it tells of private records.
"""

from __future__ import annotations

import re
from pathlib import Path

from kit import ROOT
from kit.leaks import CLASSES, PAGE, listed, unlisted_files
from node.algorithms import ALGORITHMS, find
from node.config import ExperimentConfig, PrivacySection, load
from node.experiments.in_process import simulate
from node.figures import COMMON_METRICS
from node.observability.metrics import Metrics
from node.observability.status import Status
from node.records.exported import ModelInfo
from node.records.journal import EVENTS
from node.records.summary import Summary
from node.tasks.goals import Classes, Number, TableClasses, TwoClasses
from peer.v1 import peer_pb2

GOALS = (Classes, Number, TableClasses, TwoClasses)


def names_of(section: str) -> dict[str, set[str]]:
    return {of: set(names) for of, names in listed(section).items()}


def together(section: str) -> set[str]:
    """All names of a section, whatever they are of."""
    return set().union(*names_of(section).values())


def test_what_is_on_the_wire() -> None:
    messages = peer_pb2.DESCRIPTOR.message_types_by_name
    assert names_of("On the wire") == {
        name: {field.name for field in message.fields} for name, message in messages.items()
    }


def test_metrics() -> None:
    registry = Metrics(version="1", torch="2", python="3").registry
    samples = {
        family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        for family in registry.collect()
    }
    assert together("Metrics") == samples


def test_figures() -> None:
    declared = {name: {it.name for it in find(name).DIAGNOSTICS} for name in ALGORITHMS}
    metrics = [*COMMON_METRICS, *(metric for goal in GOALS for metric in goal.metrics)]
    expected = {name: figures for name, figures in declared.items() if figures}
    assert names_of("Figures") == {**expected, "task": {metric.name for metric in metrics}}


def test_what_promises_nothing_is_refused_where_something_is_promised() -> None:
    assert PrivacySection.model_fields["mode"].default == "strict"
    for name, figures in listed("Figures").items():
        if name != "task":
            assert ("none" in figures.values()) == (not find(name).PRIVATE)


def test_the_journal() -> None:
    events = {event: set(fields) - {"event", "time"} for event, fields in EVENTS.items()}
    assert names_of("Journal") == events


def test_status_summary_and_model() -> None:
    assert names_of("Status") == {"Status": set(Status.__annotations__)}
    assert names_of("Summary and model") == {
        "Summary": set(Summary.model_fields),
        "ModelInfo": set(ModelInfo.model_fields),
    }


def test_the_files_of_a_simulation(tmp_path: Path) -> None:
    """Those of daemons: tests/cluster/test_canary.py."""
    example = ROOT / "deploy" / "examples" / "quickstart.toml"
    settings = ["train.rounds=1", "privacy.mode=none"]
    simulate(load(ExperimentConfig, [example], settings, environ={}), tmp_path)
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert unlisted_files(files) == set()
    assert unlisted_files({tmp_path / "gradients.npy"}) == {"gradients.npy"}


def test_every_class_is_explained_and_used() -> None:
    text = PAGE.read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| (\w+) \|", text.partition("## On the wire")[0], re.MULTILINE))
    assert explained - {"class"} == CLASSES
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    used = {
        kind
        for section in sections
        for names in listed(section).values()
        for kind in names.values()
    }
    assert used | {"off"} == CLASSES
