"""The algorithms: one file each, one line in the table each.

An algorithm is a conversation (`peer.message`). It touches no network, no clock, no global
randomness and no event loop, and never sees the task: what it works with is in `Resources`, and of
gradients it asks the gate at the data (`privacy.gate`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Protocol

from torch import Tensor

from node.config import AlgorithmConfig
from node.figures import Diagnostic
from node.maths.blocks import Block
from node.maths.coalitions import UtilityOracle
from node.maths.policy import Policy
from peer.message import Conversation, Layout, Peer
from peer.neighborhood import View
from peer.tables import load_entry


class Gradients(Protocol):
    """The privacy gate as an algorithm sees it. All vectors are flat float32 [d]."""

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


class Capability(Enum):
    """What an algorithm may need of a task."""

    VALIDATION = "a validation set, on which models are valued"
    LAYERS = "layers that can be trained one after another"
    ADAPTERS = "adapters to a frozen model"
    POLICY = "questions, whose answers are rewarded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one node's algorithm works with. The last three are there for those that need them."""

    me: Peer
    layout: Layout
    """Of the parameters."""
    start: Tensor
    """Initial parameters, flat [d]: float32, or the task's own type where blocks are trained."""
    gradients: Gradients
    utility: UtilityOracle | None = None
    """Capability.VALIDATION: what models are worth."""
    layer_groups: Sequence[Sequence[str]] = ()
    """Capability.LAYERS: the layout's names, layer by layer."""
    policy: Policy | None = None
    """Capability.POLICY: what answers questions, and is rewarded."""


class Algorithm(ABC):
    """One paper. This class holds data and declarations only; what an algorithm does is its own.

    `state` is the whole checkpoint: a dataclass of tensors, numbers and strings, complete after
    `round`.
    """

    Config: ClassVar[type[AlgorithmConfig]]
    """Hyper-parameters: a docstring (unit, effect) under each field."""
    NEEDS: ClassVar[frozenset[Capability]] = frozenset()
    """What it needs of a task; any other task is refused."""
    ANSWERS: ClassVar[bool] = False
    """Does it release a gradient to each neighbor in every round, beside the own one?"""
    PRIVATE: ClassVar[bool] = True
    """False: it has no differential privacy, and any mode but none is refused."""
    POOLED: ClassVar[bool] = False
    """True: one node on the union of all data (an upper bound); `simulate` only, a daemon refuses
    it.
    """
    PUBLIC: ClassVar[bool] = False
    """True, of a pooled one: its data are the public validation set, and nothing else."""
    SILENT: ClassVar[bool] = False
    """True: it sends nothing to anybody."""
    DIAGNOSTICS: ClassVar[tuple[Diagnostic, ...]] = ()
    """What `diagnostics` may tell, the most telling first: reports draw that one."""

    state: Any

    def __init__(self, config: Any, resources: Resources) -> None:
        self.config = config
        self.me = resources.me
        self.gradients = resources.gradients

    @classmethod
    def releases(cls, degree: int) -> int:
        """|K|: gradients released per round by a node of this degree in strict mode."""
        return 1 + (degree if cls.ANSWERS else 0)

    @property
    def parameters(self) -> Tensor:
        """x_i, flat float32 [d]: what is evaluated, exported and digested."""
        x: Tensor = self.state.x
        return x

    @property
    def checkpointable(self) -> bool:
        """False while a round changes tensors of the state in place."""
        return True

    @abstractmethod
    def round(self, t: int, view: View) -> Conversation:
        """One round. The sequence of verbs is a function of configuration and t only."""

    def span(self, t: int) -> slice:
        """Which of the parameters round t trains."""
        return slice(None)

    def diagnostics(self) -> Mapping[str, float | Mapping[Peer, float]]:
        """Figures of the last round by their declared names, e.g. {"cosine": {"b": -0.01}}."""
        return {}


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
    "fgrpo": "node.algorithms.fgrpo:Fgrpo",
    "grpo": "node.algorithms.grpo:Grpo",
    "sapo": "node.algorithms.sapo:Sapo",
    "local": "node.algorithms.sgd:Local",
    "centralized": "node.algorithms.sgd:Centralized",
    "public": "node.algorithms.sgd:Public",
}
"""name -> module:class. A new algorithm: one file, one line here, one paper test."""

NOISED: Mapping[str, str] = {
    "dp-d-psgd": "d-psgd",
    "dp-dmsgd": "dmsgd",
    "dp-xavg": "xavg",
    "dp-cga": "cga",
    "dp-net-fleet": "net-fleet",
    "dp-local": "local",
    "dp-centralized": "centralized",
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
    table = {**ALGORITHMS, **{second: ALGORITHMS[first] for second, first in NOISED.items()}}
    algorithm: type[Algorithm] = load_entry(table, name, "algorithm")
    return algorithm


def without_noise(name: str) -> str | None:
    """What an algorithm that needs noise is without it; None for those that don't need it."""
    return NOISED.get(name) or PRIVATE.get(name)


__all__ = [
    "ALGORITHMS",
    "NOISED",
    "PRIVATE",
    "Algorithm",
    "Capability",
    "Gradients",
    "Resources",
    "find",
    "without_noise",
]
