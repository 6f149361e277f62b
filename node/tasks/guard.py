"""The border to somebody's own task: whatever its code raises becomes one sentence that names the
file and the line.

Everything of it is read when it is made; what it lacks has the defaults of `node.task.Task`. What
our code raised passes, and so does the end of a daemon (`Stopped`) or of a program in the terminal
(Ctrl-C). A model goes in and out as a copy, and torch's switches stay as they were.
"""

from __future__ import annotations

import inspect
import sysconfig
import threading
from collections.abc import Callable, Mapping
from functools import wraps
from importlib.machinery import all_suffixes
from pathlib import Path
from traceback import walk_tb
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import node
import peer
from node.data.cells import is_empty
from node.data.units import numbered
from node.device import CPU
from node.figures import COMMON_METRICS, Metric, unfit
from node.hooks import no_op
from node.task import Factored, Stopped, Task, Validation, Value, Wrapper
from node.tasks.switches import switches_kept
from peer.errors import ConfigurationError, PeerpoiseError, TaskError, first_line
from peer.message import DType, Layout

OURS = tuple(
    f"{Path(package.__file__).parent}/" for package in (torch, node, peer) if package.__file__
)
"""Whose lines are no mistake of a task."""
INSTALLED = tuple({f"{sysconfig.get_path(name)}/" for name in ("stdlib", "purelib", "platlib")})
"""Where a mistake is looked for only if the task itself is installed."""
SLACK = 1e-6
"""What rounding may add to a ratio of 1."""
ATTRIBUTES = ("layout", "num_examples")
METHODS = ("initial_parameters", "batch", "loss", "mean_loss", "evaluate")
"""What `node.task.OwnTask` asks for; all else of `node.task.Task` is optional."""
COLD = ("initial_parameters", "evaluate", "to", "example", "validate")
"""Called seldom enough to look at torch's switches each time."""
_MISSING = object()


def guard(made: object, name: str) -> Task:
    """What the function of the task `name` made, guarded.

    Raises:
        ConfigurationError: it is no task.
        TaskError: its code raised.
    """
    if isinstance(made, type):
        raise ConfigurationError(
            f"task.name = {name!r} made the class {made.__name__}, not an object; call it there."
        )
    missing = [attribute for attribute in ATTRIBUTES if _read(made, attribute, name) is _MISSING]
    if missing := missing + [
        method for method in METHODS if not callable(_read(made, method, name))
    ]:
        raise ConfigurationError(
            f"task.name = {name!r} made something without {', '.join(missing)}: no Task."
        )
    if not _is_layout(_read(made, "layout", name)):
        raise ConfigurationError(
            f"task.name = {name!r}: layout is no Layout of names, each once, with their shapes "
            "(peerpoise show own-task)."
        )
    return Guarded(made, name)


