"""Nothing of one record may depend on which others are asked for: not in batch(), not in a kernel,
not in a state.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kit.small_task import gate
from kit.zoo import RECORDS, Kind, Model, Waking
from node.maths.backends import choose, pick
from node.maths.clipping import SLACK, clipped_sum, mean_gradient
from node.maths.purity import Impure
from node.privacy.suspects import Suspects
from node.task import Objective, views
from peer.errors import ConfigurationError

EVERY = torch.arange(RECORDS)
Batch = Callable[[Model, Tensor], tuple[Tensor, ...]]


def of_batch(batch: Batch) -> Model:
    task = Kind(lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))).make()
    plain: Any = task.batch
    setattr(task, "batch", lambda rows: batch(plain, rows))  # noqa: B010
    return task


def standardized(plain: Any, rows: Tensor) -> tuple[Tensor, ...]:
    x, y = plain(rows)
    return (x - x.mean(0)) / (x.std(0, unbiased=False) + 1), y


def by_the_largest(plain: Any, rows: Tensor) -> tuple[Tensor, ...]:
    x, y = plain(rows)
    return x / x.abs().max(), y


def augmented(plain: Any, rows: Tensor) -> tuple[Tensor, ...]:
    x, y = plain(rows)
    return x + 0.5 * torch.randn_like(x), y


def mixed(plain: Any, rows: Tensor) -> tuple[Tensor, ...]:
    x, y = plain(rows)
    return 0.5 * (x + x.flip(0)), y


def from_the_first(plain: Any, rows: Tensor) -> tuple[Tensor, ...]:
    result: tuple[Tensor, ...] = plain(rows - rows.min())
    return result


def with_a_graph(plain: Any, rows: Tensor) -> tuple[Tensor, ...]:
    x, y = plain(rows)
    return x * torch.ones(6, requires_grad=True), y


BATCHES = [standardized, by_the_largest, augmented, mixed, from_the_first, with_a_graph]


@pytest.mark.parametrize("wanted", ["auto", "loop", "vmap"])
@pytest.mark.parametrize("batch", BATCHES)
def test_a_batch_that_looks_at_its_rows_together_mixes_nothing(batch: Batch, wanted: Any) -> None:
    here, there = of_batch(batch), of_batch(batch)
    backend = pick(wanted, here, 16)
    x = 3 * here.initial_parameters(0)
    whole = clipped_sum(here, x, EVERY, 1.0, chunk=16, backend=backend)
    for record in (0, RECORDS // 2, RECORDS - 1):
        rest = clipped_sum(there, x, EVERY[EVERY != record], 1.0, chunk=16, backend=backend)
        assert float((whole - rest).norm()) <= 1 + SLACK


def test_power_asked_together_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "indexes", True, raising=False)
    task = of_batch(standardized)
    x = 3 * task.initial_parameters(0)
    moved = clipped_sum(task, x, EVERY, 1.0, chunk=16) - clipped_sum(
        task, x, EVERY[1:], 1.0, chunk=16
    )
    assert float(moved.norm()) > 1.5


@pytest.mark.parametrize("of", [clipped_sum, mean_gradient])
def test_rows_of_other_shapes_are_a_sentence(of: Any) -> None:
    def padded_to_the_longest(plain: Any, rows: Tensor) -> tuple[Tensor, ...]:
        x, y = plain(rows)
        return x[:, : 3 + int(rows.max()) % 3], y

    task = of_batch(padded_to_the_longest)
    more = () if of is mean_gradient else (1.0,)
    with pytest.raises(ConfigurationError, match="pad them to one length"):
        of(task, task.initial_parameters(0), EVERY, *more)


class ByTheBatch(torch.autograd.Function):
    """Its rule for vmap divides by the largest of the batch."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x / x.abs().max()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g / x.abs().max()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
        return ByTheBatch.apply(x), in_dims[0]


class Divided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = ByTheBatch.apply(x)
        return result


def test_a_rule_for_vmap_that_mixes_is_not_taken() -> None:
    task = Kind(lambda: nn.Sequential(nn.Linear(6, 4), Divided(), nn.Linear(4, 3))).make()
    assert choose("auto", task, 16).backend == "loop"
    with pytest.raises(ConfigurationError, match='use "auto"'):
        pick("vmap", task, 16)


class WritesParameters(Model):
    """What `.data` changes has no version."""

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        loss = super().mean_loss(parameters, batch)
        for value in parameters.values():
            value.data.mul_(0.5)
        return loss


