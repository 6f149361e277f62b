"""`peerpoise plan`: the figures a run will state, before it is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kit.command import Call
from node.config import BudgetSection, DataSection, ExperimentConfig, NodeConfig, load, write
from node.experiments import provisioning
from node.learning.plan import Plan
from node.privacy.accountant import Mechanism, Spent, epsilon_pld
from node.privacy.ledger import Ledger
from node.privacy.membership import membership
from node.tasks import make
from peer.topology import TOPOLOGIES, make_neighborhoods

STUDY = ("--rounds", "1000", "--rate", "0.0512", "--delta", "1e-4", "--nodes", "10")
"""Setting of the specification's table (section 7)."""


def planned(peerpoise: Call, *arguments: str | Path) -> dict[str, Any]:
    result = peerpoise("plan", *arguments, "--json")
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


@pytest.mark.parametrize(("target", "full", "ring"), [(1, 16.5, 9.01), (8, 2.88, 1.68)])
def test_sigma_for_a_target(peerpoise: Call, target: float, full: float, ring: float) -> None:
    found = planned(peerpoise, *STUDY, "--epsilon", str(target))
    sigmas = {it["graph"]: it["sigma"] for it in found["graphs"]}
    assert sigmas["full"] == pytest.approx(full, rel=4e-3)
    assert sigmas["ring"] == pytest.approx(ring, rel=4e-3)
    assert all(0.99 * target < it["epsilon"] <= target for it in found["graphs"])


def test_epsilon_for_a_sigma_is_the_way_back(peerpoise: Call) -> None:
    there = planned(peerpoise, *STUDY, "--epsilon", "2", "--graph", "full")
    back = planned(peerpoise, *STUDY, "--sigma", str(there["cost"]["sigma"]), "--graph", "full")
    assert back["target"] is None
    assert back["cost"] == there["cost"]
    assert {it["sigma"] for it in back["graphs"]} == {there["cost"]["sigma"]}
    least, *_, most = [it["epsilon"] for it in back["graphs"]]
    assert least < most, "cheapest first"


def test_it_is_what_the_run_will_use(peerpoise: Call, experiment: Path) -> None:
    config = load(ExperimentConfig, [experiment], (), {})
    plan = Plan.of(config, make_neighborhoods(config.topology.kind, config.experiment.names))
    d = make(config, np.arange(1)).layout.size
    found = planned(peerpoise, experiment)
    assert found["parameters"] == d
    assert plan.sigma(d) <= found["cost"]["sigma"] < plan.sigma(d) * 1.001


def test_every_graph_of_the_table_is_there(peerpoise: Call) -> None:
    found = planned(peerpoise, "--sigma", "2", "--nodes", "7")
    assert {it["graph"] for it in found["graphs"]} | found[
        "impossible"
    ].keys() == TOPOLOGIES.keys() - {"edges"}
    gaps = {it["graph"]: it["spectral_gap"] for it in found["graphs"]}
    assert (gaps["full"], gaps["star"]) == pytest.approx((1, 1 / 7))


def test_a_degree_instead_of_a_graph(peerpoise: Call) -> None:
    four = planned(peerpoise, *STUDY, "--sigma", "2", "--degree", "9")["cost"]
    full = planned(peerpoise, *STUDY, "--sigma", "2", "--graph", "full")["cost"]
    assert four == {**full, "graph": "", "spectral_gap": None}


def test_one_release_a_round_costs_the_same_everywhere(peerpoise: Call) -> None:
    found = planned(peerpoise, "--sigma", "2", "--set", "algorithm.name=d-psgd", "--nodes", "6")
    assert {it["releases"] for it in found["graphs"]} == {1}
    assert len({it["epsilon"] for it in found["graphs"]}) == 1


