"""What a node does that comes back in the middle of reinforcement, from a checkpoint's file: it goes
on bit for bit, also with a reference model and the mean of its own past rewards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from node.algorithms.fgrpo import State
from node.config import ExperimentConfig
from node.experiments.in_process import make_learners
from node.experiments.resolve import resolve
from node.learning.learner import Learner
from node.records import checkpoint
from node.rounds import lockstep

WARM, CUT, ROUNDS = 6, 8, 9
"""Rounds of the warm-up, after which answers end and some are nearly right; rounds before the cut,
and all."""
VALUES: dict[str, dict[str, Any]] = {
    "algorithm": {
        "name": "fgrpo",
        "questions": 4,
        "num_generations": 4,
        "max_completion_length": 4,
        "local_steps": 1,
        "beta": 0.1,
        "advantage": "history",
        "warmup": {"rounds": WARM, "lr": 0.02},
        "audit": {"questions": 2},
    },
    "topology": {"kind": "full"},
    "task": {
        "name": "reasoning",
        "model": "bytes",
        "data": "questions",
        "reasoning": {"families": ["largest", "sort"]},
        "text": {"length": 32, "test_size": 6, "embeddings": True},
    },
    "train": {"rounds": ROUNDS, "seed": 1, "evaluate_every": 0},
    "privacy": {"mode": "none", "batch": 8, "insecure_seed": 7},
    "experiment": {"nodes": 2, "partition": "column", "column": "family"},
}
"""The seed makes what is audited by the same in every run."""


def learners() -> dict[str, Learner]:
    return make_learners(resolve(ExperimentConfig.model_validate(VALUES)))


def play(nodes: dict[str, Learner], rounds: int, first: int = 0) -> None:
    neighborhoods = next(iter(nodes.values())).plan.neighborhoods
    algorithms = {name: each.algorithm for name, each in nodes.items()}
    lockstep.run(algorithms, neighborhoods, rounds, first=first)


def resumed(folder: Path, nodes: dict[str, Learner], t: int) -> dict[str, Learner]:
    """Other learners, with what the files of these say after t rounds."""
    again = learners()
    for name, learner in nodes.items():
        (folder / name).mkdir(parents=True)
        checkpoint.save(folder / name, t - 1, learner.algorithm.state)
        loaded = checkpoint.latest(folder / name, State)
        assert loaded is not None
        again[name].algorithm.state = loaded.state
    return again


@pytest.fixture(scope="module")
def straight() -> dict[int, dict[str, State]]:
    """The states after each round of a run that is not interrupted."""
    nodes, states = learners(), {}
    for t in range(ROUNDS):
        play(nodes, t + 1, first=t)
        states[t + 1] = {name: each.algorithm.state for name, each in nodes.items()}
    return states


def assert_same(actual: State, expected: State) -> None:
    for field in fields(expected):
        ours, theirs = getattr(actual, field.name), getattr(expected, field.name)
        if isinstance(theirs, torch.Tensor):
            assert torch.equal(ours, theirs), field.name
        else:
            assert (type(ours), ours) == (type(theirs), theirs), field.name


@pytest.mark.parametrize("cut", [WARM, CUT], ids=["after the warm-up", "later"])
def test_a_run_goes_on_from_its_files_bit_for_bit(
    cut: int, straight: dict[int, dict[str, State]], tmp_path: Path
) -> None:
    first = learners()
    for name, learner in first.items():
        learner.algorithm.state = straight[cut][name]
    again = resumed(tmp_path, first, cut)
    play(again, ROUNDS, first=cut)
    for name, learner in again.items():
        assert_same(learner.algorithm.state, straight[ROUNDS][name])


FORGETFUL: dict[str, Callable[[State], State]] = {
    "the reference": lambda state: replace(state, reference=state.x.clone()),
    "own past rewards": lambda state: replace(state, past=(1, 0.0)),
    "moments": lambda state: replace(state, m=torch.zeros_like(state.m)),
}


@pytest.mark.parametrize("forget", FORGETFUL.values(), ids=FORGETFUL)
def test_without_any_of_it_it_would_be_another_run(
    forget: Callable[[State], State], straight: dict[int, dict[str, State]]
) -> None:
    """Power: none of them is trivially the same."""
    again = learners()
    for name, learner in again.items():
        learner.algorithm.state = forget(straight[CUT][name])
    play(again, CUT + 1, first=CUT)
    assert not torch.equal(again["n0"].algorithm.parameters, straight[CUT + 1]["n0"].x)
