"""A model that was learned, used elsewhere: exported with all that it takes, loaded in plain Python,
applied to rows it has not seen.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import peerpoise as public
from kit import ROOT, wards
from kit.command import Call
from node.records import checkpoint
from peer.errors import DataError
from peer.message import Layout

TABLE = """
[task]
data = "file"
path = "a.csv"
label = "died"
labels = ["no", "yes"]
model = "mlp"
hidden = 8
[task.features]
age = [60, 15]
creatinine = { kind = "number", center = 90, scale = 30, clip = 5, missing = 90, flag = true }
ward = { kind = "category", values = ["emergency", "medical", "surgical"] }
[algorithm]
name = "d-psgd"
lr = 0.5
[train]
rounds = 5
[privacy]
mode = "none"
[experiment]
nodes = 2
"""


@pytest.fixture
def exported(tmp_path: Path, peerpoise: Call, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of a table, and what else lies beside it: run, a.csv, a-test.csv."""
    monkeypatch.chdir(tmp_path)
    wards.write(tmp_path, 120)
    (tmp_path / "table.toml").write_text(TABLE, encoding="utf-8")
    assert peerpoise("simulate", "table.toml", "--folder", "run").code == 0
    assert peerpoise("export", "run", "--out", "ward.safetensors").code == 0
    return tmp_path / "ward.safetensors"


def test_an_export_predicts_rows_without_the_run(exported: Path, peerpoise: Call) -> None:
    ended = peerpoise("predict", exported, "a-test.csv", "--out", "new.csv")
    assert (ended.code, ended.err) == (0, "")
    with open("new.csv", encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file))
    assert header == ["died", "p(no)", "p(yes)"]
    model = public.load(exported)
    with open("a-test.csv", encoding="utf-8", newline="") as file:
        columns = {name: list(cells) for name, *cells in zip(*csv.reader(file), strict=True)}
    x, bad = model.inputs(columns)
    assert not bad
    made = model.predict(x)
    assert [row[0] for row in rows] == list(made.labels)
    assert [row[2] for row in rows] == [f"{p:.4f}" for p in made.values[:, 1].tolist()]
    plain = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    plain.load_state_dict(load_file(exported))
    assert torch.equal(plain(x).softmax(1), made.values)
    assert torch.equal(model(x), plain(x))


def test_its_card_says_where_it_comes_from(exported: Path) -> None:
    info = public.load(exported).info
    assert (info.run, info.node, info.nodes, info.rounds) == ("run", None, 2, 5)
    assert set(info.metrics) > {"auc", "loss"}
    card = exported.with_suffix(".md").read_text(encoding="utf-8")
    for words in ("age, creatinine, ward", "no, yes", "d-psgd, 5 rounds, 2 nodes", "auc"):
        assert words in card
    assert "can reconstruct private examples" in card, "mode none is said"
    assert str(exported.parent) not in card + json.dumps(info.model_dump(mode="json"))


def test_rows_that_cant_be_read_have_no_prediction(exported: Path, peerpoise: Call) -> None:
    Path("new.csv").write_text(
        "ward,age,creatinine\nmedical,71,\nattic,60,80\nsurgical,old,80\nmedical,50\n",
        encoding="utf-8",
    )
    ended = peerpoise("predict", exported, "new.csv", "--json")
    document = json.loads(ended.out)
    assert set(document["bad"]) == {"2", "3", "4"}
    assert [bool(row[0]) for row in document["rows"]] == [True, False, False, False]
    assert "3 of 4 rows have no prediction" in ended.err
    assert "attic" not in ended.err, "cells stay where they are"


def test_what_cant_be_used_is_one_sentence(exported: Path, peerpoise: Call) -> None:
    Path("short.csv").write_text("age,ward\n60,medical\n", encoding="utf-8")
    ended = peerpoise("predict", exported, "short.csv")
    assert ended.code == DataError.exit_code
    assert "creatinine" in ended.err
    ended = peerpoise("predict", "run/model.safetensors", "a-test.csv")
    assert ended.code == DataError.exit_code
    assert "peerpoise export RUN --out model.safetensors" in ended.err
    ended = peerpoise("predict", "a.csv", "a-test.csv")
    assert ended.code == DataError.exit_code


def test_what_pandas_writes_for_nothing_is_nothing(exported: Path) -> None:
    pandas = pytest.importorskip("pandas")
    model = public.load(exported)
    rows = pandas.DataFrame({
        "age": [60, 71], "creatinine": [pandas.NA, 80.0], "ward": ["medical", pandas.NaT],
    })  # fmt: skip
    x, bad = model.inputs(rows)
    assert set(bad) == {1}
    assert not x[0].isnan().any()
    assert x[1].isnan().all(), "nothing is predicted for it"


def test_tensors_that_are_another_models_are_one_sentence(exported: Path, peerpoise: Call) -> None:
    about = checkpoint.read_about(exported)
    layout = Layout((("1.weight", (2, 3)),))
    checkpoint.save_model(exported, layout, torch.zeros(6), about)
    ended = peerpoise("predict", exported, "a-test.csv")
    assert ended.code == DataError.exit_code
    assert "other tensors than it says" in ended.err


def test_a_second_run_says_that_the_first_ones_epsilon_comes_on_top(
    exported: Path, peerpoise: Call
) -> None:
    noised = ("--set", "privacy.mode=strict", "--set", "privacy.sigma=2.0")
    assert peerpoise("continue", "run", *noised, "--out", "next.toml").code == 0
    assert peerpoise("simulate", "next.toml", "--folder", "second").code == 0
    assert peerpoise("export", "second", "--out", "second.safetensors").code == 0
    words = "starts from a model of an earlier one: the ε of that run comes on top"
    privacy = public.load("second.safetensors").info.privacy
    assert words in privacy
    assert "mode strict" in privacy
    assert "δ = " in privacy
    assert words not in public.load(exported).info.privacy
    text = Path("second/summary.json").read_text(encoding="utf-8")
    assert words in json.loads(text)["privacy"]["warning"]


def test_a_model_of_images_takes_tensors(tmp_path: Path, peerpoise: Call) -> None:
    run, out = tmp_path / "run", tmp_path / "digits.safetensors"
    settings = ["train.rounds=2", "privacy.mode=none", "privacy.epsilon=", "experiment.nodes=2"]
    words = [word for setting in settings for word in ("--set", setting)]
    example = ROOT / "deploy" / "examples" / "quickstart.toml"
    assert peerpoise("simulate", example, *words, "--folder", run).code == 0
    assert peerpoise("export", run, "--node", "n1", "--out", out).code == 0
    model = public.load(out)
    assert (model.info.node, model.info.input_shape) == ("n1", (1, 8, 8))
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    ended = peerpoise("predict", out, tmp_path / "rows.csv")
    assert ended.code == 78
    assert "learned images" in ended.err
