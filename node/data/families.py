"""Families of small questions with one right answer, made from a seed: what a policy is trained and
tested on by reinforcement.

An item depends on family and seed only, so whoever knows them can make the same questions. Which
questions are held out is decided by the question itself, never by the seed: two seeds may ask the
same.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from string import ascii_lowercase
from typing import Literal, TypeAlias

HELD_OUT = 0.2
"""Share of all questions that are never trained on."""
AT_ONCE = 64
"""Items that are asked for together, as a family may be in another process."""


@dataclass(frozen=True, slots=True)
class Item:
    """A question and its canonical answer."""

    prompt: str
    answer: str

    @property
    def held_out(self) -> bool:
        """Is it for testing only?"""
        place = hashlib.sha256(self.prompt.encode()).digest()[:4]
        return int.from_bytes(place, "big") < HELD_OUT * 2**32


Scorer: TypeAlias = Callable[
    [Sequence[Item], Sequence[str], Callable[[], None]], list[float | None]
]
"""What texts are worth as answers to items, 0 … 1, where 1 is right; None: it failed on that text.
The last argument is called now and then, so that neighbors get their answers meanwhile."""


@dataclass(frozen=True, slots=True)
class Family:
    """Questions of one kind."""

    name: str
    samples: Callable[[Sequence[int]], list[Item]]
    """The items of seeds."""
    scores: Scorer | None = None
    """Where more than one answer may be right; None: there is one."""

    def sample(self, seed: int) -> Item:
        """The item of a seed."""
        return self.samples([seed])[0]

    def items(self, seeds: range, *, held_out: bool) -> Iterator[Item]:
        """The items of these seeds that are for testing, or for training; no more seeds are asked
        than are needed.
        """
        for start in seeds[::AT_ONCE]:
            for item in self.samples(seeds[start - seeds.start :][:AT_ONCE]):
                if item.held_out == held_out:
                    yield item


def seeded(name: str, make: Callable[[random.Random], Item]) -> Family:
    """The family whose items are drawn by a generator of their name and seed."""

    def samples(seeds: Sequence[int]) -> list[Item]:
        return [make(random.Random(f"{name} {seed}")) for seed in seeds]

    return Family(name, samples)


Match: TypeAlias = Literal["exact", "numeric"]
"""How an answer is compared with the right one: as text, or as a number where both are one."""
LONGEST = 4096
"""Characters of an answer that is looked at; a longer one is wrong."""
NUMBER = re.compile(r"[+-]?\d{1,30}(\.\d{1,30})?")


def score(item: Item, text: str, match: Match = "exact") -> float:
    """1 for the right answer, and up to a half for characters of it in their places."""
    if is_right(item, text, match):
        return 1.0
    answer = text[:LONGEST].strip()
    places = zip(answer, item.answer, strict=False)
    return 0.5 * sum(a == b for a, b in places) / max(len(item.answer), len(answer), 1)


def is_right(item: Item, text: str, match: Match = "exact") -> bool:
    """Is this the right answer, up to space around it? It is compared, never evaluated: whoever
    trained the policy chose this text.
    """
    if len(text) > LONGEST:
        return False
    answer, right = text.strip(), item.answer.strip()
    if match == "numeric" and NUMBER.fullmatch(answer) and NUMBER.fullmatch(right):
        return Decimal(answer) == Decimal(right)
    return answer == right


def _reverse(draw: random.Random) -> Item:
    word = "".join(draw.choices(ascii_lowercase, k=draw.randint(3, 4)))
    return Item(f"rev {word}=", word[::-1])


def _sort(draw: random.Random) -> Item:
    digits = "".join(draw.choices("0123456789", k=3))
    return Item(f"sort {digits}=", "".join(sorted(digits)))


def _largest(draw: random.Random) -> Item:
    numbers = [draw.randint(0, 99) for _ in range(3)]
    return Item(f"max {' '.join(map(str, numbers))}=", str(max(numbers)))


def _add_seven(draw: random.Random) -> Item:
    number = draw.randint(100, 9999)
    return Item(f"inc {number}=", str(number + 7))


def _add(draw: random.Random) -> Item:
    a, b = draw.randint(0, 99), draw.randint(0, 99)
    return Item(f"add {a}+{b}=", str(a + b))


def _subtract(draw: random.Random) -> Item:
    a, b = draw.randint(0, 99), draw.randint(0, 99)
    return Item(f"sub {a}-{b}=", str(a - b))


FAMILIES: Mapping[str, Family] = {
    name: seeded(name, make)
    for name, make in {
        "reverse": _reverse,
        "sort": _sort,
        "largest": _largest,
        "add-seven": _add_seven,
        "add": _add,
        "subtract": _subtract,
    }.items()
}
"""name -> family."""
