"""What all sections share: frozen, no unknown key; and names that are checked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from peer.discovery import DISCOVERIES

INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164"
    "\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Characters that count as printable, but show nothing."""
MISLEADING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Controls other than tab and line feed, and marks that change the direction of text."""


class Section(BaseModel):
    """A frozen section of a file, in which an unknown key is an error.

    No text in it may mislead its readers: other people write these files, too.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,  # no file that is written could say them
    )

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        for name, value in self:
            for text in (name, *_texts(value)):
                match = MISLEADING.search(text)
                if match:
                    raise ValueError(
                        f"{readable(name)} holds U+{ord(match[0]):04X}, which can't be seen; "
                        "remove it"
                    )
        return self


class OpenSection(Section):
    """A section whose other keys belong to somebody else, who checks them."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    @property
    def options(self) -> dict[str, object]:
        """The other keys."""
        return dict(self.__pydantic_extra__ or {})


def readable(text: str) -> str:
    """The text with ? where something misleads."""
    return MISLEADING.sub("?", text)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in (*value, *value.values()):
            yield from _texts(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _texts(inner)


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError("auto, cpu, cuda, cuda:N or mps is expected")
    return name


def _run_name(name: str) -> str:
    if not re.fullmatch(r"[^/\\]{1,80}", name) or not name.isprintable() or INVISIBLE.search(name):
        raise ValueError(
            "1 to 80 characters that can be seen, without slashes, are expected, as it names a "
            "folder"
        )
    return name


def _discovery(name: str) -> str:
    if name not in DISCOVERIES:
        raise ValueError(f"there is no discovery {name!r}; choose among {', '.join(DISCOVERIES)}")
    return name


Device = Annotated[str, AfterValidator(_device)]
DiscoveryName = Annotated[str, AfterValidator(_discovery)]
RunName = Annotated[str, AfterValidator(_run_name)]
