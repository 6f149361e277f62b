"""Per-example gradients, clipped and summed, for any model x: (1) and the sum of (2) of DPDL.

    Σ_b ĝ_b(x),   ĝ_b = g_b · min{1, C/‖g_b‖}
    Σ_b clip_C(ĝ_b(x) − ĝ_b(x′))                 for two models

Ghost clipping where gradients are outer products (node/maths/ghost.py), `vmap(grad(loss))`
elsewhere, a loop for models that vmap can't take (node/maths/backends.py chooses); over chunks of
examples, clipped inside the chunk (memory of one chunk). Norms and sums end in float64, so that one
record moves the sum by at most C(1 + SLACK) plus 1e-15 per record.

That needs every record's gradient, or its factors, to have the same bits whichever other records
are in the batch: float32 kernels round differently for other lengths, and a neighbor can choose a
model (huge weights whose logits cancel) that turns such a rounding into another class and so into
2C. Therefore every chunk is filled up to one fixed length, a backend is chosen only if its bits
don't depend on the place in the chunk, and what a task holds may not change while its records are
asked (node/maths/purity.py). Not covered: kernels that are not deterministic at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from node import device
from node.hooks import no_op
from node.maths import ghost, materialized
from node.maths.chunks import Backend, chunk_length, pad_to_chunk
from node.maths.per_example import Gradients, backward, fetch, looped, scalar, vmapped
from node.maths.purity import PROCESS_SEEDS, Impure, Seeds, State, same
from node.maths.synthetic import SyntheticTask, admissible
from node.task import Factors, Objective, views
from peer.errors import TaskError, first_line

SLACK = 1e-6
"""A record's contribution is at most C(1 + SLACK): the rounding of its norm. The noise's
sensitivity holds it.
"""

CHANGED = (
    "The loss changes the parameters it is given (as an embedding with max_norm does); "
    "leave that out."
)

Sums = tuple[Mapping[str, Tensor], Tensor]
"""A clipped sum, {parameter: float64}, and which examples have a finite gradient, bool [n]."""
Ask = Callable[[Tensor, tuple[Tensor, ...]], Sums]
"""(row numbers, their examples) -> their clipped sum."""
Clipper = Callable[[Sequence[Mapping[str, Tensor]], tuple[Tensor, ...], Tensor, int], Sums]
"""(one model or two, a chunk, its row numbers, how many of them count) -> their clipped sum."""


def clipped_sum(
    task: Objective,
    x: Tensor,
    rows: Tensor,
    clip: float,
    *,
    before: Tensor | None = None,
    chunk: int | None = None,
    least: int = 0,
    backend: Backend = "vmap",
    seeds: Seeds = PROCESS_SEEDS,
    yield_point: Callable[[], None] = no_op,
    on_unusable: Callable[[Tensor], None] = no_op,
) -> Tensor:
    """Σ over `rows` of the clipped gradients at x, flat float64 [d].

    Each record contributes at most clip·(1 + SLACK) whatever the models are; one without a finite
    gradient contributes zero. Computed on the task's device, from and to the CPU.

    Args:
        x: flat float32 [d].
        rows: int64 [n], n may be 0.
        before: a model as x. The sum is then of what each example's clipped gradient at x has more
            than that at `before`, clipped once more. (Differences of clipped gradients add up to a
            clipped gradient, those of plain ones don't.)
        chunk: examples computed together; None: `chunk_for` the model.
        least: with fewer rows the work of so many is done all the same, by chunks, and dropped, so
            that the time it takes doesn't tell how many there are.
        seeds: of torch's generator while a row's loss is computed (backend "loop").
        yield_point: called after every chunk.
        on_unusable: told the row numbers (int64 [k]) of records without a finite gradient.

    Raises:
        Impure: the loss changed a tensor that the task holds, so that nothing bounds what one
            record does.
    """
    where = task.device
    wide = where if where.type == "cuda" else device.CPU  # Apple's GPUs have no float64
    chunk = chunk_length(chunk, task.layout.size, where, backend)
    total = torch.zeros(task.layout.size, dtype=torch.float64, device=wide)
    clipper = _clipper(task, backend, seeds, clip, wide)
    originals = [model.detach() for model in (x, before) if model is not None]
    copies = [device.onto(model, where).clone() for model in originals]
    models = [views(task.layout, copy) for copy in copies]
    state = State.of(task)
    hopeless = lru_cache(lambda: _raises(task))  # asked once, however many rows raise

    def ask(part: Tensor, batch: tuple[Tensor, ...]) -> Sums:
        if backend == "loop":
            return clipper(models, batch, part, len(part))
        index = pad_to_chunk(torch.arange(len(part)), chunk)
        if len(index) != len(part):
            batch = tuple(column[index.to(column.device)] for column in batch)
        return clipper(models, batch, part[index], len(part))

    with state.unchanged():
        for part in torch.split(rows, chunk) if len(rows) else ():
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
    for copy, original in zip(copies, originals, strict=True):
        if not same(copy.cpu(), original.cpu()):
            raise Impure(CHANGED)
    if not isinstance(task, SyntheticTask):
        state.check()
    return device.back(total)


def _dropped(task: Objective, n: int, least: int, chunk: int) -> Iterator[Tensor]:
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
    contributes zero: {}. It is looked for by halves.

    Raises:
        whatever the loss raises, if it does so with made-up values too: then no model is to blame.
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
    first = _despite_errors(ask, rows[:half], tuple(c[:half] for c in batch), hopeless)
    second = _despite_errors(ask, rows[half:], tuple(c[half:] for c in batch), hopeless)
    return _added(first[0], second[0]), torch.cat([first[1].cpu(), second[1].cpu()])


def _added(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """a + b by name, where {} is zero."""
    if not a or not b:
        return a or b
    return {name: a[name] + b[name] for name in a}


def _raises(task: Objective) -> bool:
    """Does its loss raise whatever it is given?"""
    try:
        admissible(task)
    except Exception:
        return True
    return False


def _clipper(
    task: Objective, backend: Backend, seeds: Seeds, clip: float, wide: torch.device
) -> Clipper:
    if backend == "ghost":
        return _ghost_clipper(task, clip, wide)
    gradients = looped(task, seeds) if backend == "loop" else vmapped(task)
    return _materialized_clipper(gradients, clip, wide)


def _ghost_clipper(task: Objective, clip: float, wide: torch.device) -> Clipper:
    factored = ghost.factored(task)

    def factors(model: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Factors:
        before = torch.get_rng_state()
        result = factored(model, batch)
        # what is bundled draws nothing, and other threads share the generator
        if not task.bundled and not torch.equal(before, torch.get_rng_state()):
            raise Impure(
                "The task's factors() draw random numbers, the same for no record; "
                "leave that to loss."
            )
        return result

    def clipper(
        models: Sequence[Mapping[str, Tensor]], batch: tuple[Tensor, ...], rows: Tensor, n: int
    ) -> Sums:
        chunks = [factors(model, batch) for model in models]
        counted = [
            {name: (delta[:n].to(wide), a[:n].to(wide)) for name, (delta, a) in chunk.items()}
            for chunk in chunks
        ]
        return ghost.clip_and_sum(counted, clip)

    return clipper


def _materialized_clipper(gradients: Gradients, clip: float, wide: torch.device) -> Clipper:
    def clipper(
        models: Sequence[Mapping[str, Tensor]], batch: tuple[Tensor, ...], rows: Tensor, n: int
    ) -> Sums:
        chunks = [
            {name: g.to(wide) for name, g in gradients(model, batch, rows).items()}
            for model in models
        ]
        chunk = (
            chunks[0] if len(chunks) == 1 else materialized.difference(chunks[0], chunks[1], clip)
        )
        return materialized.clip_and_sum({name: g[:n] for name, g in chunk.items()}, clip)

    return clipper


def _add(total: Tensor, task: Objective, sums: Mapping[str, Tensor]) -> None:
    """Adds the sums, {} or one for each parameter, to total, flat float64 [d], in place."""
    if not sums:
        return
    for name, part in views(task.layout, total).items():
        part += sums[name].view_as(part)


def mean_gradient(
    task: Objective,
    x: Tensor,
    rows: Tensor,
    on_unusable: Callable[[Tensor], None] = no_op,
    seeds: Seeds = PROCESS_SEEDS,
) -> Tensor:
    """Gradient of the mean loss over `rows` at x, without clipping: mode none.

    Accumulated over parts of the batch where the task takes only `micro_batch` examples at once.

    Args:
        x: flat [d].
        rows: int64 [n]; for n = 0 the gradient is zero.
        on_unusable: told the row numbers (int64 [k]) of a part whose loss is not finite.
        seeds: of an own task's `batch`.

    Returns:
        flat float32 [d].

    Raises:
        Impure: the loss changed a tensor that the task holds, which would be no part of the shared
            model.
        TaskError: it is no scalar, or changed the parameters.
    """
    if not len(rows):
        return torch.zeros(task.layout.size)
    with device.enough_memory(), State.of(task).unchanged(), torch.enable_grad():
        there = device.onto(x.detach(), task.device)
        leaves = {
            name: value.detach().requires_grad_()
            for name, value in views(task.layout, there).items()
        }
        version = there._version
        total = torch.zeros_like(there)
        for name, part_of_total in views(task.layout, total).items():
            leaves[name].grad = part_of_total  # backward adds to it where it lies
        for part in torch.split(rows, task.micro_batch or len(rows)):
            loss = scalar(task.mean_loss(leaves, fetch(task, part, seeds)))
            if not bool(loss.isfinite()):
                on_unusable(part)
            if loss.requires_grad:
                backward(loss * (len(part) / len(rows)), list(leaves.values()))
        if there._version != version:
            raise Impure(CHANGED)
        return device.back(total.to(torch.float32))


def unusable(task: Objective, rows: Tensor, x: Tensor) -> Tensor:
    """The rows (int64 [k]) whose gradient is not finite, or can't be computed, at x."""
    parameters = views(task.layout, device.onto(x.detach().to(torch.float32), task.device))
    finite = [_finite(task, parameters, row.view(1)) for row in rows]
    return rows[~torch.tensor(finite, dtype=torch.bool)]


def _finite(task: Objective, parameters: Mapping[str, Tensor], row: Tensor) -> bool:
    try:
        gradients = looped(task, PROCESS_SEEDS)(parameters, fetch(task, row, PROCESS_SEEDS), row)
    except TaskError:
        return False
    return all(bool(g.isfinite().all()) for g in gradients.values())
