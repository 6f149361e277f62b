"""What all sections share: frozen, no unknown key; and names that are checked."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from peer.discovery import DISCOVERIES


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError("auto, cpu, cuda, cuda:N or mps is expected")
    return name


def _run_name(name: str) -> str:
    if not re.fullmatch(r"[^/\\\x00-\x1f]{1,80}", name):
        raise ValueError("1 to 80 characters without slashes are expected, as it names a folder")
    return name


def _discovery(name: str) -> str:
    if name not in DISCOVERIES:
        raise ValueError(f"there is no discovery {name!r}; choose among {', '.join(DISCOVERIES)}")
    return name


Device = Annotated[str, AfterValidator(_device)]


DiscoveryName = Annotated[str, AfterValidator(_discovery)]


RunName = Annotated[str, AfterValidator(_run_name)]
