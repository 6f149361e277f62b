"""The gate within a block: a part of the gradient, clipped over that part alone; else a release
like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kit.small_task import Small, gate, make_small
from node.maths.blocks import Block, partition_blocks
from node.maths.chunks import Backend
from node.maths.clipping import clipped_sum, mean_gradient
from node.privacy.accountant import Mechanism, Spent, epsilon_pld
from node.privacy.block_objective import BlockObjective
from node.privacy.ledger import Ledger
from peer.message import Layout, Withheld

STAGES = {
    "mlp": [["1.weight", "1.bias"], ["3.weight", "3.bias"]],
    "cnn": [["0.weight", "0.bias"], ["2.weight", "2.bias"], ["5.weight", "5.bias"]],
}
BACKENDS = [("mlp", "ghost"), ("mlp", "vmap"), ("mlp", "loop"), ("cnn", "vmap"), ("cnn", "loop")]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger", "data") as opened:
        yield opened


def blocks(task: Small, kind: str) -> tuple[Block, ...]:
    return partition_blocks(task.layout, STAGES[kind], 1)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("micro_batch", [None, 1, 7])
def test_a_block_s_gradient_is_its_part_of_the_whole_one(
    kind: str, micro_batch: int | None
) -> None:
    """Also accumulated over parts of the batch."""
    task, rows = make_small(kind), torch.arange(20)
    x = task.initial_parameters(0)
    whole = mean_gradient(task, x, rows)
    for block in blocks(task, kind):
        within = BlockObjective(task, x, block)
        task.micro_batch = micro_batch
        torch.testing.assert_close(
            mean_gradient(within, x[block.span], rows), whole[block.span], atol=1e-6, rtol=1e-5
        )


def test_backward_stops_at_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is given a gradient, or asked for one."""
    task = make_small("mlp")
    x, loss = task.initial_parameters(0), task.mean_loss
    seen: list[dict[str, Tensor]] = []

    def noted(parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        seen.append(dict(parameters))
        return loss(parameters, batch)

    monkeypatch.setattr(task, "mean_loss", noted)
    block = blocks(task, "mlp")[1]
    mean_gradient(BlockObjective(task, x, block), x[block.span], torch.arange(5))
    assert {name for name, value in seen[0].items() if value.requires_grad} == {
        "3.weight",
        "3.bias",
    }
    assert seen[0].keys() == {name for name, _ in task.layout.fields}


@pytest.mark.parametrize(("kind", "backend"), BACKENDS)
def test_examples_are_clipped_over_the_block_alone(kind: str, backend: Backend) -> None:
    """Against autograd, one by one. Power: clipped over the whole model it is another sum."""
    task, rows, clip = make_small(kind), torch.arange(9), 0.05
    x = task.initial_parameters(0)
    for block in blocks(task, kind):
        expected, other = (
            torch.zeros(block.size, dtype=torch.float64),
            torch.zeros(block.size, dtype=torch.float64),
        )
        for row in rows:
            g = mean_gradient(task, x, row.view(1)).double()
            part = g[block.span]
            expected += part * min(1.0, clip / float(part.norm()))
            other += part * min(1.0, clip / float(g.norm()))
        actual = clipped_sum(
            BlockObjective(task, x, block), x[block.span], rows, clip, backend=backend
        )
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)
        assert not torch.allclose(actual, other, atol=1e-4)


@pytest.mark.parametrize("backend", ["auto", "loop", "ghost"])
def test_it_is_one_release_debited_repeated_and_refused_like_any(
    ledger: Ledger, backend: str
) -> None:
    task = make_small("mlp")
    strict = gate(task, ledger, releases=1, config_backend=backend, full_gradient=False)
    x = task.initial_parameters(0)
    block, other = blocks(task, "mlp")
    within, theta = strict.within(x, block), x[block.span]
    first = within(theta, 0)
    assert first.shape == (block.size,)
    assert torch.equal(within(theta, 0), first), "the same bytes"
    assert ledger.count("run", 0) == 1
    with pytest.raises(Withheld):
        within(theta + 1, 0)
    with pytest.raises(Withheld):
        strict.within(x, other)(x[other.span], 0)
    within(theta, 1)
    assert ledger.count("run", 1) == 1


def test_the_noise_of_a_block_has_the_release_s_deviation(ledger: Ledger) -> None:
    """std of (a − b) of two rounds: √2 σC/B beside the batches' own, which clip = 1e-6 makes
    nothing.
    """
    task = make_small("mlp")
    strict = gate(
        task, ledger, releases=1, config_clip=1e-6, sigma=3.0, config_sigma=3.0, full_gradient=False
    )
    x = task.initial_parameters(0)
    block = blocks(task, "mlp")[0]
    within = strict.within(x, block)
    apart: Tensor = within(x[block.span], 0) - within(x[block.span], 1)
    assert float(apart.std()) == pytest.approx(2**0.5 * 3e-6 / 20, rel=0.1)


def test_a_spent_budget_gives_zeros_for_me(ledger: Ledger) -> None:
    task = make_small("mlp")
    limit = epsilon_pld([Spent(Mechanism(sigma=1.0, rate=0.5), 1)], 1e-5) * 1.01
    strict = gate(task, ledger, releases=1, limit=limit, full_gradient=False)
    block = blocks(task, "mlp")[1]
    within = strict.within(task.initial_parameters(0), block)
    assert within(task.initial_parameters(0)[block.span], 0).any()
    release = within(task.initial_parameters(0)[block.span], 1)
    assert torch.equal(release, torch.zeros(block.size))
    assert strict.exhausted


def test_a_layout_that_is_not_the_stages_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        partition_blocks(Layout((("a", (1,)), ("b", (1,)))), [["b"], ["a"]], 1)
