"""Is a loss a pure function of (parameters, example)? Clipping bounds what one record changes only
if it is.

A layer that updates a buffer as it runs (running mean, power iteration, codebook) carries a record
over into the gradients of all records after it, by any distance. So buffers, and every other tensor
that the task or its modules hold, are watched whenever gradients of private records are computed
(`State.unchanged`). What can't be seen that way (a Python counter, a generator of its own) is
looked for by asking the same questions twice (`backends.choose`).

Random numbers of torch's own generator are allowed in a loss where each record has a seed of its
own (`Seeds`): then one record's draws are the same whichever other records there are.
"""

from __future__ import annotations

import hmac
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from types import CellType, FunctionType, MethodType, ModuleType

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from node.hooks import no_op
from node.randomness import torch_generator
from node.task import Wrapper
from peer.errors import TaskError

Seeds = Callable[[int], int]
"""Row number -> the 63-bit seed of torch's generator while that row's loss is computed."""

SMALL = 1 << 20
"""Elements of a tensor that is compared by value. Of a larger one the version is, which `.data`
leaves as it was.
"""
FEW = 1 << 14
"""Elements of a parameter that is watched. Adapters (peft) change and restore larger ones as they
run.
"""
MOST = 256
"""Items of a container that are looked at: a data set in a list is no state."""
DEEPEST = 8
"""Steps from the task to a tensor or a module."""
KEPT = "_peerpoise_state"
"""The attribute in which a task keeps its state, so that both end together."""


def keyed_seeds(key: bytes) -> Seeds:
    """A row's seed is HMAC-SHA-256 of its number under `key`: another row's presence changes
    nothing.
    """

    def seed(row: int) -> int:
        return int.from_bytes(hmac.digest(key, row.to_bytes(8, "big"), "sha256")[:8], "big") >> 1

    return seed


PROCESS_SEEDS = keyed_seeds(os.urandom(32))
"""Where nobody gives a key: secret, and fixed within a process."""


@contextmanager
def seeded_rows(where: torch.device) -> Iterator[Callable[[int], None]]:
    """Gives a function that seeds torch's generator for one row. Afterwards the generator is as it
    was before.
    """
    cuda = [where] if where.type == "cuda" else []
    with torch_generator(cuda):

        def seed(value: int) -> None:
            torch.default_generator.manual_seed(value)
            if cuda:
                with torch.cuda.device(where):
                    torch.cuda.manual_seed(value)

        yield seed


class Impure(TaskError):
    """A loss is no function of parameters and example."""


