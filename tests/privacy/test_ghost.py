"""Ghost clipping: the same clipped sum as of gradients that are written down, from their
factors.
"""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from kit.small_task import Small, gate, make_small
from node.data import Examples
from node.maths import chunks, ghost
from node.maths.backends import probe
from node.maths.clipping import SLACK, clipped_sum
from node.privacy.ledger import Ledger
from node.tasks.classification import Classification
from peer.errors import ConfigurationError


def network(seed: int) -> Small:
    """One to four linear layers of random widths, with and without bias, and any element-wise
    functions in between.
    """
    chance = random.Random(seed)
    torch.manual_seed(seed)
    widths = [64, *(chance.randint(1, 40) for _ in range(chance.randrange(4))), 5]
    layers: list[nn.Module] = [nn.Flatten()]
    for here, there in itertools.pairwise(widths):
        layers += [nn.Linear(here, there, bias=chance.random() < 0.7)]
        layers += [
            kind()
            for kind in chance.choices(ghost.ELEMENTWISE, k=chance.randrange(3))
            if there != 5
        ]
    n = ghost_chunk() + 1
    return Small(nn.Sequential(*layers), torch.randn(n, 1, 8, 8), torch.randint(0, 5, (n,)))


def ghost_chunk() -> int:
    return chunks.chunk_for(1, backend="ghost")


def close(actual: Tensor, expected: Tensor) -> bool:
    return float((actual - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("difference", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_the_same_sum_as_the_loop(seed: int, difference: bool) -> None:
    task = network(seed)
    x = task.initial_parameters(0)
    before = x * 1.3 if difference else None
    norms = [
        float(clipped_sum(task, x, torch.tensor([row]), 1e9, before=before).norm())
        for row in range(9)
    ]
    for n in (0, 1, 9, ghost_chunk() + 1):
        rows = torch.randperm(task.num_examples)[:n]
        for clip in (sorted(norms)[4], 1e9):  # about half are clipped; none is
            ours, looped = (
                clipped_sum(task, x, rows, clip, before=before, backend=it)
                for it in ("ghost", "loop")
            )
            assert close(ours, looped)


def test_a_norm_is_that_of_the_whole_gradient() -> None:
    """Power: clipped layer by layer, or with the bias forgotten, the sum is another one."""
    task = make_small("mlp")
    rows = torch.tensor([0])
    whole = clipped_sum(task, task.initial_parameters(0), rows, 1e9, backend="ghost")
    clip = float(whole.norm()) / 2
    clipped = clipped_sum(task, task.initial_parameters(0), rows, clip, backend="ghost")
    assert abs(float(clipped.norm()) / clip - 1) < 1e-12
    assert close(clipped, whole / 2)


def test_where_auto_takes_ghost_a_records_factors_have_the_same_bits_in_any_batch() -> None:
    """Even if a neighbor's model magnifies a last bit. Widths whose kernels round by place are left
    to the loop.
    """
    generator, taken = torch.Generator().manual_seed(0), 0
    for seed in range(12):
        task = network(seed)
        if probe(task) != "ghost":
            continue
        taken += 1
        for x in (
            task.initial_parameters(0),
            1e9 * torch.randn(task.layout.size, generator=generator),
        ):
            alone = clipped_sum(task, x, torch.tensor([7]), 1.0, backend="ghost")
            for _ in range(10):
                others = torch.randperm(task.num_examples, generator=generator)[:40]
                others = others[others != 7]
                place = int(torch.randint(len(others), (), generator=generator))
                full = torch.cat([others[:place], torch.tensor([7]), others[place:]])
                moved = [
                    clipped_sum(task, x, rows, 1.0, backend="ghost") for rows in (full, others)
                ]
                assert float((moved[0] - moved[1] - alone).norm()) < 1e-13
    assert taken > 3


@pytest.mark.parametrize("difference", [False, True])
def test_what_overflows_in_float32_is_clipped_like_any_other(difference: bool) -> None:
    """vmap's product of the two factors is infinite, so that it leaves the record out; both are
    bounded.
    """
    generator = torch.Generator().manual_seed(0)
    x = 1e25 * torch.rand(4, 1, 8, 8, generator=generator)
    first, second = nn.Linear(64, 8, bias=False), nn.Linear(8, 3, bias=False)
    task = Small(nn.Sequential(nn.Flatten(), first, second), x, torch.arange(4) % 3)
    scale = torch.cat(
        [
            torch.full((p.numel(),), size)
            for p, size in ((first.weight, 1e-20), (second.weight, 1e15))
        ]
    )
    model = scale * torch.randn(task.layout.size, generator=generator)
    before = -model if difference else None
    moved = 0
    for row in torch.arange(4).view(4, 1):
        clipped = clipped_sum(task, model, row, 0.5, before=before, backend="ghost")
        moved += float(clipped.norm()) > 0.49
        assert float(clipped.norm()) <= 0.5 * (1 + SLACK)
        assert not clipped_sum(task, model, row, 0.5, before=before, backend="vmap").any()
    assert moved > 1


LINEAR = nn.Linear(4, 4)
SHARED = nn.Linear(4, 4)
SHARED.weight = LINEAR.weight
NOT_LINEAR = {
    "no sequence": nn.Linear(4, 4),
    "nothing": nn.Sequential(),
    "several vectors an example": nn.Sequential(nn.Linear(4, 4)),
    "a flatten that mixes examples": nn.Sequential(nn.Flatten(0), nn.Linear(4, 4)),
    "a convolution": nn.Sequential(
        nn.Flatten(), nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 1, 1), nn.Flatten(), LINEAR
    ),
    "a parameter elsewhere": nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.PReLU()),
    "a normalization": nn.Sequential(
        nn.Flatten(), nn.Linear(4, 4), nn.LayerNorm(4, elementwise_affine=False)
    ),
    "used twice": nn.Sequential(nn.Flatten(), LINEAR, nn.ReLU(), LINEAR),
    "a shared weight": nn.Sequential(nn.Flatten(), LINEAR, nn.ReLU(), SHARED),
    "a weight of two": nn.Sequential(nn.Flatten(), weight_norm(nn.Linear(4, 4))),
    "overwrites the output": nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(inplace=True)),
}


