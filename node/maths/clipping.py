"""Per-example gradients, clipped and summed: equation (1) and the sum of (2) of DPDL, for any model x.

    Σ_b ĝ_b(x),   ĝ_b = g_b · min{1, C/‖g_b‖}          or, for two models,   Σ_b clip_C( ĝ_b(x) − ĝ_b(x′) )

Ghost clipping where gradients are outer products (node/maths/ghost.py), `vmap(grad(loss))` elsewhere, a loop for models
that vmap can't take; over chunks of examples, clipped inside the chunk (memory of one chunk). Norms and sums end in
float64, so that one record moves the sum by at most C(1 + SLACK) plus 1e-15 per record.

That needs every record's gradient, or its factors, to have the same bits whichever other records are in the batch:
float32 kernels round differently for other lengths, and a neighbour can choose a model (huge weights whose logits
cancel) that turns such a rounding into another class and so into 2C. Therefore every chunk is filled up to one fixed
length, and `probe` falls back to the next backend where the bits depend on the place in the chunk. Not covered: kernels
that are not deterministic at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from node import device
from node.maths import ghost
from node.maths.rehearsal import Rehearsal
from node.task import Task, views
from peer.errors import ConfigurationError

Backend = Literal["ghost", "vmap", "loop"]

SLACK = 1e-6
"""A record's contribution is at most C(1 + SLACK): the rounding of its norm. The noise's sensitivity holds it."""

RUN = 128
"""Squares summed in float32 before float64 takes over: error of a norm ≤ 6e-7 (plain float32: 2e-6 was measured)."""

COLUMNS = 8192
"""Columns converted to float64 at a time (2 MiB at 32 examples)."""

CHUNK_ELEMENTS = 1 << 22
"""Elements of a chunk's gradients, 16 MiB. vmap costs about a millisecond a chunk however small the model is, and a
chunk that falls out of the cache costs more than it saves: tests/bench/gradient.py --chunks shows both ends."""

PROBE_ERROR = 1e-5
"""Largest relative difference from the loop at which another backend is trusted with an example."""
REHEARSALS = 3
"""Parameters at which bits are compared."""
PROBED = 5
"""Examples of which more than half have to agree: one whose unit is at its kink differs by 1e-3 (seen in ResNet-8)."""


SMALL = 1 << 14
"""Parameters up to which a chunk costs its calls, not its examples."""
LANES = 16
"""Chunks are multiples of this: kernels treat the rows of a whole block alike."""
GPU_CHUNK = 512
"""Largest chunk on a GPU, where a launch costs more than a row."""
GHOST_CHUNK = 128
"""Holds no gradients: calls against what filling up costs. Within 20 % of the best length for batches of 64 to 500."""


def chunk_for(d: int, where: torch.device = device.CPU, backend: Backend = "vmap") -> int:
    """Examples per chunk for d parameters: a power of two from 16 to 64, CHUNK_ELEMENTS/d in between; 128 for models so
    small that filling a chunk up costs less than a second one. On a GPU what a third of its free memory holds."""
    if backend == "ghost":
        return GPU_CHUNK if where.type == "cuda" else GHOST_CHUNK
    if where.type == "cuda":
        return max(LANES, 1 << device.room(where, 4 * d, GPU_CHUNK).bit_length() - 1)
    return 128 if d <= SMALL else max(LANES, min(64, 1 << (CHUNK_ELEMENTS // d).bit_length() >> 1))


def _length(chunk: int | None, d: int, where: torch.device, backend: Backend) -> int:
    """Examples of every chunk, whatever was asked for."""
    return -(-(chunk or chunk_for(d, where, backend)) // LANES) * LANES


def filled(rows: Tensor, chunk: int) -> Tensor:
    """`rows` (int64 [n], 0 < n ≤ chunk) and copies of its first up to `chunk` rows; what the copies give is dropped."""
    return torch.cat([rows, rows[:1].expand(chunk - len(rows))])


def _rest() -> None:
    pass


def clipped_sum(
    task: Task,
    x: Tensor,
    rows: Tensor,
    clip: float,
    *,
    before: Tensor | None = None,
    chunk: int | None = None,
    backend: Backend = "vmap",
    breathe: Callable[[], None] = _rest,
) -> Tensor:
    """Σ over `rows` (int64 [n], n may be 0) of the clipped gradients at x (flat float32 [d]): flat float64 [d].
    Computed on the task's device, from and to the CPU.

    With `before` (a model as x) it is Σ of what each example's clipped gradient at x has more than that at `before`,
    clipped once more. (Differences of clipped gradients add up to a clipped gradient, those of plain ones don't.)

    Each record contributes at most clip·(1 + SLACK) whatever the models are; a non-finite gradient contributes zero.
    `breathe` is called after every `chunk` examples (None: `chunk_for` the model).
    """
    where = device_of(task)
    wide = where if where.type == "cuda" else device.CPU  # Apple's GPUs have no float64
    chunk = _length(chunk, task.layout.size, where, backend)
    total = torch.zeros(task.layout.size, dtype=torch.float64, device=wide)
    summed = _ghostly(task, clip, wide) if backend == "ghost" else _written(task, clip, wide, backend)
    models = [views(task.layout, device.onto(each.detach(), where)) for each in (x, before) if each is not None]
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        with device.enough_memory():
            batch = task.batch(part if backend == "loop" else filled(part, chunk))
            _add(total, task, summed(models, batch, len(part)))
        breathe()
    return device.back(total)


def device_of(task: Task) -> torch.device:
    """Where the task computes; one that does not say stays on the CPU."""
    return getattr(task, "device", device.CPU)


Summed = Callable[[Sequence[Mapping[str, Tensor]], tuple[Tensor, ...], int], Mapping[str, Tensor]]
"""(one model or two, a chunk, examples in it that count) -> their clipped sum, float64 by parameter."""


def _ghostly(task: Task, clip: float, wide: torch.device) -> Summed:
    factors = ghost.factored(task)

    def summed(models: Sequence[Mapping[str, Tensor]], batch: tuple[Tensor, ...], n: int) -> Mapping[str, Tensor]:
        each = [factors(model, batch) for model in models]
        kept = [{name: (delta[:n].to(wide), a[:n].to(wide)) for name, (delta, a) in it.items()} for it in each]
        return ghost.clip_and_sum(kept, clip)

    return summed


def _written(task: Task, clip: float, wide: torch.device, backend: Backend) -> Summed:
    gradients = _vmapped(task) if backend == "vmap" else _looped(task)

    def summed(models: Sequence[Mapping[str, Tensor]], batch: tuple[Tensor, ...], n: int) -> Mapping[str, Tensor]:
        each = [{name: g.to(wide) for name, g in gradients(model, batch).items()} for model in models]
        found = each[0] if len(each) == 1 else _difference(each[0], each[1], clip)
        return clip_and_sum({name: g[:n] for name, g in found.items()}, clip)

    return summed


def clip_and_sum(gradients: Mapping[str, Tensor], clip: float) -> dict[str, Tensor]:
    """Clips a chunk of per-example gradients ({name: [n, *shape]}) and sums it over n: {name: float64 [*shape]}.

    An example whose norm is not finite in float32 is masked, not clamped: 0·NaN would be NaN.
    """
    norm = torch.linalg.vector_norm(torch.stack([_norms(_flat(g)) for g in gradients.values()]), dim=0)
    usable = norm.isfinite()
    if not bool(usable.all()):
        gradients = {name: g[usable] for name, g in gradients.items()}
        norm = norm[usable]
    factor = (clip / norm).clamp(max=1.0)
    return {name: _weighted_sum(factor, _flat(g)).view(g.shape[1:]) for name, g in gradients.items()}


def _difference(here: dict[str, Tensor], there: dict[str, Tensor], clip: float) -> dict[str, Tensor]:
    """What each of a chunk's gradients, clipped, has more here than there. The arguments are used up."""
    _clip(here, clip)
    _clip(there, clip)
    return {name: here.pop(name).sub_(there.pop(name)) for name in list(here)}


def _clip(gradients: dict[str, Tensor], clip: float) -> None:
    """Clips each of a chunk's gradients, in its own type; one that is not finite becomes NaN, or zero."""
    norm = torch.linalg.vector_norm(torch.stack([_norms(_flat(g)) for g in gradients.values()]), dim=0)
    factor = (clip / norm).clamp(max=1.0)
    for name, g in gradients.items():
        gradients[name] = g * factor.to(g.dtype).view(-1, *[1] * (g.dim() - 1))


def _flat(g: Tensor) -> Tensor:
    """[n, *shape] as [n, m]; a scalar parameter's has no shape."""
    return g.flatten(1) if g.dim() > 1 else g.unsqueeze(1)


def _norms(g: Tensor) -> Tensor:
    """Row norms of g [n, m], float64 [n]: float32 over runs of RUN elements, float64 over the runs."""
    n, m = g.shape
    whole = m // RUN * RUN
    runs = torch.linalg.vector_norm(g[:, :whole].reshape(n, -1, RUN) if whole else g[:, :0], dim=-1)
    rest = torch.linalg.vector_norm(g[:, whole:], dim=1)
    norms: Tensor = torch.linalg.vector_norm(torch.cat([runs.view(n, -1), rest.view(n, 1)], 1).double(), dim=1)
    return norms


def _weighted_sum(factor: Tensor, g: Tensor) -> Tensor:
    """factor [n] @ g [n, m] in float64, by blocks of columns that fit the cache."""
    return torch.cat([factor @ g[:, i : i + COLUMNS].to(torch.float64) for i in range(0, g.shape[1], COLUMNS)])


def _add(total: Tensor, task: Task, summed: Mapping[str, Tensor]) -> None:
    for name, place in views(task.layout, total).items():
        place += summed[name].view_as(place)


Gradients = Callable[[Mapping[str, Tensor], tuple[Tensor, ...]], dict[str, Tensor]]


def _vmapped(task: Task) -> Gradients:
    def loss(parameters: Mapping[str, Tensor], *example: Tensor) -> Tensor:
        return task.loss(parameters, example)

    def gradients(parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        each = vmap(grad(loss), in_dims=(None, *[0] * len(batch)), randomness="different")
        result: dict[str, Tensor] = each(dict(parameters), *batch)
        return result

    return gradients


def _looped(task: Task) -> Gradients:
    def gradients(parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        rows = [_backward(task.loss(leaves, example), leaves) for example in zip(*batch, strict=True)]
        return {name: torch.stack([row[name] for row in rows]) for name in leaves}

    return gradients


def _backward(loss: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def pick(wanted: Backend | Literal["auto"], task: Task, chunk: int | None = None) -> Backend:
    """What `privacy.backend` says; auto: `probe`.

    Raises:
        ConfigurationError: ghost is asked for, and the gradients are no outer products; or a gradient's bits depend on
            what else is in the batch, so that nothing bounds what one record changes.
    """
    if wanted == "auto":
        return probe(task, chunk)
    if wanted == "ghost":
        ghost.factored(task)
    if wanted != "loop" and not _same_everywhere(task, wanted, chunk):
        raise ConfigurationError(
            f'privacy.backend = "{wanted}" lets a gradient of this model depend on its place in the batch (as dropout '
            'does), so that clipping bounds nothing; use "auto".'
        )
    return wanted


def probe(task: Task, chunk: int | None = None) -> Backend:
    """The first of "ghost" and "vmap" that agrees with the loop, mostly within PROBE_ERROR, and whose bits don't depend
    on a record's place; else "loop". It is tried on made-up examples and parameters, so that no record has a part in
    the choice, and no dead unit hides a bit that a neighbour's model could bring to light."""
    rehearsal = Rehearsal(task, PROBED)
    x, rows = rehearsal.start(0), torch.arange(PROBED).view(-1, 1)
    looped = [clipped_sum(rehearsal, x, row, 1.0, backend="loop") for row in rows]
    tried: tuple[Backend, ...] = ("ghost", "vmap")
    for backend in tried:
        try:
            found = [clipped_sum(rehearsal, x, row, 1.0, backend=backend) for row in rows]
        except Exception:  # whatever it can't take; a fault of the loss itself was raised by the loop
            continue
        pairs = zip(found, looped, strict=True)
        close = [float((ours - right).norm()) <= PROBE_ERROR * float(right.norm()) for ours, right in pairs]
        if 2 * sum(close) > len(close) and _same_everywhere(task, backend, chunk):
            return backend
    return "loop"


def _same_everywhere(task: Task, backend: Backend, chunk: int | None) -> bool:
    """Has a record's gradient the same bits wherever it stands in a chunk, and whatever stands beside it?"""
    length = _length(chunk, task.layout.size, device_of(task), backend)
    rehearsal, rows = Rehearsal(task, length), torch.arange(length)
    return all(_blind(rehearsal, rehearsal.start(seed), rows, backend) for seed in range(REHEARSALS))


def _blind(task: Task, x: Tensor, rows: Tensor, backend: Backend) -> bool:
    """Are the rows' gradients at x the same bits when the rows are moved?"""
    parameters = views(task.layout, device.onto(x, device_of(task)))

    def found(rows: Tensor) -> list[Tensor]:
        if backend == "ghost":
            return [it for pair in ghost.factored(task)(parameters, task.batch(rows)).values() for it in pair]
        return list(_vmapped(task)(parameters, task.batch(rows)).values())

    here = found(rows)
    return all(
        torch.equal(ours.roll(shift, 0), theirs)
        for shift in (1, LANES // 2 + 1)
        for ours, theirs in zip(here, found(rows.roll(shift)), strict=True)
    )


def mean_gradient(task: Task, x: Tensor, rows: Tensor) -> Tensor:
    """Gradient of the mean loss over `rows` at x, flat float32 [d], without clipping; zeros for no rows (mode none).
    Accumulated over parts of the batch where the task takes only so many examples `at_once`."""
    if not len(rows):
        return torch.zeros(task.layout.size)
    with device.enough_memory():
        there = device.onto(x.detach(), device_of(task))
        leaves = {name: value.detach().requires_grad_() for name, value in views(task.layout, there).items()}
        total = torch.zeros_like(there)
        for name, place in views(task.layout, total).items():
            leaves[name].grad = place  # backward adds to it where it lies
        for part in torch.split(rows, getattr(task, "at_once", None) or len(rows)):
            loss = task.mean_loss(leaves, task.batch(part)) * (len(part) / len(rows))
            torch.autograd.backward(loss, inputs=list(leaves.values()))
        return device.back(total.to(torch.float32))


def refuse_batchnorm(module: nn.Module) -> None:
    """Tasks call this once: batch statistics mix examples, so one record's influence has no bound.

    Raises:
        ConfigurationError: the module contains a batch normalisation.
    """
    for name, layer in _named(module):
        if isinstance(layer, _BatchNorm):
            raise ConfigurationError(
                f"The model's layer {name!r} is a {type(layer).__name__}, which mixes the examples of a batch, so "
                "their gradients can't be clipped one by one; use GroupNorm or LayerNorm."
            )


def _named(module: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    return ((name or "model", layer) for name, layer in module.named_modules())
