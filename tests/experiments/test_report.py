"""Tables against figures made by hand; a page with nothing outside of it; plots that are the same
bytes again.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from pyarrow import parquet

from kit.sweeps import TINY, keep
from node.experiments.report import aggregate, files, page, plots, spreads, tables, verdict
from node.experiments.sweep.folder import Folder
from node.experiments.sweep.grid import load
from node.figures import Metric

SUMMARY = {
    "algorithm": "dmsgd",
    "nodes": 4,
    "rounds": 4,
    "topology": "ring",
    "dataset": "digits",
    "seed": 1,
    "version": "0",
    "config_digest": "0",
    "complete": True,
    "privacy": {"mode": "none"},
}


def private(total, **changes):
    told = {
        "mode": "strict",
        "batches": "independent",
        "delta": 1e-3,
        "sigma": 1.0,
        "accountant": "PLD",
        "epsilon": {"total": total, "link": total / 2},
    }
    return SUMMARY | {"privacy": told | changes}


def row_of(found, setting, method):
    [part] = [it for it in found.parts if it.name == setting]
    grid = tables.setting(part)
    [trials] = [it for it in grid.rows if it[0] == method]
    return dict(zip(grid.head, trials, strict=True)), grid.notes


@pytest.fixture
def by_hand(tiny, tmp_path):
    """xavg: 0.3 is chosen, seeds reach 60 and 70 %. dpdl: one of two seeds. private: nothing was
    run.
    """
    sweep, folder = load(tiny), Folder(tmp_path / "out")
    xavg, dpdl, _ = sweep.rows
    for row in (xavg, dpdl):
        for trial in row.tuning():
            keep(folder, trial, 0.5 if trial.lr == 0.01 else 0.55)
    spread = [{"n0": [0.0, 0.5], "n1": [0.0, 0.7]}, {"n0": [0.0, 0.8], "n1": [0.0, 0.6]}]
    for trial, accuracy in zip(xavg.final(0.3), spread, strict=True):
        keep(
            folder,
            trial,
            0,
            metrics={"accuracy": accuracy},
            bytes=[1e6, 2e6],
            seconds=[1.0, 20.0],
            summary=SUMMARY,
        )
    keep(folder, next(iter(dpdl.final(0.3))), 0.42, summary=SUMMARY)
    return sweep, folder


def test_means_deviations_and_worst_nodes(by_hand):
    sweep, folder = by_hand
    late = load(sweep.rows[0].files[0], ["sweep.late=1"])
    found = aggregate.collect(late, folder)
    row, notes = row_of(found, "ring", "xavg")
    assert row == {
        "method": "xavg",
        "lr": "0.3 †",
        "mean of the nodes": "65.0 ± 7.1",
        "worst node": "55.0 ± 7.1",
        "MB sent per node": "2.0",
        "seconds": "20",
        "seeds": "2/2",
    }
    assert any("a better one may lie beyond" in note for note in notes)
    assert any("last 1 evaluations" in note for note in notes)


def test_the_mean_is_over_late_evaluations(by_hand):
    row, _ = row_of(aggregate.collect(*by_hand), "ring", "xavg")
    assert row["mean of the nodes"] == "32.5 ± 3.5"


def test_what_was_not_run_says_so(by_hand):
    sweep, folder = by_hand
    found = aggregate.collect(sweep, folder)
    assert row_of(found, "private", "dpdl")[0]["mean of the nodes"] == "not run"
    row, _ = row_of(found, "ring", "dpdl")
    assert (row["mean of the nodes"], row["seeds"]) == ("42.0", "1/2")
    overview = tables.overview(found)
    assert overview.head == ("method", "A ring", "private")
    assert overview.rows == (
        ("xavg", "32.5 ± 3.5 / 27.5", "not run"),
        ("dpdl", "42.0 / 42.0 (1 of 2 seeds)", "not run"),
    )
    assert (found.finished, found.trials) == (7, 12)
    assert "not run" in tables.markdown(found)
    assert "<td>not run</td>" in page.page([found])


def test_a_failure_stands_under_its_table(by_hand):
    sweep, folder = by_hand
    [trial, *_] = sweep.rows[2].tuning()
    folder.fail({trial.label: "There is no data file none.npz."})
    row, notes = row_of(aggregate.collect(sweep, folder), "private", "dpdl")
    assert row["mean of the nodes"] == "failed"
    assert notes[-1] == f"{trial.label}: There is no data file none.npz."


def test_no_epsilon_without_its_conditions(tiny, tmp_path):
    method = "[sweep.methods.paper]\nalgorithm.name = 'dpdl'\nprivacy.mode = 'paper'\n"
    tiny.write_text(TINY.replace('methods = ["dpdl"]', 'methods = ["dpdl", "paper"]') + method)
    sweep, folder = load(tiny, ["sweep.rates=[0.3]"]).only(["private"]), Folder(tmp_path / "out")
    strict, paper = sweep.rows
    for trial, total in zip(strict.final(0.3), (7.9, 8.0), strict=True):
        keep(folder, trial, 0.5, summary=private(total))
    void = private(0.0, mode="paper", batches="shared", accountant=None, epsilon={})
    for trial in paper.final(0.3):
        keep(folder, trial, 0.5, summary=void, accounted=55.25)
    found = aggregate.collect(sweep, folder)
    row, notes = row_of(found, "private", "dpdl")
    assert (row["ε_total"], row["ε_link"]) == ("8.00 (a)", "4.00 (a, one link)")
    [under] = [note for note in notes if note.startswith("(a)")]
    for part in (
        "mode strict",
        "add/remove one example",
        "δ = 0.001",
        "independent batches",
        "PLD",
        "against any coalition of other nodes",
    ):
        assert part in under
    row, notes = row_of(found, "private", "paper")
    assert (row["ε_total"], row["ε_link"]) == ("no guarantee: 8.00 / 55.25 (b)", "–")
    assert "NOT a guarantee" in next(note for note in notes if note.startswith("(b)"))
    assert any("ε_link" in note and "not a guarantee" in note for note in notes)
    told = json.loads(json.dumps(files.document(found)))["settings"][0]["rows"]
    assert told[0]["epsilon"]["conditions"] == under.removeprefix("(a) ").rstrip(".")
    assert told[1]["epsilon"]["answers_alone"] == 55.25


def test_rounds_to_a_loss_and_how_many_times_fewer(tiny, tmp_path):
    tiny.write_text(TINY + "[sweep.settings.more]\nmethods = ['xavg']\nexperiment.nodes = 5\n")
    sweep = load(tiny, ["sweep.rates=[0.3]", "sweep.target_loss=0.5"]).only(["xavg"])
    folder = Folder(tmp_path / "out")
    for row, losses in zip(sweep.rows, ([0.7, 0.6, 0.5, 0.1], [0.5, 0.3, 0.2, 0.1]), strict=True):
        for trial in row.final(0.3):
            how = {"rounds": [5, 10, 15, 20], "metrics": {"loss": {"n0": losses, "n1": losses}}}
            keep(folder, trial, 0.5, summary=SUMMARY, **how)
    speed = tables.speed_up(aggregate.collect(sweep, folder))
    assert speed.rows == (("xavg", "15 (÷ 1.00)", "5 (÷ 3.00)"),)


class Nesting(HTMLParser):
    """Every tag is closed where it was opened; notes all attributes."""

    VOID = {"meta", "br", "hr", "img", "input", "link"}

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def made(swept):
    return page.page([aggregate.find(swept[1])])


def test_the_page_is_well_formed(made):
    parser = Nesting()
    parser.feed(made)
    parser.close()
    assert parser.open == []
    names = [
        attributes["id"]
        for tag, attributes in parser.seen
        if "id" in attributes and tag in ("h2", "section")
    ]
    assert len(names) == len(set(names)) == 2
    for svg in re.findall(r"<svg.*?</svg>", made, re.DOTALL):
        ElementTree.fromstring(svg)


def test_the_page_needs_nothing_outside_of_it(made):
    parser = Nesting()
    parser.feed(made)
    for tag, attributes in parser.seen:
        assert tag not in ("script", "link", "iframe", "object", "base")
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), (
                tag,
                attributes,
            )
    assert "url(" not in re.sub(r"url\(#\w+\)", "", made)
    assert "@import" not in made


def test_the_page_can_be_read_aloud(made):
    parser = Nesting()
    parser.feed(made)
    images = [attributes for tag, attributes in parser.seen if tag == "svg"]
    assert len(images) >= 7
    for attributes in images:
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"]) > 40
    tags = [tag for tag, _ in parser.seen]
    assert tags.count("caption") == tags.count("table") > 2
    assert all(
        attributes.get("scope") in ("col", "row") for tag, attributes in parser.seen if tag == "th"
    )
    assert ("html", {"lang": "en"}) in parser.seen
    assert any(attributes.get("name") == "viewport" for _, attributes in parser.seen)


def test_what_a_user_names_is_no_markup(tiny, tmp_path):
    tiny.write_text(TINY.replace('title = "A ring"', 'title = "<b>A & B</b>"'))
    made = page.page([aggregate.collect(load(tiny), Folder(tmp_path / "out"))])
    assert "<b>" not in made
    assert "&lt;b&gt;A &amp; B&lt;/b&gt;" in made


@pytest.mark.long
def test_plots_are_the_same_bytes_again(swept):
    """In another process with another hash seed, too: no dates, no random ids."""
    program = f"""
