"""The process in which a family of somebody's own makes questions and scores answers: the program
that `own_families` asks.

Whoever trained a policy chose the text of its answers. So once the family's code is loaded, this
process may compute, and nothing else: it opens neither files nor connections, starts nothing, and
runs no text as code. Only the standard library is imported here.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

MEMORY = 1 << 30
"""Bytes of address space."""
LOADING, SECONDS = 60.0, 2.0
"""CPU time for the family's code to be loaded, and for a question or an answer."""
LONGEST = 4096
"""Characters of a question or an answer."""
HARMLESS = frozenset(
    {
        "builtins.id",
        "compile",  # ast.literal_eval; what is compiled would run with the event exec
        "import",  # of what is there; else it opens a file
        "object.__delattr__",
        "object.__getattr__",
        "object.__setattr__",
        "sys._getframe",
        "sys._getframemodulename",
        "sys.unraisablehook",
    }
)
"""Audit events that don't reach beyond this process; all others are refused."""
ADVICE = {
    "exec": "no text is run as code",
    "open": "read and import at the top of the file",
    "os.listdir": "import at the top of the file",
}


class Unfit(Exception):
    """What the code gave can't be used: `str(error)` goes on after the function's name."""


class Unlimited(Exception):
    """The system sets no limit that this process needs: `str(error)` says which."""


class Refused(RuntimeError):
    """Something that is more than to compute. (A PermissionError would mean to Python that a module
    is not there.)"""


def main(place: str) -> None:
    """Answers [function, arguments] with {"value": …}, or with {"error": …, "brief": …} whose brief
    form has nothing of what was asked, or, where no limits can be set, with {"unlimited": …}."""
    # What the code prints is no answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    family: Family | dict[str, str]
    try:
        limit("RLIMIT_AS", MEMORY)
        limit("RLIMIT_CORE", 0)
        family = loaded(place)
        confine()
    except Unlimited as error:
        family = {"unlimited": str(error)}
    for line in sys.stdin:
        function, *arguments = json.loads(line)
        at_most(SECONDS)
        reply = family if isinstance(family, dict) else family.answer(function, arguments)
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def loaded(place: str) -> Family | dict[str, str]:
    """The family, or a report of why there is none."""
    at_most(LOADING)
    try:
        return Family(place)
    except BaseException as error:
        return report(error, place)


def confine() -> None:
    """From here on nothing is opened (sockets and pipes included), written or started. Root could
    lift the limits, but not by Python."""
    for name in ("RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_NPROC"):
        limit(name, 0)
    sys.addaudithook(refuse)


def limit(name: str, most: int) -> None:
    """Sets a limit; a lower one that there is stays.

    Raises:
        Unlimited: Linux refuses it. Other systems don't know all of them.
    """
    try:
        number = getattr(resource, name)
        _, hard = resource.getrlimit(number)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(number, (most, most))
    except (AttributeError, ValueError, OSError) as error:
        if sys.platform.startswith("linux"):
            raise Unlimited(f"{name}: {error}") from None


def at_most(seconds: float) -> None:
    """Ends this process after so much CPU time, unless it is asked again before."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def refuse(event: str, arguments: object) -> None:
    """Raises Refused: this is more than to compute."""
    if event not in HARMLESS:
        advice = ADVICE.get(event, "a family may only compute")
        raise Refused(f"{event} is refused here; {advice}")


class Family:
    """Somebody's own."""

    def __init__(self, place: str) -> None:
        """Raises whatever its code raises."""
        module = load(place)
        self.place = place
        self.functions: dict[str, Callable[..., Any]] = {
            name: value
            for name in ("sample", "score")
            if callable(value := getattr(module, name, None))
        }

    def answer(self, function: str, arguments: list[Any]) -> dict[str, Any]:
        """What one of its functions gives."""
        if function == "import":
            return {"value": sorted(self.functions)}
        try:
            value = self.functions[function](*arguments)
            return {"value": item(value) if function == "sample" else number(value)}
        except BaseException as error:
            return report(error, self.place)


def load(place: str) -> ModuleType:
    """A module by its name, or a file; what lies beside that can be imported, as of a script."""
    if not place.endswith(".py"):
        return importlib.import_module(place)
    sys.path.append(str(Path(place).parent))
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def item(value: Any) -> tuple[str, str]:
    """Question and answer.

    Raises:
        Unfit: it is no such thing.
    """
    if not isinstance(value, dict) or set(value) != {"question", "answer"}:
        raise Unfit('gives something else than {"question": …, "answer": …}')
    for name, text in value.items():
        if not isinstance(text, str) or not text.strip() or len(text) > LONGEST:
            raise Unfit(f"gives as {name} what is no text of 1 to {LONGEST} characters")
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise Unfit(f"gives as {name} a text with half a character (a surrogate)")
    return value["question"], value["answer"]


def number(value: Any) -> float:
    """A score.

    Raises:
        Unfit: it is none.
    """
    kind = type(value).__name__
    if isinstance(value, str | bytes):
        raise Unfit(f"gives something of type {kind}")
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError):
        raise Unfit(f"gives something of type {kind}") from None
    if not 0 <= score <= 1:
        raise Unfit(f"gives {score} ({kind})")
    return score


def report(error: BaseException, place: str) -> dict[str, str]:
    """What came of a call, in words that go on after the function's name, with the innermost line
    that is the family's own."""
    if isinstance(error, Unfit):
        return {"error": str(error), "brief": "gives what it should not"}
    lines = [number for file, number in frames(error.__traceback__) if same(file, place)]
    words = str(error)
    if isinstance(error, SyntaxError) and error.filename and same(error.filename, place):
        lines.append(error.lineno or 0)
        words = error.msg
    words = next(iter(words.strip().splitlines()), "").rstrip(".")[:200]
    where = f" ({place.rpartition('/')[2]}, line {lines[-1]})" if lines else ""
    kind = type(error).__name__
    text = f"raised {kind}: {words}{where}" if words else f"raised {kind}{where}"
    return {"error": text, "brief": f"raised {kind}{where}"}


def same(file: str, place: str) -> bool:
    """Is this file the family's?"""
    return file == place or file.endswith(place.replace(".", "/") + ".py")


def frames(trace: TracebackType | None) -> Iterator[tuple[str, int]]:
    """(file, line) from the outermost on."""
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next


if __name__ == "__main__":
    main(sys.argv[1])
