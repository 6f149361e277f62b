"""`up` and `simulate`: one experiment in its run folder, as processes or in this one.

RUN/run.toml partition.json summary.json model.safetensors metrics-NODE.txt, and nodes/NODE/ with
what the daemon of that node keeps (journal.jsonl, checkpoints, summary.json, model.safetensors) and
its output, daemon.log.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING

from node.config import ENVIRONMENT_PREFIX, DataSection, ExperimentConfig, write
from node.encoding import Json
from node.experiments import provisioning, run_folder
from node.experiments.own_files import COUNTED_NOWHERE
from node.figures import COMMON_METRICS, Metric, headline_text
from node.observability import status, terminal
from node.observability.terminal import Progress, Screen
from node.process import stopping_signals
from node.records.summary import Summary
from peer import files
from peer.errors import EXIT_FAILURE, EXIT_OK, StorageError, TemporaryFailure

if TYPE_CHECKING:
    from node.experiments.resolve import ResolvedRun

GRACE_S = 6.0
"""A daemon stops within five seconds of SIGTERM by itself; after this long it is killed."""
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Nothing that is asked of this machine itself goes through a proxy."""
GONE = (errno.EPIPE, errno.EIO)
"""Why the screen can't be written: the reader of a pipe, or the terminal, has gone."""
TICK_S = 0.4
"""Between two looks at the daemons: often enough for the eye, cheap beside training on the same
cores.
"""


def up(
    config: ExperimentConfig,
    folder: Path | None,
    *,
    insecure: bool,
    loop: str,
    baseline: bool,
    quiet: bool,
    own: Mapping[str, DataSection] = MappingProxyType({}),
) -> tuple[Summary | None, int]:
    """Runs the experiment as one daemon per node. Returns the merged summary (None where no node
    finished) and the exit code: 0; that of the daemons that failed, if they agree, else 1; 128 +
    signal when stopped. `own`: each node's own data, instead of a part of a public set."""
    resolved = _resolved(config, own, daemons=True)
    config, folder = resolved.experiment, _run_folder(config, folder)
    rounds, adjacency = config.train.rounds, config.task.adjacency
    with _reserved(2 * config.experiment.nodes) as ports:
        run, homes = provisioning.local(
            folder, resolved, list(zip(ports[::2], ports[1::2], strict=True))
        )
        daemons: list[DaemonProcess] = []
        screen = Screen(rounds, quiet=quiet, adjacency=adjacency)
        with screen, _ending(daemons):
            _announce(screen, config, folder)
            for name, home in homes.items():
                process = _start(home, insecure, loop, attacks=name in config.experiment.attackers)
                daemons.append(
                    DaemonProcess(name, home, process, status.places(run.run_id, name, home))
                )
            code = follow(daemons, folder, screen)
    summary = run_folder.merge(folder, homes)
    _conclude(
        screen,
        folder,
        summary,
        _baseline(config, folder, own) if baseline and code == EXIT_OK else None,
    )
    return summary, code


def simulate(
    config: ExperimentConfig,
    folder: Path | None,
    *,
    quiet: bool,
    own: Mapping[str, DataSection] = MappingProxyType({}),
) -> Summary:
    """Runs the experiment in this process; `own` as for `up`."""
    resolved = _resolved(config, own)
    config, folder = resolved.experiment, _run_folder(config, folder)
    write(config.run_config, folder / "run.toml")
    provisioning.write_partition(folder, resolved)
    rounds, adjacency = config.train.rounds, config.task.adjacency
    with Screen(rounds, quiet=quiet, adjacency=adjacency) as screen:
        _announce_attack(screen, config)

        def progress(done: int, rounds: int, tested: Mapping[str, str]) -> None:
            if not quiet:
                names = tested or config.experiment.names
                screen.show(
                    {
                        name: Progress(round=done, state="", tested=tested.get(name, ""))
                        for name in names
                    }
                )

        from node.experiments import in_process

        summary = in_process.run(resolved, folder, progress)
    if not quiet:
        _conclude(screen, folder, summary)
    return summary


