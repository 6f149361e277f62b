"""The same data under another name are known again, and nobody is told but their host."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kit.command import Call, examine
from node.config import BudgetSection, DataSection, RunConfig, TaskSection
from node.data import raw_rows
from node.learning.known_data import KnownData, rows
from node.privacy.accountant import Mechanism
from node.privacy.known_rows import KnownRows
from node.privacy.ledger import Ledger
from node.records.journal import read
from node.tasks import make
from peer import failpoint
from peer.errors import ConfigurationError

TABLE = {"data": "own", "label": "ill", "classes": 2, "features": {"age": [50, 20], "dose": [5, 5]}}
STRICT = Mechanism(sigma=2.0, rate=0.1)


def run_of(**task: object) -> RunConfig:
    privacy = {"epsilon": 8.0, "rate": 0.25, "batch": 40}
    return RunConfig.model_validate({"privacy": privacy, "task": task})


@dataclass
class Host:
    """A folder of data and ledgers."""

    folder: Path

    def known(self, run: RunConfig, name: str, path: Path, **budget: object) -> KnownData:
        section = {"epsilon": 8.0, "ledger_dir": self.folder / "ledger", **budget}
        data = DataSection(name=name, path=path)
        return KnownData(run=run, data=data, budget=BudgetSection.model_validate(section))

    def use(self, run: RunConfig, name: str, path: Path, **budget: object) -> KnownData:
        """As a daemon does before its first round."""
        known = self.known(run, name, path, **budget)
        Ledger.open(self.folder / "ledger", name).close()
        known.admit(make(run, known.data))
        with Ledger.open(self.folder / "ledger", name) as ledger:
            ledger.debit(f"run of {name}", 0, "b", STRICT)
        return known

    def is_known(self, run: RunConfig, path: Path) -> str:
        """The sentence with which these data are refused under a new name; empty: they are not."""
        known = self.known(run, "other", path)
        try:
            known.check(make(run, known.data))
        except ConfigurationError as error:
            return str(error)
        return ""


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def patients(count: int, seed: int = 0) -> list[dict[str, str]]:
    rng = random.Random(seed)
    return [
        {
            "id": str(rng.randrange(10**9)),
            "age": str(rng.randrange(20, 90)),
            "dose": f"{rng.random() * 9:.2f}",
            "sex": rng.choice("fm"),
            "ill": str(rng.randrange(2)),
        }
        for _ in range(count)
    ]


def save(path: Path, patients: list[dict[str, str]], separator: str = ",") -> Path:
    lines = [separator.join(patients[0]), *(separator.join(each.values()) for each in patients)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def reordered(people: list[dict[str, str]]) -> list[dict[str, str]]:
    shuffled = random.Random(1).sample(people, len(people))
    return [{name: each[name] for name in reversed(each)} for each in shuffled]


def as_german_excel(people: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{**each, "dose": f" {float(each['dose']):.3f}".replace(".", ",")} for each in people]


VARIANTS: dict[str, Callable[[list[dict[str, str]]], list[dict[str, str]]]] = {
    "the same": lambda people: people,
    "columns and rows in another order": reordered,
    "half of the rows": lambda people: people[::2],
    "a few rows more": lambda people: [*people, *patients(20, seed=7)],
    "numbers written otherwise": as_german_excel,
    "a tenth of the rows": lambda people: [*people[:20], *patients(180, seed=7)],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_table_under_another_name(host: Host, tmp_path: Path, variant: str) -> None:
    people = patients(200)
    host.use(run_of(**TABLE), "ward", save(tmp_path / "ward.csv", people))
    changed = save(tmp_path / "copy.csv", VARIANTS[variant](people), separator=";")
    sentence = host.is_known(run_of(**TABLE), changed)
    shares = {"a few rows more": "91%", "a tenth of the rows": "10%"}
    assert f"{shares.get(variant, '100%')} of the rows of other are known" in sentence
    assert "under which ε_total = " in sentence
    assert "peerpoise ledger rename ward other" in sentence
    assert sentence.count(". ") == 0


def test_a_parquet_file_is_known_as_the_csv_it_was_made_of(host: Host, tmp_path: Path) -> None:
    """Its columns have types: whole numbers, floats, text."""
    arrow = pytest.importorskip("pyarrow", reason="pip install 'peerpoise[tables]'")
    from pyarrow import parquet

    people = patients(60)
    doses = [float(each["dose"]) for each in people]
    typed = {
        "id": [int(each["id"]) for each in people],
        "age": [float(each["age"]) for each in people],
        "dose": doses,
        "sex": [each["sex"] for each in people],
        "ill": [int(each["ill"]) for each in people],
    }
    parquet.write_table(arrow.table(typed), tmp_path / "copy.parquet")
    host.use(run_of(**TABLE), "ward", save(tmp_path / "ward.csv", people))
    assert "100% of the rows" in host.is_known(run_of(**TABLE), tmp_path / "copy.parquet")
    others = {**typed, "dose": [10 + dose for dose in doses]}
    parquet.write_table(arrow.table(others), tmp_path / "others.parquet")
    assert host.is_known(run_of(**TABLE), tmp_path / "others.parquet") == ""


def test_rows_are_known_whose_person_is_spelled_otherwise(host: Host, tmp_path: Path) -> None:
    """Case and blanks around an id tell rows apart no more than those of any other cell."""
    people = [{**each, "id": f"Pat-{each['id']}"} for each in patients(60)]
    run = run_of(**TABLE, unit="id")
    host.use(run, "ward", save(tmp_path / "ward.csv", people))
    spelled = [{**each, "id": f"  {each['id'].upper()} "} for each in people]
    assert "100% of the rows" in host.is_known(run, save(tmp_path / "copy.csv", spelled))
    others = [{**each, "id": f"{each['id']}-b"} for each in people]
    assert host.is_known(run, save(tmp_path / "others.csv", others)) == ""


def test_another_schema_knows_the_same_rows(host: Host, tmp_path: Path) -> None:
    path = save(tmp_path / "ward.csv", patients(50))
    host.use(run_of(**TABLE), "ward", path)
    other = {"data": "own", "label": "sex", "labels": ["f", "m"], "features": {"age": [0, 100]}}
    assert "100% of the rows" in host.is_known(run_of(**other), path)


def test_other_people_are_not_known(host: Host, tmp_path: Path) -> None:
    """Nor are nine in a hundred of the same; where that is too many, the owner says a share."""
    people = patients(100)
    host.use(run_of(**TABLE), "ward", save(tmp_path / "ward.csv", people))
    run = run_of(**TABLE)
    assert host.is_known(run, save(tmp_path / "b.csv", patients(100, seed=9))) == ""
    few = save(tmp_path / "c.csv", [*people[:9], *patients(91, seed=9)])
    assert host.is_known(run, few) == ""
    known = host.known(run, "other", few, known_share=0.05)
    with pytest.raises(ConfigurationError, match="9% of the rows"):
        known.check(make(run, known.data))


def test_the_same_name_goes_on_and_what_it_has_grows(host: Host, tmp_path: Path) -> None:
    people = patients(100)
    run = run_of(**TABLE)
    host.use(run, "ward", save(tmp_path / "ward.csv", people[:50]))
    with Ledger.open(tmp_path / "ledger", "ward") as ledger:
        ledger.debit("another run", 0, "b", STRICT)
    host.known(run, "ward", save(tmp_path / "ward.csv", people[50:])).admit(
        make(run, DataSection(name="ward", path=tmp_path / "ward.csv"))
    )
    for part in (people[:50], people[50:]):
        assert "100% of the rows" in host.is_known(run, save(tmp_path / "copy.csv", part))


def test_the_owner_may_accept_it(host: Host, tmp_path: Path) -> None:
    run, path = run_of(**TABLE), save(tmp_path / "ward.csv", patients(50))
    host.use(run, "ward", path)
    known = host.use(run, "other", path, accept_known=["ward"])
    [other] = known.accepted
    assert other.name == "ward"
    assert "are known under another name, ward" in known.remarks[0]
    with pytest.raises(ConfigurationError, match="under another name"):
        host.use(run, "third", path, accept_known=["ward"])


def test_experiments_and_public_data_are_nobodys(host: Host, tmp_path: Path) -> None:
    run = run_of(data="digits")
    host.known(run, "ward", tmp_path).admit(make(run, np.arange(5)))
    own = run_of(**TABLE)
    path = save(tmp_path / "ward.csv", patients(5))
    known = host.known(own, "ward", path, experiment=True)
    known.admit(make(own, known.data))
    assert not (tmp_path / "ledger").exists()


def test_arrays_whatever_their_type(host: Host, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (40, 8, 8)).astype(np.uint8), np.arange(40) % 10
    np.savez(tmp_path / "ward.npz", x=pixels, y=labels)
    run = run_of(data="own")
    host.use(run, "ward", tmp_path / "ward.npz")
    floats = (pixels.astype(np.float32) / np.float32(255))[::-1, None]
    np.savez(tmp_path / "floats.npz", x=floats, y=(labels + 1) % 10)
    smaller = run_of(data="own", image_size=4, mean=[0.5], std=[0.5])
    assert "100% of the rows" in host.is_known(smaller, tmp_path / "floats.npz")
    np.savez_compressed(tmp_path / "columns.npz", x=np.asfortranarray(pixels), y=labels)
    assert "100% of the rows" in host.is_known(run, tmp_path / "columns.npz")
    np.savez(tmp_path / "others.npz", x=pixels // 2, y=labels)
    assert host.is_known(run, tmp_path / "others.npz") == ""


def test_images_whatever_they_are_scaled_to(host: Host, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(12):
        for folder, label in (("ward", "ab"[k % 2]), ("copy", "ab"[(k + 1) % 2])):
            (tmp_path / folder / label).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(k).integers(0, 256, (9, 9, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / label / f"{folder}{k}.png")
    task = {"data": "own", "labels": ["a", "b"], "channels": 1}
    host.use(run_of(**task, image_size=8), "ward", tmp_path / "ward")
    assert "100% of the rows" in host.is_known(run_of(**task, image_size=4), tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*.png"):
        Image.fromarray(rng.integers(0, 256, (9, 9, 3)).astype(np.uint8)).save(path)
    assert host.is_known(run_of(**task, image_size=8), tmp_path / "copy") == ""


def test_texts_by_all_that_is_written_of_them(tmp_path: Path) -> None:
    """The same lines as JSON and as a table, with other columns asked for; paragraphs uncut."""
    lines = [{"headline": f"news, {k}", "mood": "good", "year": str(k)} for k in range(9)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    quoted = [f'"{each["headline"]}",good,{each["year"]}.0' for each in lines]
    (tmp_path / "b.csv").write_text("\n".join(["headline,mood,year", *quoted]), encoding="utf-8")

    def rows_of(name: str, **text: object) -> list[bytes]:
        task = TaskSection.model_validate({"name": "causal-lm", "data": "own", "text": text})
        return sorted(raw_rows(tmp_path / name, task))

    mine = rows_of("a.jsonl", prompt=["headline"], answer="mood")
    assert len({*mine}) == 9
    assert mine == rows_of("b.csv", prompt=["mood"], answer="headline")
    (tmp_path / "c.txt").write_text("one two three four five\n\nsix", encoding="utf-8")
    whole = rows_of("c.txt", piece=16)
    assert whole == rows_of("c.txt", piece=100)
    assert len(whole) == 2


OWN = """\
import torch
from torch import nn
from torch.nn import functional
from peerpoise import module_task