class Guarded(Wrapper, Task):
    """A `Task` made by somebody else's code, of which everything is read once."""

    def __init__(self, task: object, name: str) -> None:
        """Raises TaskError: its code raised, or it has something that is not what it should be."""
        self._task, self._name = task, name
        self.layout = self._read("layout")
        self.num_examples = self._num_examples()
        self.device = self._device()
        self.micro_batch = self._micro_batch()
        self.metrics = self._metrics()
        self.inputs = self._read("inputs", {})
        self.dtype = self._dtype()
        self.layer_groups = self._layer_groups()
        self.adapted = self._read("adapted", False) is True
        self._initial_parameters, self._batch, self._loss, self._mean_loss, self._evaluate = map(
            self._function, METHODS
        )
        self._to, self._example, self._factors, self._validate = map(
            self._optional_function, ("to", "example", "factors", "validate")
        )
        self._patient = _takes_two(self._evaluate)

    def _read(self, attribute: str, default: Any = None) -> Any:
        value = _read(self._task, attribute, self._name)
        return default if value is _MISSING else value

    def _function(self, attribute: str) -> Callable[..., Any]:
        call = guarded(self._read(attribute), self._name, attribute)
        return _keeping_switches(call, self._name) if attribute in COLD else call

    def _optional_function(self, attribute: str) -> Callable[..., Any] | None:
        """What is no function is as good as absent."""
        return self._function(attribute) if callable(self._read(attribute)) else None

    def _num_examples(self) -> int:
        count = self._read("num_examples")
        if not _is_count(count):
            raise self._refusal(
                "num_examples is no number of examples; make it a property that gives one"
            )
        return int(count)

    @property
    def units(self) -> NDArray[np.int64] | None:
        """Read when it is asked for, as without `task.unit` an attribute of that name may be
        anything.
        """
        names = self._read("units")
        if names is None:
            return None
        if isinstance(names, Tensor):
            names = names.detach().cpu().numpy()
        listed = names.tolist() if isinstance(names, np.ndarray) else names
        if not isinstance(listed, tuple | list) or len(listed) != self.num_examples:
            raise self._refusal(
                "units is no list of num_examples names or numbers; say whose each example is"
            )
        if not all(isinstance(name, str | int) for name in listed) or any(map(is_empty, listed)):
            raise self._refusal(
                "units has something in it that is no name and no integer; say whose each example "
                "is"
            )
        return numbered(listed)

    def _metrics(self) -> tuple[Metric, ...]:
        """The common ones where the task declares none."""
        declared = self._read("metrics", COMMON_METRICS)
        if not isinstance(declared, tuple | list) or not all(
            isinstance(metric, Metric) for metric in declared
        ):
            raise self._refusal(
                "metrics is no tuple of peerpoise.Metric; write one, or leave it out"
            )
        if problem := next(filter(None, map(unfit, declared)), None):
            raise self._refusal(f"metrics has {problem}")
        names = [metric.name for metric in declared]
        if len({*names}) < len(names):
            raise self._refusal("metrics has a name twice; each figure has one of its own")
        return tuple(declared)

    def _dtype(self) -> torch.dtype:
        dtype = self._read("dtype", torch.float32)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise self._refusal(f"dtype is {_kind(dtype)}; a type of floats is expected")
        return dtype

    def _layer_groups(self) -> tuple[tuple[str, ...], ...]:
        groups = self._read("layer_groups", ())
        known = {name for name, _ in self.layout.fields}
        if not isinstance(groups, tuple | list) or not all(
            isinstance(group, tuple | list) and known.issuperset(group) for group in groups
        ):
            raise self._refusal("layer_groups is no tuple of tuples of the layout's names")
        return tuple(map(tuple, groups))

    def _micro_batch(self) -> int | None:
        count = self._read("micro_batch")
        if count is None:
            return None
        if not _is_count(count):
            raise self._refusal(
                "micro_batch is no number of examples; leave it out where a batch may have any size"
            )
        return int(count)

    def _device(self) -> torch.device:
        value = self._read("device", CPU)
        if value is None:
            return CPU
        if not isinstance(value, str | torch.device):
            raise self._refusal(
                f'device is {_kind(value)}; a torch.device or its name is expected, such as "cpu"'
            )
        try:
            return torch.device(value)
        except (RuntimeError, ValueError):
            raise self._refusal(
                'device is no name of a device; "cpu" and "cuda:0" are some'
            ) from None

    def to(self, device: torch.device) -> None:
        if self._to is not None:
            self._to(device)
            self.device = self._device()

    def example(self) -> tuple[Tensor, ...] | None:
        """Whatever it gives; `node.maths.synthetic` looks at it."""
        if self._example is None:
            return None
        example: tuple[Tensor, ...] | None = self._example()
        if example is None:
            raise self._refusal("example() gives None; leave it out, or return a tuple of tensors")
        return example

    def factors(self) -> Factored | None:
        factors: Factored | None = self._factors() if self._factors else None
        return factors

    @property
    def validation(self) -> Validation | None:
        return self if self._validate else None

    def validate(self, parameters: Mapping[str, Tensor], kind: Value) -> Tensor:
        assert self._validate is not None, "see `validation`"
        return self._scalar("validate", self._validate(parameters, kind))

    def linear_first(self, x: Tensor, moves: Tensor) -> None:
        return None

    def initial_parameters(self, seed: int) -> Tensor:
        """The initial parameters as a copy of the task's own."""
        x: Tensor = self._initial_parameters(seed)
        return x.detach().clone() if isinstance(x, Tensor) else x

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        columns = self._batch(rows)
        if not isinstance(columns, tuple | list) or not all(
            isinstance(column, Tensor) for column in columns
        ):
            raise self._refusal(
                "batch gives no tuple of tensors; return one, such as (self.x[rows], self.y[rows])"
            )
        if not all(map(_is_plain, columns)):
            raise self._refusal(
                "batch gives a sparse, nested or quantized tensor; make it dense, with to_dense(), "
                "to_padded_tensor(0) or dequantize()"
            )
        return tuple(columns)

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        return self._scalar("loss", self._loss(parameters, example))

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        return self._scalar("mean_loss", self._mean_loss(parameters, batch))

    def evaluate(self, x: Tensor, yield_point: Callable[[], None] = no_op) -> dict[str, float]:
        """Test metrics as plain numbers, whichever kind of number the task has them in."""
        x = x.clone()
        metrics = (
            self._evaluate(x, _with_gradients(yield_point)) if self._patient else self._evaluate(x)
        )
        if not isinstance(metrics, Mapping):
            raise self._refusal(
                f"evaluate gives {_kind(metrics)}; names with a number each are expected, such as "
                '{"accuracy": 0.9}, or {} where nothing is measured'
            )
        known = {metric.name: metric for metric in self.metrics}
        return {
            name: self._metric(known[name], value)
            for name, value in (
                (self._metric_name(key, known), value) for key, value in metrics.items()
            )
        }

    def _scalar(self, what: str, value: object) -> Tensor:
        if not isinstance(value, Tensor):
            raise self._refusal(
                f"{what} gives {_kind(value)}; a tensor that gradients can be taken of is expected"
            )
        if value.is_nested:
            raise self._refusal(f"{what} gives {_kind(value)}; one number is expected")
        if value.dim() and value.numel() == 1:
            return value.reshape(())
        if value.dim():
            raise self._refusal(
                f"{what} gives a tensor of shape {tuple(value.shape)}; one number is expected"
            )
        return value

    def _metric_name(self, key: object, known: Mapping[str, Metric]) -> str:
        if not isinstance(key, str):
            raise self._refusal(f"evaluate names a metric by {_kind(key)}; a text is expected")
        if key not in known:
            raise TaskError(  # the name may quote data, and is for the owner's terminal only
                f"task.name = {self._name!r}: evaluate gives {key!r}, which is none of "
                f"{', '.join(known)}; declare it in the task's metrics, as "
                f"peerpoise.Metric({key!r}, …).",
                f"task.name = {self._name!r}: evaluate gives a figure that is not declared.",
            )
        return key

    def _metric(self, metric: Metric, value: object) -> float:
        number, name = _number(value), metric.name
        if number is None:
            raise self._refusal(
                f"evaluate gives {_kind(value)} as {name!r}; one number is expected"
            )
        if metric.unit != "ratio":
            return number
        if number < 0 or number > 1 + SLACK:
            raise self._refusal(
                f"evaluate gives {name!r} outside of 0 … 1; return a share, not a percentage"
            )
        return min(number, 1.0)

    def _refusal(self, reason: str) -> TaskError:
        sentence = f"task.name = {self._name!r}: {reason}."
        return TaskError(sentence, sentence)


