"""Names and texts that somebody else chose and people read: nothing in them is invisible, turned
around or markup.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from node.config import ExperimentConfig, RunSection, TaskSection
from node.experiments.report import page, tables
from node.experiments.report.tables import Grid
from peer.codec import NAME

HIDDEN = {
    "right-to-left override": "\u202e",
    "isolate": "\u2066",
    "mark": "\u200f",
    "line separator": "\u2028",
    "escape": "\x1b[2J",
    "delete": "\x7f",
    "C1 control": "\x9b",
    "null": "\0",
}
SHOWS_NOTHING = {
    "zero width space": "\u200b",
    "byte-order mark": "\ufeff",
    "soft hyphen": "\u00ad",
    "no-break space": "\u00a0",
    "Hangul filler": "\u3164",
    "braille blank": "\u2800",
    "variation selector": "\ufe0f",
    "tag": "\U000e0041",
    "private use": "\ue000",
}
NAMES = ["run", "Krankenhaus Süd 2", "испытание", "試験", "בדיקה", "تجربة", "run-1_a.b", "été"]


@pytest.mark.parametrize("hidden", [*HIDDEN, *SHOWS_NOTHING])
def test_a_runs_name_can_be_seen(hidden: str) -> None:
    with pytest.raises(ValidationError, match=r"can't be seen|that can be seen"):
        RunSection(name=f"a{({**HIDDEN, **SHOWS_NOTHING})[hidden]}b")


@pytest.mark.parametrize("name", NAMES)
def test_names_in_any_language_are_names(name: str) -> None:
    assert RunSection(name=name).name == name


@pytest.mark.parametrize("hidden", [*HIDDEN, *SHOWS_NOTHING])
def test_nodes_members_kinds_and_runs_on_the_wire_are_plain(hidden: str) -> None:
    assert NAME.fullmatch(f"a{({**HIDDEN, **SHOWS_NOTHING})[hidden]}b") is None


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize(
    "where",
    [
        lambda text: {"task": {"labels": [text, "b"], "classes": 2}},
        lambda text: {"task": {"features": {text: [0.0, 1.0]}}},
        lambda text: {"task": {"name": f"a.b:{text}"}},
        lambda text: {"algorithm": {"name": "dpdl", text: 1}},
        lambda text: {"topology": {"kind": "edges", "edges": [["a", text]]}},
        lambda text: {"task": {"text": {"template": text}}},
    ],
)
def test_no_text_of_a_file_misleads_who_reads_it(hidden: str, where: Any) -> None:
    values: Mapping[str, Any] = {"privacy": {"epsilon": 8.0}, **where(f"a{HIDDEN[hidden]}b")}
    with pytest.raises(ValidationError, match="can't be seen"):
        ExperimentConfig(**values)


def test_what_scripts_need_is_left_in_texts() -> None:
    """Joiners in Persian and in pictures, tabs and lines in templates."""
    labels = ("می\u200cخواهم", "👩\u200d⚕\ufe0f")
    assert TaskSection(labels=labels, classes=2).labels == labels
    ExperimentConfig(privacy={"epsilon": 8.0}, task={"text": {"template": "a\n\tb", "answer": "c"}})  # type: ignore[arg-type]


EVIL = 'x<img src=y onerror="z">|[a](javascript:b)`c`*d*\x1b[31m\u202e\n# e'
GRID = Grid(title=EVIL, head=(EVIL, "b"), rows=((EVIL, EVIL),), notes=(EVIL,))


def test_markdown_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    written = "\n".join(
        tables.quoted(text) for text in (GRID.title, *GRID.head, *GRID.rows[0], *GRID.notes)
    )
    assert not {"\x1b", "\u202e", "<", ">"} & set(written)
    assert r"\|\[a\](javascript:b)\`c\`\*d\*U+001B\[31mU+202E # e" in written
    assert tables.quoted("# a") == r"\# a"
    assert tables.quoted("ε_total ≤ 8, dp-dmsgd") == "ε_total ≤ 8, dp-dmsgd", (
        "what is harmless stands as it is"
    )


def test_html_is_text() -> None:
    written = page.table(replace(GRID))
    assert "<img" not in written
    assert not {"\x1b", "\u202e"} & set(written)