def make_task(run, data):
    table = torch.load(data.path, weights_only=True)
    build = lambda: nn.Linear(3, 2)
    return module_task(build, (table["x"], table["y"]), functional.cross_entropy)
"""


def test_an_own_task_by_its_examples(host: Host, tmp_path: Path) -> None:
    (tmp_path / "wards.py").write_text(OWN, encoding="utf-8")
    run = run_of(name=f"{tmp_path / 'wards.py'}:make_task", data="own")
    x, y = torch.randn(70, 3), torch.arange(70) % 2
    torch.save({"x": x, "y": y}, tmp_path / "ward.pt")
    host.use(run, "ward", tmp_path / "ward.pt")
    torch.save({"x": x.flip(0)[:50], "y": y.flip(0)[:50]}, tmp_path / "part.pt")
    assert "100% of the rows" in host.is_known(run, tmp_path / "part.pt")
    torch.save({"x": x + 1, "y": y}, tmp_path / "others.pt")
    assert host.is_known(run, tmp_path / "others.pt") == ""
    task = make(run, DataSection(name="ward", path=tmp_path / "ward.pt"))
    assert len([*rows(run, DataSection(), task)]) == 70


# -- as users meet it ------------------------------------------------------------------------------

SETTINGS = ("task.data=own", "start.timeout_s=0.2", "privacy.epsilon=", "privacy.sigma=2.0")


def options(*settings: str) -> list[str]:
    return [word for it in settings for word in ("--set", it)]


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
        return number


@pytest.fixture
def home(peerpoise: Call, experiment: Path, tmp_path: Path) -> Path:
    """A federation of one, with ledgers beside it."""
    host = ("--host", f"a=127.0.0.1:{port()}", "--data", "a=ward:data.npz")
    packed = peerpoise("pack", experiment, *host, "--out", tmp_path / "out", *options(*SETTINGS))
    assert packed.code == 0, packed.err
    home = tmp_path / "out" / "a"
    text = (home / "node.toml").read_text(encoding="utf-8")
    budget = '[budget]\nledger_dir = "ledger"'
    (home / "node.toml").write_text(text.replace("[budget]", budget), encoding="utf-8")
    rng = np.random.default_rng(0)
    x, y = rng.random((20, 8, 8)).astype(np.float32), np.arange(20) % 10
    np.savez(home / "data.npz", x=x, y=y)
    return home


def command(home: Path, *settings: str) -> list[str]:
    ports = ("listen.address=127.0.0.1:0", "metrics.listen=")
    return ["run", "--config", str(home / "node.toml"), *options(*ports, *settings)]


def other_name(home: Path) -> None:
    """A typing slip: data.name is another one."""
    text = (home / "node.toml").read_text(encoding="utf-8")
    (home / "node.toml").write_text(text.replace('"ward"', '"wrad"'), encoding="utf-8")
    (home / "state").rename(home / "state of ward")


def test_a_typing_slip_does_not_start_from_nothing(peerpoise: Call, home: Path) -> None:
    assert peerpoise(*command(home)).code == 0
    code, found = examine(peerpoise, "--config", home / "node.toml")
    assert "not known under another name" in found["rows"][0]["text"]
    other_name(home)
    words = [sys.executable, "-m", "peerpoise", *command(home)]
    real = subprocess.run(words, capture_output=True, text=True, check=False)
    sentence = "peerpoise: 100% of the rows of wrad are known under another name, ward, under which"
    assert (real.returncode, sentence in real.stderr) == (78, True), real.stderr
    events = [event["event"] for event in read(home / "state" / "journal.jsonl")]
    assert "listening" not in events, "nobody was called"
    with Ledger.look(home / "ledger", "wrad") as ledger:
        assert ledger.head[0] == 0
    code, found = examine(peerpoise, "--config", home / "node.toml")
    assert (code, "100% of the rows" in found["budget"][-1]["text"]) == (1, True)

    shown = peerpoise("ledger", "rename", "ward", "wrad", "--config", home / "node.toml", "--json")
    assert json.loads(shown.out)["ledger"] == "wrad"
    spent = peerpoise(*command(home))
    assert (spent.code, "leaves no release to this run" in spent.err) == (0, False), (
        "it is the same run, which goes on where it ended"
    )
    [account] = json.loads(peerpoise("budget", "--config", home / "node.toml", "--json").out)
    assert (account["data"], account["runs"][0]["debits"]) == ("wrad", 2)


def test_what_is_accepted_is_journaled_and_said(peerpoise: Call, home: Path) -> None:
    assert peerpoise(*command(home)).code == 0
    other_name(home)
    accepted = peerpoise(*command(home, 'budget.accept_known=["ward"]'))
    assert (accepted.code, "known under another name, ward" in accepted.err) == (0, True)
    [event] = [it for it in read(home / "state" / "journal.jsonl") if it["event"] == "known"]
    assert event["name"] == "ward"
    assert event["epsilon"] > 0
    summary = json.loads((home / "state" / "summary.json").read_text(encoding="utf-8"))
    assert "ward, under which ε_total" in summary["privacy"]["warning"]
    out = home / "model.safetensors"
    assert peerpoise("export", home / "state", "--out", out).code == 0
    assert "ward, under which" in next(home.glob("model*.md")).read_text(encoding="utf-8")


def test_killed_between_rows_and_the_first_debit(peerpoise: Call, home: Path) -> None:
    """The rows are there before anything was released; with no debit they are nobody's."""
    environment = os.environ | {failpoint.VARIABLE: "before_ledger_append=kill"}
    words = [sys.executable, "-m", "peerpoise", *command(home), "--i-am-testing"]
    killed = subprocess.run(words, env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert KnownRows(home / "ledger").names() == ["ward"]
    with Ledger.look(home / "ledger", "ward") as ledger:
        assert ledger.head[0] == 0
    other_name(home)
    assert peerpoise(*command(home)).code == 0
    assert KnownRows(home / "ledger").names() == ["ward", "wrad"]


def test_a_run_that_can_release_nothing_does_not_begin(peerpoise: Call, home: Path) -> None:
    with Ledger.open(home / "ledger", "ward") as ledger:
        for t in range(200):
            ledger.debit("earlier", t, "b", STRICT)
    refused = peerpoise(*command(home, "budget.epsilon=1"))
    assert (refused.code, refused.err.count("\n")) == (3, 1)
    assert "leaves no release to this run; peerpoise budget says what spent it" in refused.err
    events = [event["event"] for event in read(home / "state" / "journal.jsonl")]
    assert "listening" not in events
    _, found = examine(peerpoise, "--config", home / "node.toml")
    assert any("leaves no release" in it["text"] for it in found["budget"])
    with Ledger.look(home / "ledger", "ward") as ledger:
        assert ledger.head[0] == 200
