"""Whose a row is, wherever rows come from: tables, arrays, folders of images, texts, own tasks.

A gate's sum over persons is compared with a loop over them; and nobody is at two nodes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from kit.language import language_run
from node import data, tasks
from node.config import DataSection, ExperimentSection, RunConfig, TaskSection
from node.data import Examples, columns, partition
from node.data.proposal import looked_at
from node.data.units import likely, nameless, numbered
from node.learning.plan import Plan
from node.learning.unusable import UnusableRecords
from node.maths.backends import choose
from node.maths.clipping import clipped_sum
from node.privacy.unit_task import by_unit
from node.task import Task, views
from node.tasks.guard import guard
from node.tasks.module import module_task
from peer.errors import ConfigurationError, DataError, PeerpoiseError, TaskError

PERSONS = ["ann", "bob", "cid", "ann", "dan", "bob", "ann", "eve", "ann", "cid"]
"""Of the rows, in their order; ann has four of them."""
STRICT = {"sigma": 1.0}


def run_of(**task: Any) -> RunConfig:
    return RunConfig.model_validate({"privacy": STRICT, "task": task})


def own(run: RunConfig, path: Path) -> Task:
    return tasks.make(run, DataSection(path=path, name="data"))


def table(folder: Path, unit: str = "patient_id", cells: Sequence[str] = PERSONS) -> Path:
    rng = np.random.default_rng(0)
    lines = [f"age,{unit},label"]
    lines += [
        f"{age:.1f},{cell},{k % 3}"
        for k, (age, cell) in enumerate(zip(rng.normal(size=len(cells)), cells, strict=True))
    ]
    path = folder / "rows.csv"
    path.write_text("\n".join(lines))
    return path


TABLE = {"data": "own", "features": {"age": [0, 1]}, "classes": 3, "unit": "patient_id"}


def of_table(folder: Path) -> tuple[RunConfig, Task]:
    run = run_of(**TABLE)
    return run, own(run, table(folder))


def of_arrays(folder: Path) -> tuple[RunConfig, Task]:
    generator = np.random.default_rng(1)
    x = generator.random((10, 1, 6, 6), np.float32)
    np.savez(folder / "x.npz", x=x, y=np.arange(10) % 3, writer=np.array(PERSONS))
    run = run_of(data="own", classes=3, model="mlp", hidden=8, unit="writer")
    return run, own(run, folder / "x.npz")


def pictures(folder: Path, persons: Sequence[str] = PERSONS) -> Path:
    """LABEL/PERSON/n.png; whoever has several may be in several classes."""
    from PIL import Image

    for k, person in enumerate(persons):
        place = folder / "images" / ("cat", "dog")[k % 2] / person
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{k}.png")
    return folder / "images"


IMAGES = {"data": "own", "labels": ["cat", "dog"], "image_size": 16, "unit": "folder"}


def of_images(folder: Path) -> tuple[RunConfig, Task]:
    pytest.importorskip("PIL")
    run = run_of(**IMAGES, model="lenet", channels=1)
    return run, own(run, pictures(folder))


def lines(folder: Path, persons: Sequence[object] = PERSONS) -> Path:
    path = folder / "rows.jsonl"
    rows = [{"text": f"row {k} " * (1 + k), "user": person} for k, person in enumerate(persons)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def of_texts(folder: Path) -> tuple[RunConfig, Task]:
    pytest.importorskip("transformers")
    run = language_run(privacy=STRICT, data="own", unit="user", text={"length": 12})
    return run, own(run, lines(folder))


def of_module(folder: Path) -> tuple[RunConfig, Task]:
    x = torch.randn(10, 5, generator=torch.Generator().manual_seed(0))

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))

    made = module_task(build, (x, torch.arange(10) % 3), functional.cross_entropy, units=PERSONS)
    return run_of(data="own", name="mine:make", unit="person"), guard(made, "mine:make")


KINDS: dict[str, Callable[[Path], tuple[RunConfig, Task]]] = {
    "table": of_table,
    "arrays": of_arrays,
    "images": of_images,
    "texts": of_texts,
    "module": of_module,
}


def persons_of(task: Task) -> list[list[int]]:
    """Row numbers by person: those that have the same number."""
    assert task.units is not None
    return [np.flatnonzero(task.units == k).tolist() for k in range(task.units.max() + 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_are_theirs(kind: str, tmp_path: Path) -> None:
    _, task = KINDS[kind](tmp_path)
    assert sorted(map(len, persons_of(task))) == [1, 1, 2, 2, 4]
    if kind != "images":  # whose order is that of their files
        expected = [
            [k for k, name in enumerate(PERSONS) if name == each] for each in sorted({*PERSONS})
        ]
        assert persons_of(task) == expected


@pytest.mark.parametrize("backend", ["auto", pytest.param("vmap", marks=pytest.mark.long), "loop"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_is_that_of_a_loop_over_persons(kind: str, backend: Any, tmp_path: Path) -> None:
    run, task = KINDS[kind](tmp_path)
    by_person = by_unit(task, run.task)
    choice = choose(backend, by_person, 16)
    assert choice.backend == ("vmap" if backend == "auto" else backend), choice.reason
    x, clip = 1.5 * by_person.initial_parameters(0), 0.05
    actual = clipped_sum(by_person, x, torch.arange(5), clip, chunk=16, backend=choice.backend)
    expected = naive(task, x, persons_of(task), clip)
    assert float((actual - expected).norm()) <= 1e-4 * float(expected.norm())


def naive(task: Task, x: Tensor, persons: list[list[int]], clip: float) -> Tensor:
    total = torch.zeros(task.layout.size, dtype=torch.float64)
    for rows in persons:
        leaves = {n: v.clone().requires_grad_() for n, v in views(task.layout, x).items()}
        losses = [
            task.loss(leaves, tuple(c[0] for c in task.batch(torch.tensor([row])))) for row in rows
        ]
        gradients = torch.autograd.grad(torch.stack(losses).mean(), list(leaves.values()))
        mean = torch.cat([g.reshape(-1) for g in gradients]).double()
        total += mean * min(1.0, clip / float(mean.norm()))
    return total


def test_names_that_may_be_one_are_one() -> None:
    assert numbered(["7", " 7", 7, "7.0", 7.0]).tolist() == [0] * 5
    assert numbered(["e\u0301", "\u00e9", "e"]).tolist() == [1, 1, 0]
    assert numbered(["07", "7", "a", "A"]).tolist() == [0, 1, 3, 2]
    missing = ["", None, float("nan"), "NA", " ", "-", "null", "0"]
    assert [*nameless(missing, "id")] == [0, 1, 2, 3, 4, 5, 6]


def test_a_row_of_nobody_is_a_bad_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(tmp_path, cells=["ann", "", "bob", "n/a", *["ann"] * 16])
    with pytest.raises(DataError, match=r"row 2: column 'patient_id' .* is empty"):
        own(run_of(**TABLE), path)
    task = own(run_of(**TABLE, bad_rows=0.1), path)
    assert task.num_examples == 18
    assert sorted(map(len, persons_of(task))) == [1, 17]
    assert "2 of 20 rows are skipped" in capsys.readouterr().err


def test_where_rows_are_not_skipped_one_of_nobody_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    run = language_run(privacy=STRICT, data="own", unit="user", text={"length": 12})
    with pytest.raises(DataError, match="row 2: column 'user'"):
        own(run, lines(tmp_path, ["ann", None, "bob"]))
    x = np.zeros((3, 1, 6, 6), np.float32)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(3), writer=[1.0, 2.0, np.nan])
    with pytest.raises(DataError, match="row 3: column 'writer'"):
        own(run_of(data="own", classes=3, unit="writer"), tmp_path / "x.npz")


def test_an_image_in_no_folder_of_a_person_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    folder = pictures(tmp_path)
    (folder / "cat" / "ann" / "0.png").rename(folder / "cat" / "0.png")
    with pytest.raises(DataError, match=r"row 1: column 'folder' .* is empty"):
        own(run_of(**IMAGES), folder)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({**TABLE, "unit": "ward"}, "no column 'ward'"),
        ({**IMAGES, "unit": "patient"}, "task.unit = 'patient' is no column or array"),
    ],
)
def test_a_unit_that_is_not_there(task: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = table(tmp_path) if "features" in task else pictures(tmp_path)
    with pytest.raises(PeerpoiseError, match=words) as caught:
        own(run_of(**task), path)
    assert "ann" not in str(caught.value)


def test_a_public_set_without_units_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'writer' is no column or array"):
        tasks.make(run_of(data="digits", unit="writer"), np.arange(5))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"task": {**TABLE, "unit": "age"}}, "'age' is the privacy unit"),
        ({"task": {**TABLE, "unit": "label"}}, "'label' is the privacy unit"),
        (
            {"task": {"name": "causal-lm", "unit": "user", "text": {"template": "{user}:"}}},
            "'user' is the",
        ),
        ({"task": {"name": "causal-lm", "unit": "text", "text": {}}}, "'text' is the privacy unit"),
        ({"task": {"name": "reasoning", "unit": "user"}}, "leave unit out"),
        ({"task": TABLE, "privacy": {**STRICT, "backend": "ghost"}}, 'with task.unit use "auto"'),
        ({"task": {**TABLE, "rows_per_unit": 0}}, "rows_per_unit"),
    ],
)
def test_what_a_unit_can_not_be(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RunConfig.model_validate({"privacy": STRICT, **values})


@pytest.mark.parametrize("units", [[1, 2], [1.5] * 10, [""] * 10, 7, ["a"] * 9 + [None]])
def test_an_own_tasks_units_are_looked_at(units: Any, tmp_path: Path) -> None:
    _, task = of_module(tmp_path)
    task._task.units = units  # type: ignore[attr-defined]
    with pytest.raises(TaskError, match="say whose each example is"):
        by_unit(task, run_of(unit="person").task)
    assert by_unit(task, run_of().task) is task  # without a unit it may be anything


def test_an_own_task_without_units_is_refused(tmp_path: Path) -> None:
    _, task = of_module(tmp_path)
    task._task.units = None  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="does not say whose its examples are"):
        by_unit(task, run_of(unit="person").task)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "dirichlet-unequal", "shards", "column"])
def test_nobody_is_at_two_nodes(kind: str) -> None:
    rng = np.random.default_rng(2)
    units = rng.integers(0, 60, 500)
    labels = torch.from_numpy(rng.integers(0, 4, 500))
    columns = {"ward": rng.integers(0, 7, 500)}
    examples = Examples(torch.zeros(500, 1, 1, 1), labels, columns, units=units)
    section = ExperimentSection.model_validate(
        {"nodes": 4, "partition": kind, "column": "ward" if kind == "column" else ""}
    )
    held_out = np.arange(0, 500, 50)
    for parts in (
        partition.divide(section, examples),
        partition.divide(section, examples, held_out),
    ):
        where = [{*units[rows].tolist()} for rows in parts]
        assert all(where)
        assert sum(map(len, where)) == len(set.union(*where))
        for rows, persons in zip(parts, where, strict=True):  # with all that they have
            kept = [row for row in range(500) if units[row] in persons and row not in held_out]
            assert {*kept} <= {*rows.tolist()}


def test_without_units_they_would_be() -> None:
    """Power."""
    units = np.random.default_rng(2).integers(0, 60, 500)
    examples = Examples(torch.zeros(500, 1, 1, 1), torch.zeros(500, dtype=torch.int64))
    parts = partition.divide(ExperimentSection(nodes=4, partition="iid"), examples)
    assert len(set.intersection(*({*units[rows].tolist()} for rows in parts))) > 0


def test_test_and_validation_sets_need_no_unit(tmp_path: Path) -> None:
    path, test = table(tmp_path), tmp_path / "test.csv"
    test.write_text("age,label\n1,0\n2,1\n")
    made = tasks.make(run_of(**TABLE), DataSection(path=path, test=test, name="data"))
    assert made.evaluate(made.initial_parameters(0))["accuracy"] >= 0


def test_a_public_table_knows_its_persons(tmp_path: Path) -> None:
    path = table(tmp_path, cells=[f"p{k % 7}" for k in range(70)])
    run = run_of(**{**TABLE, "data": "file"}, path=path)
    train, _ = data.public_sets(run.task)
    assert train.units is not None
    part = np.flatnonzero(train.units < 3)
    assert by_unit(tasks.make(run, part), run.task).num_examples == 3


def test_the_runs_identity_names_its_unit() -> None:
    digests = {
        run_of(**{**TABLE, **it}).run_id
        for it in ({}, {"unit": ""}, {"unit": "ward"}, {"rows_per_unit": 9})
    }
    assert len(digests) == 4


def test_noise_is_calibrated_as_ever() -> None:
    """For whom ε holds does not change what it takes."""
    for unit in ("", "patient_id"):
        task = TaskSection(**{**TABLE, "unit": unit})  # type: ignore[arg-type]
        run = RunConfig(privacy={"epsilon": 2.0}, task=task, topology={"kind": "ring"})  # type: ignore[arg-type]
        plan = Plan.of(run, run.neighborhoods(["a", "b", "c"]))
        assert plan.sigma(10) == pytest.approx(SIGMA.setdefault("sigma", plan.sigma(10)))


SIGMA: dict[str, float] = {}


@pytest.mark.parametrize(
    ("column", "cells", "expected"),
    [
        ("patient_id", ["a", "b", "a"], True),
        ("Patient ID", [1, 2, 1], True),
        ("user", ["a", "", "a", "b"], True),
        ("patient_id", ["a", "b", "c"], False),  # one row each
        ("patient_id", ["a", "a", "a"], False),
        ("patient_id", ["", None, "-"], False),
        ("weight", [1, 2, 1], False),
        ("valid", [1, 2, 1], False),
    ],
)
def test_columns_that_seem_to_name_persons(
    column: str, cells: list[object], expected: bool
) -> None:
    assert likely(column, cells) is expected


def test_schema_proposes_it(tmp_path: Path) -> None:
    path = table(tmp_path, cells=[str(k % 30) for k in range(90)])
    proposed = looked_at(path, columns.read(path, ()), "label")
    assert proposed["unit"] == "patient_id"
    assert proposed["features"]["patient_id"] == {"kind": "ignore"}
    other = looked_at(
        path, {**columns.read(path, ()), "patient_id": [*map(str, range(90))]}, "label"
    )
    assert "unit" not in other  # one row each


def test_an_owner_hears_of_broken_persons_by_number() -> None:
    said: list[str] = []
    unusable = UnusableRecords("a", said.append, unit="patient_id")
    unusable(3, torch.tensor([7, 2]))
    assert said[0].startswith(
        "a, round 3: the loss or gradient of 2 patient_id (sorted, and counted"
    )
    assert "number 2, 7) is not finite" in said[0]
