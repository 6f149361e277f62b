"""What a page of docs types, typed: `console` blocks whose prompt names a host.

Every host is a bash of its own, with a home, a state folder and, where this machine allows it, a
network namespace. `scp` copies between them.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LINE = re.compile(r"(?P<host>\w+)\$ (?P<command>.+)")
DONE = "typed:"
PRELUDE = """
set -m
scp() {
  local to="${!#}"
  [[ $1 == -r ]] && shift
  cp -r "$1" "../${to%%:*}/${to#*:}"
}
"""


def blocks(page: Path, kind: str) -> list[str]:
    """The fenced blocks of this kind."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def lines(page: Path) -> list[tuple[str, str]]:
    """(host, command), in the page's order."""
    typed = [line for block in blocks(page, "console") for line in block.splitlines()]
    return [(found["host"], found["command"]) for line in typed if (found := LINE.fullmatch(line))]


@dataclass
class Host:
    """A bash that is typed into."""

    home: Path
    log: Path
    """What its commands wrote."""
    bash: subprocess.Popen[str]

    def type(self, command: str) -> None:
        """Returns when the prompt is back; in the background (`&`) that is at once.

        Raises:
            AssertionError: the command failed.
        """
        self._stdin.write(f"{command}\necho {DONE}$?\n")
        self._stdin.flush()
        for line in self._stdout:
            if line.startswith(DONE):
                assert int(line.removeprefix(DONE)) == 0, f"{command}\n{self.said()[-3000:]}"
                return
            with self.log.open("a", encoding="utf-8") as log:
                log.write(line)
        raise AssertionError(f"{command} ended the shell\n{self.said()[-3000:]}")

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    @property
    def _stdin(self) -> IO[str]:
        assert self.bash.stdin is not None
        return self.bash.stdin

    @property
    def _stdout(self) -> IO[str]:
        assert self.bash.stdout is not None
        return self.bash.stdout


@contextlib.contextmanager
def hosts(folder: Path, names: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Host]]:
    """`names`: host -> what its shell is run by (`kit.network_namespaces.Host.inside`), or
    nothing.
    """
    made: dict[str, Host] = {}
    try:
        for name, inside in names.items():
            made[name] = _shell(folder / name, inside)
        yield made
    finally:
        for host in made.values():
            host._stdin.write("kill -9 $(jobs -p) 2> /dev/null; exit\n")
            host._stdin.close()
            host.bash.wait(20)
            host._stdout.close()


def _shell(home: Path, inside: Sequence[str]) -> Host:
    home.mkdir(parents=True, exist_ok=True)
    log = home / "typed.log"
    environ = {
        **os.environ,
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    with log.open("a", encoding="utf-8") as errors:
        bash = subprocess.Popen(
            [*inside, "bash", "--norc"],
            cwd=home,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
        )
    host = Host(home, log, bash)
    host.type(PRELUDE)
    return host