def guarded(function: Callable[..., Any], name: str, what: str) -> Callable[..., Any]:
    """The function of the task `name`, and what it gives if that is a function, with errors that
    are sentences.
    """

    @wraps(function)
    def call(*arguments: object, **options: object) -> object:
        try:
            result = function(*arguments, **options)
        except BaseException as error:
            _blame(error, name, what)
        return guarded(result, name, what) if inspect.isroutine(result) else result

    return call


def _keeping_switches(function: Callable[..., object], name: str) -> Callable[..., object]:
    @wraps(function)
    def call(*arguments: object, **options: object) -> object:
        with switches_kept(name):
            return function(*arguments, **options)

    return call


def _with_gradients(yield_point: Callable[[], None]) -> Callable[[], None]:
    """Neighbors are answered with gradients meanwhile, even if the task yields within
    `torch.no_grad()`.
    """

    def call() -> None:
        with torch.inference_mode(False), torch.enable_grad():
            yield_point()

    return call


def _read(task: object, attribute: str, name: str) -> object:
    """The attribute; _MISSING where there is none. An AttributeError out of a property of that name
    is a mistake.
    """
    try:
        return getattr(task, attribute)
    except BaseException as error:
        if (
            isinstance(error, AttributeError)
            and inspect.getattr_static(task, attribute, _MISSING) is _MISSING
        ):
            return _MISSING
        _blame(error, name, attribute)


