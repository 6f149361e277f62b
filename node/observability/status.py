"""`peerpoise status`: a daemon says over a Unix socket what it does and whom it waits for.

One JSON document (`Status`) per connection, then the daemon closes. The socket's file has mode 0600
from the moment it exists and lies in a folder of mode 0700: only this user can ask. The document
tells nothing private: ε is a function of public numbers, accuracy is that on the public test set,
or on this user's own.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import re
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, cast

from node.figures import BUDGET_REACHED, Metric
from node.records.journal import plain
from peer.errors import StorageError, TemporaryFailure

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

PATH_LIMIT = 100
"""Bytes a socket's path may have: the kernel takes 108 (Linux) or 104 (macOS)."""
SHORT = "/tmp"
"""Where sockets lie if the folder for temporary files has too long a name."""
DOCUMENT_LIMIT = 128 << 10
"""Bytes of a document (about 200 per neighbor): less than a socket's buffer, so that answering
never waits.
"""


class Phase(TypedDict):
    kind: str
    """The verb's kind, e.g. "model"."""
    since_s: float
    """Seconds this node has been in it."""


class Waiting(TypedDict):
    peer: str
    since_s: float
    """Seconds it has been waited for."""
    until_s: float
    """Seconds until it is given up unless it makes progress; before the first round: until the
    run begins without it.
    """
    why: str
    """What keeps it away, or else what it owes, in a sentence."""


class Neighbor(TypedDict):
    name: str
    state: str
    """E.g. up, connecting, down, left."""
    address: str | None
    """Dialled at present, or last."""
    found_by: str | None
    """Which discovery gave the address, and the host name behind it."""
    round: int | None
    """The round it was last heard to be in."""
    rtt_ms: float | None
    last_error: str | None


class RunEpsilon(TypedDict):
    total: float | None
    """ε_total so far: the guarantee; None: infinite, or the node is starting and has not read its
    ledger yet.
    """
    link: float | None
    """ε_link so far: a diagnostic."""


class Epsilon(TypedDict):
    run: RunEpsilon
    lifetime: float | None
    """ε_total of these data over all runs; None as in `run.total`."""
    lifetime_delta: float
    """δ of lifetime and limit."""
    limit: float | None
    """It is kept by PLD, whose ε is smaller than that of `accountant`."""
    reached: bool
    """True: budget reached: still mixing, no releases."""
    mode: str
    batches: str
    adjacency: str
    delta: float
    accountant: str
    guaranteed: bool
    """False: mode paper, or a public seed. No ε holds then."""


class TaskMetric(TypedDict):
    name: str
    unit: Literal["", "ratio"]
    value: float | None
    """On the public test set; None: not finite."""


class Status(TypedDict):
    """What a daemon says. Times are seconds at the moment of asking."""

    node: str
    run: str
    """run_id."""
    algorithm: str
    state: str
    """starting | waiting for peers | running | lingering | stopping | finished."""
    round: int
    """The round this node is in, from 0."""
    rounds: int
    """T."""
    phase: Phase | None
    waiting_for: list[Waiting]
    neighbors: list[Neighbor]
    epsilon: Epsilon | None
    """None in mode none."""
    task_metrics: list[TaskMetric]
    """As they were measured last, the headline first."""
    diagnostics: Mapping[str, float | Mapping[str, float]]
    """Figures of the algorithm's last round, of this node or per neighbor."""
    loop: str
    """uvloop | asyncio."""
    insecure: list[str]
    """What voids security or privacy: transport, seed, attack, validation (it is private). Empty:
    nothing.
    """
    metrics: str | None
    """host:port of /metrics."""
    warnings: list[str]
    """Sentences that concern the user now."""
    uptime_s: float
    pid: int
    version: str


def is_ready(state: str) -> bool:
    """Does a node in this state run rounds?"""
    return state == "running"


