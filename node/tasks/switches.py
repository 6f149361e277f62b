"""Switches of torch that hold for the whole process are no task's to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from peer.errors import TaskError

SWITCHES: Mapping[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (torch.get_default_device, torch.set_default_device),
    "gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "inference mode": (torch.is_inference_mode_enabled, lambda on: None),
    "use of deterministic algorithms": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "float32 matmul precision": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "anomaly detection": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
}
"""Of torch, for the whole process: name -> (what shows it, what sets it)."""


@contextmanager
def switches_kept(task: str) -> Iterator[None]:
    """Switches of torch are put back to what they were.

    Raises:
        TaskError: one was changed inside, which would change how everything else computes.
    """
    before = {name: get() for name, (get, _) in SWITCHES.items()}
    try:
        yield
    finally:
        changed = [name for name, (get, _) in SWITCHES.items() if get() != before[name]]
        for name in changed:
            SWITCHES[name][1](before[name])
    if changed:
        raise TaskError(
            f"task.name = {task!r} changes torch's {changed[0]} for the whole process; set it "
            "where it is needed only, and put it back."
        )
