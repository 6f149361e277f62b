"""Conversations: a cell that is a list of {"role": …, "content": …}, as chat data sets have them in a column."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypedDict

from node.data.columns import Nested

ASSISTANT = "assistant"


class Turn(TypedDict):
    role: str
    content: str


def turns(cell: str) -> list[Turn]:
    """The turns of a conversation; none: the cell is no conversation."""
    found = json.loads(cell) if isinstance(cell, Nested) else []
    if not isinstance(found, list) or not all(map(_is_turn, found)):
        return []
    return [Turn(role=turn["role"], content=turn["content"]) for turn in found]


def _is_turn(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def divided(cell: str) -> tuple[Nested, str] | None:
    """What was said before the last turn of the assistant, and that turn; None: there is none."""
    said = turns(cell)
    last = max((k for k, turn in enumerate(said) if turn["role"] == ASSISTANT), default=None)
    if last is None:
        return None
    return Nested(json.dumps(said[:last], ensure_ascii=False)), said[last]["content"]


def plain(said: Sequence[Turn]) -> str:
    """One turn below the other, each after the name of its role: what a model without a chat template is given."""
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in said)


def shown(cell: object) -> str:
    """A cell as it stands in a prompt."""
    return plain(turns(cell)) if isinstance(cell, Nested) else str(cell)
