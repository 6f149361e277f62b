"""Families of questions of somebody's own: two functions in a module or a file.

    sample(seed) -> {"question": …, "answer": …}    the question of a seed, and a right answer
    score(item, text) -> float                      0 … 1, where 1 is right; without it, `answer`
                                                    is the only right one

They run in a process of their own (`confined`), one for each family, and never in this one. What
is wrong with them is an error before the first round: both are tried when the family is loaded.
Later a scorer that fails on an answer is a warning, and the answer counts as wrong, because whoever
trained the policy chose its text, and must not end anybody's run by it. Questions of a file have
`score` alone.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

from node.config.section import readable
from node.config.task import OWN_PREFIX, ReasoningSection
from node.data import confined
from node.data.child import Child, ChildError
from node.data.families import LONGEST, Family, Item, Scorer
from node.hooks import no_op
from peer.errors import ConfigurationError, TaskError

LOADING, SECONDS = confined.LOADING, 10.0
"""By the clock, for the family's code to be loaded, and for a question or an answer."""
LARGEST_SEED = 2**57
"""No auditor asks by a larger one (`node.llm.policy.audit_seed`)."""
GIVE_UP = 3
"""Answers of a batch that may end the process; the rest is then not scored."""
FORGIVEN = 20
"""Batches without an end, after which as many may again. A neighbor's update can make answers that
hang, and audits alone ask several batches of it a round."""
PROMISES = {
    "import": "it must load",
    "sample": "it must make a question of any seed",
    "score": "it must give a number from 0 to 1 for any text",
}
"""What is wrong where a function fails."""
RIGHT = {
    "family": "the answer that sample(0) gives",
    "scorer": "the right answer to the first question",
}
"""What a scorer is tried with."""
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
    paths = {"families": families, "reward_scale": scale, "scorer": _absolute(section.scorer)}
    return section.model_copy(update=paths)


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
    return Family(name, own.samples, own.scores if own.scored else None)


def scorer(name: str, item: Item) -> Scorer:
    """The scorer "own:package.module" or "own:FILE.py" for questions of a file, tried on one of
    them. Raises as `family`.
    """
    own = OwnFamily(name, _place(name), "scorer")
    own.try_scorer(item)
    return own.scores


def _place(name: str) -> str:
    if is_file(name):
        file = _file(name)
        if file.suffix != ".py" or not file.is_file():
            raise ConfigurationError(f"{name!r} is not there: there is no Python file {file}.")
        return str(file)
    place = name.removeprefix(OWN_PREFIX)
    if not all(part.isidentifier() for part in place.split(".")):
        raise ConfigurationError(
            f"{name!r} names no module; write {OWN_PREFIX}package.module or {OWN_PREFIX}FILE.py."
        )
    return place


