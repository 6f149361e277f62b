"""Which backend computes per-example gradients: trials on made-up examples and parameters.

A backend is taken only if its bits don't depend on a record's place in a chunk or on what stands
beside it: float32 kernels round differently for other lengths, and a neighbor can choose a model
(huge weights whose logits cancel) that turns such a rounding into another class and so into 2C.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from traceback import walk_tb
from typing import Literal

import torch
from torch import Tensor, nn

from node import device
from node.maths import ghost
from node.maths.chunks import LANES, Backend, chunk_length
from node.maths.clipping import clipped_sum
from node.maths.per_example import looped, vmapped
from node.maths.purity import PROCESS_SEEDS, Impure, State, culprit, same
from node.maths.synthetic import SyntheticTask, Values, admissible
from node.task import Objective, views
from peer.errors import ConfigurationError, TaskError, first_line

UNCLIPPED = float("inf")
PROBE_ERROR = 1e-5
"""Largest relative difference from the loop at which another backend is trusted with an example."""

POINTS = 3
"""Made-up parameters at which bits are compared."""

PROBED = 5
"""Made-up examples of which more than half have to agree: one whose unit is at its kink differs by
1e-3 (seen in ResNet-8).
"""

ODD = 1e4
"""Times a usual number, as a broken sensor may give it."""

CONFIGURED: Mapping[Backend, str] = {
    "ghost": "ghost, as privacy.backend says",
    "vmap": "vmap, as privacy.backend says",
    "loop": "loop, as privacy.backend says",
}
"""The reason where the owner has chosen."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How per-example gradients are computed."""

    backend: Backend
    reason: str
    """Which and why, as the middle of a sentence. Nothing private has a part in it."""
    instead: str = ""
    """What to use so that the loop is not needed; empty where that is not known."""

    @property
    def slow(self) -> str:
        """Sentences where the loop was taken for want of anything better; else empty."""
        if self.backend != "loop" or self.reason == CONFIGURED["loop"]:
            return ""
        text = f"Gradients are computed example by example, which is slow: by the {self.reason}."
        return f"{text} To be faster, {self.instead}." if self.instead else text


def pick(wanted: Backend | Literal["auto"], task: Objective, chunk: int | None = None) -> Backend:
    """`choose`, without the reason."""
    return choose(wanted, task, chunk).backend


def probe(task: Objective, chunk: int | None = None) -> Backend:
    """`pick` for "auto"."""
    return pick("auto", task, chunk)


def choose(wanted: Backend | Literal["auto"], task: Objective, chunk: int | None = None) -> Choice:
    """What `privacy.backend` says. Auto: the first of "ghost" and "vmap" that agrees with the loop,
    mostly within PROBE_ERROR, and whose bits don't depend on a record's place; else "loop".

    All is tried on made-up examples and parameters, so that no record has a part in the choice, and
    no dead unit hides a bit that a neighbor's model could bring to light.

    Raises:
        Impure: an example's loss depends on what was asked before, whatever the backend.
        ConfigurationError: ghost is asked for, and the gradients are no outer products; or a
            gradient's bits depend on what else is in the batch, so that nothing bounds what one
            record changes.
    """
    if wanted == "ghost":
        ghost.factored(task)
    values = admissible(task)
    expected = _repeatable_gradients(task, values)
    if not values.telling:
        _repeatable_gradients(task, Values("own"))
    if wanted == "loop":
        return Choice("loop", CONFIGURED["loop"])
    if not values.telling and wanted == "auto":
        return Choice(
            "loop",
            "loop, since examples can't be made up for this task; give it a method example()",
        )
    if not values.telling and values.source == "own":
        values = Values()
    if wanted == "auto":
        return _first_that_agrees(task, chunk, values, expected)
    _refuse_unfit(task, wanted, chunk, values)
    return Choice(wanted, CONFIGURED[wanted])


def _refuse_unfit(task: Objective, wanted: Backend, chunk: int | None, values: Values) -> None:
    try:
        invariant = _is_batch_invariant(task, wanted, chunk, values)
    except Exception as error:  # the loss itself is right: the loop took it
        raise ConfigurationError(
            f'privacy.backend = "{wanted}" can\'t take this model ({_words(error)}); use "auto".'
        ) from error
    if not invariant:
        raise ConfigurationError(
            f'privacy.backend = "{wanted}" lets a gradient of this model depend on its place in '
            'the batch, so that clipping bounds nothing; use "auto".'
        )


