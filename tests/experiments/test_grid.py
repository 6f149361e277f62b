"""The sweep file: which cells it asks for."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from kit.sweeps import TINY
from node.experiments.resolve import resolve
from node.experiments.sweep.grid import load
from peer.errors import ConfigurationError, DataError

ROOT = Path(__file__).parents[2]


def test_rows_are_settings_by_methods(tiny):
    sweep = load(tiny)
    assert [(row.setting, row.method) for row in sweep.rows] == [
        ("ring", "xavg"), ("ring", "dpdl"), ("private", "dpdl")]  # fmt: skip
    assert (sweep.name, sweep.size, list(sweep.titles.values())) == (
        "tiny",
        12,
        ["A ring", "private"],
    )


def test_a_seed_is_that_of_training_and_partition(tiny):
    [first, second] = load(tiny).rows[0].final(0.3)
    assert (first.config.train.seed, first.config.experiment.seed) == (1, 1)
    assert (second.config.train.seed, second.config.experiment.seed) == (2, 2)
    assert first.config.algorithm.options == {"lr": 0.3}


def test_rates_are_tuned_on_held_out_training_data_and_their_own_seed(tiny):
    """And what is scored is the test set, on the other seeds."""
    for row in load(tiny).rows:
        tuning = list(row.tuning())
        assert [(it.lr, it.seed, it.config.task.held_out) for it in tuning] == [
            (0.01, 100, True),
            (0.3, 100, True),
        ]
        assert [(it.seed, it.config.task.held_out) for it in row.final(0.3)] == [
            (1, False),
            (2, False),
        ]


def test_without_a_tuning_seed_every_rate_is_a_row(tiny):
    sweep = load(tiny, ["sweep.tuning_seed="])
    assert [row.label for row in sweep.rows if row.setting == "ring"] == [
        "xavg, lr 0.01", "xavg, lr 0.3", "dpdl, lr 0.01", "dpdl, lr 0.3"]  # fmt: skip
    assert sweep.size == 12
    assert not list(sweep.rows[0].tuning())


def test_one_rate_needs_no_tuning(tiny):
    sweep = load(tiny, ["sweep.rates=[0.2]"])
    assert sweep.size == 6
    assert next(iter(sweep.rows[0].final(0.2))).config.algorithm.options == {"lr": 0.2}


def test_every_combination_of_the_grid(tiny):
    tiny.write_text(
        TINY + '[sweep.grid]\n"experiment.alpha" = [0.1, 1]\n"topology.kind" = ["ring", "full"]\n'
    )
    sweep = load(tiny).only(["xavg"])
    found = [(row.setting, row.trial(None, 1, tuning=False).config) for row in sweep.rows]
    assert [(name, it.experiment.alpha, it.topology.kind) for name, it in found] == [
        ("ring, alpha 0.1, kind ring", 0.1, "ring"),
        ("ring, alpha 0.1, kind full", 0.1, "full"),
        ("ring, alpha 1, kind ring", 1.0, "ring"),
        ("ring, alpha 1, kind full", 1.0, "full"),
    ]


def test_what_is_more_particular_wins(tiny):
    """Experiment < setting < method < --set."""
    method = (
        '[sweep.methods.both]\nalgorithm.name = "dmsgd"\nrates = [1.0, 2.0]\ntrain.rounds '
        '= 6\nmix.rule = "median"\n'
    )
    setting = (
        '[sweep.settings.long]\nmethods = ["xavg", "both"]\nrates = [5.0, 6.0]\ntrain.rounds = 5\n'
    )
    tiny.write_text(TINY + method + setting)
    plain, both = load(tiny).only(["long"]).rows
    assert (plain.trial(None, 1, tuning=False).config.train.rounds, plain.rates) == (5, (5.0, 6.0))
    config = both.trial(None, 1, tuning=False).config
    assert (config.train.rounds, both.rates, config.algorithm.name, config.mix.rule) == (
        6,
        (1.0, 2.0),
        "dmsgd",
        "median",
    )
    [_, both] = load(tiny, ["train.rounds=7"]).only(["long"]).rows
    assert both.trial(None, 1, tuning=False).config.train.rounds == 7


def test_a_base_is_changed(tiny, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "graph.txt").write_text("n0 n1\nn1 n2\nn2 n3\n")
    edges = (
        '[topology]\nkind = "edges"\nfile = "graph.txt"\n[task]\nmodel = '
        '"mlp"\n[train]\nrounds = 99\n'
    )
    start = 'start = "first.safetensors"\n'
    (tmp_path / "base" / "base.toml").write_text(edges + start)
    (tmp_path / "base" / "first.safetensors").write_bytes(b"a model")
    tiny.write_text(TINY.replace("[sweep]\n", '[sweep]\nbase = "base/base.toml"\n'))
    config = next(iter(load(tiny).rows[0].final(0.1))).config
    assert (config.task.model, config.train.rounds, len(config.topology.edges)) == ("mlp", 4, 3)
    assert config.train.start == tmp_path / "base" / "first.safetensors"


def test_a_cell_is_known_by_the_bytes_it_starts_from_and_not_by_where_they_lie(tmp_path):
    def cell(folder: str, model: bytes) -> str:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "first.safetensors").write_bytes(model)
        file = tmp_path / folder / "sweep.toml"
        file.write_text(TINY.replace("[train]\n", '[train]\nstart = "first.safetensors"\n'))
        return next(iter(load(file).rows[0].final(0.1))).digest

    assert cell("here", b"a model") == cell("there", b"a model") != cell("elsewhere", b"another")


def test_a_start_that_is_not_there_is_one_sentence(tiny):
    with pytest.raises(DataError, match=r"^train.start: .*gone.safetensors can't be read"):
        configurations(tiny, ["train.start=gone.safetensors"])


def test_a_start_whose_digest_is_written_is_needed_by_who_runs_the_cell(tiny, tmp_path):
    """Reports and plans of kept cells go without it."""
    digest = hashlib.sha256(b"a model").hexdigest()
    file = tmp_path / "first.safetensors"
    settings = [f"train.start={file}", f"train.start_digest={digest}"]
    [without, *_] = load(tiny, settings).rows[0].final(0.1)
    with pytest.raises(DataError, match=r"^train.start: .*first.safetensors can't be read"):
        resolve(without.config)
    file.write_bytes(b"a model")
    [there, *_] = load(tiny, settings[:1]).rows[0].final(0.1)
    assert there.digest == without.digest
    file.write_bytes(b"another")
    with pytest.raises(ConfigurationError, match="not the file whose digest"):
        configurations(tiny, settings)


def test_quick_is_ten_rounds_two_rates_one_seed(tiny):
    row = load(tiny, ["sweep.rates=[0.1, 0.2, 0.3, 0.4]"], quick=True).rows[0]
    assert (row.rates, row.seeds, next(iter(row.tuning())).config.train.rounds) == (
        (0.2, 0.3),
        (1,),
        10,
    )


def test_only(tiny):
    sweep = load(tiny)
    assert len(sweep.only(["dpdl"]).rows) == 2
    assert [(row.setting, row.method) for row in sweep.only(["ring/dpdl"]).rows] == [
        ("ring", "dpdl")
    ]
    assert list(sweep.only(["private"]).titles) == ["private"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            '[sweep.grid]\n"experiment.beta" = [1]\n',
            "experiment.beta: unknown key (setting ring, beta 1, method xavg)",
        ),
        ('[sweep.grid]\n"experiment.alpha" = []\n', "grid.experiment.alpha has no values"),
        ('[sweep.grid]\n"alpha" = [1]\n', "grid key 'alpha' is not of the form"),
        ("[sweep.settings.x]\ngraph.kind = 'full'\n", "sweep.settings.x.graph: unknown key"),
        ("[sweep.settings.x]\nmethods = ['sgd']\n", "there is no method 'sgd'"),
        ("[sweep.methods.xavg]\n", "stands in algorithms and in methods"),
        ("[sweep.methods.x]\nalgorithm = 3\n", "sweep.methods.x.algorithm"),
        ("[sweep.methods.x]\nrates = ['fast']\n", "sweep.methods.x.rates"),
        ("[sweep.tuning]\n", "sweep.tuning: unknown key"),
        ("[sweep.methods.mine]\nalgorithm.lr = 1\n", "Unknown algorithm 'mine'"),
    ],
)
def test_mistakes_in_the_file(tiny, text, part):
    tiny.write_text(TINY + text)
    refused(tiny, [], part)


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("sweep.seeds=[]", "sweep.seeds"),
        ("sweep.seeds=[1, 1]", "names a value twice"),
        ("sweep.seeds=[100]", "tuning needs a seed of its own"),
        ("sweep.algorithms=[]", "sweep.algorithms"),
        ("sweep.rates=[-1]", "sweep.rates"),
        ("sweep.late=0", "sweep.late"),
        ("train.rounds=0", "train.rounds"),
        ("sweep.settings.ring.methods=[]", ""),
    ],
)
def test_mistakes_in_settings(tiny, setting, part):
    if part:
        refused(tiny, [setting], part)
    else:
        assert load(tiny, [setting]).size == 12


def configurations(file, settings=()):
    return [row.trial(row.rates[0], 1, tuning=False).config for row in load(file, settings).rows]


def refused(file, settings, part):
    with pytest.raises(ConfigurationError) as refusal:
        configurations(file, settings)
    said = str(refusal.value)
    assert part in said
    assert file.name in said
    assert "\n" not in said


def test_no_sweep_section_is_said(tiny):
    tiny.write_text(TINY.partition("[sweep]")[0])
    refused(tiny, [], "no [sweep] section")


SWEEPS = [
    path
    for path in sorted((ROOT / "docs" / "results").glob("*.toml"))
    if "[sweep]" in path.read_text()
]


@pytest.mark.parametrize("file", SWEEPS, ids=lambda path: path.stem)
def test_the_sweeps_of_the_results_are_in_order(file):
    configurations(file)


def test_the_page_of_the_results_counts_their_cells():
    page = (ROOT / "docs" / "results" / "README.md").read_text()
    told = {
        name: int(trials)
        for name, trials in re.findall(r"\]\(([a-z-]+)\.toml\) \|.*\| \d+ of (\d+) \|", page)
    }
    assert len(told) == 10
    assert {name: load(ROOT / "docs" / "results" / f"{name}.toml").size for name in told} == told