def folder() -> Path:
    """Where sockets lie: $XDG_RUNTIME_DIR/peerpoise, else peerpoise-<uid> among the temporary files
    ($TMPDIR), or in /tmp where that path is too long for a socket; mode 0700. A daemon that can't
    have it answers in its own folder.

    Raises:
        StorageError: it can't be made, or others could put files there.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir() and _is_short(runtime):
        path = Path(runtime) / "peerpoise"
    else:
        path = Path(_temporary()) / f"peerpoise-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        about = path.lstat()
    except OSError as error:
        raise StorageError(
            f"The folder {path} for status sockets can't be made: {error.strerror or error}."
        ) from None
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise StorageError(
            f"{path} must be a folder of this user with mode 0700; remove it. Until then daemons "
            "answer in their own folders: peerpoise status ./FOLDER."
        )
    return path


def _temporary() -> str:
    try:
        path = tempfile.gettempdir()
    except OSError:  # there is no folder that can be written
        return SHORT
    return path if _is_short(path) else SHORT


def _is_short(folder: str) -> bool:
    return len(os.fsencode(folder)) < PATH_LIMIT - 50


def place(run_id: str, node: str, among: Path | None = None) -> Path:
    """The socket of a node of a run: <run_id[:8]>-<node>.sock; a name that is too long or odd is
    hashed.
    """
    among = folder() if among is None else among
    path = among / f"{run_id[:8]}-{node}.sock"
    if re.fullmatch(r"[\w.-]+", node) and len(os.fsencode(path)) <= PATH_LIMIT:
        return path
    return among / f"{run_id[:8]}-{hashlib.sha256(node.encode()).hexdigest()[:16]}.sock"


def places(run_id: str, node: str, home: Path) -> list[Path]:
    """Where a node's socket may be, best first: among all of this user's, or in the node's own
    folder.
    """
    paths = [place(run_id, node, home)]
    with suppress(StorageError):
        paths.insert(0, place(run_id, node))
    return paths


@contextmanager
def serve(path: Path, snapshot: Callable[[], Status]) -> Iterator[None]:
    """Answers every connection with `snapshot()`, on the running event loop, until the block is
    left.

    Raises:
        TemporaryFailure: another daemon answers there.
        StorageError: the socket can't be made.
    """
    loop = asyncio.get_running_loop()
    with _bind(path) as listener:
        loop.add_reader(listener, _answer, listener, snapshot)
        try:
            yield
        finally:
            loop.remove_reader(listener)
            path.unlink(missing_ok=True)


def query(path: Path, timeout: float = 2.0) -> Status:
    """Asks a daemon; needs neither torch nor an event loop.

    Raises:
        TemporaryFailure: nobody answers within `timeout` seconds, or not with a document.
    """
    deadline, content = time.monotonic() + timeout, b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(str(path))
            while len(content) <= DOCUMENT_LIMIT and (part := connection.recv(65536)):
                content += part
                connection.settimeout(max(0.001, deadline - time.monotonic()))
        document = json.loads(content)
        if not isinstance(document, dict):
            raise ValueError
        return cast(Status, document)
    except TimeoutError:
        raise TemporaryFailure(
            f"The daemon at {path} did not answer within {timeout:g} s; it may be stopped."
        ) from None
    except OSError as error:
        text = error.strerror or error
        raise TemporaryFailure(
            f"No daemon answers at {path} ({text}); is it running, and as this user?"
        ) from None
    except ValueError:
        raise TemporaryFailure(
            f"What answers at {path} is no daemon of this version, or is just ending."
        ) from None


def find(among: Path | None = None) -> list[Path]:
    """The sockets somebody listens on, sorted; those of dead daemons are removed."""
    among = folder() if among is None else among
    return [path for path in sorted(among.glob("*.sock")) if _alive(path)]


def render(status: Status) -> RenderableType:
    """The document for people: one line of what it does, whom it waits for, its neighbors, ε."""
    from rich.console import Group
    from rich.text import Text

    lines = [Text(_headline(status), "bold"), *(Text(line) for line in _details(status))]
    lines += [Text(f"INSECURE: {what}", "bold red") for what in status["insecure"]]
    lines += [Text(warning, "yellow") for warning in status["warnings"]]
    return Group(*lines, _neighbors(status["neighbors"]))


def _headline(status: Status) -> str:
    phase = status["phase"]
    doing = f", phase {phase['kind']} for {phase['since_s']:.1f} s" if phase else ""
    done = f"round {status['round'] + 1} of {status['rounds']}"
    reached = f", {BUDGET_REACHED}" if status["epsilon"] and status["epsilon"]["reached"] else ""
    return (
        f"{status['node']}: {status['state']}{reached}, {done}{doing} ({status['algorithm']}, run "
        f"{status['run'][:8]})"
    )


def _details(status: Status) -> list[str]:
    lines = [_wait(waiting) for waiting in status["waiting_for"]]
    for metric in status["task_metrics"][:1]:
        shown = Metric(metric["name"], unit=metric["unit"]).show(metric["value"])
        lines.append(f"test {metric['name']} {shown}")
    lines += _epsilon(status)
    metrics = f"metrics http://{status['metrics']}/metrics, " if status["metrics"] else ""
    about = f"pid {status['pid']}, up {status['uptime_s']:.0f} s, version {status['version']}"
    return [*lines, f"{metrics}loop {status['loop']}, {about}"]


def _wait(waiting: Waiting) -> str:
    return (
        f"waits for {waiting['peer']} since {waiting['since_s']:.1f} s, for "
        f"{waiting['until_s']:.1f} s more: {waiting['why']}"
    )


def _epsilon(status: Status) -> list[str]:
    epsilon, insecure = status["epsilon"], status["insecure"]
    if epsilon is None:
        return ["ε: no privacy (mode none)"]
    covers = (
        "against any coalition of other nodes" if epsilon["mode"] == "strict" else "NOT a guarantee"
    )
    covers = "VOID: insecure_seed makes the noise public" if "seed" in insecure else covers
    conditions = (
        f"mode {epsilon['mode']}, {epsilon['adjacency']}, δ = {epsilon['delta']:g}, "
        f"{epsilon['batches']} batches, {epsilon['accountant']}"
    )
    conditions += (
        ", the validation set is private and not covered" if "validation" in insecure else ""
    )
    if not epsilon["guaranteed"]:
        return [f"ε: infinite, there is no guarantee ({conditions}, {covers})"]
    run, limit = epsilon["run"], "none"
    if epsilon["limit"] is not None:
        limit = f"{_number(epsilon['limit'])} by PLD, whose ε is smaller"
    delta = f"δ = {epsilon['lifetime_delta']:g}"
    if epsilon["lifetime_delta"] != epsilon["delta"]:
        delta += ", another one than the run's: these figures can't be compared"
    if status["state"] == "starting" and run["total"] is None:
        return [
            f"ε: nothing is released while this node starts ({conditions}, {covers}); what was "
            f"spent before is shown once the ledger is read, limit {limit} ({delta})"
        ]
    return [
        f"ε_total {_number(run['total'])} in this run ({conditions}, {covers}); "
        f"{_number(epsilon['lifetime'])} in the life of these data, "
        f"limit {limit} ({delta})",
        f"ε_link {_number(run['link'])} ({conditions}, one neighbor alone: a diagnostic, not a "
        "guarantee)",
    ]


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.3g}"


def _neighbors(neighbors: list[Neighbor]) -> Table:
    """Every cell is Text: rich would read markup in an IPv6 address, or in the sentence with which
    a peer refuses.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(
        "neighbor", "state", "round", "rtt", "address", "last error", box=None, pad_edge=False
    )
    for each in neighbors:
        rtt = "" if each["rtt_ms"] is None else f"{each['rtt_ms']:.1f} ms"
        reached = "" if each["round"] is None else str(each["round"] + 1)
        where = f"{each['address']} ({each['found_by'] or '?'})" if each["address"] else ""
        cells = (each["name"], each["state"], reached, rtt, where, each["last_error"] or "")
        table.add_row(*map(Text, cells))
    return table


