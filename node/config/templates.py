"""Templates of prompts: a text with {column} fields; {{ stands for a brace, and so does the }} that
belongs to it.

Other braces are left alone, so that JSON can be written as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable

PIECE = re.compile(r"\{\{|\}\}|\{(\w[^{}]*)\}")


def fields(template: str) -> list[str]:
    """The columns that a template names, each once, in its order."""
    names: dict[str, None] = {}
    filled(template, lambda name: str(names.setdefault(name)))
    return list(names)


def filled(template: str, value: Callable[[str], str]) -> str:
    """The template with the value of each field in its place."""
    opened = 0

    def piece(match: re.Match[str]) -> str:
        nonlocal opened
        if match[1]:
            return value(match[1])
        opened += 1 if match[0] == "{{" else -1
        if opened < 0:  # it closes two braces of JSON
            opened = 0
            return match[0]
        return match[0][0]

    return PIECE.sub(piece, template)
