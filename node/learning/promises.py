"""What a task promises (node/task.py) is tried before anything is spent: on made-up examples
wherever values matter.

Of the node's own examples only shapes are looked at, and whether `mean_loss` is the mean of `loss`
over a few of them: lengths and weights can't be made up. That can refuse the task, and changes
nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from node.device import CPU
from node.maths.per_example import scalar
from node.maths.purity import State
from node.maths.synthetic import SyntheticTask, Values, admissible
from node.task import Task, views
from peer.errors import TaskError

COMPARED = 6
"""Examples whose mean loss is compared."""
LARGE = 10_000_000
"""Parameters from which on a loss takes so long that it is compared with two examples at one
point.
"""
TOLERANCE = 0.02
"""Between `mean_loss` and the mean of `loss`, relative: bfloat16 rounds by 0.008."""
TIMES = 3
"""Parameters at which they are compared, and how often a loss is asked again whether it draws
random numbers.
"""
LONGEST = 4096
"""Characters of a name or a word of `inputs`."""


def check(task: Task, seed: int) -> Tensor:
    """Returns the task's start for the seed, flat [d].

    Raises:
        TaskError: a promise is broken; one sentence says which.
    """
    x = checked_start(task, seed)
    with torch.random.fork_rng(devices=[]), State.of(task).unchanged():
        _check_examples(task)
        values = admissible(task)
        _check_loss(task, values)
        _check_frozen(task)
        if not _random(task, values):
            _check_mean(task, x, values)
    return x


def checked_start(task: Task, seed: int) -> Tensor:
    """The task's start for the seed, flat [d], whatever its examples are.

    Raises:
        TaskError: it, the layout, the device or the inputs are not what they should be.
    """
    _check_layout(task)
    _check_inputs(task.inputs)
    _check_device(task.device)
    with torch.random.fork_rng(devices=[]):
        return _check_start(task, seed)


def _check_layout(task: Task) -> None:
    if not task.layout.fields:
        raise TaskError(
            "The task's layout has no parameters; name those that are to be learned "
            "(node.task.layout_of)."
        )
    if empty := [name for name, shape in task.layout.fields if 0 in tuple(shape)]:
        raise TaskError(
            f"The parameter {empty[0]!r} in the task's layout has no elements; leave it out."
        )


def _check_inputs(inputs: object) -> None:
    if not isinstance(inputs, Mapping) or not all(map(_is_text, (*inputs, *inputs.values()))):
        raise TaskError(
            "The task's inputs is no dict of names and words that all nodes may read, such as "
            f'{{"unit": "mg/l"}}; each is a text of at most {LONGEST} characters.'
        )


def _is_text(value: object) -> bool:
    """Is it a text that UTF-8 can write, and not too long?"""
    if not isinstance(value, str) or len(value) > LONGEST:
        return False
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def _check_device(device: torch.device) -> None:
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise TaskError(
            f"The task's device is {str(device)!r}, on which nothing can be computed here."
        ) from error


def _check_examples(task: Task) -> None:
    n = task.num_examples
    if n < 1:
        raise TaskError("The task's num_examples is 0: this node would have nothing to learn from.")
    try:
        batch = task.batch(torch.tensor([0, n - 1]))
    except TaskError as error:
        task.batch(torch.tensor([0]))
        raise TaskError("The task's num_examples counts more rows than batch(rows) has.") from error
    if not batch or not all(column.dim() and len(column) == 2 for column in batch):
        raise TaskError(
            "The task's batch(rows) gives not one entry for each of the rows in every tensor; "
            "index them by rows."
        )


def _check_start(task: Task, seed: int) -> Tensor:
    x, again = task.initial_parameters(seed), task.initial_parameters(seed)
    if not _is_vector(x, task.layout.size):
        raise TaskError(
            f"The task's initial_parameters(seed) gives {_kind(x)}; a flat, dense vector of "
            f"{task.layout.size} floats on the CPU is expected, as its layout says."
        )
    if not bool(x.isfinite().all()):
        raise TaskError("The task's initial_parameters(seed) has values that are not finite.")
    if not torch.equal(x, again):
        raise TaskError(
            "The task's initial_parameters(seed) gives other values when it is asked again; draw "
            "them from the seed: torch.manual_seed(seed), within torch.random.fork_rng()."
        )
    return x


def _is_vector(x: object, size: int) -> bool:
    """Is it dense, on the CPU, and of so many floats?"""
    if not isinstance(x, Tensor) or x.is_nested or x.layout != torch.strided:
        return False
    return x.shape == (size,) and x.is_floating_point() and x.device == CPU


def _kind(x: object) -> str:
    if not isinstance(x, Tensor) or x.is_nested:
        return f"something of type {type(x).__name__}"
    return f"{x.dtype} {list(x.shape)}, {x.layout}, on {x.device}"


def _losses(synthetic: SyntheticTask, x: Tensor, rows: Tensor) -> list[Tensor]:
    parameters = {
        name: it.clone().requires_grad_()
        for name, it in views(synthetic.layout, x.to(synthetic.device)).items()
    }
    batch = synthetic.batch(rows)
    return [scalar(synthetic.loss(parameters, tuple(one))) for one in zip(*batch, strict=True)]


def _check_loss(task: Task, values: Values) -> None:
    synthetic = SyntheticTask(task, COMPARED, values)
    losses = _losses(synthetic, synthetic.initial_parameters(0), torch.arange(COMPARED))
    if not any(loss.requires_grad for loss in losses):
        raise TaskError(
            "The task's loss does not depend on the parameters that it is given; compute it from "
            "them."
        )


def _check_frozen(task: Task) -> None:
    for name, parameters in _named(task).items():
        if all(parameter.is_complex() for parameter in parameters):
            raise TaskError(
                f"The parameter {name!r} is complex, and the layout's are real; hold it as real "
                "and imaginary part."
            )
        if not any(parameter.requires_grad for parameter in parameters):
            raise TaskError(
                f"The parameter {name!r} is frozen (requires_grad = False) but stands in the "
                "layout, so it would be trained; make the layout by node.task.layout_of(module), "
                "which leaves it out."
            )


def _named(task: Task) -> Mapping[str, list[nn.Parameter]]:
    """The modules' parameters that stand in the layout; a frozen teacher's may have the names of
    its student's.
    """
    shapes = {name: tuple(shape) for name, shape in task.layout.fields}
    named = defaultdict(list)
    for name, parameter in State.of(task).parameters():
        if shapes.get(name) == tuple(parameter.shape):
            named[name].append(parameter)
    return named


def _random(task: Task, values: Values) -> bool:
    """Does the loss draw random numbers, from whichever generator? Then its mean is another one
    each time.
    """
    synthetic = SyntheticTask(task, COMPARED, values)
    x, rows = synthetic.initial_parameters(0), torch.arange(COMPARED)
    first = torch.stack(_losses(synthetic, x, rows)).detach()
    again = (torch.stack(_losses(synthetic, x, rows)).detach() for _ in range(TIMES))
    return not all(torch.allclose(first, losses, equal_nan=True) for losses in again)


def _check_mean(task: Task, start: Tensor, values: Values) -> None:
    large = task.layout.size >= LARGE
    compared, times = (2, 1) if large else (COMPARED, TIMES)
    made_up = SyntheticTask(task, compared, values)
    own = SyntheticTask(task, min(compared, task.num_examples), replace(values, source="own"))
    points = [made_up.initial_parameters(seed) for seed in range(times)] + [start.to(torch.float32)]
    for synthetic in (made_up, own):
        for x in points:
            _compare(synthetic, x)


def _compare(synthetic: SyntheticTask, x: Tensor) -> None:
    rows = torch.arange(synthetic.num_examples)
    each = torch.stack([loss.detach().double() for loss in _losses(synthetic, x, rows)])
    parameters = {
        name: it.clone().requires_grad_()
        for name, it in views(synthetic.layout, x.to(synthetic.device)).items()
    }
    loss = scalar(synthetic.mean_loss(parameters, synthetic.batch(rows)), "mean_loss")
    if not loss.requires_grad:
        raise TaskError(
            "The task's mean_loss does not depend on the parameters that it is given; compute it "
            "from them."
        )
    mean, expected = float(loss.detach()), float(each.mean())
    scale = float(each.abs().mean())
    if each.isfinite().all() and not abs(mean - expected) <= TOLERANCE * scale:
        raise TaskError(
            "The task's mean_loss is not the mean of its loss over the examples of a batch, so "
            "runs with and without privacy would learn different things; look for shapes that "
            "broadcast ([n, 1] with [n]), sums, weights, and layers that mix examples."
        )