@pytest.mark.parametrize("why", NOT_LINEAR)
def test_other_models_have_no_ghost(why: str) -> None:
    module = NOT_LINEAR[why]
    assert not ghost.is_linear(module, [name for name, _ in module.named_parameters()])


def test_a_model_that_can_have_no_ghost_is_refused_in_one_sentence(ledger: Ledger) -> None:
    with pytest.raises(
        ConfigurationError, match=r'backend = "ghost" needs a model of linear layers.*use "auto"'
    ):
        gate(make_small("cnn"), ledger, config_backend="ghost")
    task = make_small("mlp")
    asked = gate(task, ledger, config_backend="ghost")(task.initial_parameters(0), 0, "b")
    with Ledger.in_memory() as other:
        assert asked.equal(
            gate(task, other, config_backend="auto")(task.initial_parameters(0), 0, "b")
        )


def test_dropout_is_drawn_for_each_example() -> None:
    """One example 64 times: as many masks. The loop draws others, so auto takes the loop."""
    x = torch.ones(64, 1, 2, 2)
    task = Classification(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 32), nn.Dropout(0.5), nn.Linear(32, 3)),
        Examples(x, torch.zeros(64, dtype=torch.int64)),
        None,
    )
    start = task.initial_parameters(1)
    parameters = {name: start[place].view(shape) for name, shape, place in task.layout.slices()}
    delta, _ = ghost.factored(task)(parameters, task.batch(torch.arange(64)))["1.weight"]
    assert len({tuple(row) for row in (delta != 0).tolist()}) > 60
    assert probe(task) == "loop"
