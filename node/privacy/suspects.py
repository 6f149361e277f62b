"""Records whose gradients were not finite: is the record broken, or was it a neighbor's model?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from node.maths.clipping import unusable
from node.maths.synthetic import random_parameters
from node.task import Task

EXAMINED = 64
"""Suspects that are examined in one release: each costs a gradient."""


@dataclass(slots=True)
class Suspects:
    """Examines each suspect once, and reports those that are broken at any model."""

    task: Task
    seed: int
    """Of the run's initial parameters."""
    report: Callable[[int, Tensor], None]
    """Told (round, row numbers int64 [k])."""
    reported: set[int] = field(default_factory=set)
    cleared: set[int] = field(default_factory=set)
    """A neighbor's model was to blame."""

    def examine(self, t: int, rows: Tensor, *, own_model: bool) -> None:
        """`rows` (int64 [k]) had gradients that are not finite, in round t.

        At this node's own model that is enough. At a neighbor's they have to fail at made-up
        parameters and at the initial ones, too.
        """
        known = self.reported if own_model else self.reported | self.cleared
        new = [row for row in rows.tolist() if row not in known][:EXAMINED]
        broken = torch.tensor(new, dtype=torch.int64)
        if not own_model:
            for parameters in (self._made_up, self._initial):
                if len(broken):
                    broken = unusable(self.task, broken, parameters())
        self.reported |= set(broken.tolist())
        self.cleared |= set(new) - self.reported
        if len(broken):
            self.report(t, broken)

    def _made_up(self) -> Tensor:
        return random_parameters(self.task.layout, 0)

    def _initial(self) -> Tensor:
        return self.task.initial_parameters(self.seed)