import hashlib
from pathlib import Path
from node.experiments.report import aggregate, plots
found = aggregate.find(Path({str(swept[1])!r}))
for part in found.parts:
    for plot in plots.plots(part, found.methods):
        content = plot.svg() + plot.inline()
        print(plot.name, hashlib.sha256(content.encode()).hexdigest(), hashlib.sha256(plot.png()).hexdigest())
"""
    told = [
        subprocess.run(
            [sys.executable, "-P", "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert told[0] == told[1]
    names = [line.split()[0] for line in told[0].splitlines()]
    assert names == [
        "ring-rounds",
        "ring-bytes",
        "ring-distance",
        "ring-calibration-dpdl",
        "private-rounds",
        "private-bytes",
        "private-epsilon",
        "private-distance",
        "private-calibration-dpdl",
    ]


def test_tokens_are_an_axis_where_some_are_drawn(tiny, tmp_path):
    """Of the methods that draw, of earlier versions' cells none."""
    sweep, folder = load(tiny), Folder(tmp_path / "out")
    for row in sweep.rows[:2]:
        drawn = {"tokens": [0, 9]} if row.method == "xavg" else {}
        for trial in (*row.tuning(), *row.final(0.3)):
            value = 0.6 if trial.lr == 0.3 else 0.5
            keep(folder, trial, value, summary=SUMMARY, **drawn)
    found = aggregate.collect(sweep, folder)
    made = {it.name: it for it in plots.plots(found.parts[0], found.methods)}
    assert "tokens of own answers per node" in made["ring-tokens"].alt
    assert ("xavg" in made["ring-tokens"].alt, "dpdl" in made["ring-tokens"].alt) == (True, False)


