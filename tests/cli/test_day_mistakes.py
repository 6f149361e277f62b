"""What people do wrong on the day of docs/day.md: one sentence each that says what is wrong, a
documented exit code, nothing lost.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

from kit import ROOT, free_ports, typed, wards
from kit.command import Call, Result
from node.config import ExperimentConfig, load
from node.experiments.hosts import pack

Words: TypeAlias = list[str | Path]
NAMES = "abc"


@dataclass
class Day:
    """Tables of three hosts, the run file, what `pack` made of it, and a model that was learned."""

    folder: Path
    peerpoise: Call
    monkeypatch: pytest.MonkeyPatch

    def file(self, name: str) -> Path:
        return self.folder / name

    def edit(self, name: str, old: str, new: str) -> None:
        text = self.file(name).read_text(encoding="utf-8")
        assert old in text
        self.file(name).write_text(text.replace(old, new), encoding="utf-8")

    def pack(self, *options: str, hosts: str = NAMES, data: str | None = None) -> Words:
        at = [
            f"--host={name}=127.0.0.1:{port}"
            for name, port in zip(hosts, (1, 2, 3, 4), strict=False)
        ]
        own = [f"--data={name}=wards-{name}:{self.file(name)}.csv" for name in (data or hosts)]
        return ["pack", "day.toml", "--out", "again", *at, *own, *options]

    def run(self, host: str = "a", *options: str) -> Words:
        return ["run", "--quiet", "--config", f"packed/{host}/node.toml", *options]


def peerpoise(*words: str, folder: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "peerpoise", *words], cwd=folder, check=True, capture_output=True
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("day")
    rng = np.random.default_rng(1)
    for name, office in wards.OFFICES.items():
        with_ids = replace(office, columns=(*office.columns, "patient_id"))
        for file in (f"{name}.csv", f"{name}-test.csv"):
            wards.save(folder / file, wards.visits(rng, 200, office.wards), with_ids)
    (text,) = typed.blocks(ROOT / "docs" / "day.md", "toml")
    (folder / "day.toml").write_text(text, encoding="utf-8")
    settings = ["train.rounds=3", "start.timeout_s=1"]
    config = load(ExperimentConfig, [folder / "day.toml"], settings, environ={})
    hosts = [f"{name}=127.0.0.1:{port}" for name, port in zip(NAMES, free_ports(3), strict=True)]
    own = [f"{name}=wards-{name}:{folder / name}.csv" for name in NAMES]
    tests = [f"{name}:{folder / name}-test.csv" for name in NAMES]
    pack(config, hosts, own, folder / "packed", tests=tests)
    one_table = ["task.data=file", f"task.path={folder / 'a.csv'}", "experiment.nodes=3", *settings]
    peerpoise(
        "simulate",
        "day.toml",
        "--folder",
        "runs",
        *(f"--set={it}" for it in one_table),
        folder=folder,
    )
    peerpoise("export", "runs", "--out", "ward.safetensors", folder=folder)
    return folder


@pytest.fixture
def day(base: Path, tmp_path: Path, peerpoise: Call, monkeypatch: pytest.MonkeyPatch) -> Day:
    folder = tmp_path / "day"
    shutil.copytree(base, folder)
    for name in NAMES:
        node = folder / "packed" / name / "node.toml"
        node.write_text(node.read_text().replace(str(base), str(folder)))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-home"))
    return Day(folder, peerpoise, monkeypatch)


Mistake: TypeAlias = Callable[[Day], Words]


def of(name: str, content: str | bytes, words: Callable[[Day], Words]) -> Mistake:
    """A file with this content."""

    def prepare(day: Day) -> Words:
        raw = content if isinstance(content, bytes) else content.encode()
        day.file(name).write_bytes(raw)
        return words(day)

    return prepare


def edited(name: str, old: str, new: str, words: Callable[[Day], Words]) -> Mistake:
    def prepare(day: Day) -> Words:
        day.edit(name, old, new)
        return words(day)

    return prepare


def gone(name: str, words: Callable[[Day], Words]) -> Mistake:
    def prepare(day: Day) -> Words:
        day.file(name).unlink()
        return words(day)

    return prepare


def export_of_no_round(day: Day) -> Words:
    """Its folder was copied afresh, or lost its state."""
    file = day.file("runs/summary.json")
    summary = json.loads(file.read_text(encoding="utf-8"))
    summary["rounds_run"] = dict.fromkeys(summary["rounds_run"], 0)
    file.write_text(json.dumps(summary), encoding="utf-8")
    return ["export", "runs", "--out", "untrained.safetensors"]


def nobodys(day: Day) -> Words:
    """More of them than task.bad_rows allows."""
    head, *rows = day.file("a.csv").read_text(encoding="utf-8").splitlines()
    without = [row.rpartition(",")[0] + "," for row in rows]
    day.file("a.csv").write_text("\n".join([head, *without]), encoding="utf-8")
    return day.run()


def column_twice(day: Day) -> Words:
    head, *rows = day.file("a.csv").read_text(encoding="utf-8").splitlines()
    twice = [f"{head},age", *(f"{row},50" for row in rows)]
    day.file("a.csv").write_text("\n".join(twice), encoding="utf-8")
    return day.run()


def second_run_of_another_model(day: Day) -> Words:
    assert day.peerpoise("continue", "runs", "--set", "task.model=mlp").code == 0
    return ["simulate", "next.toml", "--folder", "second"]


RUN = Day.run
TABLE: dict[str, tuple[Mistake, int, str]] = {
    # the table
    "a table that is not there": (gone("a.csv", RUN), 66, "There is no data file"),
    "an empty table": (of("a.csv", "", RUN), 66, "it is empty"),
    "a header and no row": (of("a.csv", "age,creatinine,sex,ward,admitted,died,patient_id\n", RUN), 66, "has no rows"),
    "a table without the label": (edited("a.csv", "died", "dead", RUN), 66, "has no column 'died'; it has age"),
    "a table without a feature": (edited("a.csv", "creatinine", "kreatinin", RUN), 66, "has no column 'creatinine'; it has age"),
    "a table without patients": (edited("a.csv", "patient_id", "patient", RUN), 66, "has no column 'patient_id'"),
    "a row that is nobody's": (nobodys, 66, "so that nobody knows whose row it is"),
    "a column twice": (column_twice, 66, "has the column 'age' twice; leave one"),
    "a label of another spelling": (edited("a.csv", ",yes,", ",YES!,", RUN), 66, "'YES!' is none of task.labels (no, yes)"),
    "too many unknown categories": (edited("a.csv", ",f,", ",female,", RUN), 66, "more than task.bad_rows = 0.02 allows"),
    "dates of another form": (edited("a.csv", "2024-", "24/", RUN), 66, "a date as 2024-05-31 is expected"),
    "a workbook": (of("a.csv", b"PK\3\4" + bytes(100), RUN), 66, "is a workbook or an archive"),
    "a table in UTF-16": (of("a.csv", "age,sex\n1,2\n".encode("utf-16"), RUN), 66, "is UTF-16 text; save it as UTF-8"),
    "a PDF": (of("a.csv", b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", RUN), 66, "it has %PDF-1.4"),
    "a broken Parquet file": (of("b.parquet", b"PAR1" + bytes(50) + b"PAR1", lambda it: it.run("a", "--set", f"data.path={it.file('b.parquet')}")), 66, "it is no Parquet, or damaged"),
    "numbers with units": (edited("a.csv", ",f,", "mg,f,", RUN), 66, "column 'creatinine' is not numeric"),
    "a folder for a table": (lambda it: it.run("a", "--set", f"data.path={it.folder / 'packed'}"), 66, "a table of another kind is one file"),
    # schema
    "schema of no file": (lambda _: ["schema", "none.csv"], 66, "There is no data file none.csv"),
    "schema without that label": (lambda _: ["schema", "a.csv", "--label", "outcome"], 66, "has no column 'outcome'; it has age"),
    "schema of a broken description": (of("schema.json", "{", lambda _: ["schema", "schema.json"]), 66, "schema.json is no Table Schema"),
    # the run file
    "a feature of no kind": (edited("day.toml", 'kind = "date"', 'kind = "day"', Day.pack), 78, "task.features.admitted"),
    "a scale of zero": (edited("day.toml", "age = [60, 15]", "age = [60, 0]", Day.pack), 78, "task.features.age.number.scale"),
    "the label as a feature": (edited("day.toml", "age = [60, 15]", 'died = { kind = "category", values = ["no", "yes"] }', Day.pack), 78, "'died' is the label, so that it can't be a feature"),
    "one label": (edited("day.toml", 'labels = ["no", "yes"]', 'labels = ["no"]', Day.pack), 78, "labels has to name two labels"),
    "a category twice": (edited("day.toml", '["f", "m"]', '["f", "f"]', Day.pack), 78, "'f' is there twice"),
    "privacy without epsilon": (edited("day.toml", "epsilon = 4.0\n", "", Day.pack), 78, "mode strict needs either epsilon"),
    # pack
    "no data of a host": (lambda it: it.pack(data="ab"), 78, "say what c holds, as --data c=NAME:PATH"),
    "data of a host that is not there": (lambda it: it.pack("--data=d=wards:d.csv"), 78, "--data names d, but there is no --host d"),
    "a test set of a host that is not there": (lambda it: it.pack("--test=d:d.csv"), 78, "--test names d, but there is no --host d"),
    "one name for two hosts": (lambda it: it.pack("--host=a=127.0.0.1:9"), 78, "'a' is given twice"),
    "two hosts at one address": (lambda it: [*it.pack(hosts="ab"), "--host=c=127.0.0.1:1", f"--data=c=w:{it.file('c.csv')}"], 78, "a and c have one address"),
    "a request that is a certificate": (lambda it: it.pack("--request=a=packed/a/node.pem"), 77, "not a certificate request"),
    "a request of nobody": (lambda it: it.pack("--request=d=d.csr"), 78, "--request names d, but there is no --host d"),
    "a folder that is there": (lambda it: [*it.pack(), "--out", "packed"], 73, "packed exists and is not empty"),
    "a federation that is none": (lambda it: it.pack("--federation", "packed/a"), 77, "There is no CA in packed/a"),
    "renewal of nobody": (lambda _: ["ca", "renew", "packed/federation", "d"], 77, "knows no member d"),
    # run
    "the folder of another host": (lambda it: (shutil.copy(it.file("packed/b/node.pem"), it.file("packed/a/node.pem")), it.run())[1], 77, "was issued for another key"),
    "no budget": (lambda it: it.run("a", "--set", "budget.epsilon="), 78, "budget.epsilon is missing"),
    "nobody else": (RUN, 69, "Nobody listens at 127.0.0.1"),
    # afterwards
    "export of a run that has no model": (lambda _: ["export", "packed/a", "--out", "m.safetensors"], 66, "There is no model packed/a"),
    "export of no run": (lambda _: ["export", "none", "--out", "m.safetensors"], 66, "There is no run folder none"),
    "export of a host that ran no round": (export_of_no_round, 66, "has run none of its 3 rounds"),
    "predict without a column": (of("new.csv", "age,sex\n3,f\n", lambda _: ["predict", "ward.safetensors", "new.csv"]), 66, "creatinine"),
    "predict by no model": (lambda _: ["predict", "a.csv", "a.csv"], 66, "a.csv is no model of peerpoise"),
    "predict for no rows": (lambda _: ["predict", "ward.safetensors", "none.csv"], 66, "none.csv"),
    "continue of no run": (lambda _: ["continue", "none"], 66, "There is no run folder none"),
    "continue over a file": (lambda _: ["continue", "runs", "--out", "day.toml"], 73, "day.toml exists already"),
    "a second run of another model": (second_run_of_another_model, 66, "is another model than this run's"),
    "report of no run": (lambda _: ["report", "none", "--out", "page.html"], 66, "holds no sweep and no run"),
    "status of nobody": (lambda _: ["status", "./packed/a"], 1, "No daemon ./packed/a of this user is running"),
    "roster without that member": (lambda _: ["roster", "remove", "packed", "d"], 78, "The roster removes d, which is not a member"),
}  # fmt: skip


def test_there_are_enough() -> None:
    assert len(TABLE) >= 40


@pytest.mark.parametrize("mistake", TABLE)
def test_a_mistake_of_the_day(day: Day, mistake: str) -> None:
    prepare, code, says = TABLE[mistake]
    words = prepare(day)
    before = contents(day.folder)
    result: Result = day.peerpoise(*words)
    lines = result.err.splitlines()
    assert (result.code, len(lines)) == (code, 1), result.err
    assert lines[0].startswith("peerpoise: ")
    assert says in lines[0]
    assert "Traceback" not in result.out + result.err
    after = contents(day.folder)
    assert {path: after.get(path) for path in before} == before, "nothing is lost"


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file's bytes, but those of daemons."""
    files = [path for path in folder.rglob("*") if path.is_file() and "state" not in path.parts]
    return {path: path.read_bytes() for path in files}