def test_no_epsilon_without_its_conditions(peerpoise: Call) -> None:
    result = peerpoise(
        "plan",
        "--sigma",
        "2",
        "--set",
        "privacy.insecure_seed=1",
        "--set",
        "privacy.batches=shared",
    )
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    [total] = [line for line in lines if "ε_total = " in line]
    for part in (
        "mode strict",
        "add/remove one example",
        "δ = 1e-05",
        "shared batches",
        "PLD",
        "any coalition",
        "VOID",
    ):
        assert part in total
    [link] = [line for line in lines if "ε_link" in line]
    assert "not a guarantee" in link


LIMIT, DELTA = 4.0, 1e-3


@pytest.fixture
def node(peerpoise: Call, experiment: Path, tmp_path: Path) -> Path:
    """The node.toml of a host whose data have a ledger with a past and a limit."""
    hosts = [word for name in "abcde" for word in ("--host", f"{name}={name}:1")]
    own = [word for name in "abcde" for word in ("--data", f"{name}=ward:x.npz")]
    settings = [
        "--set",
        "task.data=own",
        "--set",
        "privacy.epsilon=",
        "--set",
        "privacy.sigma=2.0",
        "--set",
    ]
    call = (
        "pack",
        experiment,
        *hosts,
        *own,
        *settings,
        "train.rounds=40",
        "--out",
        tmp_path / "out",
    )
    assert peerpoise(*call).code == 0
    home = tmp_path / "out" / "a"
    budget = BudgetSection(epsilon=LIMIT, delta=DELTA, ledger_dir=Path("ledger"))
    write(
        NodeConfig(
            name="a", identity=provisioning.OWN, data=DataSection(name="ward"), budget=budget
        ),
        home / "node.toml",
    )
    with Ledger.open(home / "ledger", "ward") as ledger:
        for t in range(30):
            ledger.debit("earlier", t, "b", Mechanism(sigma=2.5, rate=0.25))
    return home / "node.toml"


def test_a_relative_path_of_data_is_looked_for_beside_the_node_file(
    peerpoise: Call, node: Path
) -> None:
    home = node.parent.with_name("b")
    told = (home / "README.txt").read_text(encoding="utf-8")
    assert "Its private data: x.npz, looked for in this folder, beside node.toml (data" in told
    ended = peerpoise("run", "--config", home / "node.toml", "--set", "listen.address=127.0.0.1:0")
    assert (ended.code, f"There is no data file {home / 'x.npz'};" in ended.err) == (66, True)


def test_what_a_ledger_has_left(peerpoise: Call, node: Path) -> None:
    found = planned(peerpoise, node)
    assert found["nodes"] == 5, "the roster's"
    past = [Spent(Mechanism(sigma=2.5, rate=0.25), 30)]
    told = Mechanism(sigma=2.0, rate=0.25, releases=3)
    fits = [
        t
        for t in range(41)
        if epsilon_pld([*past, Spent(told, told.compositions(t))], DELTA) <= LIMIT
    ]
    assert 0 < max(fits) < 40
    lifetime = found["lifetime"]
    assert (lifetime["data"], lifetime["limit"], lifetime["rounds_left"]) == (
        "ward",
        LIMIT,
        max(fits),
    )
    assert lifetime["spent"] == pytest.approx(epsilon_pld(past, DELTA))
    said = peerpoise("plan", node).out
    assert f"{max(fits)} of the 40 rounds" in said


def test_settings_of_a_node_file_go_to_the_node_and_others_to_its_run(
    peerpoise: Call, node: Path
) -> None:
    settings = ("--set", f"budget.epsilon={2 * LIMIT}", "--set", "train.rounds=20")
    found = planned(peerpoise, node, *settings)
    assert (found["lifetime"]["limit"], found["rounds"]) == (2 * LIMIT, 20)
    assert planned(peerpoise, node, "--set", "data.name=other")["lifetime"]["spent"] == 0
    refused = peerpoise("plan", node.parent / "run.toml", *settings)
    assert refused.code == 78
    assert "budget: unknown key; it belongs in the node's own file, node.toml." in refused.err
    checked = peerpoise("config", "check", node, "--set", "privacy.epsilon=2")
    assert "privacy: unknown key; it belongs in the run's file, run.toml" in checked.err


