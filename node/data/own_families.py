"""Families of questions of somebody's own: two functions in a module or a file.

    sample(seed) -> {"question": …, "answer": …}    the question of a seed, and a right answer
    score(item, text) -> float                      0 … 1, where 1 is right; without it, `answer`
                                                    is the only right one

They run in a process of their own (`confined`), one for each family, and never in this one. What
is wrong with them is an error before the first round: both are tried when the family is loaded.
Later a scorer that fails on an answer is a warning, and the answer counts as wrong, because whoever
trained the policy chose its text, and must not end anybody's run by it.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from node.config.section import readable
from node.config.task import OWN_PREFIX, ReasoningSection
from node.data import confined
from node.data.child import Child, ChildError
from node.data.families import LONGEST, Family, Item
from node.hooks import no_op
from peer.errors import ConfigurationError, TaskError

LOADING, SECONDS = confined.LOADING, 10.0
"""By the clock, for the family's code to be loaded, and for a question or an answer."""
GIVE_UP = 3
"""Answers of a batch that may end the process one after another; the rest is then not scored."""
PROMISES = {
    "import": "it must load",
    "sample": "it must make a question of any seed",
    "score": "it must give a number from 0 to 1 for any text",
}
"""What is wrong where a function fails."""
TRIED = (
    *("", " ", "x", "-1", "1e999999999", "nan", "٧", "%s{0}", "\x1b[2J\x00", "\ud800"),
    *("9**9**9", "9" * LONGEST, "(" * LONGEST, "__import__('os').getpid()"),
)
"""Texts on which a scorer is tried at first: some policy will say the like."""


def is_file(name: str) -> bool:
    """Does the family's name say a file, as own:FILE.py?"""
    place = name.removeprefix(OWN_PREFIX)
    return name.startswith(OWN_PREFIX) and (place.endswith(".py") or "/" in place)


def absolute(section: ReasoningSection) -> ReasoningSection:
    """The section with files written from the root, so that they mean the same in every working
    folder."""
    scale = {_absolute(name): pair for name, pair in section.reward_scale.items()}
    families = tuple(map(_absolute, section.families))
    return section.model_copy(update={"families": families, "reward_scale": scale})


def _absolute(name: str) -> str:
    return f"{OWN_PREFIX}{_file(name)}" if is_file(name) else name


def _file(name: str) -> Path:
    return Path(name.removeprefix(OWN_PREFIX)).expanduser().absolute()


@cache
def family(name: str) -> Family:
    """The family "own:package.module" or "own:FILE.py".

    Raises:
        ConfigurationError: there is no such module or file.
        TaskError: its code raised, or gave what it should not.
    """
    own = OwnFamily(name, _place(name))
    own.try_out()
    return Family(name, own.sample, own.scores if own.scored else None)


def _place(name: str) -> str:
    if is_file(name):
        file = _file(name)
        if file.suffix != ".py" or not file.is_file():
            raise ConfigurationError(f"The family {name!r}: there is no Python file {file}.")
        return str(file)
    place = name.removeprefix(OWN_PREFIX)
    if not all(part.isidentifier() for part in place.split(".")):
        raise ConfigurationError(
            f"The family {name!r} names no module; write {OWN_PREFIX}package.module or "
            f"{OWN_PREFIX}FILE.py."
        )
    return place


class OwnFamily:
    """One family, and the process of its code."""

    def __init__(self, name: str, place: str) -> None:
        self.name, self.scored = name, False
        self.child = Child("-P", str(confined.__file__), place)
        self._warned = False

    def try_out(self) -> None:
        """Tries both functions.

        Raises:
            TaskError: there is no `sample`, or something raised or gave what it should not.
        """
        functions = self._ask("import")
        if "sample" not in functions:
            raise self._mistake("there is no function sample(seed)")
        self.scored = "score" in functions
        item = self.sample(0)
        if self.sample(0) != item:
            raise self._mistake(
                "sample(0) gives two different questions; draw with random.Random(seed) only"
            )
        if not self.scored:
            return
        if (score := self.score(item, item.answer)) != 1.0:
            raise self._mistake(
                f"score gives {score:g} for the answer that sample(0) gives; 1 is expected"
            )
        for text in TRIED:
            self.score(item, text)

    def sample(self, seed: int) -> Item:
        """Raises TaskError."""
        match self._ask("sample", seed):
            case [str(question), str(answer)]:
                return Item(question, answer)
        raise self._mistake("what came from its process is no question")

    def scores(
        self, items: Sequence[Item], texts: Sequence[str], yield_point: Callable[[], None] = no_op
    ) -> list[float | None]:
        """What answers to items are worth, without space around them; None: the scorer failed."""
        scores: list[float | None] = []
        ends = 0
        for item, text in zip(items, texts, strict=True):
            score = 0.0 if len(text) > LONGEST else None
            if score is None and ends < GIVE_UP:
                score = self._tried(item, text.strip())
                ends = 0 if self.child.pid else ends + 1
            scores.append(score)
            yield_point()
        return scores

    def _tried(self, item: Item, text: str) -> float | None:
        """None: the scorer failed, which its owner is told once."""
        try:
            return self.score(item, text)
        except TaskError as error:
            if not self._warned:
                print(f"warning: {error} Such answers count as wrong.", file=sys.stderr)
            self._warned = True
            return None

    def score(self, item: Item, text: str) -> float:
        """Raises TaskError: the scorer fails on this text."""
        value = self._ask("score", {"question": item.prompt, "answer": item.answer}, text)
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise self._mistake("what came from its process is no score")
        return float(value)

    def _ask(self, function: str, *arguments: object) -> Any:
        """Raises TaskError: its code raised, gave what it should not, or ended its process."""
        seconds = SECONDS if self.child.pid else LOADING + SECONDS
        try:
            match self.child.ask([function, *arguments], seconds):
                case {"value": value}:
                    return value
                case {"error": str(text), "brief": str(brief)}:
                    pass
                case _:
                    text = brief = "answers what is no answer"
        except ChildError as error:
            text = brief = _end(error.code)
        given = f", given {_shown(str(arguments[-1]))}," if arguments else ""
        raise self._mistake(
            f"{function}{given} {readable(text)}; {PROMISES[function]}",
            f"{function} {readable(brief)}",
        )

    def _mistake(self, text: str, brief: str = "") -> TaskError:
        name = f"The family {self.name!r}"
        return TaskError(f"{name}: {text}.", f"{name}: {brief or text}.")


def _end(code: int | None) -> str:
    """What became of the process, in words."""
    if code == -signal.SIGPROF:
        return f"takes more than {confined.SECONDS:g} s of CPU time"
    if code is None:
        return f"takes more than {SECONDS:g} s"
    return f"ends its process ({code})"


def _shown(text: str) -> str:
    """An answer in a sentence."""
    return ascii(text if len(text) <= 40 else f"{text[:40]}…")
