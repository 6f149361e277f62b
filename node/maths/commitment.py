"""What a peer binds itself to with its update, before anybody audits it: a chain of commitments.
Who tells its past anew, or leaves it out, begins without one: nothing is gained by it.

It travels as a note, under the signature of the message it belongs to. Never in it: questions or
answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from peer.message import MAX_NOTE

NO_ONE = ""
"""Before the first commitment."""
LARGEST = 1e100
"""Magnitude of a reward, which JSON would give any number of digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commitment:
    """Of one round."""

    round: int
    update: str
    """SHA-256 (hex) of δ as it was sent."""
    reward: float
    """R̄ under the model that the round began with."""
    evaluation: str
    """SHA-256 (hex) of the questions that R̄ was measured on."""
    families: tuple[str, ...]
    """Generators of the own questions."""
    questions: int = 0
    """How many there are; 0: it does not say."""
    previous_round: int = -1
    previous: str = NO_ONE
    """Digest of the commitment of that round."""

    def encode(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @property
    def digest(self) -> str:
        """SHA-256 (hex)."""
        return hashlib.sha256(self.encode()).hexdigest()

    @classmethod
    def decode(cls, note: bytes) -> Commitment:
        """Raises ValueError: it is none."""
        if len(note) > MAX_NOTE:
            raise ValueError("too long")
        try:
            values = json.loads(note.decode())
        except RecursionError:
            raise ValueError("nested too deeply") from None
        expected = {"round", "update", "reward", "evaluation", "families", "questions"}
        expected |= {"previous_round", "previous"}
        if not isinstance(values, dict) or set(values) != expected:
            raise ValueError("no commitment")
        texts = [values["update"], values["evaluation"], values["previous"], *_list(values)]
        numbers = [values["round"], values["questions"]]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a text is none")
        if not all(type(number) is int and 0 <= number < 2**53 for number in numbers):
            raise ValueError("a number is none")
        previous = values["previous_round"]
        if type(previous) is not int or not -1 <= previous < values["round"]:
            raise ValueError("the round before is none")
        reward = values["reward"]
        if type(reward) not in (int, float) or not abs(reward) < LARGEST:
            raise ValueError("the reward is none")
        return cls(**{**values, "families": tuple(values["families"]), "reward": float(reward)})


def _list(values: dict[str, object]) -> list[object]:
    families = values["families"]
    if not isinstance(families, list):
        raise ValueError("no families")
    return families


def largest(families: Sequence[str]) -> Commitment:
    """One as long as any of these generators."""
    most, digest = 2**53 - 1, "0" * 64
    return Commitment(
        round=most,
        update=digest,
        reward=-1.2345678901234567e-100,
        evaluation=digest,
        families=tuple(families),
        questions=most,
        previous_round=most,
        previous=digest,
    )


def update_digest(delta: Tensor) -> str:
    """Of δ, float32 [n], as `Commitment.update` has it."""
    return hashlib.sha256(delta.contiguous().numpy().data).hexdigest()
