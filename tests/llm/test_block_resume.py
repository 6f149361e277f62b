"""What a daemon does when it comes back, with the files it has: checkpoints in the middle of a
block, in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch

from node.algorithms.deca import State
from node.config import ExperimentConfig
from node.experiments import in_process
from node.experiments.resolve import resolve
from node.learning.learner import Learner
from node.records import checkpoint
from node.rounds import lockstep

Learners: TypeAlias = Callable[[dict[str, Any]], dict[str, Learner]]
ROUNDS, CUT = 7, 4
"""Visits of three rounds: cut after the second step of the second block."""


@pytest.fixture
def learners(
    model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Learners:
    """Makes three peers on a tiny Llama; on every call the same ones."""
    model, text = model_folder(), tmp_path_factory.mktemp("text") / "text.jsonl"
    text.write_text(
        "\n".join(
            f'{{"text": "{row}"}}' for row in ["the film was good", "a bad film", "the was a"] * 10
        )
    )
    return lambda algorithm: peers(model, text, algorithm)


def peers(model: Path, text: Path, algorithm: dict[str, Any]) -> dict[str, Learner]:
    values = {
        "algorithm": {"steps": 3, "layers_per_block": 1, "lr": 0.003, **algorithm},
        "topology": {"kind": "ring"},
        "task": {"name": "causal-lm", "model": str(model), "data": "file", "path": text,
                 "text": {"length": 8, "dtype": "bfloat16"}},
        "train": {"rounds": ROUNDS, "seed": 1, "evaluate_every": 0},
        "privacy": {"mode": "none", "batch": 2},
        "experiment": {"nodes": 3},
    }  # fmt: skip
    return in_process.make_learners(resolve(ExperimentConfig(**values)))  # type: ignore[arg-type]


def play(nodes: dict[str, Learner], rounds: int, first: int = 0) -> None:
    neighborhoods = next(iter(nodes.values())).plan.neighborhoods
    lockstep.run(
        {name: it.algorithm for name, it in nodes.items()}, neighborhoods, rounds, first=first
    )


OPTIONS = [
    {"name": "deca"},
    {"name": "deca", "bma": "scaled", "mix_every": 2},
    {"name": "deca", "bma": "trivial", "wire": "bf16-delta", "order": "random"},
    {"name": "badam"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_checkpoint_in_mid_block_goes_on_bit_for_bit(
    tmp_path: Path, learners: Learners, options: dict[str, Any]
) -> None:
    through, first, again = (learners(options) for _ in range(3))
    play(through, ROUNDS)
    play(first, CUT)
    for name, learner in first.items():
        (tmp_path / name).mkdir()
        checkpoint.save(tmp_path / name, CUT - 1, learner.algorithm.state)
        loaded = checkpoint.latest(tmp_path / name, type(again[name].algorithm.state))
        assert loaded is not None
        assert_same(loaded.state, learner.algorithm.state)
        again[name].algorithm.state = loaded.state
    play(again, ROUNDS, first=CUT)
    for name, learner in through.items():
        assert learner.algorithm.parameters.dtype == torch.bfloat16
        assert torch.equal(again[name].algorithm.parameters, learner.algorithm.parameters)
        assert_same(again[name].algorithm.state, learner.algorithm.state)


def assert_same(actual: Any, expected: Any) -> None:
    for field in expected.__dataclass_fields__:
        ours, theirs = getattr(actual, field), getattr(expected, field)
        if isinstance(theirs, torch.Tensor):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs), field
        else:
            assert (type(ours), ours) == (type(theirs), theirs), field


def test_what_a_state_holds_in_mid_block(learners: Learners) -> None:
    """Power: none of it is trivially the same; θ's float32 is finer than what x keeps of it."""
    nodes = learners({"name": "deca", "mix_every": 2, "wire": "bf16-delta"})
    play(nodes, CUT + 1)
    state = nodes["n0"].algorithm.state
    assert isinstance(state, State)
    assert (state.visit, state.step) == (1, 2)
    assert state.last_mixed is not None
    assert state.error_feedback is not None
    assert state.error_feedback.any()
    assert state.m.any()
    assert state.x.dtype == torch.bfloat16
    place = nodes["n0"].algorithm.block(1).span  # type: ignore[attr-defined]
    assert not torch.equal(state.theta, state.x[place].float())
    assert torch.equal(state.theta.bfloat16(), state.x[place])


def test_without_the_moments_it_would_be_another_run(learners: Learners) -> None:
    through, again = learners({"name": "deca"}), learners({"name": "deca"})
    play(through, ROUNDS)
    play(again, CUT)
    for learner in again.values():
        learner.algorithm.state = State(x=learner.algorithm.parameters)
    play(again, ROUNDS, first=CUT)
    assert not torch.equal(again["n0"].algorithm.parameters, through["n0"].algorithm.parameters)
