"""Hosts that are network namespaces, on a bridge in one of its own: this machine's network is not
touched.

`async with switch(5) as hosts` needs root and `ip`; whatever happens, processes and namespaces are
gone afterwards.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NETWORK = "10.77.0"


@dataclass(frozen=True)
class Host:
    name: str
    """Of its namespace."""
    ip: str

    def inside(self, *, hosts_file: Path | None = None) -> list[str]:
        """Runs what follows in this host; `hosts_file` is its /etc/hosts, seen by nobody else."""
        command = ["ip", "netns", "exec", self.name]
        if hosts_file is None:
            return command
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        return [*command, "sh", "-c", script, str(hosts_file)]


def why_not() -> str:
    """Why there can be no namespaces here; empty: there can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "network namespaces need root: run pytest as root"
    if not shutil.which("ip"):
        return "network namespaces need the program ip; on Debian: apt-get install iproute2"
    name = f"pp{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode == 0:
        veth = [
            "ip",
            "-n",
            name,
            "link",
            "add",
            "name",
            "one",
            "type",
            "veth",
            "peer",
            "name",
            "other",
        ]
        made = subprocess.run(veth, capture_output=True, text=True, check=False)
        ip("netns", "del", name)
    return (
        f"no network namespaces here ({made.stderr.strip()}); a container needs CAP_SYS_ADMIN and "
        "CAP_NET_ADMIN"
        if made.returncode
        else ""
    )


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@contextlib.contextmanager
def switch(count: int) -> Iterator[list[Host]]:
    """`count` hosts with an address each, that reach each other and nobody else."""
    middle = f"pp{os.getpid()}-sw"
    hosts = [Host(f"pp{os.getpid()}-{i}", f"{NETWORK}.{i + 1}") for i in range(count)]
    try:
        ip("netns", "add", middle)
        ip("-n", middle, "link", "add", "name", "middle0", "type", "bridge", "mcast_snooping", "0")
        ip("-n", middle, "link", "set", "dev", "middle0", "up")
        for i, host in enumerate(hosts):
            ip("netns", "add", host.name)
            ip(
                "-n",
                middle,
                "link",
                "add",
                "name",
                f"port{i}",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                host.name,
            )
            ip("-n", middle, "link", "set", "dev", f"port{i}", "master", "middle0", "up")
            ip("-n", host.name, "addr", "add", f"{host.ip}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", host.name, "link", "set", "dev", device, "up")
        yield hosts
    finally:
        for name in (*(host.name for host in hosts), middle):
            if Path("/run/netns", name).exists():
                _end_all(name)
                subprocess.run(
                    ["ip", "netns", "del", name], check=False, capture_output=True, timeout=20
                )


def _end_all(name: str) -> None:
    """Kills what still runs in this namespace, which is one that `switch` made."""
    found = subprocess.run(
        ["ip", "netns", "pids", name], capture_output=True, text=True, check=False, timeout=20
    )
    for pid in found.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), 9)
