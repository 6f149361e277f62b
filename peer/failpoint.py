"""The fault seam: named points in the code where a test may make the process die or the disk fail.

Off unless a program calls `arm`; `peerpoise run` does with --i-am-testing only.
PEERPOISE_FAILPOINTS is then "name=kill;other=enospc@3", which kills this process with SIGKILL at
the first hit of `name` and raises OSError(ENOSPC) at the third hit of `other`. Actions: kill,
enospc, eio. Costs one comparison when off.
"""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass

VARIABLE = "PEERPOISE_FAILPOINTS"

_ERRORS = {"enospc": errno.ENOSPC, "eio": errno.EIO}


@dataclass(slots=True)
class _Armed:
    action: str
    hits_left: int


def _parse(text: str) -> dict[str, _Armed]:
    armed = {}
    for item in filter(None, text.split(";")):
        name, _, what = item.partition("=")
        action, _, hit = what.partition("@")
        if action != "kill" and action not in _ERRORS:
            raise ValueError(f"{VARIABLE}: {item!r} is not name=kill|enospc|eio[@hit]")
        armed[name.strip()] = _Armed(action, int(hit or 1))
    return armed


_ARMED: dict[str, _Armed] = {}


def arm() -> None:
    """Arms what the environment says.

    Raises:
        ValueError: it can't be read.
    """
    _ARMED.update(_parse(os.environ.get(VARIABLE, "")))


def failpoint(name: str) -> None:
    """Does nothing, unless a test armed this name.

    Raises:
        OSError: ENOSPC or EIO, at the armed hit.
    """
    if _ARMED:
        _hit(name)


def _hit(name: str) -> None:
    armed = _ARMED.get(name)
    if armed is None:
        return
    armed.hits_left -= 1
    if armed.hits_left != 0:
        return
    if armed.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    code = _ERRORS[armed.action]
    raise OSError(code, os.strerror(code))