@dataclass(slots=True)
class DaemonProcess:
    """One node's process, and what was last seen of it."""

    name: str
    home: Path
    process: subprocess.Popen[bytes]
    sockets: Sequence[Path]
    """Where its status may be asked."""
    seen: Progress = field(default_factory=Progress)
    declared: Sequence[Metric] = ()
    """The task's metrics, as its journal says."""
    metrics: str = ""
    _offset: int = 0
    """Bytes of the journal that were read."""

    def look(self) -> Progress:
        """Catches up with the journal; of a running daemon also asks what it waits for."""
        code = self.process.poll()
        for event in self._news():
            if event["event"] == "figures":
                self.declared = [Metric(**declaration) for declaration in event["metrics"]]
            self.seen = after(self.seen, event, self.declared)
        if code is None:
            self.seen = replace(self.seen, state=terminal.doing(self.sockets) or self.seen.state)
        elif code == EXIT_OK:
            self.seen = replace(self.seen, state="finished")
        else:
            ending = (
                f"ended with exit code {code}"
                if code > 0
                else f"was killed by {signal.Signals(-code).name}"
            )
            ending = "was stopped before it could begin" if code == -signal.SIGTERM else ending
            self.seen = replace(
                self.seen, state=f"{ending}: {_last_line(self.home / 'daemon.log')}"
            )
        return self.seen

    def _news(self) -> list[Json]:
        try:
            with (self.home / "journal.jsonl").open("rb") as file:
                file.seek(self._offset)
                whole = file.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return []
        self._offset += len(whole) + 1 if whole else 0
        return [json.loads(line) for line in whole.splitlines()]

    def scrape(self) -> None:
        """Keeps the newest answer of /metrics; a daemon that is starting or gone has none."""
        from node.config import NodeConfig, load

        address = load(NodeConfig, [self.home / "node.toml"], environ={}).metrics.listen
        with contextlib.suppress(urllib.error.URLError, OSError):
            with DIRECT.open(f"http://{address}/metrics", timeout=2) as answer:
                self.metrics = answer.read().decode()


def after(
    seen: Progress, event: Mapping[str, object], declared: Sequence[Metric] = COMMON_METRICS
) -> Progress:
    """What is shown of a node, whose task declares these metrics, after one more line of its
    journal.
    """
    match event:
        case {"event": "round", "round": int(t)}:
            return replace(seen, round=t + 1)
        case {"event": "test", "metrics": dict(measured)}:
            return replace(seen, tested=headline_text(declared, measured) or seen.tested)
        case {"event": "epsilon", "total": float(epsilon)}:
            return replace(seen, epsilon=epsilon)
        case {"event": "state", "state": str(state)}:
            return replace(seen, state=state)
    return seen


def follow(daemons: list[DaemonProcess], folder: Path, screen: Screen) -> int:
    """Shows the daemons until the last has ended. A signal stops them all, and so does a screen
    that can't be written; a second signal kills them.

    Raises:
        StorageError: output or metrics can't be written; the daemons' own results stand.
    """
    scraped = 0.0
    with _signals() as caught:
        deadline = float("inf")
        while any(daemon.process.poll() is None for daemon in daemons):
            if caught and deadline == float("inf"):
                _scrape(daemons)  # while they still answer
                deadline = time.monotonic() + GRACE_S
                _tell(daemons, signal.SIGTERM)
            if len(caught) > 1 or time.monotonic() > deadline:
                _tell(daemons, signal.SIGKILL)
            screen.show({daemon.name: daemon.look() for daemon in daemons})
            if screen.fault and not caught:
                caught.append(signal.SIGPIPE)
            if time.monotonic() - scraped > 1:
                _scrape(daemons)
                scraped = time.monotonic()
            time.sleep(TICK_S)
        screen.show({daemon.name: daemon.look() for daemon in daemons})
    for daemon in daemons:
        if daemon.metrics:
            files.atomic_write(folder / f"metrics-{daemon.name}.txt", daemon.metrics.encode())
        if daemon.process.returncode:
            screen.say(f"{daemon.name} {daemon.seen.state}")
    if screen.fault and screen.fault.errno not in GONE:
        raise StorageError(
            f"The output can't be written: {screen.fault.strerror}; free space, or write it "
            "elsewhere."
        )
    failed = {daemon.process.returncode for daemon in daemons} - {EXIT_OK}
    if caught:
        return 128 + caught[0]
    return (
        EXIT_OK
        if not failed
        else failed.pop()
        if len(failed) == 1 and min(failed) > 0
        else EXIT_FAILURE
    )


