"""The tables of docs/attacks.py: its settings are valid, its rows are those of the page, and the page
says what was promised."""

from __future__ import annotations

import re
import runpy

import pytest
import torch

from kit import ROOT
from node.audit.inversion import Inversion
from node.audit.lira import Rate
from node.audit.membership import Membership

ATTACKS = runpy.run_path(str(ROOT / "docs" / "attacks.py"))
PAGE = ROOT / "docs" / "results" / "privacy-attacks.md"
IMAGE = torch.zeros(1, 1, 8, 8)
INVERSION = Inversion(
    attack="trap",
    mode="none",
    batch=8,
    rounds=1,
    records=32,
    recovered=28,
    correlation=1.0,
    chance=0.76,
    auc=1.0,
    originals=IMAGE,
    guesses=IMAGE,
)
RATE = Rate(false_positives=0.01, true_positives=0.031, low=0.024, high=0.039, bound=0.279)
MEMBERSHIP = Membership(
    watcher="neighbor", mode="strict", runs=40, records=100, auc=0.626, rates=(RATE,)
)


@pytest.mark.parametrize("settings", ["INVERTED", "INFERRED"])
def test_its_settings_are_valid_in_every_mode(settings: str) -> None:
    runs = [*ATTACKS["runs"](ATTACKS[settings])]
    assert [each.run.privacy.mode for each in runs] == ["strict", "paper", "none"]
    assert {each.run.privacy.epsilon for each in runs} == {8.0}


def test_its_rows_are_those_of_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert ATTACKS["inversion_row"](INVERSION) in text
    assert next(iter(ATTACKS["membership_rows"](MEMBERSHIP))) in text


def test_what_was_promised_is_on_the_page() -> None:
    """At ε 8 nothing is recovered, without noise four of five are."""
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| \w+ \| \d+ \| \d+ \| (\d+) of (\d+) \|", text, re.MULTILINE)
    assert len(rows) == 2 * 9
    for mode, recovered, records in rows:
        share = int(recovered) / int(records)
        assert share >= 0.8 if mode == "none" else share == 0.0
