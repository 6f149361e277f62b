"""Where data sets that are not part of a Python package lie."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import platformdirs

from peer.errors import ConfigurationError

SYSTEM = Path("/usr/share/datasets")
"""Where Debian's packages of data sets put them."""


def find(name: str, hint: str) -> Path:
    """The folder of this data set: in $PEERPOISE_DATA, the user's data folder, or the system's.

    Raises:
        ConfigurationError: it is in none of them; `hint` says which package brings it.
    """
    own = os.environ.get("PEERPOISE_DATA")
    places = [Path(own)] if own else [SYSTEM]
    with suppress(RuntimeError):  # this user has no home folder
        places[:0] = [] if own else [Path(platformdirs.user_data_dir("peerpoise")) / "data"]
    for place in places:
        if (place / name).is_dir():
            return place / name
    wanted = " nor ".join(str(place / name) for place in places)
    raise ConfigurationError(f"The data set {name} is not here: there is no folder {wanted}; {hint}.")
