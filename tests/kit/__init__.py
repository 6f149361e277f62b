"""What tests share: clusters, meshes, gates, golden values, a clock, a fork server. One import name,
`kit`.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
LONG = bool(os.environ.get("LONG"))
"""The long form: tests with the mark `long` run, others try more (make test-long)."""


def script(module: str, *words: str) -> list[str]:
    """The command of a module of this package that is a program; its working folder must be TESTS,
    where Python finds it.
    """
    return [sys.executable, "-m", f"kit.{module}", *words]


def free_ports(count: int) -> list[int]:
    """That many different ports of this machine at which nobody listens just now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
