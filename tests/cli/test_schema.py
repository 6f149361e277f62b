"""`peerpoise schema` proposes what a table's columns become, and says whether it looked at data."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kit import wards
from kit.command import Call
from node import data
from node.config import TaskSection


def proposed(peerpoise: Call, *words: str | Path) -> tuple[str, dict[str, Any]]:
    """The comment above, and [task]."""
    result = peerpoise("schema", *words)
    assert (result.code, result.err) == (0, "")
    return result.out.partition("[task]")[0], tomllib.loads(result.out)["task"]


@pytest.mark.parametrize("office", wards.OFFICES)
def test_a_proposal_reads_the_table_that_it_is_from(
    peerpoise: Call, tmp_path: Path, office: str
) -> None:
    wards.write(tmp_path, 300)
    file = tmp_path / f"{office}.csv"
    comment, task = proposed(peerpoise, file, "--label", "died")
    assert "IT LOOKED AT THESE DATA" in comment
    assert f"the 300 rows of {office}.csv" in comment
    features = task["features"]
    kinds = {name: feature["kind"] for name, feature in features.items()}
    assert kinds == {
        "age": "number", "creatinine": "number", "sex": "category", "ward": "category",
        "admitted": "date",
    }  # fmt: skip
    assert task["labels"] == ["no", "yes"]
    assert features["age"]["center"] == pytest.approx(60, abs=3)
    assert features["creatinine"]["flag"]
    assert features["ward"]["values"] == [*wards.OFFICES[office].wards]
    assert len(data.own(file, TaskSection.model_validate(task))) == 300


def test_rare_categories_names_and_numbers_of_rows_are_left_out(
    peerpoise: Call, tmp_path: Path
) -> None:
    lines = [f"{k},name {k},{'rare' if k < 4 else 'usual'},{k % 7},{k % 3}" for k in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(["id,who,kind,x,label", *lines]))
    _, task = proposed(peerpoise, tmp_path / "a.csv")
    assert task["classes"] == 3
    assert task["features"]["id"] == task["features"]["who"] == {"kind": "ignore"}
    assert task["features"]["kind"]["values"] == ["usual"]
    assert "rare" not in json.dumps(task)


def test_a_label_of_many_numbers_is_a_regression(peerpoise: Call, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows = [f"{x:.3f},{3 * x + 100:.3f}" for x in rng.normal(0, 2, 80)]
    (tmp_path / "a.csv").write_text("\n".join(["x,price", *rows]))
    _, task = proposed(peerpoise, tmp_path / "a.csv", "--label", "price")
    assert task["name"] == "regression"
    center, scale = task["target"]
    assert center == pytest.approx(100, abs=3)
    assert scale == pytest.approx(6, abs=2)


SCHEMA = {
    "fields": [
        {"name": "age", "type": "integer", "constraints": {
            "minimum": 20, "maximum": 100, "required": True}},
        {"name": "dose", "type": "number", "constraints": {"minimum": 0, "maximum": 4}},
        {"name": "sex", "type": "string", "constraints": {"enum": ["f", "m"], "required": True}},
        {"name": "smokes", "type": "boolean"},
        {"name": "seen", "type": "date"},
        {"name": "note", "type": "string"},
        {"name": "died", "type": "boolean"},
    ]
}  # fmt: skip


@pytest.mark.parametrize("packaged", [False, True])
def test_a_public_description_is_enough(peerpoise: Call, tmp_path: Path, packaged: bool) -> None:
    document = {"resources": [{"schema": SCHEMA}]} if packaged else SCHEMA
    (tmp_path / "schema.json").write_text(json.dumps(document))
    comment, task = proposed(peerpoise, tmp_path / "schema.json", "--label", "died")
    assert "it looked at no data" in comment
    features = task["features"]
    assert features["age"] == {"kind": "number", "center": 60, "scale": 20, "clip": 5}
    assert (features["dose"]["missing"], features["dose"]["flag"]) == (2, True)
    assert features["sex"]["unknown"] == "error"
    assert features["note"] == {"kind": "ignore"}
    assert task["labels"] == ["false", "true"]


def test_json_says_it_too(peerpoise: Call, tmp_path: Path) -> None:
    wards.write(tmp_path, 60)
    result = peerpoise("schema", tmp_path / "a.csv", "--label", "died", "--json")
    document = json.loads(result.out)
    assert "IT LOOKED AT THESE DATA" in document["note"]
    assert document["task"]["features"]["sex"]["values"] == ["f", "m"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", None, "There is no data file"),
        ("a.json", None, "There is no file"),
        ("a.csv", "age,sex\n50,f\n", "has no column 'label'"),
        ("a.csv", "note,label\nhello,1\n", "no column to learn from but 'label'"),
        ("a.csv", "x,label\n1,yes\n2,yes\n", "classes"),
        ("a.csv", "x,label\n1,\n2,\n", "has 0 different texts"),
        ("a.csv", "x,note,label\n1,s\udcfc\udcdf,1\n2,x,0\n", "is not UTF-8 text"),
        ("a.json", "[1, 2]", "is no Table Schema"),
        ("a.json", '{"fields": [{"name": "x", "constraints": "no"}, {"name": "label", "type": '
         '"boolean"}]}', "is no Table Schema"),
        ("a.json", '{"fields": [{"name": "label", "constraints": {"enum": 5}}]}', "is no Table"),
        ("a.json", '{"fields": [{"name": "label", "type": "integer", "constraints": {"minimum": 0, '
         '"maximum": 1e999}}]}', "is no Table Schema"),
        ("a.json", '{"fields": [{"name": "x"}]}', "has no field 'label'"),
        ("a.json", '{"fields": [{"name": "x", "type": "number"}, {"name": "label", "type": '
         '"boolean"}]}', "'x' needs constraints.minimum and constraints.maximum"),
    ],
)  # fmt: skip
def test_what_can_not_be_proposed_is_a_sentence(
    peerpoise: Call, tmp_path: Path, name: str, text: str | None, says: str
) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    result = peerpoise("schema", tmp_path / name)
    assert (result.code, result.out, result.err.count("\n")) == (66, "", 1)
    assert says in result.err