def _blame(error: BaseException, name: str, what: str) -> NoReturn:
    """Raises TaskError in place of what the task's code raised, or that itself where it is no
    mistake of the task.
    """
    if _passes(error):
        raise error
    place = _place(error)
    raised = f"task.name = {name!r}: {what} raised {type(error).__name__}"
    raise TaskError(f"{raised}: {first_line(error)}{place}.", f"{raised}{place}.") from error


def _passes(error: BaseException) -> bool:
    """Is it a sentence that our code raised, the end of this program, or too little memory?"""
    if isinstance(error, KeyboardInterrupt):  # Ctrl-C comes in the main thread
        return threading.current_thread() is threading.main_thread()
    if isinstance(error, PeerpoiseError):
        return _is_ours(error)
    passing = Stopped | MemoryError | torch.OutOfMemoryError
    return isinstance(error, passing) or "can't allocate memory" in first_line(error)


def _is_ours(error: BaseException) -> bool:
    """Was it raised by our code?"""
    files = [frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)]
    return bool(files) and files[-1].startswith(OURS)


def _place(error: BaseException) -> str:
    """The innermost line that is the task's own, in brackets; empty: there is none."""
    if (
        isinstance(error, SyntaxError)
        and error.filename
        and Path(error.filename).suffix in all_suffixes()
    ):
        return f" ({Path(error.filename).name}, line {error.lineno})"
    lines = [(frame.f_code.co_filename, number) for frame, number in walk_tb(error.__traceback__)]
    others = [line for line in lines if not line[0].startswith(("<", *OURS))]
    own = [line for line in others if not line[0].startswith(INSTALLED)] or others
    return f" ({Path(own[-1][0]).name}, line {own[-1][1]})" if own else ""


def _is_layout(value: object) -> bool:
    if not isinstance(value, Layout) or not isinstance(value.dtype, DType):
        return False
    try:
        names = [name for name, shape in value.fields if all(map(_is_count, shape))]
        "".join(names).encode()
    except (TypeError, ValueError):
        return False
    return len(names) == len(value.fields) == len(set(names))


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and int(value) >= 0


def _is_plain(tensor: Tensor) -> bool:
    """Is it one dense block of plain numbers?"""
    return tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_quantized


def _takes_two(evaluate: Callable[..., object]) -> bool:
    """Does it take `yield_point` beside the parameters?"""
    try:
        inspect.signature(evaluate).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # of what is not written in Python
        return True
    return True


def _number(value: Any) -> float | None:
    """A metric as a plain number, also of NumPy and torch; None: it is none."""
    if isinstance(value, str | bytes):
        return None
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except Exception:  # whatever a value's own code raises
        return None


def _kind(value: object) -> str:
    """A value's kind, in a sentence; never the value."""
    if isinstance(value, Tensor) and value.is_nested:
        return "a nested tensor"
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        return f"{type(value).__name__} of shape {tuple(getattr(value, 'shape', ()))}"
    return "None" if value is None else f"something of type {type(value).__name__}"
