"""A family of questions of somebody's own, as docs/reasoning.md has it."""

from __future__ import annotations

from pathlib import Path

from kit import ROOT


def sums(folder: Path) -> str:
    """Its name, for a file that is written into the folder."""
    page = (ROOT / "docs" / "reasoning.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    return written(folder / "sums.py", code)


def written(file: Path, code: str) -> str:
    """The name of the family of this code."""
    file.write_text(code, encoding="utf-8")
    return f"own:{file}"
