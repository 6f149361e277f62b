"""Six nodes whose losses are quadratics with optima of their own, for algorithms against references
in NumPy.
"""

from typing import Any

import numpy as np
import torch

from kit.golden import EQUATIONS
from node.algorithms import Resources
from node.rounds import lockstep
from peer.message import Layout
from peer.neighborhood import Neighborhood, View

N, D = 6, 7
LAYOUT = Layout((("w", (D,)),))
W = np.array(EQUATIONS["metropolis"]["W"])
NAMES = [str(i) for i in range(N)]
NEIGHBORHOODS = {
    i: Neighborhood(me=i, weight={j: w for j, w in zip(NAMES, row, strict=True) if w}, nodes=N)
    for i, row in zip(NAMES, W.tolist(), strict=True)
}
_chance = np.random.default_rng(3)
CURVE, OPTIMUM, START = (
    _chance.uniform(0.2, 2.0, (N, D)),
    _chance.normal(size=(N, D)),
    _chance.normal(size=(N, D)),
)


def gradient(j: Any, x: Any) -> Any:
    """∇f_j(x) = a_j·(x − c_j); with j = slice(None) all nodes' at their own rows of x [N, D]."""
    return CURVE[j] * (x - OPTIMUM[j])


class GradientGate:
    """∇f_j in float64; notes whom it served, and at which model. The clean own gradient is not to
    be touched.
    """

    def __init__(self, me: str) -> None:
        self.me, self.asked = me, []  # type: ignore[var-annotated]

    def __call__(self, x: torch.Tensor, t: int, to: str) -> torch.Tensor:
        self.asked.append((t, to, x.clone()))
        return torch.from_numpy(gradient(int(self.me), x.numpy()))

    def own(self, x: torch.Tensor, t: int) -> torch.Tensor:
        raise AssertionError("in paper mode this would be the clean gradient")


def cluster(algorithm: Any, **options: Any) -> dict[str, Any]:
    """The nodes, each at its row of START."""
    return {i: algorithm(algorithm.Config(**options), resources(i)) for i in NAMES}


def resources(me: str, gradients: Any = None, **more: Any) -> Resources:
    """Those of one node at its row of START; `gradients` in place of its own."""
    start = torch.from_numpy(START[int(me)])
    gate: Any = gradients or GradientGate(me)
    return Resources(me=me, layout=LAYOUT, start=start, gradients=gate, **more)


def view(me: str) -> View:
    """Who is around that node."""
    return View(NEIGHBORHOODS[me])


def played(nodes: dict[str, Any], rounds: int) -> np.ndarray:
    """Every node's parameters [N, D] after so many rounds."""
    lockstep.run(nodes, NEIGHBORHOODS, rounds)
    return np.stack([nodes[i].parameters.numpy() for i in NAMES])


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
