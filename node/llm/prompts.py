"""Rows of text to sequences of tokens: a prompt, and the answer, whose tokens alone are labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from node.config import TextSection
from node.config.templates import fields, filled
from node.data import Texts
from node.data.conversations import Turn, plain, shown, turns
from node.data.texts import before_answer
from node.llm.tokens import Tokens
from peer.errors import ConfigurationError, DataError

MASKED = -100
"""The label of a token that is not learned."""
NAMED = ("plain", "instruction", "chat")
INSTRUCTION = "### Instruction:\n{}\n\n### Response:\n"


@dataclass(frozen=True, slots=True)
class Sequences:
    """Token ids and labels, int32 [n, length], right-padded; labels[k] belongs to ids[k], which
    ids[: k] predict.
    """

    ids: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Sequences:
        return Sequences(self.ids.to(device), self.labels.to(device))


class Encoder:
    """The run's template with the model's tokens."""

    def __init__(
        self, text: TextSection, tokens: Tokens, labels: Sequence[str] = (), *, ending: str = ""
    ) -> None:
        """`ending`: what right answers end with; empty: the model's end token.

        Raises:
            ConfigurationError: no such template, or a label without tokens or with too many.
        """
        if text.template not in NAMED and not fields(text.template):
            raise ConfigurationError(
                f"task.text.template = {text.template!r} is none of {', '.join(NAMED)}, nor a text "
                f"with a {{column}}."
            )
        self.text = text
        self.tokens = tokens
        self.ending = ending
        self.labels = tuple(labels)
        if empty := [it for it in labels if not self.answer("", it)]:
            raise ConfigurationError(
                f"The label {empty[0]!r} of task.labels has no tokens; give it a word."
            )
        self.reserved = max(
            (len(self.answer(start, it)) for it in labels for start in ("", "word")), default=0
        )
        if self.reserved > text.length // 2:
            raise ConfigurationError(
                f"A label has {self.reserved} tokens, more than half of task.text.length = "
                f"{text.length}; raise that."
            )

    def sequences(self, rows: Texts) -> Sequences:
        """All rows.

        Raises:
            DataError: in a row nothing would be learned.
        """
        length = self.text.length
        ids, labels = [], []
        for k, (prompt, answer) in enumerate(self.pairs(rows)):
            if not answer:
                raise DataError(
                    f"Row {k} has nothing in the column {self.text.answer!r} to learn; leave it "
                    "out."
                )
            room = length - len(prompt) - len(answer)
            ids.append([*prompt, *answer, *[self.tokens.pad] * room])
            labels.append([*[MASKED] * len(prompt), *answer, *[MASKED] * room])
        return Sequences(_int32(ids, length), _int32(labels, length))

    def pairs(self, rows: Texts) -> Iterator[tuple[list[int], list[int]]]:
        """(prompt, answer with its end) of each row: at least one token each, together at most
        `length`.
        """
        begin = self._begin(rows)
        for prompt, text in zip(self.prompts(rows), rows.columns[self.text.answer], strict=True):
            yield self.cut(prompt, self.answer(prompt, str(text)), begin)

    def sizes(self, rows: Texts) -> Iterator[tuple[int, int]]:
        """Tokens of each row's prompt, and of its answer with its end, if neither were cut."""
        begin = len(self._begin(rows))
        for prompt, text in zip(self.prompts(rows), rows.columns[self.text.answer], strict=True):
            size = begin + (len(self.tokens.encode(prompt)) if prompt else 0)
            yield max(1, size), len(self.answer(prompt, str(text)))

    def questions(self, rows: Texts) -> Iterator[tuple[list[int], list[list[int]]]]:
        """(prompt, every label as its answer) of each row."""
        begin = self._begin(rows)
        for prompt in self.prompts(rows):
            answers = [self.answer(prompt, label) for label in self.labels]
            yield self.cut(prompt, [], begin)[0], answers

    def _begin(self, rows: Texts) -> Sequence[int]:
        """A chat template brings its own."""
        chats = before_answer(self.text.answer) in rows.columns and self.tokens.has_chat
        return () if chats or self.text.template == "chat" else self.tokens.begin

    def prompts(self, rows: Texts) -> list[str]:
        """What stands before each answer.

        Raises:
            ConfigurationError: a conversation is to stand in a template.
            DataError: the template names a column that is not there.
        """
        if before_answer(self.text.answer) in rows.columns:
            return self._conversations(rows.columns[before_answer(self.text.answer)])
        if self.text.template not in NAMED:
            return _filled(self.text.template, rows)
        columns = [rows.columns[name] for name in self.text.prompt]
        if self.text.template == "chat" and len(columns) == 1:
            return [self.tokens.chat(turns(cell) or _asked(str(cell))) for cell in columns[0]]
        questions = [""] * len(rows)
        if columns:
            questions = ["\n".join(map(shown, row)) for row in zip(*columns, strict=True)]
        match self.text.template:
            case "instruction":
                return [INSTRUCTION.format(question) for question in questions]
            case "chat":
                return [self.tokens.chat(_asked(question)) for question in questions]
        return [f"{question}\n" if question else "" for question in questions]

    def _conversations(self, cells: Iterable[str]) -> list[str]:
        """What was said before the answer, in the model's own chat template, or else as `plain` has
        it.
        """
        if self.text.prompt or self.text.template not in ("plain", "chat"):
            raise ConfigurationError(
                f"task.text.answer = {self.text.answer!r} holds conversations, which are given as "
                "they are: leave out "
                'task.text.prompt, and task.text.template (or set it to "chat").'
            )
        if self.tokens.has_chat or self.text.template == "chat":
            return [self.tokens.chat(turns(cell)) for cell in cells]
        return [
            plain([*turns(cell), Turn(role="assistant", content="")]).rstrip() for cell in cells
        ]

    def answer(self, prompt: str, answer: str) -> list[int]:
        """An answer's tokens and the end; after a word it begins with a space."""
        between = " " if prompt and not prompt[-1].isspace() else ""
        tokens = self.tokens.encode(between + answer) if answer else []
        if tokens and self.ending:
            return self.tokens.encode(between + answer + self.ending)
        return [*tokens, self.tokens.end] if tokens else []

    def cut(
        self, prompt: str, answer: list[int], begin: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Both as tokens, together at most `length`: the answer loses its end, but keeps half of
        the length anyway; then the prompt loses its beginning.
        """
        tokens, length = self.tokens.encode(prompt) if prompt else [], self.text.length
        begin = list(begin)
        if not begin and not tokens:  # something has to predict the first token
            begin = [self.tokens.end]
        answer = answer[: max(length - len(begin) - len(tokens), length // 2)]
        room = length - len(begin) - max(len(answer), self.reserved)
        return [*begin, *tokens[max(0, len(tokens) - room) :]], answer


def _int32(rows: Sequence[Sequence[int]], length: int) -> Tensor:
    """int32 [n, length]; n may be 0."""
    return torch.from_numpy(np.array(rows, np.int32).reshape(-1, length))


def _asked(question: str) -> list[Turn]:
    return [Turn(role="user", content=question)]


def _filled(template: str, rows: Texts) -> list[str]:
    if missing := [name for name in fields(template) if name not in rows.columns]:
        raise DataError(
            f"task.text.template names the column {missing[0]!r}; there are "
            f"{', '.join(rows.columns)}."
        )

    def at(row: int) -> str:
        return filled(template, lambda name: shown(rows.columns[name][row]))

    return [at(row) for row in range(len(rows))]
