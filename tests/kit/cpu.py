"""CPU seconds of a short program, to be compared with those of another: by themselves they say more
of the machine and of who shares it.
"""

from __future__ import annotations

import subprocess
import sys

SMALL = """
import asyncio, resource, ssl, sys
import pydantic
class Model(pydantic.BaseModel):
    number: int
usage = resource.getrusage(resource.RUSAGE_SELF)
print(usage.ru_utime + usage.ru_stime)
"""


def of_a_small_program() -> float:
    """One that imports what a small command of this kind needs, and does nothing."""
    command = [sys.executable, "-P", "-c", SMALL]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
