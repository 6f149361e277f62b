"""Reads equations.json: vectors in float64, made by an independent implementation of the papers'
equations.
"""

import json
from typing import Any

import torch

from kit import TESTS
from peer.message import Layout
from peer.neighborhood import Neighborhood

EQUATIONS: dict[str, Any] = json.loads((TESTS / "paper" / "equations.json").read_text())


def vector(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def vectors(values: dict[str, list[float]]) -> dict[str, torch.Tensor]:
    return {name: vector(value) for name, value in values.items()}


def close(actual: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(actual, vector(expected), rtol=0, atol=1e-12)


def neighborhood(case: dict[str, Any]) -> Neighborhood:
    return Neighborhood(me=str(case["me"]), weight=case["w"], nodes=case["N"])


def layout(case: dict[str, Any]) -> Layout:
    return Layout(tuple((f"part{start}", (stop - start,)) for start, stop in case["tensor_slices"]))