def test_a_ledger_is_only_read(peerpoise: Call, node: Path) -> None:
    """None is made by asking: one that is not there counts as 0. One in use is read, too."""
    found = planned(peerpoise, node, "--data", "other")["lifetime"]
    assert (found["spent"], found["runs"]) == (0, [])
    assert found["rounds_left"] > planned(peerpoise, node)["lifetime"]["rounds_left"]
    said = peerpoise("plan", node, "--data", "other").out
    assert "Nothing was released under the name other yet" in said
    assert {path.name.partition(".")[0] for path in (node.parent / "ledger").iterdir()} == {"ward"}
    assert "earlier  strict  30      30" in peerpoise("plan", node).out
    before = planned(peerpoise, node)
    with Ledger.open(node.parent / "ledger", "ward"):
        assert planned(peerpoise, node) == before


def test_two_deltas_are_not_compared(peerpoise: Call, node: Path) -> None:
    """The run's ε is at its own δ, that of its data at the owner's: said, and given at both."""
    assert "at another δ" not in peerpoise("plan", node).out
    there = planned(peerpoise, node, "--delta", "1e-5")
    assert there["lifetime"]["planned"] == planned(peerpoise, node)["cost"]["epsilon"]
    assert there["lifetime"]["planned"] < there["cost"]["epsilon"]
    said = peerpoise("plan", node, "--delta", "1e-5").out
    assert f"! The run's ε_total is at another δ than that of its data: at δ = {DELTA:g}" in said


@pytest.mark.parametrize(
    ("settings", "doubt"),
    [
        (["--sigma", "2"], ""),
        (["--epsilon", "19"], ""),
        (["--epsilon", "21"], "above 20 it promises next to nothing"),
        (["--sigma", "2", "--delta", "0.003"], "is not below 1/n for n = 360 examples"),
        (["--sigma", "2", "--delta", "0.0027"], ""),
        (["--sigma", "36"], "is 10.2 times as long as all that a batch of n = 360"),
        (["--sigma", "35"], ""),
    ],
)
def test_what_promises_little(
    peerpoise: Call, experiment: Path, settings: list[str], doubt: str
) -> None:
    """The noise is σ√650 beside a batch of 90."""
    doubts = planned(peerpoise, experiment, *settings)["doubts"]
    assert len(doubts) == bool(doubt)
    assert doubt in "".join(doubts)
    marked = [line for line in peerpoise("plan", experiment, *settings).out.splitlines() if line]
    assert [doubt in line for line in marked if line.startswith("! ")] == [True] * bool(doubt)


def test_budget(peerpoise: Call, node: Path) -> None:
    folder = node.parent / "ledger"
    with Ledger.open(folder, "ward", clock=lambda: "2030-01-01T00:00:00+00:00") as ledger:
        ledger.debit("later", 0, "b", Mechanism(sigma=5.0, rate=0.25))
        ledger.debit("later", 0, "c", Mechanism(sigma=5.0, rate=0.25))
        [account] = json.loads(peerpoise("budget", "--config", node, "--json").out)
        rows = ledger.rows()
        alone = epsilon_pld(ledger.rows("later"), DELTA)
    assert (account["data"], account["delta"], account["limit"]) == ("ward", DELTA, LIMIT)
    assert account["spent"] == epsilon_pld(rows, DELTA)
    assert account["left"] == LIMIT - account["spent"]
    earlier, later = account["runs"]
    assert (earlier["run"], earlier["rounds"], earlier["debits"]) == ("earlier", 30, 30)
    assert (later["mode"], later["rounds"], later["debits"]) == ("strict", 1, 2)
    assert later["epsilon"] == alone
    assert later["first"] == "2030-01-01T00:00:00+00:00"
    said = peerpoise("budget", "--config", node).out
    for part in ("earlier", "δ = 0.001", "add/remove one example", "of 4 are left"):
        assert part in said
    at = json.loads(peerpoise("budget", "--config", node, "--delta", "1e-5", "--json").out)[0]
    assert at["spent"] > account["spent"]