def _first_that_agrees(
    task: Objective, chunk: int | None, values: Values, expected: list[Tensor]
) -> Choice:
    synthetic = SyntheticTask(task, PROBED, values)
    rows = torch.arange(PROBED).view(-1, 1)
    x, reason, instead = synthetic.initial_parameters(0), "", ""
    candidates: tuple[Backend, ...] = ("ghost", "vmap")
    for backend in candidates:
        try:
            actual = [clipped_sum(synthetic, x, row, UNCLIPPED, backend=backend) for row in rows]
            invariant = _is_batch_invariant(task, backend, chunk, values)
        except Exception as error:  # it can't take the model; the loop would raise the loss's own
            if backend == "vmap":
                layer, instead = _culprit(error)
                what = f"the layer {layer}" if layer else "this model"
                reason = f"vmap can't take {what} ({_words(error)})"
            continue
        close = [_close(a, b) for a, b in zip(actual, expected, strict=True)]
        if 2 * sum(close) > len(close) and invariant:
            return Choice(backend, f"{backend}, which gives what the loop gives")
        if backend == "vmap":
            fault = "differ from its" if invariant else "depend on the place in the batch"
            reason = f"vmap's gradients {fault}"
    return Choice("loop", f"loop, since {reason}", instead)


def _culprit(error: BaseException) -> tuple[str, str]:
    """The innermost layer whose forward pass raised, by its name in the model, and what to use
    instead; its name is empty where the error came from elsewhere (a backward pass, a function).
    """
    raised = _cause(error)
    callers = [frame.f_locals.get("self") for frame, _ in walk_tb(raised.__traceback__)]
    around = [caller for caller in callers if isinstance(caller, nn.Module)]
    if not around:
        return "", _instead(None, raised)
    names = {part: name for name, part in around[0].named_modules()}
    name = names.get(around[-1])
    kind = type(around[-1]).__name__
    return (f"{name!r} ({kind})" if name else kind), _instead(around[-1], raised)


def _instead(layer: nn.Module | None, error: BaseException) -> str:
    if isinstance(layer, nn.RNNBase):
        return (
            "make the task by peerpoise.module_task, of nn.RNN, nn.GRU or nn.LSTM without dropout "
            "between their layers, proj_size and packed sequences"
        )
    if "random" in str(error):
        return "leave out dropout, and whatever else draws random numbers"
    return (
        "use layers such as Linear, Conv, Embedding, GroupNorm and attention, without branches or "
        "shapes that depend on values"
    )


def _words(error: BaseException) -> str:
    """What a library says, in short; of an own task's error what was raised in it."""
    return textwrap.shorten(first_line(_cause(error)), 100, placeholder=" …")


def _cause(error: BaseException) -> BaseException:
    return error.__cause__ if isinstance(error, TaskError) and error.__cause__ else error


def _close(actual: Tensor, expected: Tensor) -> bool:
    """Within PROBE_ERROR, flat [d] each; what is not finite contributes zero to both."""
    return float((actual - expected).norm()) <= PROBE_ERROR * float(expected.norm())


def _repeatable_gradients(task: Objective, values: Values) -> list[Tensor]:
    """The gradients of PROBED examples at made-up parameters, by the loop: asked in turn, and again
    backwards; flat float64 [d] each.

    Raises:
        Impure: the two differ.
    """
    n = min(PROBED, task.num_examples) if values.source == "own" else PROBED
    synthetic, rows = SyntheticTask(task, n, values), torch.arange(n).view(-1, 1)
    x = synthetic.initial_parameters(0)

    def gradient(row: Tensor) -> Tensor:
        return clipped_sum(synthetic, x, row, UNCLIPPED, backend="loop")

    first = [gradient(row) for row in rows]
    _ask_odd(task, values)
    again = [gradient(row) for row in rows.flip(0)][::-1]
    for row, a, b in zip(rows, first, again, strict=True):
        if not torch.equal(a, b):
            raise Impure(_refusal(culprit(partial(gradient, row), partial(gradient, rows[-1]))))
    if not task.bundled:
        State.of(task).check = _canary(synthetic, x)
    return first


