"""Per-example gradients, clipped and summed: equation (1) and the sum of (2) of DPDL, for any model
x.

    Σ_b ĝ_b(x),   ĝ_b = g_b · min{1, C/‖g_b‖}          or, for two models,   Σ_b clip_C( ĝ_b(x) − ĝ_b(x′) )

Ghost clipping where gradients are outer products (node/maths/ghost.py), `vmap(grad(loss))`
elsewhere, a loop for models that vmap can't take; over chunks of examples, clipped inside the chunk
(memory of one chunk). Norms and sums end in float64, so that one record moves the sum by at most
C(1 + SLACK) plus 1e-15 per record.

That needs every record's gradient, or its factors, to have the same bits whichever other records
are in the batch: float32 kernels round differently for other lengths, and a neighbor can choose a
model (huge weights whose logits cancel) that turns such a rounding into another class and so into
2C. Therefore every chunk is filled up to one fixed length, `choose` takes a backend only if its
bits don't depend on the place in the chunk, and what a task holds may not change while its records
are asked (node/maths/purity.py). Not covered: kernels that are not deterministic at all.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Literal

import torch
from torch import Tensor

from node import device
from node.maths import ghost
from node.maths.per_example import Gradients, backward, device_of, fetch, looped, scalar, vmapped
from node.maths.purity import PROCESS_SEEDS, Impure, Seeds, State, culprit, same
from node.maths.synthetic import SyntheticTask, Values, admissible
from node.task import Task, views
from peer.errors import ConfigurationError, TaskError, first_line

Backend = Literal["ghost", "vmap", "loop"]

SLACK = 1e-6
"""A record's contribution is at most C(1 + SLACK): the rounding of its norm. The noise's
sensitivity holds it.
"""

RUN = 128
"""Squares summed in float32 before float64 takes over: error of a norm ≤ 6e-7 (plain float32: 2e-6
was measured).
"""

COLUMNS = 8192
"""Columns converted to float64 at a time (2 MiB at 32 examples)."""

CHUNK_ELEMENTS = 1 << 22
"""Elements of a chunk's gradients, 16 MiB. vmap costs about a millisecond a chunk however small the
model is, and a chunk that falls out of the cache costs more than it saves: tests/bench/gradient.py
--chunks shows both ends."""

UNCLIPPED = float("inf")
PROBE_ERROR = 1e-5
"""Largest relative difference from the loop at which another backend is trusted with an example."""
REHEARSALS = 3
"""Parameters at which bits are compared."""
PROBED = 5
"""Examples of which more than half have to agree: one whose unit is at its kink differs by 1e-3
(seen in ResNet-8).
"""


SMALL = 1 << 14
"""Parameters up to which a chunk costs its calls, not its examples."""
LANES = 16
"""Chunks are multiples of this: kernels treat the rows of a whole block alike."""
GPU_CHUNK = 512
"""Largest chunk on a GPU, where a launch costs more than a row."""
GHOST_CHUNK = 128
"""Holds no gradients: calls against what filling up costs. Within 20 % of the best length for
batches of 64 to 500.
"""


def chunk_for(d: int, where: torch.device = device.CPU, backend: Backend = "vmap") -> int:
    """Examples per chunk for d parameters: a power of two from 16 to 64, CHUNK_ELEMENTS/d in
    between; 128 for models so small that filling a chunk up costs less than a second one. On a GPU
    what a third of its free memory holds."""
    if backend == "ghost":
        return GPU_CHUNK if where.type == "cuda" else GHOST_CHUNK
    if where.type == "cuda":
        return max(LANES, 1 << device.room(where, 4 * d, GPU_CHUNK).bit_length() - 1)
    return 128 if d <= SMALL else max(LANES, min(64, 1 << (CHUNK_ELEMENTS // d).bit_length() >> 1))


def _length(chunk: int | None, d: int, where: torch.device, backend: Backend) -> int:
    """Examples of every chunk, whatever was asked for."""
    return -(-(chunk or chunk_for(d, where, backend)) // LANES) * LANES


def pad_to_chunk(rows: Tensor, chunk: int) -> Tensor:
    """`rows` (int64 [n], 0 < n ≤ chunk) and copies of its first up to `chunk` rows; what the copies
    give is dropped.
    """
    return torch.cat([rows, rows[:1].expand(chunk - len(rows))])


def _rest() -> None:
    pass


def _ignore(rows: Tensor) -> None:
    pass


def clipped_sum(
    task: Task,
    x: Tensor,
    rows: Tensor,
    clip: float,
    *,
    before: Tensor | None = None,
    chunk: int | None = None,
    least: int = 0,
    backend: Backend = "vmap",
    seeds: Seeds = PROCESS_SEEDS,
    yield_point: Callable[[], None] = _rest,
    on_unusable: Callable[[Tensor], None] = _ignore,
) -> Tensor:
    """Σ over `rows` (int64 [n], n may be 0) of the clipped gradients at x (flat float32 [d]): flat
    float64 [d]. Computed on the task's device, from and to the CPU.

    With `before` (a model as x) it is Σ of what each example's clipped gradient at x has more than
    that at `before`, clipped once more. (Differences of clipped gradients add up to a clipped
    gradient, those of plain ones don't.)

    Each record contributes at most clip·(1 + SLACK) whatever the models are; a non-finite gradient
    contributes zero, and `on_unusable` is told its row number (int64 [k]). Backend "loop": while a
    row's loss is computed, torch's generator has its seed of `seeds`. `yield_point` is called after
    every `chunk` examples (None: `chunk_for` the model). `least`: with fewer rows the work of so
    many is done all the same, by chunks, and dropped, so that the time it takes doesn't tell how
    many there are.

    Raises:
        Impure: the loss changed a tensor that the task holds, so that nothing bounds what one
        record does.
    """
    where = device_of(task)
    wide = where if where.type == "cuda" else device.CPU  # Apple's GPUs have no float64
    chunk = _length(chunk, task.layout.size, where, backend)
    total = torch.zeros(task.layout.size, dtype=torch.float64, device=wide)
    gradients = looped(task, seeds) if backend == "loop" else vmapped(task)
    summed = (
        _ghost_clipper(task, clip, wide)
        if backend == "ghost"
        else _materialized_clipper(gradients, clip, wide)
    )
    given = [each.detach() for each in (x, before) if each is not None]
    copies = [device.onto(each, where).clone() for each in given]
    models = [views(task.layout, each) for each in copies]
    state, hopeless = (
        State.of(task),
        lru_cache(lambda: _raises(task)),
    )  # asked once, however many rows raise

    def ask(part: Tensor, batch: tuple[Tensor, ...]) -> Sums:
        index = (
            torch.arange(len(part))
            if backend == "loop"
            else pad_to_chunk(torch.arange(len(part)), chunk)
        )
        if len(index) != len(part):
            batch = tuple(column[index.to(column.device)] for column in batch)
        return summed(models, batch, part[index], len(part))

    with state.unchanged():
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            with device.enough_memory():
                sums, usable = _despite_errors(ask, part, fetch(task, part, seeds), hopeless)
                _add(total, task, sums)
            if not bool(usable.all()):
                on_unusable(part[~usable.cpu()])
            yield_point()
        for part in _dropped(task, len(rows), least, chunk):
            with device.enough_memory():
                batch = fetch(task, part, seeds)
                if backend == "loop" or len(part) == chunk:  # other backends fill a chunk up anyway
                    _despite_errors(ask, part, batch, hopeless)
            if len(part) == chunk:
                yield_point()
    for copy, each in zip(copies, given, strict=True):
        if not same(copy.cpu(), each.cpu()):
            raise Impure(CHANGED)
    if not isinstance(task, SyntheticTask):
        state.check()
    return device.back(total)


CHANGED = "The loss changes the parameters it is given (as an embedding with max_norm does); leave that out."


def _dropped(task: Task, n: int, least: int, chunk: int) -> Iterator[Tensor]:
    """Rows that are asked beside n others and dropped, int64: up to the end of the last chunk, then
    chunk by chunk.
    """
    if not least or not task.num_examples:
        return
    end = -(-max(n, least) // chunk) * chunk
    starts = [*([n] if n % chunk else []), *range(-(-n // chunk) * chunk, end, chunk)]
    for start in starts:
        yield torch.arange(chunk - start % chunk) % task.num_examples


def _despite_errors(
    ask: Ask, rows: Tensor, batch: tuple[Tensor, ...], hopeless: Callable[[], bool]
) -> Sums:
    """The sum over the rows. A row whose loss raises, which it may do at a neighbor's model,
    contributes zero: {}.

    Raises:
        whatever the loss raises, if it does so with made-up values too: then it is no model's
        fault.
    """
    try:
        return ask(rows, batch)
    except (Impure, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "memory" in first_line(error) or hopeless():
            raise
        if len(rows) == 1:
            return {}, torch.tensor([False])
    half = len(rows) // 2
    sums, usable = _despite_errors(
        ask, rows[:half], tuple(column[:half] for column in batch), hopeless
    )
    more, others = _despite_errors(
        ask, rows[half:], tuple(column[half:] for column in batch), hopeless
    )
    both = {name: sums[name] + more[name] for name in sums} if sums and more else sums or more
    return both, torch.cat([usable.cpu(), others.cpu()])


def _raises(task: Task) -> bool:
    """Does its loss raise whatever it is given?"""
    try:
        admissible(task)
    except Exception:
        return True
    return False


Sums = tuple[Mapping[str, Tensor], Tensor]
"""A clipped sum, float64 by parameter, and which examples have a finite gradient, bool [n]."""
Ask = Callable[[Tensor, tuple[Tensor, ...]], Sums]
"""(row numbers, their examples) -> their clipped sum."""
Summed = Callable[[Sequence[Mapping[str, Tensor]], tuple[Tensor, ...], Tensor, int], Sums]
"""(one model or two, a chunk, its row numbers, how many of them count) -> their clipped sum."""


def _ghost_clipper(task: Task, clip: float, wide: torch.device) -> Summed:
    factored = ghost.factored(task)
    ours = _is_ours(task)  # such a one draws nothing, and other threads share the generator

    def factors(model: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> ghost.Factors:
        before = torch.get_rng_state()
        result = factored(model, batch)
        if not ours and not torch.equal(before, torch.get_rng_state()):
            raise Impure(
                "The task's factors() draw random numbers, the same for no record; leave that to loss."
            )
        return result

    def summed(
        models: Sequence[Mapping[str, Tensor]], batch: tuple[Tensor, ...], rows: Tensor, n: int
    ) -> Sums:
        each = [factors(model, batch) for model in models]
        kept = [
            {name: (delta[:n].to(wide), a[:n].to(wide)) for name, (delta, a) in it.items()}
            for it in each
        ]
        return ghost.clip_and_sum(kept, clip)

    return summed


def _is_ours(task: Task) -> bool:
    """Does it come with peerpoise?"""
    while isinstance(task, SyntheticTask):
        task = task._task
    return getattr(task, "indexes", False)


def _materialized_clipper(gradients: Gradients, clip: float, wide: torch.device) -> Summed:
    def summed(
        models: Sequence[Mapping[str, Tensor]], batch: tuple[Tensor, ...], rows: Tensor, n: int
    ) -> Sums:
        each = [
            {name: g.to(wide) for name, g in gradients(model, batch, rows).items()}
            for model in models
        ]
        found = each[0] if len(each) == 1 else _difference(each[0], each[1], clip)
        return clip_and_sum({name: g[:n] for name, g in found.items()}, clip)

    return summed


def clip_and_sum(gradients: Mapping[str, Tensor], clip: float) -> tuple[dict[str, Tensor], Tensor]:
    """Clips a chunk of per-example gradients ({name: [n, *shape]}) and sums it over n: {name:
    float64 [*shape]}, and which examples were finite, bool [n].

    An example whose norm is not finite in float32 is masked, not clamped: 0·NaN would be NaN.
    """
    norm = torch.linalg.vector_norm(
        torch.stack([_norms(_flat(g)) for g in gradients.values()]), dim=0
    )
    usable = norm.isfinite()
    if not bool(usable.all()):
        gradients = {name: g[usable] for name, g in gradients.items()}
        norm = norm[usable]
    factor = (clip / norm).clamp(max=1.0)
    return {
        name: _weighted_sum(factor, _flat(g)).view(g.shape[1:]) for name, g in gradients.items()
    }, usable


def _difference(
    here: dict[str, Tensor], there: dict[str, Tensor], clip: float
) -> dict[str, Tensor]:
    """What each of a chunk's gradients, clipped, has more here than there. The arguments are used
    up.
    """
    _clip(here, clip)
    _clip(there, clip)
    return {name: here.pop(name).sub_(there.pop(name)) for name in list(here)}


def _clip(gradients: dict[str, Tensor], clip: float) -> None:
    """Clips each of a chunk's gradients, in its own type; one that is not finite becomes NaN, or
    zero.
    """
    norm = torch.linalg.vector_norm(
        torch.stack([_norms(_flat(g)) for g in gradients.values()]), dim=0
    )
    factor = (clip / norm).clamp(max=1.0)
    for name, g in gradients.items():
        gradients[name] = g * factor.to(g.dtype).view(-1, *[1] * (g.dim() - 1))


def _flat(g: Tensor) -> Tensor:
    """[n, *shape] as [n, m]; a scalar parameter's has no shape."""
    return g.flatten(1) if g.dim() > 1 else g.unsqueeze(1)


def _norms(g: Tensor) -> Tensor:
    """Row norms of g [n, m], float64 [n]: float32 over runs of RUN elements, float64 over the
    runs.
    """
    n, m = g.shape
    whole = m // RUN * RUN
    runs = torch.linalg.vector_norm(g[:, :whole].reshape(n, -1, RUN) if whole else g[:, :0], dim=-1)
    rest = torch.linalg.vector_norm(g[:, whole:], dim=1)
    norms: Tensor = torch.linalg.vector_norm(
        torch.cat([runs.view(n, -1), rest.view(n, 1)], 1).double(), dim=1
    )
    return norms


def _weighted_sum(factor: Tensor, g: Tensor) -> Tensor:
    """factor [n] @ g [n, m] in float64, by blocks of columns that fit the cache."""
    return torch.cat(
        [factor @ g[:, i : i + COLUMNS].to(torch.float64) for i in range(0, g.shape[1], COLUMNS)]
    )


def _add(total: Tensor, task: Task, summed: Mapping[str, Tensor]) -> None:
    for name, place in views(task.layout, total).items() if summed else ():
        place += summed[name].view_as(place)


def mean_gradient(
    task: Task,
    x: Tensor,
    rows: Tensor,
    on_unusable: Callable[[Tensor], None] = _ignore,
    seeds: Seeds = PROCESS_SEEDS,
) -> Tensor:
    """Gradient of the mean loss over `rows` at x, flat float32 [d], without clipping; zeros for no
    rows (mode none). Accumulated over parts of the batch where the task takes only so many examples
    `micro_batch`. `on_unusable` is told the row numbers of a part whose loss is not finite. `seeds`
    are those of an own task's `batch`.

    Raises:
        Impure: the loss changed a tensor that the task holds, which would be no part of the shared
        model. TaskError: it is no scalar, or changed the parameters.
    """
    if not len(rows):
        return torch.zeros(task.layout.size)
    with device.enough_memory(), State.of(task).unchanged(), torch.enable_grad():
        there = device.onto(x.detach(), device_of(task))
        leaves = {
            name: value.detach().requires_grad_()
            for name, value in views(task.layout, there).items()
        }
        version = there._version
        total = torch.zeros_like(there)
        for name, place in views(task.layout, total).items():
            leaves[name].grad = place  # backward adds to it where it lies
        for part in torch.split(rows, getattr(task, "micro_batch", None) or len(rows)):
            loss = scalar(task.mean_loss(leaves, fetch(task, part, seeds)))
            if not bool(loss.isfinite()):
                on_unusable(part)
            if loss.requires_grad:
                backward(loss * (len(part) / len(rows)), list(leaves.values()))
        if there._version != version:
            raise Impure(CHANGED)
        return device.back(total.to(torch.float32))


def unusable(task: Task, rows: Tensor, x: Tensor) -> Tensor:
    """The rows (int64 [k]) whose gradient is not finite, or can't be computed, at x."""
    parameters = views(task.layout, device.onto(x.detach().to(torch.float32), device_of(task)))
    return torch.stack(
        [row for row in rows if not _finite(task, parameters, row.view(1))] or [rows[:0]]
    ).view(-1)


def _finite(task: Task, parameters: Mapping[str, Tensor], row: Tensor) -> bool:
    try:
        gradients = looped(task, PROCESS_SEEDS)(parameters, fetch(task, row, PROCESS_SEEDS), row)
    except TaskError:
        return False
    return all(bool(g.isfinite().all()) for g in gradients.values())


ASKED: Mapping[Backend, str] = {
    it: f"{it}, as privacy.backend says" for it in ("ghost", "vmap", "loop")
}


@dataclass(frozen=True, slots=True)
class Choice:
    """How per-example gradients are computed."""

    backend: Backend
    reason: str
    """Which and why, as the middle of a sentence. Nothing private has a part in it."""

    @property
    def slow(self) -> str:
        """A sentence where the loop was taken for want of anything better; else empty."""
        if self.backend != "loop" or self.reason == ASKED["loop"]:
            return ""
        return f"Gradients are computed example by example, which is slow: by the {self.reason}."


def pick(wanted: Backend | Literal["auto"], task: Task, chunk: int | None = None) -> Backend:
    """`choose`, without the reason."""
    return choose(wanted, task, chunk).backend


def probe(task: Task, chunk: int | None = None) -> Backend:
    """`pick` for "auto"."""
    return pick("auto", task, chunk)


def choose(wanted: Backend | Literal["auto"], task: Task, chunk: int | None = None) -> Choice:
    """What `privacy.backend` says. Auto: the first of "ghost" and "vmap" that agrees with the loop,
    mostly within PROBE_ERROR, and whose bits don't depend on a record's place; else "loop".

    All is tried on made-up examples and parameters, so that no record has a part in the choice, and
    no dead unit hides a bit that a neighbor's model could bring to light.

    Raises:
        Impure: an example's loss depends on what was asked before, whatever the backend.
        ConfigurationError: ghost is asked for, and the gradients are no outer products; or a
        gradient's bits depend on
            what else is in the batch, so that nothing bounds what one record changes.
    """
    if wanted == "ghost":
        ghost.factored(task)
    values = admissible(task)
    expected = _repeatable(task, values)
    if not values.telling:
        _repeatable(task, Values("own"))
    if wanted == "loop":
        return Choice("loop", ASKED["loop"])
    if not values.telling:
        if wanted == "auto":
            return Choice(
                "loop",
                "loop, since examples can't be made up for this task; give it a method example()",
            )
        values = values if values.source != "own" else Values()
    if wanted != "auto":
        _refuse_unfit(task, wanted, chunk, values)
        return Choice(wanted, ASKED[wanted])
    return _first_that_agrees(task, chunk, values, expected)


def _refuse_unfit(task: Task, wanted: Backend, chunk: int | None, values: Values) -> None:
    try:
        invariant = _is_batch_invariant(task, wanted, chunk, values)
    except Exception as error:  # the loss itself is right: the loop took it
        raise ConfigurationError(
            f'privacy.backend = "{wanted}" can\'t take this model ({_words(error)}); use "auto".'
        ) from error
    if not invariant:
        raise ConfigurationError(
            f'privacy.backend = "{wanted}" lets a gradient of this model depend on its place in the batch, so that '
            'clipping bounds nothing; use "auto".'
        )


def _first_that_agrees(
    task: Task, chunk: int | None, values: Values, expected: list[Tensor]
) -> Choice:
    rehearsal, rows = SyntheticTask(task, PROBED, values), torch.arange(PROBED).view(-1, 1)
    x, reason = rehearsal.initial_parameters(0), ""
    tried: tuple[Backend, ...] = ("ghost", "vmap")
    for backend in tried:
        try:
            got = [clipped_sum(rehearsal, x, row, UNCLIPPED, backend=backend) for row in rows]
            invariant = _is_batch_invariant(task, backend, chunk, values)
        except (
            Exception
        ) as error:  # whatever it can't take; a fault of the loss itself was raised by the loop
            if backend == "vmap":
                reason = f"vmap can't take this model ({_words(error)})"
            continue
        close = [_close(ours, right) for ours, right in zip(got, expected, strict=True)]
        if 2 * sum(close) > len(close) and invariant:
            return Choice(backend, f"{backend}, which gives what the loop gives")
        if backend == "vmap":
            reason = f"vmap's gradients {'differ from its' if invariant else 'depend on the place in the batch'}"
    return Choice("loop", f"loop, since {reason}")


def _words(error: BaseException) -> str:
    """What a library says, in short; of an own task's error what was raised in it."""
    cause = error.__cause__ if isinstance(error, TaskError) and error.__cause__ else error
    return textwrap.shorten(first_line(cause), 100, placeholder=" …")


def _close(ours: Tensor, right: Tensor) -> bool:
    """BlockObjective PROBE_ERROR; what is not finite contributes zero to both."""
    return float((ours - right).norm()) <= PROBE_ERROR * float(right.norm())


def _repeatable(task: Task, values: Values) -> list[Tensor]:
    """The gradients of PROBED examples at made-up parameters, by the loop: asked in turn, and again
    backwards.

    Raises:
        Impure: the two differ.
    """
    n = min(PROBED, task.num_examples) if values.source == "own" else PROBED
    rehearsal, rows = SyntheticTask(task, n, values), torch.arange(n).view(-1, 1)
    x = rehearsal.initial_parameters(0)

    def asked(row: Tensor) -> Tensor:
        return clipped_sum(rehearsal, x, row, UNCLIPPED, backend="loop")

    ahead = [asked(row) for row in rows]
    _ask_odd(task, values)
    back = [asked(row) for row in rows.flip(0)][::-1]
    for row, one, other in zip(rows, ahead, back, strict=True):
        if not torch.equal(one, other):
            raise Impure(_refusal(culprit(partial(asked, row), partial(asked, rows[-1]))))
    if not getattr(task, "indexes", False):
        State.of(task).check = _canary(rehearsal, x)
    return ahead


ODD = 1e4
"""Times a usual number, as a broken sensor may give it."""


def _ask_odd(task: Task, values: Values) -> None:
    """Some layers move only when they see what is far outside."""
    rows = torch.arange(2)
    with _passing_over_errors():
        odd = SyntheticTask(task, len(rows), replace(values, scale=ODD))
        clipped_sum(odd, odd.initial_parameters(0), rows, UNCLIPPED, backend="loop")


def _canary(rehearsal: SyntheticTask, x: Tensor) -> Callable[[], None]:
    """Asks for one made-up example's gradient at x, by the loop, and raises Impure once it has
    other bits than now.
    """
    row = torch.arange(1)

    def gradient() -> list[Tensor]:
        parameters = views(rehearsal.layout, device.onto(x, rehearsal.device))
        return list(
            looped(rehearsal, PROCESS_SEEDS)(parameters, rehearsal.batch(row), row).values()
        )

    expected = gradient()

    def check() -> None:
        if not all(map(same, expected, gradient())):
            raise Impure(_refusal(""))

    return check


def _refusal(layer: str) -> str:
    return (
        f"{f'The layer {layer}' if layer else 'The loss'} gives another value for the same example when it is asked "
        "again, so one record would reach the gradients of others and clipping would bound nothing. Keep nothing from "
        "call to call, and draw random numbers from torch's own generator only, which is seeded for each record."
    )


def _is_batch_invariant(task: Task, backend: Backend, chunk: int | None, values: Values) -> bool:
    """Has a record's gradient the same bits wherever it stands in a chunk, and whatever stands
    beside it?
    """
    length = _length(chunk, task.layout.size, device_of(task), backend)
    rehearsal, rows = SyntheticTask(task, length, values), torch.arange(length)
    points = [rehearsal.initial_parameters(seed) for seed in range(REHEARSALS)]
    if not all(_is_permutation_equivariant(rehearsal, x, rows, backend) for x in points):
        return False
    others = SyntheticTask(task, length, replace(values, seed=1))
    if not _indifferent(rehearsal, others, points[0], backend):
        return False
    with _passing_over_errors():  # values may be outside of what the loss is defined for
        odd = SyntheticTask(task, length, replace(values, seed=1, scale=ODD))
        return _indifferent(rehearsal, odd, points[0], backend)
    return True


def _indifferent(task: SyntheticTask, others: SyntheticTask, x: Tensor, backend: Backend) -> bool:
    """Have the first rows' gradients at x the same bits when the rows beside them are others?"""
    length = task.num_examples
    rows, few = torch.arange(length), LANES // 2
    here = _chunk_gradients(task, x, task.batch(rows), rows, backend)
    mixed = tuple(
        torch.cat([a[:few], b[few:]])
        for a, b in zip(task.batch(rows), others.batch(rows), strict=True)
    )
    there = _chunk_gradients(task, x, mixed, rows, backend)
    return all(same(a[:few], b[:few]) for a, b in zip(here, there, strict=True))


def _is_permutation_equivariant(task: Task, x: Tensor, rows: Tensor, backend: Backend) -> bool:
    """Are the rows' gradients at x the same bits when the rows are moved?"""
    here = _chunk_gradients(task, x, task.batch(rows), rows, backend)
    return all(
        same(ours.roll(shift, 0), theirs)
        for shift in (1, LANES // 2 + 1)
        for ours, theirs in zip(
            here,
            _chunk_gradients(task, x, task.batch(rows.roll(shift)), rows, backend),
            strict=True,
        )
    )


def _chunk_gradients(
    task: Task, x: Tensor, batch: tuple[Tensor, ...], rows: Tensor, backend: Backend
) -> list[Tensor]:
    """The gradients of a chunk at x, or their factors: [n, …] each."""
    parameters = views(task.layout, device.onto(x, device_of(task)))
    if backend == "ghost":
        return [it for pair in ghost.factored(task)(parameters, batch).values() for it in pair]
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