def test_no_cell_is_cut_where_there_is_no_terminal(
    peerpoise: Call, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    with Ledger.open(node.parent / "ledger", "ward") as ledger:
        [run] = ledger.runs()
    for command in (("budget", "--config", node), ("plan", node)):
        printed = peerpoise(*command).out
        assert run.first in printed
        assert run.last in printed


def test_budget_of_all_ledgers_and_of_none(
    peerpoise: Call, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(node.parent / "state"))
    result = peerpoise("budget")
    assert (result.code, result.err.count("\n")) == (78, 1)
    assert "There is no ledger in" in result.err
    result = peerpoise("budget", "--delta", "1")
    assert (result.code, "lies between 0 and 1" in result.err) == (78, True)
    folder = node.parent / "state" / "peerpoise" / "ledger"
    folder.mkdir(parents=True, mode=0o700)
    with Ledger.open(folder, "a") as a, Ledger.open(folder, "b"):
        a.mark("open", "none")
    first, second = json.loads(peerpoise("budget", "--json").out)
    assert (first["data"], first["spent"], first["limit"]) == ("a", None, None)
    assert first["runs"][0] | {"first": "", "last": ""} == {
        "run": "open",
        "mode": "none",
        "rounds": 0,
        "debits": 0,
        "lost": 0,
        "epsilon": None,
        "first": "",
        "last": "",
    }
    assert (second["data"], second["spent"], second["runs"]) == ("b", 0, [])
    said = peerpoise("budget", "a").out
    assert "have spent ε_total = infinite" in said
    assert "Nothing was released under the name c yet" in peerpoise("budget", "c").out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "Name a FILE, or a target"),
        (["--epsilon", "8", "--sigma", "2"], "not both"),
        (["--epsilon", "8", "--graph", "moon"], "Unknown topology 'moon'"),
        (["--epsilon", "8", "--set", "privacy.mode=none"], "no ε to plan"),
        (
            ["--epsilon", "8", "--set", "algorithm.name=fgrpo"],
            "fgrpo has no differential privacy in",
        ),
        (["--epsilon", "-1"], "privacy.epsilon"),
        (["none.toml"], "none.toml"),
    ],
)
def test_mistakes(peerpoise: Call, arguments: list[str], part: str) -> None:
    result = peerpoise("plan", *arguments)
    assert (result.code, part in result.err, len(result.err.splitlines())) == (78, True, 1), (
        result.err
    )


def test_what_it_means_is_the_bound_of_the_run_itself(peerpoise: Call) -> None:
    call = ("--sigma", "2", "--rounds", "20", "--rate", "0.1", "--nodes", "4", "--graph", "ring")
    known = planned(peerpoise, *call)["membership"]
    assert known["fpr"] < known["link"] < known["total"] < 1
    mechanism = Mechanism(sigma=2.0, rate=0.1, releases=3)
    assert known["total"] == pytest.approx(membership(mechanism, 20).total, rel=1e-3)
    text = peerpoise("plan", *call).out
    assert f"at most {100 * known['total']:.3g} % of those that are" in text


RECIPE = ("--set", "algorithm.name=muffliato", "--set", "algorithm.gossip=3", "--nodes", "10")


def test_proposals_cost_the_same_compute_and_no_more_bytes(peerpoise: Call) -> None:
    """Every σ is the one that the run itself would have."""
    call = (*RECIPE, "--rounds", "20", "--rate", "0.3", "--set", "privacy.batch=60")
    data = ("--set", "task.data=digits", "--set", "task.model=softmax")
    found = planned(peerpoise, *call, *data, "--epsilon", "2", "--propose")
    proposals = found["proposals"]
    assert [it["rounds"] for it in proposals] == [10, 20, 40]  # q > 1 before, K = 0 beyond
    for it in proposals:
        assert it["examples"] == pytest.approx(20 * 60, rel=1e-3)
        assert it["megabytes"] <= proposals[1]["megabytes"] * 1.0001
    assert [it["gossip"] for it in proposals] == [6, 3, 1]
    assert [it["noise"] for it in proposals] == sorted(it["noise"] for it in proposals)
    own = proposals[1]
    assert own["sigma"] == pytest.approx(found["cost"]["sigma"], rel=1e-3)


