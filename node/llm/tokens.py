"""Text to tokens: a model's own tokenizer, or plain bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from node.data.conversations import Turn
from peer.errors import ConfigurationError, DataError


class Tokens(Protocol):
    """What is needed of a tokenizer."""

    size: int
    """Number of different tokens."""
    pad: int
    begin: tuple[int, ...]
    """What a sequence starts with; often nothing."""
    end: int

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without begin or end."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, whatever they are; those that are no text leave nothing."""
        ...

    has_chat: bool
    """Has it a chat template?"""

    def chat(self, turns: Sequence[Turn]) -> str:
        """A conversation up to where the assistant answers, in the model's own template.

        Raises:
            ConfigurationError: the model has none.
            DataError: it is for other conversations, say without a system's turn.
        """
        ...

    def save(self, folder: Path) -> None:
        """Writes what transformers needs for the same tokens."""
        ...


class Bytes:
    """The 256 bytes of UTF-8, and three more."""

    size, pad, end, has_chat = 259, 256, 258, False
    begin: tuple[int, ...] = (257,)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token for token in ids if token < 256).decode(errors="replace")

    def chat(self, turns: Sequence[Turn]) -> str:
        raise ConfigurationError(
            'The model bytes has no chat template; take template = "instruction", or "plain".'
        )

    def save(self, folder: Path) -> None:
        """Nothing: there is no such tokenizer."""


@dataclass(frozen=True, slots=True)
class StopStrings:
    """Texts that end an answer beside the end token."""

    texts: tuple[str, ...]
    tokens: Tokens

    @property
    def window(self) -> int:
        """Tokens that the longest of them can take up, each a byte or more (special tokens, which
        are no text, are not looked for between), and one before, whose space some tokenizers
        drop."""
        return 1 + max(len(text.encode()) for text in self.texts)

    def reached(self, ids: Sequence[int]) -> bool:
        """Do these tokens end with one? Asked after every token of an answer."""
        text = self.tokens.decode(ids[-self.window :])
        return any(stop in text for stop in self.texts)

    def before(self, text: str) -> str:
        """What stands before the first of them; all of it where there is none."""
        return min((text.partition(stop)[0] for stop in self.texts), key=len)


class Pretrained:
    """A tokenizer of transformers."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        """Raises ConfigurationError: it has no end of sequence, or nothing to pad with."""
        pad, end, begin = tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id
        if end is None:
            raise ConfigurationError(
                f"The tokenizer of {name} has no end token; set eos_token in its configuration."
            )
        if pad is None:
            raise ConfigurationError(
                f"The tokenizer of {name} has no pad token; set pad_token, say to its eos_token."
            )
        self.tokenizer = tokenizer
        self.name = name
        self.pad = pad
        self.end = end
        self.size = len(tokenizer)
        self.has_chat = bool(tokenizer.chat_template)
        starts = tokenizer("a").input_ids[:1] == [begin]
        self.begin: tuple[int, ...] = (begin,) if starts else ()

    def encode(self, text: str) -> list[int]:
        ids: Sequence[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return list(ids)

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def chat(self, turns: Sequence[Turn]) -> str:
        from jinja2 import TemplateError

        if not self.has_chat:
            raise ConfigurationError(
                f'The model {self.name} has no chat template; take template = "instruction".'
            )
        try:
            text: str = self.tokenizer.apply_chat_template(
                list(turns), tokenize=False, add_generation_prompt=True
            )
        except TemplateError:
            roles = ", ".join(turn["role"] for turn in turns)
            raise DataError(
                f"The chat template of {self.name} takes no turns of {roles}; change their order."
            ) from None
        return text

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