def _answer(listener: socket.socket, snapshot: Callable[[], Status]) -> None:
    """Writes the document into the connection's buffer, which holds all of it, and closes."""
    with suppress(BlockingIOError, ConnectionError):  # whoever asked has gone again
        connection, _ = listener.accept()
        with connection:
            connection.setblocking(False)
            connection.send(json.dumps(plain(snapshot()), allow_nan=False).encode() + b"\n")


def _bind(path: Path) -> socket.socket:
    if path.exists() and _alive(path):
        raise TemporaryFailure(f"Another daemon already answers at {path}: this node runs already.")
    listener, unborn = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), path.with_suffix(".new")
    try:
        unborn.unlink(missing_ok=True)
        with suppress(OSError):
            os.fchmod(
                listener.fileno(), 0o600
            )  # on Linux the file is born with it; elsewhere the folder guards it
        listener.bind(str(unborn))
        unborn.chmod(0o600)
        listener.listen()
        listener.setblocking(False)
        unborn.rename(
            path
        )  # only now may `find` see it: one that does not listen yet would be taken for dead
    except OSError as error:
        listener.close()
        raise StorageError(
            f"The status socket {path} can't be made: {error.strerror or error}."
        ) from None
    return listener


def _alive(path: Path) -> bool:
    """Does somebody listen there? The file of a dead daemon is removed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1)
        try:
            connection.connect(str(path))
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                path.unlink(missing_ok=True)
            return isinstance(error, BlockingIOError | TimeoutError)
        return True
