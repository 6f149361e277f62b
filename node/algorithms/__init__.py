"""The algorithms: one file each, one line in the table each.

An algorithm is a conversation (`peer.message`). It touches no network, no clock, no global
randomness and no event loop, and never sees the task's gradients: it asks `gradients`, the gate at
the data (`privacy.gate`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel
from torch import Tensor

from node.maths.blocks import Block
from peer.errors import ConfigurationError
from peer.message import Conversation, Layout, Peer
from peer.neighborhood import Neighborhood


class Gradients(Protocol):
    """The gate as an algorithm sees it. All vectors are flat float32 [d]."""

    def __call__(self, x: Tensor, t: int, to: Peer) -> Tensor:
        """The gradient of this node's loss at x as it may leave for `to` in round t (strict:
        clipped, noised, debited).

        Raises:
            peer.message.Withheld: nothing may be released to `to`; for `to` = me a zero vector is
            returned instead.
        """
        ...

    def own(self, x: Tensor, t: int) -> Tensor:
        """The own gradient at x in round t. strict: the noised release as for me; paper: clipped
        only; none: plain.
        """
        ...

    def difference(self, x: Tensor, before: Tensor, t: int) -> Tensor:
        """∇f(x) − ∇f(before), both of the same examples, in round t: a release for me, instead of
        the gradient at x.

        strict: each example's difference is clipped, and the sum noised and debited like a
        gradient.

        Raises:
            peer.message.Withheld: nothing may be released.
        """
        ...

    def within(self, x: Tensor, block: Block) -> Callable[[Tensor, int], Tensor]:
        """(θ, t) -> the gradient of round t with respect to one block, flat float32 [block], at the
        model x [d] with θ [block] in the block's place. x is read now; as a release for me."""
        ...


class Algorithm(Protocol):
    """One paper. `state` is the whole checkpoint: a dataclass of tensors, numbers, strings,
    complete after `round`.
    """

    Config: ClassVar[type[BaseModel]]
    """Hyper-parameters: a frozen pydantic model with `extra="forbid"`, a docstring (unit, effect)
    under each field.
    """

    pooled: ClassVar[bool]
    """True: one node on the union of all data (the upper line); `simulate` only, a daemon refuses
    it.
    """

    # A ClassVar that is True makes an algorithm be given one more argument: `validates` the
    # validation set, `judge`;
    # `staged` the names of the layout layer by layer, `stages`, and x in the task's type; its
    # Config is a BadamConfig.
    # `adapted`: it needs adapters.

    state: Any

    def __init__(
        self,
        config: Any,
        *,
        neighborhood: Neighborhood,
        layout: Layout,
        gradients: Gradients,
        start: Tensor,
    ) -> None: ...

    @classmethod
    def releases(cls, degree: int) -> int:
        """|K|: gradients released per round by a node of this degree in strict mode (answers and
        the own one).
        """
        ...

    @property
    def parameters(self) -> Tensor:
        """x_i, flat float32 [d]: what is evaluated, exported and digested."""
        ...

    @property
    def local_sgd_scale(self) -> float | None:
        """A node without neighbors is SGD (with momentum β if Config has `beta`) with its gradient
        times this.

        None: alone it is another optimizer, which its docstring names and its paper test shows.
        """
        ...

    def round(self, t: int) -> Conversation:
        """One round. The sequence of verbs is a function of configuration and t only."""
        ...

    # `whole`, a bool, where a round changes tensors of the state in place: False meanwhile, when it
    # is no checkpoint.
    # `place(t)`, a method: which of the parameters round t trains, where it is a part of them.
    # `position(t)`, a method: where round t is in the algorithm's own loops, e.g. {"cycle": 0,
    # "block": 3, "step": 7}

    def diagnostics(self) -> Mapping[str, Mapping[Peer, float]]:
        """Per-neighbor figures of the last round for metrics and journal, e.g. {"cosine": {"b":
        -0.01}}.
        """
        ...


ALGORITHMS: Mapping[str, str] = {
    "dpdl": "node.algorithms.dpdl:Dpdl",
    "d-psgd": "node.algorithms.d_psgd:DPsgd",
    "dmsgd": "node.algorithms.dmsgd:Dmsgd",
    "qg-dsgdm": "node.algorithms.qg_dsgdm:QgDsgdm",
    "xavg": "node.algorithms.xavg:Xavg",
    "ross": "node.algorithms.ross:Ross",
    "pdsl": "node.algorithms.pdsl:Pdsl",
    "cga": "node.algorithms.cga:Cga",
    "net-fleet": "node.algorithms.net_fleet:NetFleet",
    "muffliato": "node.algorithms.muffliato:Muffliato",
    "deca": "node.algorithms.deca:Deca",
    "badam": "node.algorithms.deca:Badam",
    "dsgd-adam": "node.algorithms.dsgd_adam:DsgdAdam",
    "dec-lora": "node.algorithms.dsgd_adam:DecLora",
    "local": "node.algorithms.sgd:Local",
    "centralized": "node.algorithms.sgd:Centralised",
}
"""name -> module:class. A new algorithm: one file, one line here, one paper test."""

NOISED: Mapping[str, str] = {
    "dp-d-psgd": "d-psgd",
    "dp-dmsgd": "dmsgd",
    "dp-xavg": "xavg",
    "dp-cga": "cga",
    "dp-net-fleet": "net-fleet",
}
"""Second name -> algorithm. Noise is the gate's, so `d-psgd` in mode strict is DP-D-PSGD bit for
bit; under the second name, by which papers compare, a run in any other mode is refused."""

PRIVATE: Mapping[str, str] = {"pdsl": "ross"}
"""Algorithm that is refused in any mode but strict -> what it is without noise."""


def find(name: str) -> type[Algorithm]:
    """The algorithm's class, by either of its names.

    Raises:
        ConfigurationError: no algorithm of that name.
    """
    own = NOISED.get(name, name)
    if own not in ALGORITHMS:
        choice = ", ".join(sorted({*ALGORITHMS, *NOISED}))
        raise ConfigurationError(f"Unknown algorithm {name!r}; choose one of {choice}.")
    module, _, attribute = ALGORITHMS[own].partition(":")
    found: type[Algorithm] = getattr(import_module(module), attribute)
    return found


def without_noise(name: str) -> str | None:
    """What an algorithm that needs noise is without it; None for those that don't need it."""
    return NOISED.get(name) or PRIVATE.get(name)


__all__ = ["ALGORITHMS", "NOISED", "PRIVATE", "Algorithm", "Gradients", "find", "without_noise"]