def test_an_epsilon_axis_says_what_it_is(swept):
    found = aggregate.find(swept[1])
    [plot] = [
        it for it in plots.plots(found.parts[1], found.methods) if it.name.endswith("epsilon")
    ]
    for part in (
        "strict",
        "add/remove one example",
        "δ = 0.001",
        "independent batches",
        "RDP",
        "any coalition",
    ):
        assert part in plot.svg()
        assert part in plot.alt


def test_ticks_of_a_logarithmic_axis_are_plain_text(swept):
    """matplotlib writes 10⁻³ as a formula by default, in a font that a page doesn't have."""
    found = aggregate.find(swept[1])
    distances = [
        plot.svg()
        for part in found.parts
        for plot in plots.plots(part, found.methods)
        if plot.name.endswith("distance")
    ]
    assert len(distances) == 2
    assert not any("mathdefault" in svg for svg in distances)


def test_a_heat_map_marks_attackers(tiny, tmp_path):
    sweep, folder = load(tiny, ["sweep.rates=[0.3]"]).only(["ring/dpdl"]), Folder(tmp_path / "out")
    weight = {
        "n0": {"n0": [0.5, 0.5], "n1": [0.4, 0.4], "n2": [0.1, 0.1]},
        "n1": {"n0": [0.6, 0.4], "n2": [None, 0.2]},
    }
    for trial in sweep.rows[0].final(0.3):
        keep(folder, trial, 0.5, summary=SUMMARY, weights={"weight": weight}, attackers=["n2"])
    found = aggregate.collect(sweep, folder)
    [plot] = [it for it in plots.plots(found.parts[0], found.methods) if "weight" in it.name]
    assert "Means: honest neighbors 0.45, attackers 0.15." in plot.alt
    assert "n2 ✗" in plot.svg()
    assert "attackers: n2 (accuracies are the honest nodes')" in found.parts[0].about