def _ask_odd(task: Objective, values: Values) -> None:
    """Asks for gradients of what is far outside: some layers move only then."""
    rows = torch.arange(2)
    with _passing_over_errors():
        odd = SyntheticTask(task, len(rows), replace(values, scale=ODD))
        clipped_sum(odd, odd.initial_parameters(0), rows, UNCLIPPED, backend="loop")


def _canary(synthetic: SyntheticTask, x: Tensor) -> Callable[[], None]:
    """Asks for one made-up example's gradient at x, by the loop, and raises Impure once it has
    other bits than now.
    """
    row = torch.arange(1)

    def gradient() -> list[Tensor]:
        parameters = views(synthetic.layout, device.onto(x, synthetic.device))
        gradients = looped(synthetic, PROCESS_SEEDS)(parameters, synthetic.batch(row), row)
        return list(gradients.values())

    expected = gradient()

    def check() -> None:
        if not all(map(same, expected, gradient())):
            raise Impure(_refusal(""))

    return check


def _refusal(layer: str) -> str:
    culprit_words = f"The layer {layer}" if layer else "The loss"
    return (
        f"{culprit_words} gives another value for the same example when it is asked again, so one "
        "record would reach the gradients of others and clipping would bound nothing. Keep nothing "
        "from call to call, and draw random numbers from torch's own generator only, which is "
        "seeded for each record."
    )


def _is_batch_invariant(
    task: Objective, backend: Backend, chunk: int | None, values: Values
) -> bool:
    """Has a record's gradient the same bits wherever it stands in a chunk, and whatever stands
    beside it?
    """
    length = chunk_length(chunk, task.layout.size, task.device, backend)
    synthetic, rows = SyntheticTask(task, length, values), torch.arange(length)
    points = [synthetic.initial_parameters(seed) for seed in range(POINTS)]
    if not all(_is_permutation_equivariant(synthetic, x, rows, backend) for x in points):
        return False
    others = SyntheticTask(task, length, replace(values, seed=1))
    if not _ignores_others(synthetic, others, points[0], backend):
        return False
    with _passing_over_errors():  # values may be outside of what the loss is defined for
        odd = SyntheticTask(task, length, replace(values, seed=1, scale=ODD))
        return _ignores_others(synthetic, odd, points[0], backend)
    return True


def _ignores_others(
    task: SyntheticTask, others: SyntheticTask, x: Tensor, backend: Backend
) -> bool:
    """Have the first rows' gradients at x the same bits when the rows beside them are others?"""
    rows, few = torch.arange(task.num_examples), LANES // 2
    batch = task.batch(rows)
    mixed = tuple(
        torch.cat([a[:few], b[few:]]) for a, b in zip(batch, others.batch(rows), strict=True)
    )
    alone = _chunk_gradients(task, x, batch, rows, backend)
    beside = _chunk_gradients(task, x, mixed, rows, backend)
    return all(same(a[:few], b[:few]) for a, b in zip(alone, beside, strict=True))


def _is_permutation_equivariant(task: Objective, x: Tensor, rows: Tensor, backend: Backend) -> bool:
    """Are the rows' gradients at x the same bits when the rows are moved?"""
    gradients = _chunk_gradients(task, x, task.batch(rows), rows, backend)
    for shift in (1, LANES // 2 + 1):
        moved = _chunk_gradients(task, x, task.batch(rows.roll(shift)), rows, backend)
        if not all(same(a.roll(shift, 0), b) for a, b in zip(gradients, moved, strict=True)):
            return False
    return True


def _chunk_gradients(
    task: Objective, x: Tensor, batch: tuple[Tensor, ...], rows: Tensor, backend: Backend
) -> list[Tensor]:
    """The gradients of a chunk at x, or their factors: [n, …] each."""
    parameters = views(task.layout, device.onto(x, task.device))
    if backend == "ghost":
        factors = ghost.factored(task)(parameters, batch)
        return [factor for pair in factors.values() for factor in pair]
    return list(vmapped(task)(parameters, batch, rows).values())


@contextmanager
def _passing_over_errors() -> Iterator[None]:
    """What can't be computed tells nothing; what is impure does."""
    try:
        yield
    except Impure:
        raise
    except Exception:
        pass
