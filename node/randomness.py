"""Randomness: secret streams for batches and noise, public generators for all that every node may
know.

Secret: AES-256-CTR (`cryptography`) under 32 bytes from the operating system, fresh at every
process start and never stored; each (purpose, round, recipient) has a stream of its own, so draws
don't depend on the order of answers. The global seeds of torch and numpy touch nothing here.
`Keys.insecure` replaces the bytes by a public seed, for reproduction only. Not covered: whoever
reads this process's memory reads the key.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Floats = npt.NDArray[np.float64]

BLOCK = 1 << 15
"""Numbers drawn at a time: 256 KiB of float64 stays in the cache (1.9 × the time of torch.randn,
3.9 × unblocked).
"""


class Stream:
    """Pseudo-random numbers of one purpose. It only runs forward and can't be copied: it serves one
    gradient.
    """

    __slots__ = ("_bits", "_encrypt", "_raw")

    def __init__(self, key: bytes) -> None:
        self._encrypt = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._raw = bytearray(8 * BLOCK + 16)
        self._bits = np.frombuffer(self._raw, dtype="<u8", count=BLOCK)

    def uniform(self, n: int) -> Floats:
        """float64 [n] in [0, 1), multiples of 2^-53."""
        out = np.empty(n)
        for start in range(0, n, BLOCK):
            self._fill(out[start : start + BLOCK])
        return out

    def normal(self, n: int) -> Floats:
        """float64 [n], standard normal (Box–Muller; the tails end at 8.57 standard deviations)."""
        out = np.empty(n)
        for start in range(0, n, BLOCK):
            _box_muller(self, out[start : start + BLOCK])
        return out

    def bytes(self, n: int) -> bytes:
        """The next n bytes."""
        return self._encrypt.update(bytes(n))

    def _fill(self, out: Floats) -> None:
        """At most BLOCK uniform numbers into `out`."""
        self._encrypt.update_into(_ZEROS[: 8 * len(out)], self._raw)
        np.multiply(self._bits[: len(out)] >> np.uint64(11), 2.0**-53, out=out)

    def __repr__(self) -> str:
        return "Stream(secret)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "a random stream is never copied or stored: the same numbers would be drawn twice"
        )


_ZEROS = memoryview(bytes(8 * BLOCK))


def _box_muller(stream: Stream, out: Floats) -> None:
    """Fills `out` (at most BLOCK numbers) with √(−2 ln(1−u))·(cos, sin)(2πv). torch's vectorized
    log, sin and cos.
    """
    half = (len(out) + 1) // 2
    uniform = np.empty(2 * half)
    stream._fill(uniform)
    radius, angle = torch.from_numpy(uniform[:half]), torch.from_numpy(uniform[half:])
    radius.neg_().add_(1.0).log_().mul_(-2.0).sqrt_()
    angle.mul_(2.0 * math.pi)
    torch.mul(angle.cos(), radius, out=torch.from_numpy(out[:half]))
    rest = len(out) - half
    torch.mul(angle[:rest].sin(), radius[:rest], out=torch.from_numpy(out[half:]))


class Keys:
    """The secret key of one process and the streams made from it. Not shown, copied, pickled or
    compared.
    """

    __slots__ = ("_key", "_last", "insecure_seed")

    insecure_seed: int | None
    """Not None: the key is public, and so is every draw. No privacy at all; to be shown wherever ε
    is shown.
    """

    def __init__(self, key: bytes, insecure_seed: int | None = None) -> None:
        if len(key) != 32:
            raise ValueError("a key has 32 bytes")
        self._key = key
        self._last: dict[tuple[str, str], int] = {}
        self.insecure_seed = insecure_seed

    @classmethod
    def fresh(cls) -> Keys:
        """32 new bytes from the operating system."""
        return cls(os.urandom(32))

    @classmethod
    def insecure(cls, seed: int, node: str) -> Keys:
        """A key that everybody can compute, for reproduction."""
        return cls(_digest("peerpoise insecure", seed, node), seed)

    def stream(self, purpose: str, round: int, recipient: str) -> Stream:
        """The stream of (purpose, round, recipient), handed out once: rounds only go forward.

        Raises:
            RuntimeError: this or a later round's stream was handed out before (a bug: noise would
                be drawn twice).
        """
        if round <= self._last.get((purpose, recipient), -1):
            raise RuntimeError(f"the {purpose} stream of round {round} was used before")
        self._last[purpose, recipient] = round
        return Stream(hmac.digest(self._key, _label(purpose, round, recipient), "sha256"))

    def __repr__(self) -> str:
        return (
            "Keys(secret)"
            if self.insecure_seed is None
            else f"Keys(insecure_seed={self.insecure_seed})"
        )

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("keys are never copied or stored")


def public_generator(seed: int, node: str, round: int, purpose: str) -> torch.Generator:
    """A generator anybody can repeat, for what is public (the batches of mode none)."""
    value = int.from_bytes(_digest("peerpoise public", seed, node, round, purpose)[:8], "little")
    return torch.Generator().manual_seed(value >> 1)


def _label(*parts: object) -> bytes:
    """An unambiguous encoding: each part with its length."""
    texts = [str(part).encode() for part in parts]
    return b"".join(len(text).to_bytes(4, "big") + text for text in texts)


def _digest(*parts: object) -> bytes:
    return hashlib.sha256(_label(*parts)).digest()


_GENERATOR = threading.RLock()
"""Modules, and whoever draws rows or masks within a gradient, use torch's one generator, which all
threads of a process share.
"""


@contextmanager
def torch_generator(devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """Torch's own generator, and those of these GPUs, for this thread alone; afterwards they are as
    before.
    """
    with _GENERATOR, torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Modules made inside draw their parameters from this seed; torch's own generator is as before
    afterwards.
    """
    with torch_generator():
        torch.manual_seed(seed)
        yield
