"""Which device computes, and what is said when it is not there. Needs no GPU."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from node import device
from node.config import ComputeSection
from peer.errors import ConfigurationError, TemporaryFailure

NO_GPU = not torch.cuda.is_available()


@pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(), reason="this machine has a GPU"
)
def test_auto_is_the_cpu_where_there_is_nothing_else() -> None:
    assert device.pick("auto") == device.pick("cpu") == device.CPU


@pytest.mark.parametrize(
    ("built", "there", "name", "says"),
    [
        (None, False, "cuda", "for the CPU only; install its CUDA build"),
        ("13.0", False, "cuda:0", "no NVIDIA GPU or driver"),
        ("13.0", True, "cuda:2", "has 2 GPU"),
    ],
)
def test_a_gpu_that_is_not_there_is_said_so(
    monkeypatch: pytest.MonkeyPatch, built: str | None, there: bool, name: str, says: str
) -> None:
    """What torch says of this machine is put in its mouth: no machine has all three faults."""
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigurationError, match=says):
        device.pick(name)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has such a GPU")
def test_apples_gpu_that_is_not_there_is_said_so() -> None:
    with pytest.raises(ConfigurationError, match="no GPU of a Mac"):
        device.pick("mps")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="auto, cpu, cuda, cuda:N or mps is expected"):
        ComputeSection(device=name)


def test_running_out_of_memory_is_a_sentence() -> None:
    with pytest.raises(TemporaryFailure, match="too little free memory"), device.enough_memory():
        raise torch.OutOfMemoryError("CUDA out of memory.")
