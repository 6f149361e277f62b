"""What a task promises (node/task.py) is tried before anything is spent: on made-up examples wherever values matter.

Of the node's own examples only shapes are looked at, and whether `mean_loss` is the mean of `loss` over a few of them:
lengths and weights can't be made up. That can refuse the task, and changes nothing else.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from node.maths.per_example import device_of, scalar
from node.maths.purity import State
from node.maths.rehearsal import Rehearsal, Values, admissible
from node.task import Task, views
from peer.errors import TaskError

COMPARED = 6
"""Examples whose mean loss is compared."""
LARGE = 10_000_000
"""Parameters from which on a loss takes so long that it is compared with two examples at one point."""
TOLERANCE = 0.02
"""Between `mean_loss` and the mean of `loss`, relative: bfloat16 rounds by 0.008."""
TIMES = 3
"""Parameters at which they are compared."""


def check(task: Task, seed: int) -> Tensor:
    """Returns the task's start for the seed, flat [d].

    Raises:
        TaskError: a promise is broken; one sentence says which.
    """
    if not task.layout.size:
        raise TaskError("The task's layout has no parameters; name those that are to be learned (node.task.layout_of).")
    with torch.random.fork_rng(devices=[]), State.of(task).unchanged():
        _check_examples(task)
        x = _check_start(task, seed)
        values = admissible(task)
        _check_loss(task, values)
        _check_frozen(task)
        if not _random(task, values):
            _check_mean(task, x, values)
    return x


def _check_examples(task: Task) -> None:
    n = task.examples
    if n < 1:
        raise TaskError("The task's examples is 0: this node would have nothing to learn from.")
    try:
        batch = task.batch(torch.tensor([0, n - 1]))
    except TaskError as error:
        task.batch(torch.tensor([0]))
        raise TaskError("The task's examples counts more rows than batch(rows) has.") from error
    if not batch or not all(column.dim() and len(column) == 2 for column in batch):
        raise TaskError(
            "The task's batch(rows) gives not one entry for each of the rows in every tensor; index them by rows."
        )


def _check_start(task: Task, seed: int) -> Tensor:
    x, again = task.start(seed), task.start(seed)
    if not isinstance(x, Tensor) or x.shape != (task.layout.size,) or not x.is_floating_point():
        what = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise TaskError(f"The task's start(seed) gives {what}; a flat vector of {task.layout.size} floats is expected.")
    if not bool(x.isfinite().all()):
        raise TaskError("The task's start(seed) has values that are not finite.")
    if not torch.equal(x, again):
        raise TaskError(
            "The task's start(seed) gives other values when it is asked again; draw them from the seed: "
            "torch.manual_seed(seed), within torch.random.fork_rng()."
        )
    return x


def _losses(rehearsal: Task, x: Tensor, rows: Tensor) -> list[Tensor]:
    parameters = {
        name: it.clone().requires_grad_() for name, it in views(rehearsal.layout, x.to(device_of(rehearsal))).items()
    }
    batch = rehearsal.batch(rows)
    return [scalar(rehearsal.loss(parameters, tuple(one))) for one in zip(*batch, strict=True)]


def _check_loss(task: Task, values: Values) -> None:
    rehearsal = Rehearsal(task, COMPARED, values)
    losses = _losses(rehearsal, rehearsal.start(0), torch.arange(COMPARED))
    if not any(loss.requires_grad for loss in losses):
        raise TaskError("The task's loss does not depend on the parameters that it is given; compute it from them.")


def _check_frozen(task: Task) -> None:
    fields = dict(task.layout.fields)
    for name, parameter in State.of(task).parameters():
        if fields.get(name) != tuple(parameter.shape):
            continue
        if parameter.is_complex():
            raise TaskError(
                f"The parameter {name!r} is complex, and the layout's are real; hold it as real and imaginary part."
            )
        if not parameter.requires_grad:
            raise TaskError(
                f"The parameter {name!r} is frozen (requires_grad = False) but stands in the layout, so it would be "
                "trained; make the layout by node.task.layout_of(module), which leaves it out."
            )


def _random(task: Task, values: Values) -> bool:
    """Does the loss draw random numbers? Then its mean is another one each time."""
    rehearsal = Rehearsal(task, COMPARED, values)
    before = torch.get_rng_state()
    _losses(rehearsal, rehearsal.start(0), torch.arange(COMPARED))
    return not torch.equal(before, torch.get_rng_state())


def _check_mean(task: Task, start: Tensor, values: Values) -> None:
    large = task.layout.size >= LARGE
    compared, times = (2, 1) if large else (COMPARED, TIMES)
    made_up = Rehearsal(task, compared, values)
    own = Rehearsal(task, min(compared, task.examples), replace(values, source="own"))
    points = [made_up.start(seed) for seed in range(times)] + [start.to(torch.float32)]
    for rehearsal in (made_up, own):
        for x in points:
            _compare(rehearsal, x)


def _compare(rehearsal: Rehearsal, x: Tensor) -> None:
    rows = torch.arange(rehearsal.examples)
    each = torch.stack([loss.detach().double() for loss in _losses(rehearsal, x, rows)])
    parameters = {
        name: it.clone().requires_grad_() for name, it in views(rehearsal.layout, x.to(rehearsal.device)).items()
    }
    loss = scalar(rehearsal.mean_loss(parameters, rehearsal.batch(rows)), "mean_loss")
    if not loss.requires_grad:
        raise TaskError(
            "The task's mean_loss does not depend on the parameters that it is given; compute it from them."
        )
    mean, expected = float(loss.detach()), float(each.mean())
    scale = float(each.abs().mean())
    if each.isfinite().all() and not abs(mean - expected) <= TOLERANCE * scale:
        raise TaskError(
            "The task's mean_loss is not the mean of its loss over the examples of a batch, so runs with and without "
            "privacy would learn different things; look for shapes that broadcast ([n, 1] with [n]), sums, weights, "
            "and layers that mix examples."
        )