class OwnFamily:
    """One family, or a scorer alone, and the process of its code."""

    def __init__(self, name: str, place: str, kind: str = "family") -> None:
        self.name, self.kind, self.scored = name, kind, False
        self.since = FORGIVEN
        """Batches without an end since one was given up."""
        self.child = Child("-P", str(confined.__file__), place, start_s=LOADING)
        self._warned: set[str] = set()

    def try_out(self) -> None:
        """Tries both functions.

        Raises:
            TaskError: there is no `sample`, or something raised or gave what it should not.
        """
        functions = self._functions("sample(seed)")
        self.scored = "score" in functions
        item, again, _ = self.samples([0, 0, LARGEST_SEED])
        if again != item:
            raise self._mistake(
                "sample(0) gives two different questions; draw with random.Random(seed) only"
            )
        if self.scored:
            self.try_scorer(item)

    def _functions(self, needed: str) -> list[str]:
        """What there is. Raises TaskError: a function that is needed is not."""
        [functions] = self._values("import", [[]])
        if needed.partition("(")[0] not in functions:
            raise self._mistake(f"there is no function {needed}")
        return list(functions)

    def try_scorer(self, item: Item) -> None:
        """Raises TaskError: it fails on some text, or takes the right answer for a wrong one."""
        self._functions("score(item, text)")
        [score] = self._values("score", [[_question(item), item.answer]])
        if score != 1.0:
            raise self._mistake(f"score gives {score:g} for {RIGHT[self.kind]}; 1 is expected")
        scores = self._values("score", [[_question(item), text] for text in TRIED])
        if all(score == 1.0 for score in scores):
            raise self._mistake("score gives 1 for any text")

    def samples(self, seeds: Sequence[int]) -> list[Item]:
        """The items of seeds. Raises TaskError."""
        return self._values("sample", [[seed] for seed in seeds])

    def scores(
        self, items: Sequence[Item], texts: Sequence[str], yield_point: Callable[[], None] = no_op
    ) -> list[float | None]:
        """What answers to items are worth, without space around them; None: the scorer failed. Its
        owner is told of each kind of failure once."""
        rows = [row for row, text in enumerate(texts) if len(text) <= LONGEST]
        calls = [[_question(items[row]), texts[row].strip()] for row in rows]
        scores: list[float | None] = [0.0] * len(texts)
        with closing(self._outcomes("score", calls)) as outcomes:
            for row, outcome in zip(rows, outcomes, strict=True):
                scores[row] = None if isinstance(outcome, TaskError) else outcome
                if isinstance(outcome, TaskError) and outcome.brief not in self._warned:
                    print(f"warning: {outcome} Such answers count as wrong.", file=sys.stderr)
                    self._warned.add(outcome.brief)
                yield_point()
        return scores

    def _values(self, function: str, calls: Sequence[Sequence[object]]) -> list[Any]:
        """What a function gives for each of several arguments. Raises TaskError."""
        values = []
        with closing(self._outcomes(function, calls)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, TaskError):
                    raise outcome
                values.append(outcome)
        return values

    def _outcomes(
        self, function: str, calls: Sequence[Sequence[object]]
    ) -> Generator[Any, None, None]:
        """What a function gives for each of several arguments; a TaskError where its code raised,
        gave what it should not, or ended its process, after which the others are asked again. After
        GIVE_UP ends they are not: each may have taken seconds. Then, and until FORGIVEN batches
        went by without an end, one is enough."""
        place, ends, most = 0, 0, GIVE_UP if self.since >= FORGIVEN else 1
        while place < len(calls):
            rest = [[function, *arguments] for arguments in calls[place:]]
            try:
                with closing(self.child.ask_all(rest, SECONDS)) as replies:
                    for reply in replies:
                        yield self._outcome(function, calls[place], reply)
                        place += 1
            except ChildError as error:
                ends += 1
                end = len(calls) if ends == most else place + 1
                failed = self._failed(function, calls[place], _end(function, error))
                yield from [failed] * (end - place)
                place = end
        if ends == most:
            self.since = 0
        elif not ends:
            self.since += 1

    def _outcome(self, function: str, arguments: Sequence[object], reply: object) -> Any:
        """What came of a call."""
        match function, reply:
            case "import", {"value": [*functions]}:
                return functions
            case "sample", {"value": [str(question), str(answer)]}:
                return Item(question, answer)
            case "score", {"value": float(score)} if 0 <= score <= 1:
                return score
            case _, {"unlimited": str(text)}:
                return self._mistake(
                    f"its code is not run, as this system refuses to limit what it may do "
                    f"({readable(text)}); allow setrlimit, or run it elsewhere"
                )
            case _, {"error": str(text), "brief": str(brief)}:
                return self._failed(function, arguments, text, brief)
        return self._failed(function, arguments, "answers what is no answer")

    def _failed(
        self, function: str, arguments: Sequence[object], text: str, brief: str = ""
    ) -> TaskError:
        given = f", given {_shown(arguments[-1])}," if arguments else ""
        return self._mistake(
            f"{function}{given} {readable(text)}; {PROMISES[function]}",
            f"{function} {readable(brief or text)}",
        )

    def _mistake(self, text: str, brief: str = "") -> TaskError:
        name = f"The {self.kind} {self.name!r}"
        return TaskError(f"{name}: {text}.", f"{name}: {brief or text}.")


def _end(function: str, error: ChildError) -> str:
    """What became of the process, in words."""
    loading = function == "import"
    if error.start:
        return f"has no process, as none can be started ({error.start})"
    if error.code == -signal.SIGPROF:
        return f"takes more than {LOADING if loading else confined.SECONDS:g} s of CPU time"
    if error.code is None:
        return f"takes more than {LOADING if loading else SECONDS:g} s"
    return f"ends its process ({error.code})"


def _question(item: Item) -> dict[str, str]:
    """As `score` is given it."""
    return {"question": item.prompt, "answer": item.answer}


def _shown(argument: object) -> str:
    """A seed or an answer in a sentence."""
    if not isinstance(argument, str):
        return str(argument)
    return ascii(argument if len(argument) <= 40 else f"{argument[:40]}…")
