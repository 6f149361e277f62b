"""How many weights change in a round of reinforcement, and what frames of (place, value) would cost.

The model `bytes`, after a supervised warm-up, takes two steps a round by the algorithms' own code
(`node.maths.grpo_rounds.local_steps`), three rounds at each learning rate. A weight has changed if
its bfloat16 has; a place takes 32 bits, or what an ideal coder takes.

    python tests/bench/changed_weights.py [--quick]    table on stderr, JSON on stdout
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from math import log2

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from node.config import RunConfig
from node.maths.grpo_rounds import GrpoRunConfig, LocalState, local_steps
from node.maths.policy import Draws
from node.randomness import Keys
from node.task import views
from node.tasks import make
from node.tasks.reasoning import Reasoning

RATES = (1e-3, 1e-4, 1e-5, 1e-6)
WARM, ROUNDS, VALUE, PLACE = 300, 3, 16, 32
"""Supervised steps, rounds, and bits of a value and of its place."""
TASK = {
    "name": "reasoning",
    "model": "bytes",
    "data": "questions",
    "text": {"length": 32, "embeddings": True},
    "reasoning": {"families": ["sort"]},
}


@dataclass(frozen=True, slots=True)
class Change:
    """Shares of weights, and bits by weight and round; whole, bfloat16 takes 16."""

    lr: float
    float32: float
    bfloat16: float
    bits: float
    """With places of 32 bits."""
    coded_bits: float
    """With places coded at their entropy."""


def warmed_up(task: Reasoning) -> Tensor:
    """Answers are right now and then."""
    x, generator = task.initial_parameters(0), torch.Generator().manual_seed(0)
    leaf = x.requires_grad_()
    adam = torch.optim.Adam([leaf], lr=3e-3)
    for _ in range(WARM):
        rows = torch.randint(task.num_examples, (16,), generator=generator)
        loss = task.mean_loss(views(task.layout, leaf), task.batch(rows))
        adam.zero_grad()
        torch.autograd.backward(loss)
        adam.step()
    return leaf.detach()


def changes(task: Reasoning, x: Tensor, lr: float) -> Change:
    """Means over the rounds after the first, in which Adam begins."""
    config = GrpoRunConfig(lr=lr, max_completion_length=6)
    policy, state = task.policy(Draws("n0", 1, Keys.insecure(0, "n0"))), LocalState.at(x)
    whole, narrow = [], []
    for t in range(ROUNDS):
        before = state.x
        state, after, _ = local_steps(config, policy, t, state)
        whole.append(share(before, after))
        narrow.append(share(before.bfloat16(), after.bfloat16()))
        state = replace(state, x=after)
    p = sum(narrow[1:]) / len(narrow[1:])
    return Change(
        lr=lr,
        float32=sum(whole[1:]) / len(whole[1:]),
        bfloat16=p,
        bits=p * (VALUE + PLACE),
        coded_bits=p * VALUE - p * log2(p) - (1 - p) * log2(1 - p),
    )


def share(before: Tensor, after: Tensor) -> float:
    return float((before != after).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one learning rate")
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = RunConfig(privacy={"mode": "none"}, task=TASK)  # type: ignore[arg-type]
    task = make(run, np.arange(500))
    assert isinstance(task, Reasoning)
    x = warmed_up(task)
    rows = [changes(task, x, lr) for lr in (RATES[:1] if options.quick else RATES)]
    table = Table("lr", "float32", "bfloat16", "bits", "coded", title="weights that change")
    for row in rows:
        bits = (f"{row.bits:.1f}", f"{row.coded_bits:.1f}")
        table.add_row(f"{row.lr:g}", f"{row.float32:.2%}", f"{row.bfloat16:.1%}", *bits)
    Console(stderr=True).print(table)
    print(json.dumps({"benchmark": "changed weights", "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