def test_parameters_that_the_loss_writes_are_its_own() -> None:
    """In the loop each record has a copy of its own."""
    task = WritesParameters(lambda: nn.Linear(6, 3), Kind(lambda: nn.Linear(6, 3)).columns)
    x = task.initial_parameters(0)
    before = x.clone()
    whole, rest = (clipped_sum(task, x, rows, 1.0, backend="loop") for rows in (EVERY, EVERY[1:]))
    assert float((whole - rest).norm()) <= 1 + SLACK
    assert x.equal(before)


GATE = 100.0


class Waits(nn.Module):
    """Begins to remember when it sees something odd."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.mean, self.bag = kind, torch.zeros(6), {"mean": np.zeros(6, np.float32)}

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "rebound":
            x, seen = x - self.mean, x.detach().reshape(-1, 6)[-1]
            self.mean = self.mean + 0.1 * seen if float(seen.abs().max()) > GATE else self.mean
        else:
            x, seen = x - torch.from_numpy(self.bag["mean"].copy()), x.detach().reshape(-1, 6)[-1]
            if float(seen.abs().max()) > GATE:
                self.bag["mean"] += 0.1 * seen.numpy()
        return x


@pytest.mark.parametrize("kind", ["rebound", "numpy"])
def test_what_begins_to_remember_is_refused_at_the_start_or_when_it_does(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> Model:
        return Kind(lambda: nn.Sequential(Waits(kind), nn.Linear(6, 3))).make()

    with pytest.raises(Impure):
        pick("loop", made(), 16)
    monkeypatch.setattr("node.maths.backends._ask_odd", lambda *_: None)
    task = made()
    assert pick("loop", task, 16) == "loop"
    with pytest.raises(Impure, match="asked again"):
        clipped_sum(task, task.initial_parameters(0), EVERY, 1.0, backend="loop")


class Own(Model):
    """A task with an attribute of a name that ours have."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._task = self


def test_an_attribute_of_a_task_hides_nothing() -> None:
    task = Own(
        lambda: nn.Sequential(Waking(awake=True), nn.Linear(6, 3)),
        Kind(lambda: nn.Linear(6, 3)).columns,
    )
    with pytest.raises(Impure):
        pick("loop", task, 16)


class Picky(Model):
    """Its loss raises for what is far out, as a Cholesky factor does."""

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        z = torch.func.functional_call(self.net, dict(parameters), (batch[0],))
        return nn.functional.binary_cross_entropy(z.sigmoid().mean(-1), 0.5 + 0 * batch[1].float())


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_a_model_at_which_the_loss_raises_costs_its_records_not_the_run(backend: Any) -> None:
    task = Picky(lambda: nn.Linear(6, 3), Kind(lambda: nn.Linear(6, 3)).columns)
    unusable: list[Tensor] = []
    x = task.initial_parameters(0)
    task.columns[0][5] = float("nan")
    whole = clipped_sum(task, x, EVERY, 1.0, chunk=16, backend=backend, on_unusable=unusable.append)
    assert torch.cat(unusable).unique().tolist() == [5]
    rest = clipped_sum(task, x, EVERY[EVERY != 5], 1.0, chunk=16, backend=backend)
    torch.testing.assert_close(whole, rest, atol=1e-12, rtol=1e-12)
    hostile = torch.full_like(x, float("nan"))
    assert not clipped_sum(task, hostile, EVERY, 1.0, chunk=16, backend=backend).any()


def test_a_loss_that_raises_whatever_it_is_given_ends_the_run() -> None:
    task = Kind(lambda: nn.Linear(6, 3)).make()
    task.mean_loss = lambda *_: 1 / 0  # type: ignore[method-assign, assignment]
    with pytest.raises(ZeroDivisionError):
        clipped_sum(task, task.initial_parameters(0), EVERY, 1.0, backend="loop")


def test_gradients_are_taken_where_somebody_switched_them_off() -> None:
    task = Kind(lambda: nn.Linear(6, 3)).make()
    expected = clipped_sum(task, task.initial_parameters(0), EVERY, 1.0, backend="loop")
    with torch.no_grad():
        assert clipped_sum(task, task.initial_parameters(0), EVERY, 1.0, backend="loop").equal(
            expected
        )
        assert mean_gradient(task, task.initial_parameters(0), EVERY).any()


