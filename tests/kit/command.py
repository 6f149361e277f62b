"""What a call of the command line gives back, and what `doctor --json` says in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Call: TypeAlias = Callable[..., Result]


def examine(peerpoise: Call, *arguments: str | Path) -> tuple[int, dict[str, list[Any]]]:
    """What `doctor` says: its exit code, and what -> the findings about it."""
    result = peerpoise("doctor", *arguments, "--json")
    assert result.err == ""
    said = json.loads(result.out)
    found: dict[str, list[Any]] = {}
    for finding in said["findings"]:
        found.setdefault(finding["what"], []).append(finding)
        assert finding["level"] == "ok" or finding["do"], "who warns says what to do"
        assert "\n" not in finding["text"] + finding["do"]
    assert said["ok"] == (result.code == 0)
    assert ("NOT start" in said["verdict"]) == (not said["ok"])
    return result.code, found