def test_proposals_need_a_target_and_room(peerpoise: Call) -> None:
    result = peerpoise("plan", "--sigma", "2", "--propose")
    assert (result.code, "--epsilon" in result.err) == (78, True)
    result = peerpoise("plan", "--epsilon", "2", "--propose", "--examples", "1e9")
    assert (result.code, "--examples" in result.err) == (78, True)


def test_who_learns_from_public_data_needs_no_noise(peerpoise: Call, experiment: Path) -> None:
    """In whichever mode: mode strict is what the file says."""
    for mode in ("strict", "none"):
        settings = ("--set", "algorithm.name=public", "--set", f"privacy.mode={mode}")
        found = planned(peerpoise, experiment, *settings)
        assert (found["privacy"]["mode"], found["graphs"]) == ("none", [])
        assert found["privacy"]["epsilon"]["total"] == found["privacy"]["epsilon"]["link"] == 0
        assert found["membership"]["total"] == found["membership"]["fpr"]
    text = peerpoise("plan", experiment, "--set", "algorithm.name=public").out
    assert text.startswith("public learns from the public validation set alone")
    assert "σ =" not in text
    assert "ε_link" not in text


@pytest.mark.parametrize("name", ["local", "centralized"])
def test_who_is_silent_has_an_epsilon_of_its_model_alone(
    peerpoise: Call, experiment: Path, name: str
) -> None:
    settings = ("--sigma", "2", "--set", f"algorithm.name={name}")
    found = planned(peerpoise, experiment, *settings)
    talking = planned(peerpoise, experiment, *settings[:3], "algorithm.name=d-psgd")
    assert found["privacy"]["epsilon"]["total"] == talking["privacy"]["epsilon"]["total"]
    assert (found["privacy"]["epsilon"]["link"], found["graphs"]) == (0, [])
    assert found["membership"]["link"] == found["membership"]["fpr"]
    text = peerpoise("plan", experiment, *settings).out
    assert text.startswith(f"{name} sends nothing to any other node")
    assert "against whoever is given the model" in text
    assert "ε_link" not in text
    assert "neighbor" not in text
    assert "spectral gap" not in text


LOOSE = (*("--set", "privacy.delta=0.01"), *("--set", "task.data=own"))
SENTENCE = "δ = 0.01 is not below 1/n for n = 360 values of patient_id: publishing one of them"


def test_a_loose_delta_is_told_of_persons(peerpoise: Call, experiment: Path) -> None:
    unit = ("--set", "task.unit=patient_id", "--sigma", "2")
    out = peerpoise("plan", experiment, *LOOSE, *unit).out
    assert f"! {SENTENCE}" in out


def test_a_loose_delta_is_told_once_before_a_run(
    peerpoise: Call, experiment: Path, tmp_path: Path
) -> None:
    """What `simulate`, `up` and `pack` do first; n is B/q, as no record was counted."""
    hosts = ("--host", "a=127.0.0.1:7443", "--host", "b=127.0.0.1:7444")
    data = ("--data", "a=x:/a.csv", "--data", "b=y:/b.csv")
    unit = ("--set", "task.unit=patient_id")
    out = tmp_path / "packed"
    packed = peerpoise("pack", experiment, *LOOSE, *unit, *hosts, *data, "--out", out)
    assert (packed.code, packed.err.count(SENTENCE)) == (0, 1)
    public = ("--set", "privacy.delta=0.01", "--set", "privacy.max_examples=50")
    run = peerpoise("simulate", experiment, *public, "--folder", tmp_path / "run")
    assert (run.code, run.err.count("is not below 1/n")) == (0, 0)
    public = (*public[:3], "privacy.max_examples=100")
    run = peerpoise("simulate", experiment, *public, "--folder", tmp_path / "other")
    assert run.err.count("δ = 0.01 is not below 1/n for n = 100 examples") == 1