def test_private_values_don_t_choose_where_made_up_ones_tell_nothing() -> None:
    class Rare(Model):
        """Only the class 2 counts, of which made-up labels are none."""

        def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
            z = torch.func.functional_call(self.net, dict(parameters), (batch[0],))
            return (
                nn.functional.cross_entropy(z, batch[1], reduction="none") * (batch[1] == 2)
            ).mean()

    choices = []
    for label in (0, 2):
        task = Rare(lambda: nn.Linear(6, 3), Kind(lambda: nn.Linear(6, 3)).columns)
        task.columns[1][:] = label
        choices.append(choose("auto", task, 16))
    assert choices[0] == choices[1]
    assert choices[0].backend == "loop"
    assert views(task.layout, task.initial_parameters(0))


def test_a_batch_that_can_t_be_read_is_no_record_s_fault() -> None:
    """A drive that goes away ends the run, also if it comes back."""
    calls = iter([OSError("the drive is gone")])

    def gone(plain: Any, rows: Tensor) -> tuple[Tensor, ...]:
        if error := next(calls, None):
            raise error
        result: tuple[Tensor, ...] = plain(rows)
        return result

    task = of_batch(gone)
    with pytest.raises(OSError, match="gone"):
        clipped_sum(task, task.initial_parameters(0), EVERY, 1.0, backend="loop")
    assert clipped_sum(task, task.initial_parameters(0), EVERY, 1.0, backend="loop").any()


def test_a_task_ends_with_its_state() -> None:
    task = Kind(lambda: nn.Linear(6, 3)).make()
    assert clipped_sum(
        task, task.initial_parameters(0), EVERY, 1.0, backend=pick("auto", task, 16)
    ).any()
    gone = weakref.ref(task)
    del task
    gc.collect()
    assert gone() is None


def test_a_copy_of_a_task_has_a_state_of_its_own() -> None:
    task = Kind(lambda: nn.Sequential(Waking(), nn.Linear(6, 3))).make()
    assert clipped_sum(task, task.initial_parameters(0), EVERY, 1.0, backend="loop").any()
    other = copy.deepcopy(task)
    layer = next(other.net.children())
    assert isinstance(layer, Waking)
    layer.awake = True
    with pytest.raises(Impure):
        clipped_sum(other, other.initial_parameters(0), EVERY, 1.0, backend="loop")


def test_a_loss_that_is_constant_for_a_batch_has_no_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = Kind(lambda: nn.Linear(6, 3)).make()
    monkeypatch.setattr(task, "mean_loss", lambda *_: torch.tensor(1.0))
    assert not mean_gradient(task, task.initial_parameters(0), EVERY).any()


def test_rows_that_raise_ask_made_up_examples_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbor's model that makes all of them raise costs no more than that."""
    task = Picky(lambda: nn.Linear(6, 3), Kind(lambda: nn.Linear(6, 3)).columns)
    asked: list[Objective] = []

    def raises(task: Objective) -> bool:
        asked.append(task)
        return False

    monkeypatch.setattr("node.maths.clipping._raises", raises)
    assert not clipped_sum(task, torch.full((21,), float("nan")), EVERY, 1.0, chunk=16).any()
    assert len(asked) == 1


def test_a_row_cleared_at_a_neighbors_model_is_reported_at_one_s_own() -> None:
    task = Kind(lambda: nn.Linear(6, 3)).make()
    reported: list[list[int]] = []
    suspects = Suspects(task, 0, lambda t, rows: reported.append(rows.tolist()))
    suspects.examine(0, torch.tensor([3]), own_model=False)
    assert reported == []
    suspects.examine(1, torch.tensor([3]), own_model=True)
    suspects.examine(2, torch.tensor([3]), own_model=True)
    assert reported == [[3]]


def test_without_noise_augmentation_is_new_in_each_round_and_the_same_when_repeated() -> None:
    def gradient(t: int) -> Tensor:
        task = of_batch(augmented)
        plain = gate(task, None, config_mode="none", config_batch=RECORDS, seed=1)
        return plain.own(task.initial_parameters(0), t)

    assert gradient(0).equal(gradient(0))
    assert not torch.allclose(gradient(0), gradient(1))


class Clamps(Model):
    """Keeps parameters small, by the way and behind autograd's back."""

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        loss = super().mean_loss(parameters, batch)
        for value in parameters.values():
            value.data.clamp_(-1e-3, 1e-3)
        return loss


def test_parameters_that_vmap_lets_a_loss_write_are_a_refusal_and_the_callers_stay() -> None:
    task = Clamps(lambda: nn.Linear(6, 3), Kind(lambda: nn.Linear(6, 3)).columns)
    x = task.initial_parameters(0)
    before = x.clone()
    with pytest.raises(Impure, match="changes the parameters"):
        clipped_sum(task, x, EVERY, 1.0, chunk=16, backend="vmap")
    assert x.equal(before)
