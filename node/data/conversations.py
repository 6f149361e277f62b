"""Conversations: a cell that is a list of {"role": …, "content": …}, as chat data sets have them in
a column.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, TypedDict

from node.data.columns import Nested

ASSISTANT = "assistant"
CALLS = ("tool_calls", "function_call")
"""Keys of a turn that say something beside its content."""
WRITTEN = re.compile(r"\s*\[\s*\{")
PYTHON = re.compile(r"\s*\[\s*\{\s*'(role|content|from|value)'")
"""How a text begins that is a list of objects, in JSON or as Python prints it."""


class Turn(TypedDict):
    role: str
    content: str


def turns(cell: str) -> list[Turn]:
    """The turns of a conversation; none: the cell is no conversation."""
    items = _list(cell)
    return (
        [Turn(role=turn["role"], content=turn["content"]) for turn in items]
        if all(map(_is_turn, items))
        else []
    )


def parsed(cell: str) -> str:
    """A conversation that is written as text, as tables have to; other cells as they are."""
    if isinstance(cell, Nested) or not WRITTEN.match(cell):
        return cell
    try:
        items = json.loads(cell)
        return (
            Nested(json.dumps(items, ensure_ascii=False))
            if all("role" in turn for turn in items)
            else cell
        )
    except (ValueError, TypeError, RecursionError):
        return cell


def is_python(cell: str) -> bool:
    """Is it a conversation as Python prints it?"""
    return bool(PYTHON.match(cell))


def is_broken(cell: str) -> bool:
    """Is it a conversation with a turn that can't be shown: without a text, or with calls of
    tools?
    """
    items = _list(cell)
    return any(isinstance(turn, dict) and "role" in turn for turn in items) and not all(
        map(_is_turn, items)
    )


def _list(cell: str) -> list[Any]:
    value = json.loads(cell) if isinstance(cell, Nested) else []
    return value if isinstance(value, list) else []


def _is_turn(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(key), str) for key in ("role", "content"))
        and not any(value.get(key) for key in CALLS)
    )


def divided(cell: str) -> tuple[Nested, str] | None:
    """What was said before the last turn of the assistant, and that turn; None: there is none."""
    conversation = turns(cell)
    last = max(
        (k for k, turn in enumerate(conversation) if turn["role"] == ASSISTANT), default=None
    )
    if last is None:
        return None
    before = json.dumps(conversation[:last], ensure_ascii=False)
    return Nested(before), conversation[last]["content"]


def plain(conversation: Sequence[Turn]) -> str:
    """One turn below the other, each after the name of its role: what a model without a chat
    template is given.
    """
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in conversation)


def shown(cell: object) -> str:
    """A cell as it stands in a prompt."""
    return plain(turns(cell)) if isinstance(cell, Nested) else str(cell)
