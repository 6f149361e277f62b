"""Prints pip constraints: what peerpoise needs, in the oldest versions that pyproject.toml allows.

`make test-lowest` installs by them. torch comes from an index of its own, and the tools of the
extra `dev` are free.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
FREE = ("dev", "ray", "torchvision")
"""Extras that are not pinned; Ray alone is a quarter of a gigabyte."""


def pins() -> Iterator[str]:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    texts = [text for name in extras if name not in FREE for text in extras[name]]
    for text in (*project["dependencies"], *texts):
        requirement = Requirement(text)
        oldest = next(part.version for part in requirement.specifier if part.operator == ">=")
        if requirement.name != "torch":
            yield f"{requirement.name}=={oldest}"


if __name__ == "__main__":
    print(*pins(), sep="\n")
