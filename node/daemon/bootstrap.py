"""A daemon's first second: its files are checked and its port answers before torch is there.

Importing torch takes seconds. Until then grpc.health.v1 answers NOT_SERVING, and neighbors that
call are kept waiting.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from node import process
from node.config import NodeConfig, RunConfig, load
from node.daemon.reload import keep_version
from node.observability.voice import Form
from node.records.journal import run_of
from peer import failpoint, files
from peer.errors import ConfigurationError, StorageError
from peer.identity.keys import Identity
from peer.identity.roster import Roster
from peer.transport.grpc import Grpc

if TYPE_CHECKING:
    from node.daemon.daemon import Daemon


DESCRIPTORS = 8192
"""Open files, connections included, that a daemon asks the system for; it needs some hundreds."""
MULTIPROCESS = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
"""With these Prometheus's client would keep figures in files that several processes share; a daemon
is one process.
"""


def serve(
    file: Path,
    *,
    settings: Sequence[str] = (),
    loop: str = "auto",
    insecure: bool = False,
    testing: bool = False,
    until_eof: bool = False,
    log: Form = "text",
    quiet: bool = False,
) -> int:
    """Runs the daemon of this node.toml until its last round, or until SIGTERM; returns the exit
    code.

    `log`, `quiet`: what it says on standard error (`node.observability.voice`). `testing`: it may
    attack its neighbors, if its file says so, and fail where PEERPOISE_FAILPOINTS says.
    `until_eof`: the end of standard input is SIGTERM.

    Raises:
        PeerpoiseError: one sentence; nothing was lost.
    """
    process.hide()
    _outlive_reload()
    if testing:
        failpoint.arm()
    elif os.environ.get(failpoint.VARIABLE):
        raise ConfigurationError(
            f"{failpoint.VARIABLE} is set, which makes a daemon fail, for tests: unset it, or "
            "add --i-am-testing."
        )
    node = resolve_paths(load(NodeConfig, [file], settings), file.parent)
    if node.attack and not testing:
        raise ConfigurationError(
            f"This node would attack its neighbors ({node.attack.name}), which is for tests of "
            "your own federation: add --i-am-testing, or remove [attack]."
        )
    node.budget.limit  # noqa: B018 (the owner must have decided before anything is done with the data)
    run = load(RunConfig, [node.run], environ={})
    node.check_task(run.task)
    roster = Roster.load(node.roster, run.run.federation)
    if node.name not in roster.by_name:
        raise ConfigurationError(
            f"{file} names this node {node.name!r}, which is not in the roster {node.roster}."
        )
    identity = Identity.load(*node.identity.files)
    if node.name in roster.removed:
        raise ConfigurationError(
            f"{node.name} was removed from the roster (version {roster.version})."
        )
    if roster.by_name[node.name].id != identity.id:
        raise ConfigurationError(
            f"The roster has another key for {node.name} than {node.identity.files[0]}."
        )
    _claim(node.folder, run)
    keep_version(node.folder, roster)
    for name in MULTIPROCESS:
        os.environ.pop(name, None)
    process.retain_freed_memory()
    _raise_descriptors()
    chosen = _loop(node.compute.loop if loop == "auto" else loop)
    transport = partial(Grpc, None if insecure or node.listen.insecure else identity)
    with asyncio.Runner(loop_factory=chosen) as runner:
        return runner.run(
            _live(
                lambda: transport(node.listen.address, members=roster.ids),
                partial(_daemon, node, run, roster, identity, log=log, quiet=quiet),
                until_eof,
            )
        )


def _outlive_reload() -> None:
    """SIGHUP asks a service to read its files again, which it has yet to do. (Ignored, it would
    mean nohup.)
    """
    if threading.current_thread() is not threading.main_thread() or os.isatty(0):
        return
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda number, frame: None)


def _raise_descriptors() -> None:
    """As many open files as this user may have: others' connections must not leave ledger and
    status without any.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return
    with suppress(ValueError, OSError):  # macOS has a limit of its own beside an infinite one
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _claim(folder: Path, run: RunConfig) -> None:
    """A run folder serves one run: what another one left there would be forgotten bit by bit."""
    other = run_of(files.ensure_dir(folder) / "journal.jsonl")
    if other not in (None, run.run_id):
        raise StorageError(
            f"{folder} holds another run ({other}); move it away, or set folder in the node's file."
        )


async def _live(
    make_transport: Callable[[], Grpc], make_daemon: Callable[[Grpc], Daemon], until_eof: bool
) -> int:
    if until_eof:
        pipe = _standard_input()
        asyncio.get_running_loop().add_reader(pipe, _stop_at_eof, pipe)
    transport = make_transport()
    try:
        await transport.listen()
        daemon = await asyncio.to_thread(make_daemon, transport)
        return await daemon.live()
    finally:
        await transport.close(0)


def _standard_input() -> int:
    """Takes standard input for ourselves; whoever else reads from it finds nothing."""
    pipe, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return pipe


def _stop_at_eof(pipe: int) -> None:
    if not os.read(pipe, 1024):
        asyncio.get_running_loop().remove_reader(pipe)
        os.kill(os.getpid(), signal.SIGTERM)


def _daemon(
    node: NodeConfig,
    run: RunConfig,
    roster: Roster,
    identity: Identity,
    transport: Grpc,
    *,
    log: Form,
    quiet: bool,
) -> Daemon:
    from node.daemon.daemon import Daemon

    return Daemon(node, run, roster, identity, transport, log=log, quiet=quiet)


def _loop(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name in ("auto", "uvloop"):
        try:
            import uvloop
        except ImportError:
            if name == "uvloop":
                raise ConfigurationError(
                    "uvloop is not installed; install it or use --loop asyncio."
                ) from None
        else:
            factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
            return factory
    return asyncio.new_event_loop


def resolve_paths(node: NodeConfig, folder: Path) -> NodeConfig:
    """Relative paths are relative to the file's folder."""
    here = folder.absolute()

    def at(path: Path | None) -> Path | None:
        return None if path is None else here / path.expanduser()

    identity, data, budget, generator = node.identity, node.data, node.budget, node.generator
    return node.model_copy(
        update={
            "run": at(node.run),
            "roster": at(node.roster),
            "folder": at(node.folder),
            "identity": identity.model_copy(
                update={k: at(getattr(identity, k)) for k in ("key", "certificate", "ca")}
            ),
            "data": data.model_copy(
                update={k: at(getattr(data, k)) for k in ("path", "test", "rows", "validation")}
            ),
            "budget": budget.model_copy(update={"ledger_dir": at(budget.ledger_dir)}),
            "generator": generator and generator.model_copy(update={"key": at(generator.key)}),
        }
    )
