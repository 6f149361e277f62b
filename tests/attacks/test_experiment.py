"""Attackers in a whole experiment: what they cost, what the results say of them, and that the gate
stays the gate.
"""

import json
from typing import Any

import pytest
import torch

from node.attacks import Attack
from node.config import AttackSection, ExperimentConfig
from node.experiments.in_process import simulate
from node.learning.build import build
from node.learning.plan import Plan
from node.maths.mixing import consensus_distance
from node.privacy.ledger import Ledger
from node.records import checkpoint
from node.rounds import lockstep

BASE: dict[str, dict[str, Any]] = {
    "algorithm": {"name": "xavg", "lr": 0.2},
    "topology": {"kind": "full"},
    "task": {"data": "digits"},
    "train": {"rounds": 40, "seed": 1, "evaluate_every": 10},
    "privacy": {"mode": "none", "batch": 32},
    "experiment": {"nodes": 10, "alpha": 0.25, "seed": 1},
}


def experiment(attack=None, **settings):
    values = {section: {**BASE[section], **settings.get(section, {})} for section in BASE}
    return ExperimentConfig.model_validate(
        {**values, "experiment": {**values["experiment"], "attack": attack}}
    )


@pytest.mark.parametrize("algorithm", [pytest.param("xavg", marks=pytest.mark.long), "dmsgd"])
def test_flipped_labels_at_four_of_ten_nodes_hurt_plain_averaging(tmp_path, algorithm):
    """By more than ten points, on average over the last evaluations; otherwise the attack would be
    broken.
    """
    found = {}
    for nodes in (0, 4):
        attack = {"name": "label-flip", "nodes": nodes} if nodes else None
        simulate(experiment(attack, algorithm={"name": algorithm}), tmp_path / str(nodes))
        tests = [
            json.loads(line)["metrics"]["accuracy"]
            for line in (tmp_path / str(nodes) / "nodes" / "n1" / "journal.jsonl")
            .read_text()
            .splitlines()
            if '"test"' in line
        ]
        found[nodes] = sum(tests[-3:]) / 3
    assert found[0] > 0.8
    assert found[4] < found[0] - 0.1


def test_results_are_those_of_the_honest(tmp_path):
    merged = simulate(
        experiment({"name": "gaussian", "nodes": 2}, train={"rounds": 3}, experiment={"nodes": 4}),
        tmp_path,
    )
    assert (merged.attackers, merged.attack, merged.nodes, merged.complete) == (
        ["n0", "n2"],
        "gaussian",
        4,
        True,
    )
    each: dict[str, Any] = merged.task_metrics["accuracy"].per_node
    assert list(each) == ["n0", "n1", "n2", "n3"]
    assert merged.task_metrics["accuracy"].mean == pytest.approx((each["n1"] + each["n3"]) / 2)
    assert merged.task_metrics["accuracy"].worst == min(each["n1"], each["n3"])
    models = {
        name: checkpoint.load_model(tmp_path / "nodes" / name / "model.safetensors")[1]
        for name in each
    }
    honest = [models["n1"], models["n3"]]
    assert merged.consensus_distance == pytest.approx(consensus_distance(honest))
    average = checkpoint.load_model(tmp_path / "model.safetensors")[1]
    torch.testing.assert_close(average, torch.stack(honest).mean(0))
    assert (average - torch.stack(list(models.values())).mean(0)).abs().max() > 1e-3, "power"
    for name in each:
        own = json.loads((tmp_path / "nodes" / name / "summary.json").read_text())
        journal = (tmp_path / "nodes" / name / "journal.jsonl").read_text()
        assert own["attackers"] == ([name] if name in merged.attackers else [])
        assert ("ATTACKS its neighbors (gaussian)" in journal) == (name in merged.attackers)
        assert "experiment" not in journal.splitlines()[0], "the run file says nothing of attacks"