class State:
    """The tensors that a task and its modules hold.

    Modules are found from the task's attributes and, since a task may keep them in a thread, a
    closure or a global, by noting which ones run the first time.
    """

    def __init__(self, task: object) -> None:
        self._modules: dict[int, tuple[str, nn.Module]] = {}
        self._tensors: dict[int, tuple[str, Tensor]] = {}
        self._roots: list[nn.Module] = []
        self.check: Callable[[], None] = no_op
        """Asks a made-up example again, and raises Impure if its gradient is another one than at
        the start.
        """
        self.task = id(task)
        self._traced = False
        self._walk(task, "", DEEPEST, set())

    @classmethod
    def of(cls, task: object) -> State:
        """The task's state, looked for once if it has attributes; of what wraps a task, that of the
        task.
        """
        while isinstance(task, Wrapper):
            task = vars(task)["_task"]
        attributes = getattr(task, "__dict__", None)
        if not isinstance(attributes, dict):
            return cls(task)
        state: State | None = attributes.get(KEPT)
        if state is None or state.task != id(task):  # a copied task brings the original's state
            state = attributes[KEPT] = cls(task)
        return state

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Nothing of it may change inside.

        Raises:
            Impure: a tensor changed, or a batch normalization ran that mixes examples; it is named.
        """
        before = self._held()
        handle = None if self._traced else register_module_forward_pre_hook(self._tracer(before))
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()
                self._traced = True
        for held in before:
            if held.changed:
                raise Impure(_refusal(held))

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of all modules, by their names in each model."""
        for root in self._roots:
            yield from root.named_parameters()

    def _held(self) -> list[_Held]:
        tensors = [_Held(name, tensor) for name, tensor in self._tensors.values()]
        for path, module in self._modules.values():
            tensors += _of_module(path, module)
        return tensors

    def _tracer(self, before: list[_Held]) -> Callable[[nn.Module, object], None]:
        """A hook that adds each new module to those that are watched, before it runs for the first
        time.
        """

        thread = threading.get_ident()

        def trace(module: nn.Module, _: object) -> None:
            if threading.get_ident() != thread:
                return  # somebody else's: such a hook is called for every module of the process
            if id(module) not in self._modules:
                for path, part in self._add(module, ""):
                    before.extend(_of_module(path, part, swapped=True))
            _refuse_batch_statistics(*self._modules[id(module)])

        return trace

    def _add(self, root: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
        """The module and those inside it that were not known, with their paths."""
        new = []
        if id(root) not in self._modules:
            self._roots.append(root)
        for path, module in root.named_modules():
            if id(module) not in self._modules:
                new.append((".".join(filter(None, [name, path])), module))
                self._modules[id(module)] = new[-1]
        return new

    def _walk(self, value: object, name: str, depth: int, seen: set[int]) -> None:
        if depth < 0 or id(value) in seen:
            return
        seen.add(id(value))
        match value:
            case nn.Module():
                self._add(value, "")
                for key, item in _containers(value):
                    self._walk(item, key, depth - 1, seen)
            case Tensor():
                self._tensors[id(value)] = name, value
            case _:
                for key, item in _parts(value)[:MOST]:
                    self._walk(item, key or name, depth - 1, seen)


@dataclass(frozen=True, slots=True)
class _Held:
    """A tensor as it was."""

    name: str
    tensor: Tensor
    layer: str = ""
    buffers: Mapping[str, Tensor | None] | None = None
    """Where it has to be still."""
    before: tuple[int, Tensor | None] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "before", (_version(self.tensor), _value(self.tensor)))

    @property
    def changed(self) -> bool:
        version, value = self.before
        if self.buffers is not None and self.buffers.get(self.name) is not self.tensor:
            return True
        return _version(self.tensor) != version if value is None else not same(self.tensor, value)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _value(tensor: Tensor) -> Tensor | None:
    """A copy of a small tensor of a usual kind."""
    odd = (
        tensor.is_meta
        or tensor.is_nested
        or tensor.is_quantized
        or is_functorch_wrapped_tensor(tensor)
    )
    if odd or tensor.layout != torch.strided or tensor.numel() > SMALL:
        return None
    return tensor.detach().clone()


def same(a: Tensor, b: Tensor) -> bool:
    """Are two tensors [*shape] equal? NaN is equal to NaN."""
    return torch.equal(a, b) or (
        a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
    )


def _title(path: str, module: nn.Module) -> str:
    return f"{path!r} ({type(module).__name__})" if path else type(module).__name__