def test_parquet_and_json_hold_what_tables_show(swept):
    _, out = swept
    found = aggregate.find(out)
    assert {it.name for it in files.write(found, out)} == {
        "results.json",
        "cells.parquet",
        "evaluations.parquet",
        "weights.parquet",
    }
    trials = parquet.read_table(out / "cells.parquet").to_pylist()
    assert [(it["setting"], it["method"], it["seed"]) for it in trials] == [
        ("ring", "xavg", 1),
        ("ring", "xavg", 2),
        ("ring", "dpdl", 1),
        ("ring", "dpdl", 2),
        ("private", "dpdl", 1),
        ("private", "dpdl", 2),
    ]
    told = json.loads((out / "results.json").read_text())["settings"][0]["rows"][0]
    mean = sum(it["mean"] for it in trials[:2]) / 2
    assert told["mean"]["mean"] == pytest.approx(mean)
    assert tables.setting(found.parts[0]).rows[0][2].startswith(f"{100 * mean:.1f}")
    evaluations = parquet.read_table(out / "evaluations.parquet").to_pylist()
    assert len(evaluations) == 6 * 4 * 4
    assert {
        "round",
        "node",
        "accuracy",
        "loss",
        "bytes",
        "distance",
        "epsilon_total_live",
    } <= evaluations[0].keys()
    weights = parquet.read_table(out / "weights.parquet").to_pylist()
    assert {it["kind"] for it in weights} == {"cosine", "calibration"}
    assert {it["mode"] for it in trials} == {"none", "strict"}


def test_no_row_is_called_best_whose_rate_is_at_the_edge(tmp_path):
    """xavg leads at the largest rate of three; with that rate in the middle it is best."""
    file = tmp_path / "three.toml"
    verdicts = []
    for name, rates in (("edge", "[0.01, 0.1, 0.3]"), ("closed", "[0.1, 0.3, 1.0]")):
        text = TINY.replace("rates = [0.01, 0.3]", f"rates = {rates}")
        file.write_text(text, encoding="utf-8")
        sweep, folder = load(file), Folder(tmp_path / name)
        for row in sweep.rows[:2]:
            for trial in row.tuning():
                chosen = 0.3 if row.method == "xavg" else 0.1
                keep(folder, trial, 0.6 if trial.lr == chosen else 0.5)
            for trial in row.final(chosen):
                keep(folder, trial, 0.7 if row.method == "xavg" else 0.65, summary=SUMMARY)
        [ring] = [it for it in aggregate.collect(sweep, folder).parts if it.name == "ring"]
        verdicts += [note for note in tables.setting(ring).notes if "best" in note.lower()[:25]]
    assert verdicts == [
        "No row is called best: xavg leads, and its rate is at the edge of those that were tried.",
        "Best: xavg; with other rates these may do better: dpdl.",
    ]


