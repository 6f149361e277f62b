"""What is played, what is kept, and what a learning rate is chosen by."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kit.sweeps import TINY, Here, keep
from node.experiments.sweep import loop
from node.experiments.sweep.estimate import estimated, lines
from node.experiments.sweep.folder import Folder, key_of, sweep_of
from node.experiments.sweep.grid import load
from node.experiments.sweep.results import choice, result
from node.figures import ACCURACY, PERPLEXITY, document
from peer.errors import ConfigurationError, DataError, StorageError, TemporaryFailure


def kept(out):
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes())
        for path in (out / "cells").iterdir()
    }


def test_a_finished_cell_is_never_played_again(tiny, tmp_path):
    sweep, out = load(tiny).only(["xavg"]), tmp_path / "out"
    first = loop.run(sweep, Folder(out_of(sweep, out)), Here(), limit=1, quiet=True)
    assert (first.finished, first.left, first.stopped) == (1, 3, "--limit 1 is reached")
    before = kept(out)
    runner = Here()
    second = loop.run(sweep, Folder(out), runner, quiet=True)
    assert (second.finished, len(runner.played), second.left) == (3, 3, 0)
    assert {name: kept(out)[name] for name in before} == before
    third = Here()
    assert loop.run(sweep, Folder(out), third, quiet=True).finished == 0
    assert third.played == []


def out_of(sweep, out):
    with Folder(out).claimed(sweep):
        return out


def test_the_budget_ends_it(tiny, tmp_path):
    sweep = load(tiny).only(["xavg"])
    found = loop.run(
        sweep, Folder(out_of(sweep, tmp_path / "out")), Here(), budget=1e-9, quiet=True
    )
    assert (found.finished, found.left, found.stopped) == (
        1,
        3,
        "the budget of 1e-09 core-hours is spent",
    )


def test_a_failed_cell_is_told_and_the_others_go_on(tiny, tmp_path, capsys):
    broken = (
        '[sweep.settings.broken]\nmethods = ["xavg"]\ntask = { data = "file", path = "none.npz" }\n'
    )
    tiny.write_text(TINY.replace("[sweep.settings.ring]", broken + "[sweep.settings.ring]"))
    sweep = load(tiny).only(["xavg"])
    folder = Folder(out_of(sweep, tmp_path / "out"))
    found = loop.run(sweep, folder, Here(), quiet=True)
    assert found.finished == 4
    assert sorted(found.failed) == [
        "broken, xavg, lr 0.01, seed 100 (tuning)",
        "broken, xavg, lr 0.3, seed 100 (tuning)",
    ]
    assert all("none.npz" in said and "\n" not in said for said in found.failed.values())
    assert "failed: broken, xavg, lr 0.3" in capsys.readouterr().err
    assert Folder(tmp_path / "out").failures == found.failed
    assert found.left == 4, "its two seeds can't be said without a rate"
    assert loop.run(sweep, Folder(tmp_path / "out"), Here(), quiet=True).failed == found.failed, (
        "it is tried again"
    )


def test_the_rate_is_chosen_by_held_out_data_never_by_the_test_set(tiny, tmp_path):
    """0.01 is far better on the test set; 0.3 on held-out data."""
    [row] = load(tiny).only(["ring/xavg"]).rows
    folder = Folder(tmp_path / "out")
    for lr in row.rates:
        for trial in row.final(lr):
            keep(folder, trial, 0.9 if lr == 0.01 else 0.1)
    assert choice(row, folder, 5) is None, "nothing was tuned yet"
    tuning = list(row.tuning())
    keep(folder, tuning[0], 0.5)
    assert choice(row, folder, 5) is None, "not all rates were tried"
    keep(folder, tuning[1], 0.6)
    found = choice(row, folder, 5)
    assert found is not None
    assert (found.lr, found.tried, found.edge) == (0.3, {0.01: 0.5, 0.3: 0.6}, True)


def test_of_equals_the_smallest_rate_and_the_edge_is_marked(tiny, tmp_path):
    [row] = load(tiny, ["sweep.rates=[0.3, 0.1, 0.2]"]).only(["ring/xavg"]).rows
    folder = Folder(tmp_path / "out")
    for trial in row.tuning():
        keep(folder, trial, 0.5 if trial.lr == 0.3 else 0.7)
    found = choice(row, folder, 5)
    assert found is not None
    assert (found.lr, found.edge) == (0.1, True)
    for trial in row.tuning():
        keep(folder, trial, 0.9 if trial.lr == 0.2 else 0.7)
    found = choice(row, folder, 5)
    assert found is not None
    assert (found.lr, found.edge) == (0.2, False)


def test_a_result_is_the_mean_of_late_evaluations_and_the_worst_node():
    values = {"a": [0.0, 0.6, 0.8], "b": [1.0, 0.2, 0.4]}
    for metric, worst in ((ACCURACY, 0.3), (PERPLEXITY, 0.7)):
        declared = {"metrics": document([metric]), "diagnostics": []}
        late = result({"declared": declared, "metrics": {metric.name: values}}, 2)
        assert late is not None
        assert (late.mean, late.worst) == pytest.approx((0.5, worst))


def test_cells_of_other_code_are_played_again_unless_they_may_be_kept(swept, tmp_path):
    sweep, out = swept
    [row] = sweep.only(["ring/xavg"]).rows
    [trial, *_] = row.tuning()
    (tmp_path / "cells").mkdir()
    record = json.loads((out / "cells" / f"{key_of(trial)}.json").read_text())
    (tmp_path / "cells" / "old.json").write_text(json.dumps({**record, "code": "another"}))
    assert Folder(tmp_path).finished(trial) is None
    assert Folder(tmp_path, any_code=True).finished(trial) is not None


def test_a_record_of_an_older_schema_is_the_same_cell(swept, tmp_path):
    """A key that was added since has its default in both."""
    sweep, out = swept
    [row] = sweep.only(["ring/xavg"]).rows
    [trial, *_] = row.tuning()
    record = json.loads((out / "cells" / f"{key_of(trial)}.json").read_text())
    del record["configuration"]["mix"]
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "old.json").write_text(json.dumps(record))
    assert Folder(tmp_path).finished(trial) is not None
    record["configuration"]["train"]["gone"] = 3
    (tmp_path / "cells" / "old.json").write_text(json.dumps(record))
    assert (Folder(tmp_path).finished(trial), Folder(tmp_path).unread) == (None, 1)


def test_a_folder_belongs_to_one_sweep(tiny, tmp_path, swept):
    sweep, out = swept
    other = load(tiny, ["sweep.name=another"])
    with pytest.raises(ConfigurationError, match="holds the sweep 'tiny', not 'another'"):
        Folder(out).check(other)
    with pytest.raises(ConfigurationError, match="holds a full sweep, this is a --quick one"):
        Folder(out).check(load(tiny, quick=True))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(StorageError, match="not empty"), Folder(tmp_path / "full").claimed(sweep):
        pass
    assert [it.name for it in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    with Folder(out).claimed(sweep), pytest.raises(TemporaryFailure, match="Another sweep"):
        with Folder(out).claimed(sweep):
            pass
    with pytest.raises(DataError, match="holds no sweep"):
        sweep_of(tmp_path / "full")
    assert sweep_of(out).size == sweep.size


def test_a_damaged_cell_is_said(swept, tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "x.json").write_text('{"conf')
    with pytest.raises(DataError, match=r"x.json can't be read.*made again"):
        Folder(tmp_path)


def test_what_is_left_and_what_it_takes(swept, tiny, tmp_path):
    sweep, out = swept
    whole = estimated(sweep, Folder(out))
    assert (whole.trials, whole.left, whole.unmeasured) == (12, 0, 0)
    fresh = estimated(load(tiny), Folder(tmp_path / "none"))
    assert (fresh.trials, fresh.left, fresh.core_hours, fresh.unmeasured) == (12, 12, 0.0, 12)
    folder = Folder(out)
    more = estimated(load(tiny, ["sweep.seeds=[1, 2, 3]"]), folder)
    assert (more.trials, more.left) == (15, 3)
    assert more.core_hours_left == pytest.approx(more.core_hours / 5, rel=0.9)
    assert list(lines(more))[-1].startswith("15 cells, 3 left: about")


def test_a_cell_that_other_code_played_is_failed_and_not_played_for_ever(tiny, tmp_path):
    """A machine of the cluster with another peerpoise, or one that was upgraded while the sweep
    ran.
    """

    class Elsewhere(Here):
        def wait(self):
            assert len(self.played) < 5, "it is played again and again"
            news = super().wait()
            return replace(news, record={**(news.record or {}), "code": "another"})

    sweep = load(tiny).only(["xavg"])
    runner, folder = Elsewhere(), Folder(out_of(sweep, tmp_path / "out"))
    found = loop.run(sweep, folder, runner, quiet=True)
    assert (found.finished, len(runner.played), len(found.failed)) == (0, 2, 2)
    assert all("other code" in said for said in found.failed.values())
    assert not (tmp_path / "out" / "cells").exists()
