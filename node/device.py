"""Where gradients are computed: on the CPU, on an NVIDIA GPU, or on Apple's.

Only the task's arithmetic goes there: gradients, clipping, evaluation. Noise is drawn on the CPU
and bytes leave from the CPU, so states, mixing and all that is sent stay there too; an answer moves
the model to the GPU (4d bytes, from pinned memory) and the clipped sum back (8d).

Not covered: bits. A GPU's differ from a CPU's and from another GPU's; kernels that are not
deterministic are refused where torch offers the choice. Never run on Apple's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from peer.errors import ConfigurationError, TemporaryFailure

CPU = torch.device("cpu")


def pick(name: str) -> torch.device:
    """The device of `compute.device`: cpu, cuda, cuda:N, mps, or auto (a GPU where there is one).

    Raises:
        ConfigurationError: it is asked for and not there.
    """
    if name == "auto":
        name = _best()
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigurationError(
            'compute.device = "mps", but torch can use no GPU of a Mac here; use "auto".'
        )
    device = torch.device(name)
    if device.type == "cuda":
        _check_cuda(name, device.index or 0)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    return device


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _check_cuda(name: str, index: int) -> None:
    if torch.version.cuda is None:
        raise ConfigurationError(
            f'compute.device = "{name}", but this torch is for the CPU only; install its CUDA '
            'build, or use "auto".'
        )
    if not torch.cuda.is_available():
        raise ConfigurationError(
            f'compute.device = "{name}", but torch finds no NVIDIA GPU or driver (try nvidia-smi); '
            'use "auto".'
        )
    if index >= (count := torch.cuda.device_count()):
        raise ConfigurationError(
            f'compute.device = "{name}", but this machine has {count} GPU(s), counted from cuda:0; '
            "choose one of them."
        )


def onto(x: Tensor, device: torch.device) -> Tensor:
    """x [*shape] on the device; through pinned memory, so that the copy does not wait."""
    if device.type == "cuda" and x.device == CPU:
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def back(x: Tensor) -> Tensor:
    """x [*shape] on the CPU."""
    if x.device.type != "cuda":
        return x.to(CPU)
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x)


def room(device: torch.device, nbytes: int, most: int) -> int:
    """How many pieces of `nbytes` fit a third of the GPU's free memory, at most `most`."""
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(most, free // (3 * nbytes)))


@contextmanager
def enough_memory() -> Iterator[None]:
    """Turns the GPU's running out of memory into a sentence.

    Raises:
        TemporaryFailure: it did; others may use the GPU too.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise TemporaryFailure(
            "The GPU has too little free memory for this model: end what else uses it, lower "
            "privacy.chunk, or set "
            'compute.device = "cpu"; the last checkpoint is kept.'
        ) from None


def peak_memory(device: torch.device) -> int:
    """Most bytes this process held so far; on a GPU most that torch allocated there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
