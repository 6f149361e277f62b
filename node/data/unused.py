"""Files that lie in a folder of data and are not data: passed over, or told to whom they belong."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

CLUTTER = {"thumbs.db", "desktop.ini", "__macosx", "@eadir"}
"""What systems leave in folders, beside names that begin with a dot."""
ABOUT = {"readme", "license", "notice", "changelog"}
"""What data sets bring along that people are to read."""


def is_about(file: Path) -> bool:
    return file.stem.lower() in ABOUT


def is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in CLUTTER


def tell(folder: Path, files: Sequence[Path], used: str) -> None:
    """One sentence on standard error, if there are any; `used` says which would be used."""
    if files:
        counted = ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(map(_kind, files)).items()))
        print(
            f"warning: {folder} has files that are not used ({counted}); {used}.",
            file=sys.stderr,
            flush=True,
        )


def _kind(path: Path) -> str:
    if path.is_dir():
        return "link to a folder" if path.is_symlink() else "folder"
    return path.suffix or "no ending"
