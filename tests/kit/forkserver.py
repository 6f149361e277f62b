"""Programs of this repository start in a fraction of a second: each is forked from a process that
has imported torch and ours.

`python -m peerpoise` spends its first two CPU seconds on imports. A session of tests starts
hundreds, so `replace_popen` lets `subprocess` fork those that run a module of ours (PACKAGES) and
start all else as ever. Afterwards the child is a child of the test like any other: the server's own
fork ends at once, and its orphan is adopted by the nearest ancestor that asked for orphans
(PR_SET_CHILD_SUBREAPER), which is the process of the test. Linux only; elsewhere everything is
started as ever.

Within `real_starts()` nothing is forked: for tests of a start itself. A fork differs from a start in
that libraries are loaded already (nothing in its folder, or on PYTHONPATH, can stand in for one or
be a sitecustomize.py), that umask, process group and the seed of hashes are the server's, and that an uncaught Ctrl-C
ends it with 1. What `peerpoise up` starts is forked in its turn, from a server of its own.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import node  # noqa: F401  (its variable is one of those that have to be equal)

PRELOADED = (
    "cryptography.x509",
    "dp_accounting.pld.privacy_loss_distribution",
    "dp_accounting.rdp",
    "google.protobuf.message",
    "node.cli.main",
    "node.experiments.in_process",
    "node.experiments.sweep.trial",
    "node.tasks.classification",
    "prometheus_client",
    "rich.table",
    "safetensors.torch",
    "scipy.optimize",
    "scipy.special",
    "torch._dynamo",  # what the first gradient by torch.func imports, a CPU second of it
    "torch.func",
    "torch.fx.experimental.symbolic_shapes",
    "uvloop",
)
"""Without grpc: what it may do after a fork depends on what it did before."""
PACKAGES = ("peerpoise", "node", "kit")
STARTUP = (
    "LANG", "LC_", "LD_", "LOCPATH", "MALLOC_", "MKL_", "OMP_", "PROMETHEUS_", "PYTHON",
    "prometheus_",
)  # fmt: skip
"""Variables that a process reads when it starts or imports a library: the server has one set. Not
those of grpc, which a child loads (and for which `peer` sets two, in the test's process as well).
"""
LATER = ("PYTHONIOENCODING", "PYTHONPATH", "PYTHONWARNINGS")
"""Those of them that the child of a fork can still heed."""
PR_SET_CHILD_SUBREAPER = 36
LAUNCHER = ["up"]
"""Commands that start daemons themselves: those are forked, too."""
LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)


def _startup(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environ.items()
        if name.startswith(STARTUP) and name not in LATER
    }


class Server:
    """The process from which others are forked, and the socket to it; started at its first use."""

    def __init__(self) -> None:
        self.startup = _startup({**os.environ, "OMP_NUM_THREADS": "1"})
        self._socket: socket.socket | None = None
        self.pid = 0
        """Of its process; 0: there is none."""

    def suits(self, environ: Mapping[str, str]) -> bool:
        return _startup(environ) == self.startup

    def fork(self, request: Mapping[str, Any], streams: Sequence[int]) -> int:
        """The process id of a new child of this process."""
        connection = self._socket or self._start()
        socket.send_fds(connection, [json.dumps(request).encode()], list(streams))
        return int(connection.recv(64))

    def close(self) -> None:
        if self._socket and self.pid:
            self._socket.close()
            os.waitpid(self.pid, 0)
            self._socket, self.pid = None, 0

    def _start(self) -> socket.socket:
        theirs = self._connect()
        with theirs:
            process = _popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.pid, process.returncode = process.pid, 0  # it is waited for in `close`
        assert self._socket
        return self._socket

    def start_within(self) -> dict[str, Any] | None:
        """A server of this process's own, which is a fork of it, for what it starts in its turn. In
        each process forked from that this returns its request; None in this process.
        """
        theirs = self._connect()
        self.pid = os.fork()
        if self.pid:
            theirs.close()
            subprocess.Popen = Popen  # type: ignore[misc]
            return None
        assert self._socket
        self._socket.close()
        self._socket, self.pid = None, 0
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for std in range(3):
            os.dup2(null, std)
        os.close(null)
        if wanted := serve(theirs):
            return wanted
        os._exit(0)

    def _connect(self) -> socket.socket:
        """The other end. Orphans of the server are adopted by this process from now on."""
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return theirs


_popen = subprocess.Popen
_server = Server()
_real = False


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen` that forks where it can."""

    def _execute_child(
        self,
        args: Any,
        executable: Any,
        preexec_fn: Any,
        close_fds: Any,
        pass_fds: Any,
        cwd: Any,
        env: Any,
        startupinfo: Any,
        creationflags: Any,
        shell: Any,
        p2cread: int,
        p2cwrite: int,
        c2pread: int,
        c2pwrite: int,
        errread: int,
        errwrite: int,
        *more: Any,
    ) -> None:
        environ = dict(os.environ if env is None else env)
        plain = close_fds and not (executable or preexec_fn or pass_fds or shell)
        place = _place(args) if plain and not _real and _server.suits(environ) else None
        pipes = (p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)
        if place is None:
            super()._execute_child(  # type: ignore[misc]
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo,
                creationflags, shell, *pipes, *more,
            )  # fmt: skip
            return
        request = {
            "module": args[place],
            "words": [os.fspath(word) for word in args[place + 1 :]],
            "cwd": os.fspath(cwd or os.getcwd()),
            "safe_path": "-P" in args[:place],
            "environ": environ,
            "limits": {limit: resource.getrlimit(limit) for limit in LIMITS},
            "session": bool(more[-2]),
        }
        ends = enumerate((p2cread, c2pwrite, errwrite))
        self.pid = _server.fork(request, [std if end == -1 else end for std, end in ends])
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


@contextmanager
def replace_popen() -> Iterator[None]:
    """`subprocess` and asyncio's loops fork inside the block."""
    if sys.platform != "linux":
        yield
        return
    subprocess.Popen = Popen  # type: ignore[misc]
    try:
        yield
    finally:
        subprocess.Popen = _popen  # type: ignore[misc]
        _server.close()


@contextmanager
def real_starts() -> Iterator[None]:
    """Every process starts as a user's does inside the block."""
    global _real
    _real = True
    try:
        yield
    finally:
        _real = False


def children() -> set[str]:
    """Processes that this one has started or adopted and that still run: "PID NAME"; without the
    server.
    """
    found = set()
    for list_of in Path("/proc/self/task").glob("*/children"):
        pids: list[int] = []
        with suppress(OSError):  # a thread that ends meanwhile
            pids = [int(word) for word in list_of.read_text(encoding="ascii").split()]
        for pid in pids:
            with suppress(OSError):
                name, state = _stat(pid)
                if pid != _server.pid and state != "Z":
                    found.add(f"{pid} {name}")
    return found


def _stat(pid: int) -> tuple[str, str]:
    """Name and state of a process."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    name, _, rest = text.partition("(")[2].rpartition(")")
    return name, rest.split()[0]


def _place(args: Any) -> int | None:
    """Where in this command the module of ours is that it runs: python [-P] -m MODULE …"""
    words = [os.fspath(word) for word in args] if not isinstance(args, str | bytes) else []
    for start in ([sys.executable, "-m"], [sys.executable, "-P", "-m"]):
        place = len(start)
        if words[:place] == start and words[place].partition(".")[0] in PACKAGES:
            return place
    return None


def serve(connection: socket.socket) -> dict[str, Any] | None:
    """Forks a process per request. In each of them this returns its request, with the streams in
    place; None in the server when its test has gone.
    """
    for name in PRELOADED:
        with suppress(ImportError):  # an environment without torch has tests too
            importlib.import_module(name)
    assert "grpc" not in sys.modules
    assert threading.active_count() == 1, "a fork takes along one thread only"
    gc.freeze()  # else the first collection in each child copies every page
    while True:
        message, fds, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        if not message:
            return None
        reading, writing = os.pipe()
        middle = os.fork()
        if middle:
            for fd in (writing, *fds):
                os.close(fd)
            os.waitpid(middle, 0)  # only now is its child an orphan that the test has adopted
            connection.send(os.read(reading, 64))
            os.close(reading)
            continue
        child = os.fork()
        if child:
            os.write(writing, str(child).encode())
            os._exit(0)
        connection.close()
        for std, fd in enumerate(fds):
            os.dup2(fd, std)
        os.closerange(3, max(*fds, reading, writing) + 1)
        request: dict[str, Any] = json.loads(message)
        return request


def become(request: Mapping[str, Any]) -> None:
    """This process as `python -m MODULE WORDS…` finds it, and that run to its end."""
    if request["words"][:1] == LAUNCHER and (wanted := _server.start_within()):
        become(wanted)  # one of its daemons
        return
    environ = request["environ"]
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(request["cwd"])
    for limit, (soft, hard) in request["limits"].items():
        resource.setrlimit(int(limit), (soft, hard))
    if request["session"]:
        os.setsid()
    encoding, _, errors = environ.get("PYTHONIOENCODING", "").partition(":")
    for std, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        lenient = "backslashreplace" if name == "stderr" else errors or "strict"
        stream = open(
            std,
            mode,
            encoding=encoding or None,
            errors=lenient,
            buffering=1 if name == "stderr" or os.isatty(std) else -1,
            closefd=False,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.resetwarnings()
    warnings.filters[:] = list(_filters)  # type: ignore[index]
    for entry in filter(None, reversed(environ.get("PYTHONWARNINGS", "").split(","))):
        warnings._setoption(entry)  # type: ignore[attr-defined]
    places = environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [place for place in places if place and place not in sys.path]
    if not request["safe_path"]:
        sys.path.insert(0, request["cwd"])
    sys.argv = [request["module"], *request["words"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def _code(request: Mapping[str, Any]) -> int:
    """Runs it; its exit code. All that a process does at its end but to free what the server made,
    which would copy it first.
    """
    try:
        become(request)
        code: Any = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    _server.close()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = 120
    return code or 0


if __name__ == "__main__":
    _filters = list(warnings.filters)
    sys.path[:] = [path for path in sys.path if Path(path) != Path(__file__).parent]
    if wanted := serve(socket.socket(fileno=int(sys.argv[1]))):
        os._exit(_code(wanted))