@pytest.mark.parametrize(
    ("count", "nodes", "who"),
    [
        (1, 4, "n0"),
        (2, 4, "n0 n2"),
        (4, 10, "n0 n2 n5 n7"),
        (3, 4, "n0 n1 n2"),
        (("n3", "n1"), 4, "n1 n3"),
        (2, 12, "n00 n06"),
    ],
)
def test_so_many_are_spread_evenly(count, nodes, who):
    config = experiment({"name": "zero", "nodes": count}, experiment={"nodes": nodes})
    assert config.experiment.attackers == tuple(who.split())


class Noted:
    """A gate that keeps what it released."""

    def __init__(self, gate):
        self.gate, self.released = gate, {}

    def __call__(self, x, t, to):
        self.released[t, to] = found = self.gate(x, t, to)
        return found

    def own(self, x, t):
        return self.gate.own(x, t)


def strict(attack, rounds=3):
    """(releases by node, debits by node, models) of three nodes in mode strict, n1 with the
    attack.
    """
    settings = {
        "privacy": {"mode": "strict", "sigma": 2.0, "delta": 1e-3, "rate": 0.1, "insecure_seed": 7}
    }
    config = experiment(train={"rounds": rounds}, experiment={"nodes": 3}, **settings)
    names = config.experiment.names
    plan = Plan.of(config.run_config, config.neighborhoods(names))
    learners, ledgers = {}, {}
    for k, name in enumerate(names):
        how = Attack.of(attack) if attack and name == "n1" else None
        rows = torch.arange(300 * k, 300 * k + 300).numpy()
        ledgers[name] = Ledger.in_memory()
        learners[name] = build(plan, name, rows, ledger=ledgers[name], attack=how)
    gates = {}
    for name, learner in learners.items():
        honest = getattr(learner.algorithm, "_algorithm", learner.algorithm)
        gates[name] = honest.gradients = Noted(honest.gradients)
    lockstep.run({name: it.algorithm for name, it in learners.items()}, plan.neighborhoods, rounds)
    debits = {
        name: [ledger.count(plan.run.run_id, t) for t in range(rounds)]
        for name, ledger in ledgers.items()
    }
    return (
        {n: d.released for n, d in gates.items()},
        debits,
        {n: it.algorithm.parameters for n, it in learners.items()},
    )


def test_lies_change_no_release():
    """Strict: the same debits at all, and as long as the questions are the same (round 0) the same
    released bytes, the attacker's own among them. From round 1 on the honest are asked about models
    that the lies have moved."""
    honest, debits, _ = strict(None)
    assert debits == {name: [3, 3, 3] for name in debits}
    for name in ("scaling", "zero", "alie", "echo"):
        found, spent, _ = strict(AttackSection(name=name))
        assert spent == debits
        assert found.keys() == honest.keys()
        for node, released in found.items():
            assert released.keys() == honest[node].keys()
            assert all(
                torch.equal(released[t, to], x) for (t, to), x in honest[node].items() if t == 0
            )
        assert not torch.equal(found["n0"][2, "n0"], honest["n0"][2, "n0"]), "power"


ZERO = AttackSection.model_validate({"name": "inner-product", "strength": 0.0})


def test_an_attack_of_strength_zero_changes_no_bit_in_mode_strict():
    honest, lied = strict(None), strict(ZERO)
    assert all(
        torch.equal(honest[0][n][key], lied[0][n][key]) for n in honest[0] for key in honest[0][n]
    )
    assert all(torch.equal(honest[2][n], lied[2][n]) for n in honest[2])


@pytest.mark.parametrize(
    "options", [{}, {"value": "neg_loss"}, {"value": "neg_loss", "estimator": "first_order"}]
)
def test_one_neighbor_with_huge_answers_does_not_end_ross(tmp_path, options):
    """std 1e16 is finite on the wire; one lucky accuracy gave it a share, and everybody's model was
    lost.
    """
    attack = {"name": "gaussian", "std": 1e16, "words": ["answer"]}
    algorithm = {"name": "ross", "lr": 0.1, **options}
    settings = {"train": {"rounds": 25}, "experiment": {"nodes": 5}, "algorithm": algorithm}
    worst = simulate(experiment(attack, **settings), tmp_path).task_metrics["accuracy"].worst
    assert worst is not None
    assert worst > 0.7