def _of_module(path: str, module: nn.Module, *, swapped: bool = False) -> list[_Held]:
    """The module's own buffers, tensors and (unless `functional_call` has swapped them)
    parameters.
    """
    layer = _title(path, module)
    registry = None if swapped else module._buffers
    held = [
        _Held(name, buffer, layer, registry)
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    held += [_Held(name, it, layer) for name, it in vars(module).items() if isinstance(it, Tensor)]
    if swapped:
        return held
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.numel() <= FEW:
            held.append(_Held(name, parameter, layer))
    return held


def _parts(value: object) -> list[tuple[str, object]]:
    """(name, part) of a container, function or object."""
    match value:
        case str() | bytes() | type() | ModuleType():
            return []
        case Mapping():
            return [(str(key), item) for key, item in islice(value.items(), MOST)]
        case list() | tuple() | set() | deque():
            return [("", item) for item in islice(value, MOST)]
        case partial():
            return [("", value.func), ("", value.args), ("", value.keywords)]
        case MethodType():
            return [("", value.__self__), ("", value.__func__)]
        case FunctionType():
            return [("", cell.cell_contents) for cell in value.__closure__ or () if _filled(cell)]
    return list(getattr(value, "__dict__", {}).items())


def _containers(module: nn.Module) -> list[tuple[str, object]]:
    """Plain lists and mappings of all its layers, which may hold further layers."""
    kinds = (list, tuple, set, deque, dict)
    every = [item for part in module.modules() for item in vars(part).items()]
    return [
        (key, value) for key, value in every if not key.startswith("_") and isinstance(value, kinds)
    ]


def _filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _refusal(held: _Held) -> str:
    owner = f"The layer {held.layer}" if held.layer else "The task"
    return (
        f"{owner} changes its tensor {held.name!r} when a loss is computed: one record would reach "
        "the gradients of others, clipping would bound nothing, and the tensor is no part of the "
        "model that is shared; use a layer without running statistics (GroupNorm, LayerNorm), or "
        "keep this one in evaluation mode."
    )


TRACES = 8
"""Chance may give the same answer a few times."""


def culprit(ask: Callable[[], object], between: Callable[[], object]) -> str:
    """The layer that answers the same inputs otherwise when `ask` is called again, after `between`;
    "" if none does.
    """
    for _ in range(TRACES):
        first = _traced(ask)
        between()
        if layer := _first_difference(first, _traced(ask)):
            return layer
    return ""


@dataclass(frozen=True, slots=True)
class _Call:
    """A layer begins or ends."""

    layer: str
    around: str
    """Whose hook or code made its inputs, if they are others: the layer before it in an
    nn.Sequential, or around it.
    """
    ends: bool
    values: list[Tensor]
    """Its inputs, or its outputs."""


def _first_difference(first: list[_Call], second: list[_Call]) -> str:
    for call, again in zip(first, second, strict=False):
        if call.layer != again.layer:
            return call.around
        if not all(map(same, call.values, again.values)):
            return call.layer if call.ends else call.around
    return ""


def _traced(ask: Callable[[], object]) -> list[_Call]:
    calls: list[_Call] = []
    titles: dict[int, str] = {}
    inside: list[nn.Module] = []

    def begin(module: nn.Module, inputs: object) -> None:
        for path, part in module.named_modules():
            titles.setdefault(id(part), _title(path, part))
        around = titles[id(inside[-1])] if inside else ""
        if inside and isinstance(inside[-1], nn.Sequential) and calls[-1].ends:
            around = calls[-1].layer
        calls.append(_Call(titles[id(module)], around, False, _copies(inputs)))
        inside.append(module)

    def end(module: nn.Module, inputs: object, output: object) -> None:
        inside.pop()
        calls.append(_Call(titles[id(module)], "", True, _copies(output)))

    handles = [register_module_forward_pre_hook(begin), register_module_forward_hook(end)]
    try:
        ask()
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _copies(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value.detach().clone()]
    if isinstance(value, tuple | list):
        return [copy for item in value for copy in _copies(item)]
    return []


def refuse_batchnorm(module: nn.Module) -> None:
    """Tasks call this once: batch statistics mix examples, so one record's influence has no bound.

    Raises:
        Impure: the module contains a batch normalization.
    """
    for path, layer in module.named_modules():
        if isinstance(layer, _BatchNorm):
            raise Impure(_mixes(path, layer))


def _refuse_batch_statistics(path: str, layer: nn.Module) -> None:
    """One in evaluation mode uses the statistics it came with."""
    if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
        raise Impure(_mixes(path, layer))


def _mixes(path: str, layer: nn.Module) -> str:
    return (
        f"The model's layer {path or 'model'!r} is a {type(layer).__name__}, which mixes the "
        "examples of a batch, so their gradients can't be clipped one by one; use GroupNorm or "
        "LayerNorm."
    )