def test_what_privacy_costs_is_the_difference_to_the_same_method_without(tmp_path):
    """dp-dmsgd and dmsgd are one method; xavg has another graph without noise than with it."""
    text = """
[train]
rounds = 4
[privacy]
mode = "none"
batch = 30
[experiment]
nodes = 4
[sweep]
seeds = [1, 2]
rates = [0.1]
algorithms = ["dmsgd", "dp-dmsgd", "xavg"]
[sweep.settings.plain]
methods = ["dmsgd", "xavg"]
topology.kind = "full"
[sweep.settings.private]
methods = ["dp-dmsgd"]
topology.kind = "full"
privacy = { mode = "strict", epsilon = 8.0, delta = 1e-3, rate = 0.2, batch = 50 }
[sweep.settings.elsewhere]
methods = ["xavg"]
topology.kind = "star"
privacy = { mode = "strict", epsilon = 8.0, delta = 1e-3, rate = 0.2, batch = 50 }
"""
    file = tmp_path / "cost.toml"
    file.write_text(text, encoding="utf-8")
    sweep, folder = load(file), Folder(tmp_path / "out")
    for row in sweep.rows:
        noised = row.setting != "plain"
        for trial in row.final(0.1):
            summary = private(8.0) if noised else SUMMARY
            keep(folder, trial, 0.6 if noised else 0.725, summary=summary)
    grid = tables.cost_of_privacy(aggregate.collect(sweep, folder))
    assert grid is not None
    assert grid.rows == (("dp-dmsgd", "private", "72.5 ± 0.0", "60.0 ± 0.0", "12.5"),)


def test_the_best_row_promises_what_the_others_do_and_public_data_alone_compete(tmp_path):
    text = """
[train]
rounds = 4
[privacy]
mode = "strict"
epsilon = 8.0
delta = 1e-3
rate = 0.2
batch = 50
[validation]
size = 50
[experiment]
nodes = 4
[sweep]
algorithms = ["dpdl", "dp-dmsgd", "dp-centralized"]
rates = [0.1]
[sweep.methods."dpdl, paper mode"]
algorithm.name = "dpdl"
privacy.mode = "paper"
[sweep.methods.public]
privacy.mode = "none"
[sweep.settings.all]
"""
    reached = {"dpdl": 0.7, "dp-dmsgd": 0.6, "dp-centralized": 0.9, "dpdl, paper mode": 0.8}
    file = tmp_path / "best.toml"
    for seeds, public, best in (
        ("[1, 2]", 0.75, "Best: public."),
        ("[1, 2]", 0.5, "Best: dpdl."),
        ("[1]", 0.5, "No row is called best: dpdl leads, with one seed."),
    ):
        given = text.replace("rates = [0.1]", f"rates = [0.1]\nseeds = {seeds}")
        file.write_text(given, encoding="utf-8")
        sweep, folder = load(file), Folder(tmp_path / best)
        for row in sweep.rows:
            mode = {"public": "none", "dpdl, paper mode": "paper"}.get(row.method, "strict")
            summary = SUMMARY if mode == "none" else private(8.0, mode=mode)
            for trial in row.final(0.1):
                keep(folder, trial, {**reached, "public": public}[row.method], summary=summary)
        [part] = aggregate.collect(sweep, folder).parts
        assert verdict.verdict(part) == best


@pytest.mark.parametrize(
    ("metric", "values", "text"),
    [
        (Metric("accuracy", unit="ratio"), (0.8231, 0.0041), "82.3 ± 0.4"),
        (Metric("auc"), (0.8231, 0.0041), "0.823 ± 0.004"),
        (Metric("perplexity"), (28.64, 0.512), "28.6 ± 0.5"),
    ],
    ids=str,
)
def test_a_metric_has_as_many_digits_as_tell_something(metric, values, text):
    assert spreads.shown(aggregate.Spread(*values), metric) == text
