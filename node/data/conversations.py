"""Conversations: cells that are lists of {"role": …, "content": …}, as in chat data sets."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TypedDict

from node.data.columns import Nested

ASSISTANT = "assistant"
CALLS = ("tool_calls", "function_call")
"""Keys of a turn that say something beside its content."""
WRITTEN = re.compile(r"\s*\[\s*\{")
PYTHON = re.compile(r"\s*\[\s*\{\s*'(role|content|from|value)'")
"""How a text begins that is a list of objects, in JSON or as Python prints it."""


class Turn(TypedDict):
    """What one party says."""

    role: str
    content: str


def turns(cell: str) -> list[Turn]:
    """The turns of a conversation; none: the cell is no conversation."""
    items = [_turn(item) for item in _list(cell)]
    turns = [item for item in items if item is not None]
    return turns if len(turns) == len(items) else []


def parsed(cell: str) -> str:
    """A conversation that is written as text, as tables have to; other cells as they are."""
    if isinstance(cell, Nested) or not WRITTEN.match(cell):
        return cell
    try:
        items = json.loads(cell)
        if all("role" in turn for turn in items):
            return Nested(json.dumps(items, ensure_ascii=False))
    except (ValueError, TypeError, RecursionError):
        pass
    return cell


def is_python(cell: str) -> bool:
    """Is it a conversation as Python prints it?"""
    return bool(PYTHON.match(cell))


def is_broken(cell: str) -> bool:
    """Is it a conversation with a turn that can't be shown: without a text, or with calls of
    tools?
    """
    items = _list(cell)
    is_conversation = any(isinstance(item, dict) and "role" in item for item in items)
    return is_conversation and any(_turn(item) is None for item in items)


def _list(cell: str) -> list[object]:
    value = json.loads(cell) if isinstance(cell, Nested) else []
    return value if isinstance(value, list) else []


def _turn(value: object) -> Turn | None:
    """The value as a turn; None: it is none, or calls tools."""
    if not isinstance(value, dict) or any(value.get(key) for key in CALLS):
        return None
    role, content = value.get("role"), value.get("content")
    if isinstance(role, str) and isinstance(content, str):
        return Turn(role=role, content=content)
    return None


def divided(cell: str) -> tuple[Nested, str] | None:
    """What was said before the last turn of the assistant, and that turn; None: there is none."""
    conversation = turns(cell)
    answers = [k for k, turn in enumerate(conversation) if turn["role"] == ASSISTANT]
    if not answers:
        return None
    last = answers[-1]
    before = json.dumps(conversation[:last], ensure_ascii=False)
    return Nested(before), conversation[last]["content"]


def plain(conversation: Sequence[Turn]) -> str:
    """One turn below the other, each after the name of its role: for models without a chat
    template.
    """
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in conversation)


def shown(cell: object) -> str:
    """A cell as it stands in a prompt."""
    return plain(turns(cell)) if isinstance(cell, Nested) else str(cell)
