"""docs/day.md, typed: three hospitals from their tables to a model in use, and a second run with
another one. Hosts are network namespaces, or where there can be none, folders on this machine.
"""

from __future__ import annotations

import asyncio
import csv
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from kit import ROOT, free_ports, typed, wards
from kit.clusters import events, until
from kit.network_namespaces import switch, why_not
from node import data
from node.config import RunConfig, load
from node.config.task import TaskSection
from node.data import Examples
from node.maths.scores import auc

PAGE = ROOT / "docs" / "day.md"
NAMES = ("north", "west", "south", "east")
OFFICES = {
    name: replace(office, columns=(*office.columns, "patient_id"))
    for name, office in zip(NAMES, (wards.OFFICES[name] for name in "acba"), strict=True)
}
ROWS = 1200
"""Of a table, and half as many patients."""
WHOM = "add/remove all rows of one patient_id"


@dataclass(frozen=True)
class Our:
    """What stands for the page's hosts here."""

    folder: Path
    addresses: Mapping[str, str]
    """Of the page -> ours."""
    hosts: Mapping[str, typed.Host]

    def line(self, line: str) -> str:
        line = re.sub(r"10\.0\.0\.\d:7443", lambda found: self.addresses[found[0]], line)
        return re.sub(r"(\w+)((?:=[\w-]+)?):/srv/", rf"\1\2:{self.folder}/\1/", line)


@pytest.fixture
def our(tmp_path: Path) -> Iterator[Our]:
    with ExitStack() as stack:
        if why_not():
            addresses = [f"127.0.0.1:{port}" for port in free_ports(len(NAMES))]
            inside: dict[str, list[str]] = {name: [] for name in NAMES}
        else:
            machines = stack.enter_context(switch(len(NAMES)))
            addresses = [f"{each.ip}:7443" for each in machines]
            inside = {name: each.inside() for name, each in zip(NAMES, machines, strict=True)}
        shells = stack.enter_context(typed.hosts(tmp_path, inside))
        pages = [f"10.0.0.{i + 1}:7443" for i in range(len(NAMES))]
        yield Our(tmp_path, dict(zip(pages, addresses, strict=True)), shells)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, our: Our) -> None:
    for name, office in OFFICES.items():
        rng = np.random.default_rng((1, NAMES.index(name)))
        for file, count in (("ward.csv", ROWS), ("test.csv", ROWS // 2)):
            rows = wards.visits(rng, count, office.wards)
            wards.save(our.hosts[name].home / file, rows, office)
    (run_file,) = typed.blocks(PAGE, "toml")
    (our.hosts["north"].home / "ward.toml").write_text(run_file, encoding="utf-8")
    (new,) = typed.blocks(PAGE, "csv")
    (our.hosts["west"].home / "new.csv").write_text(new, encoding="utf-8")

    for name, line in typed.lines(PAGE):
        host = our.hosts[name]
        if line.startswith("kill"):
            asyncio.run(until(partial(in_round, host.home / "first", 3)))
        host.type(our.line(line))

    first = {name: our.hosts[name].home / "first" for name in ("north", "west", "south")}
    second = {name: our.hosts[name].home / "second" for name in ("north", "west", "east")}
    task = load(RunConfig, [first["north"] / "run.toml"]).task
    for homes in (first, second):
        without_privacy = pooled_auc(task, {name: home.parent for name, home in homes.items()})
        for name, home in homes.items():
            summary = finished(home)
            assert summary["privacy"]["epsilon"]["total"] <= 4.0
            assert summary["privacy"]["adjacency"] == WHOM
            assert nobody_is_named(home)
            assert without_privacy[name] > 0.78, "there is something to learn"
            assert summary["task_metrics"]["auc"]["mean"] > without_privacy[name] - 0.02
    starts = events(first["south"] / "state", "listening")
    assert len(starts) == 2, "it was killed"
    (certificate,) = events(first["west"] / "state", "certificate")
    assert "the renewed certificate is in force" in our.hosts["west"].said()
    rounds = events(first["west"] / "state", "round")
    assert rounds[0]["time"] < certificate["time"] < rounds[-1]["time"]
    keys = {path.relative_to(tmp_path) for path in tmp_path.glob("**/*.key")} - known_rows(NAMES)
    authority = Path("north", "packed", "federation", "ca.key")
    assert keys == {authority, *(Path(name, "state", "peerpoise", "node.key") for name in NAMES)}

    monkeypatch.chdir(our.hosts["west"].home)
    (with_peerpoise, plain) = typed.blocks(PAGE, "python")
    names: dict[str, Any] = {}
    exec(with_peerpoise, names)
    exec(plain, names)
    with open("risk.csv", encoding="utf-8") as risks:
        predicted = [float(row["p(yes)"]) for row in csv.DictReader(risks)]
    assert names["risk"].tolist() == pytest.approx(predicted, abs=1e-4)
    assert float(names["by_hand"]) == pytest.approx(predicted[0], abs=1e-4)


def test_the_pages_agree() -> None:
    """docs/tables.md explains the file that docs/day.md has, and says how persons are added."""
    (of_day,), (of_tables,) = (
        map(tomllib.loads, typed.blocks(page, "toml"))
        for page in (PAGE, PAGE.with_name("tables.md"))
    )
    assert of_day["task"].pop("unit") == "patient_id"
    assert of_day == of_tables


def pooled_auc(task: TaskSection, homes: Mapping[str, Path]) -> dict[str, float]:
    """Of logistic regression on the rows of all in one place, by name of the test set."""

    def inputs(path: Path) -> Examples:
        return data.own(path, task)

    train = [inputs(home / "ward.csv") for home in homes.values()]
    x, y = torch.cat([each.x.flatten(1) for each in train]), torch.cat([each.y for each in train])
    w = torch.zeros(x.shape[1] + 1, requires_grad=True)
    for _ in range(500):
        loss = functional.binary_cross_entropy_with_logits(x @ w[:-1] + w[-1], y.float())
        (gradient,) = torch.autograd.grad(loss, w)
        w = (w - gradient).detach().requires_grad_()
    scores = {}
    for name, home in homes.items():
        test = inputs(home / "test.csv")
        margin = test.x.flatten(1) @ w[:-1].detach()
        scores[name] = auc(margin.double().numpy(), np.asarray(test.y) == 1)
    return scores


def nobody_is_named(home: Path) -> bool:
    files = [path for path in (home / "state").rglob("*") if path.is_file()]
    assert files
    return not any(b"MRN-" in file.read_bytes() for file in files)


def known_rows(names: Sequence[str]) -> set[Path]:
    """What ledgers know their data by."""
    return {Path(name, "state", "peerpoise", "ledger", "rows.key") for name in names}


def in_round(home: Path, t: int) -> bool:
    return any(event["round"] >= t for event in events(home / "state", "round"))


def finished(home: Path) -> dict[str, Any]:
    """Its summary."""
    assert in_round(home, load(RunConfig, [home / "run.toml"]).train.rounds - 1)
    summary: dict[str, Any] = json.loads((home / "state" / "summary.json").read_text())
    return summary