def _start(home: Path, insecure: bool, loop: str, *, attacks: bool) -> subprocess.Popen[bytes]:
    """Settings from the environment were applied to the run already; a session of its own keeps
    Ctrl-C with us. Its standard input is a pipe from this process, which ends with it, however it
    ends."""
    environ = {
        k: v for k, v in os.environ.items() if not (k.startswith(ENVIRONMENT_PREFIX) and "__" in k)
    }
    command = [sys.executable, "-P", "-m", "peerpoise", "run", "--until-eof", "--loop", loop]
    command += ["--config", str(home / "node.toml")]
    command += ["--insecure"] * insecure + ["--i-am-testing"] * attacks
    with os.fdopen(files.keep(home / "daemon.log", os.O_WRONLY | os.O_APPEND), "wb") as log:
        return subprocess.Popen(
            command,
            env={**environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _scrape(daemons: list[DaemonProcess]) -> None:
    for daemon in daemons:
        daemon.scrape()


def _tell(daemons: list[DaemonProcess], number: signal.Signals) -> None:
    for daemon in daemons:
        if daemon.process.poll() is None:
            daemon.process.send_signal(number)


@contextlib.contextmanager
def _ending(daemons: list[DaemonProcess]) -> Iterator[None]:
    """However the block is left, the daemons have ended then: told to stop, or killed where they
    don't.
    """
    try:
        yield
    finally:
        _tell(daemons, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        for daemon in daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.process.wait(max(0.0, deadline - time.monotonic()))
        _tell(daemons, signal.SIGKILL)
        for daemon in daemons:
            daemon.process.wait()
            if daemon.process.stdin:
                daemon.process.stdin.close()


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGHUP (unless it is ignored, as under nohup) instead of dying
    of them.
    """
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    before = {number: signal.signal(number, note) for number in stopping_signals()}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _reserved(count: int) -> Iterator[list[int]]:
    """Free loopback ports. On Linux they are held, bound but not listening, so that nobody else
    (outgoing connections among them) is given one before its daemon listens there; elsewhere that
    would shut the daemon out."""
    with contextlib.ExitStack() as held:
        try:
            sockets = [held.enter_context(_bound()) for _ in range(count)]
        except OSError as error:
            why = error.strerror
            raise TemporaryFailure(
                f"{count} ports can't be had: {why}; see ulimit -n, or use fewer nodes."
            ) from None
        ports = [each.getsockname()[1] for each in sockets]
        if sys.platform != "linux":
            held.close()
        yield ports


def _bound() -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sys.platform == "linux":
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", 0))
    return bound


def _run_folder(config: ExperimentConfig, folder: Path | None) -> Path:
    """A new run folder; of two runs that want one at the same time the second is given another, or
    refused.

    Raises:
        StorageError: it exists and is not empty, or can't be made.
    """
    made = _named_by_time(config.run.name) if folder is None else files.new_dir(folder)
    try:
        (made / "nodes").mkdir(mode=0o700)
    except FileExistsError:
        raise StorageError(
            f"{made} belongs to another run that was just started; choose another folder."
        ) from None
    except OSError as error:
        raise files.storage_error(made, error) from None
    return made


def _named_by_time(name: str) -> Path:
    """runs/NAME-TIME, with a number behind it where there is one of this second already."""
    runs, title, number = Path("runs"), f"{name}-{datetime.now():%Y%m%d-%H%M%S}", 1
    try:
        runs.mkdir(exist_ok=True)
        while True:
            folder = runs / (title if number == 1 else f"{title}-{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
                return folder
            number += 1
    except OSError as error:
        raise files.storage_error(runs, error) from None


def _resolved(
    config: ExperimentConfig, own: Mapping[str, DataSection], *, daemons: bool = False
) -> ResolvedRun:
    """The experiment, resolved and checked. What is named by a file keeps its name in every working
    folder.
    """
    from node.data import own_families
    from node.experiments.resolve import resolve
    from node.tasks import absolute

    section = config.task.reasoning
    task = config.task.model_copy(
        update={
            "name": absolute(config.task.name),
            "reasoning": section and own_families.absolute(section),
        }
    )
    resolved = resolve(config.model_copy(update={"task": task}), own=own)
    resolved.check_data()
    if own:
        print(f"warning: {COUNTED_NOWHERE}", file=sys.stderr)
    return resolved.checked(daemons=daemons)


def _baseline(config: ExperimentConfig, folder: Path, own: Mapping[str, DataSection]) -> Summary:
    """The same experiment in mode none, in one process."""
    from node.algorithms import without_noise

    values = config.model_dump()
    values["algorithm"]["name"] = without_noise(config.algorithm.name) or config.algorithm.name
    values["privacy"] |= {"mode": "none", "epsilon": None, "sigma": None}
    return simulate(ExperimentConfig(**values), folder / "baseline", quiet=True, own=own)


def _announce(screen: Screen, config: ExperimentConfig, folder: Path) -> None:
    from node.maths.graph import spectral_gap

    neighborhoods = config.neighborhoods(config.experiment.names)
    gap = spectral_gap({name: neighborhood.weight for name, neighborhood in neighborhoods.items()})
    screen.say(
        f"{len(neighborhoods)} daemons, {config.topology.kind} (spectral gap {gap:.2g}), "
        f"{config.algorithm.name}, "
        f"{config.task.data}, privacy mode {config.privacy.mode}; run folder {folder}"
    )
    _announce_attack(screen, config)
    if histogram := run_folder.partition_histogram(folder):
        terminal.histogram(screen, histogram)


def _announce_attack(screen: Screen, config: ExperimentConfig) -> None:
    if attack := config.experiment.attack:
        screen.say(f"ATTACKED by {', '.join(config.experiment.attackers)}: {attack.name}")


def _conclude(
    screen: Screen, folder: Path, summary: Summary | None, baseline: Summary | None = None
) -> None:
    from node.records.summary import table

    if summary:
        screen.print(table(summary, baseline))
        screen.say(f"Summary, models and metrics: {folder}")
    elif any(folder.glob("nodes/*/checkpoint-*")):
        screen.say(
            f"No node finished. Each has its checkpoint below {folder}; "
            f"it goes on with peerpoise run --config {folder}/nodes/NAME/node.toml"
            " (who attacks, with --i-am-testing)."
        )
    else:
        screen.say(
            f"No node finished, and there is no checkpoint; logs: {folder}/nodes/NAME/daemon.log."
        )


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
