"""Clusters of real daemons, each a process of its own, over gRPC with mTLS on loopback.

A `Witness` is a daemon of the same cluster that lives in the test's process: the same code on the
same wire, but it keeps every byte that it is sent, and it stays in a round until it is told to go
on. Waiting is polling with a deadline.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import traceback
import urllib.request
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kit import forkserver
from node.config import (
    BudgetSection,
    DataSection,
    ExperimentConfig,
    ListenSection,
    MetricsSection,
    NodeConfig,
    RunConfig,
    load,
)
from node.daemon.bootstrap import resolve_paths
from node.daemon.daemon import Daemon
from node.experiments import local_cluster, provisioning
from node.experiments.resolve import resolve
from node.observability import status
from node.observability.status import Status
from peer import codec
from peer.errors import TemporaryFailure
from peer.identity.keys import Identity
from peer.identity.roster import Roster
from peer.transport.grpc import Grpc
from peer.transport.memory import Memory, Network
from peer.v1 import peer_pb2 as pb

from grpc_health.v1 import health_pb2, health_pb2_grpc  # isort: skip (after ours, which sets grpc's ciphers)

SECONDS = 90.0
"""A daemon needs five CPU seconds to start, and a busy machine may have few of them."""
NEVER = 1 << 30
BUILDING = threading.Lock()

EXPERIMENT: dict[str, dict[str, Any]] = {
    "run": {"name": "test"},
    "algorithm": {"name": "dpdl", "lr": 0.3},
    "topology": {"kind": "full"},
    "task": {"data": "digits", "model": "softmax"},
    "train": {"rounds": 6, "seed": 1, "evaluate_every": 0, "checkpoint_every": 1},
    "privacy": {"mode": "strict", "sigma": 2.2, "delta": 1e-3, "rate": 0.1, "batch": 30},
    "sync": {"deadline_s": 20.0},
    "start": {"timeout_s": 120.0},
    "experiment": {"nodes": 3, "seed": 1},
}
"""σ is given, so that no daemon has to calibrate it."""


def experiment(**settings: Any) -> ExperimentConfig:
    """EXPERIMENT with changes: a section by name, or nodes, rounds, kind for short; None removes a
    key.
    """
    short = {"nodes": "experiment", "rounds": "train", "kind": "topology"}
    values: dict[str, Any] = {name: dict(section) for name, section in EXPERIMENT.items()}
    for key, value in settings.items():
        change = {key: value} if key in short else value
        section = values.setdefault(short.get(key, key), {})
        section |= change
    given: dict[str, Any] = {
        name: {k: v for k, v in section.items() if v is not None}
        for name, section in values.items()
    }
    return ExperimentConfig(**given)


async def until(
    condition: Callable[[], Any], seconds: float = SECONDS, what: Callable[[], Any] = lambda: ""
) -> Any:
    """The condition's first true value. `what`: is said when it does not come."""
    try:
        async with asyncio.timeout(seconds):
            while not (found := condition()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            return found
    except TimeoutError:
        raise AssertionError(f"did not come within {seconds:g} s: {what()}") from None


@dataclass
class Cluster:
    """The folders of a federation on loopback, and what of it runs."""

    config: ExperimentConfig
    folder: Path
    run: RunConfig
    homes: dict[str, Path]
    addresses: dict[str, str]
    _held: ExitStack
    processes: list[Process] = field(default_factory=list)
    witnesses: dict[str, Witness] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, **settings: Any) -> Cluster:
        """As `peerpoise up` makes it; folder/federation (the CA) is kept for those who forge."""
        config, held = experiment(**settings), ExitStack()
        names = config.experiment.names
        ports = held.enter_context(local_cluster._reserved(2 * len(names)))
        addresses = {name: f"127.0.0.1:{port}" for name, port in zip(names, ports, strict=False)}
        places = {
            folder / "nodes" / name: NodeConfig(
                name=name,
                folder=Path(),
                identity=provisioning.OWN,
                tasks=provisioning.own_tasks(config),
                data=DataSection(name=config.task.data, rows=Path("rows.npy")),
                listen=ListenSection(address=addresses[name], advertise=addresses[name]),
                budget=BudgetSection(experiment=True, ledger_dir=Path("ledger")),
                metrics=MetricsSection(listen=f"127.0.0.1:{port}"),
                attack=config.experiment.attack_of(name),
            )
            for name, port in zip(names, ports[len(names) :], strict=True)
        }
        resolved = resolve(config)
        run = provisioning.prepare(folder, resolved.pinned(), places)
        homes = {home.name: home for home in places}
        provisioning.divide(folder, resolved, homes)
        return cls(config, folder, run, homes, addresses, held)

    def start(
        self,
        name: str,
        *options: str,
        failpoints: str = "",
        loop: str = "auto",
        inside: Sequence[str] = (),
        fresh: bool = False,
    ) -> Process:
        """A daemon in a process of its own. `inside`, `fresh`: as in `Process.start`."""
        process = Process.start(
            self.homes[name],
            self.run,
            *options,
            "--loop",
            loop,
            failpoints=failpoints,
            inside=inside,
            fresh=fresh,
        )
        self.processes.append(process)
        return process

    def witness(self, name: str, limit: int = NEVER, insecure: bool = False) -> Witness:
        """A daemon in this process, on the running loop; it stays in round `limit`, at its end."""
        witness = self.witnesses[name] = Witness.of(self.homes[name], limit, insecure)
        witness.task = asyncio.create_task(witness.live(), name=f"witness {name}")
        return witness

    async def end(self) -> None:
        for witness in self.witnesses.values():
            if (
                witness.task.done()
                and not witness.task.cancelled()
                and (error := witness.task.exception())
            ):
                print(f"witness {witness.node.name}:", *traceback.format_exception(error))
            witness.task.cancel()
        await asyncio.gather(
            *(witness.task for witness in self.witnesses.values()), return_exceptions=True
        )
        for process in self.processes:
            process.kill()
        self._held.close()


@asynccontextmanager
async def clustered(folder: Path, **settings: Any) -> AsyncIterator[Cluster]:
    """`Cluster.make` in a folder; everything it started is gone afterwards, whatever happened."""
    made = Cluster.make(folder, **settings)
    try:
        yield made
    finally:
        await made.end()


@dataclass
class Process:
    """One daemon's process."""

    home: Path
    popen: subprocess.Popen[bytes]
    socket: Path

    @classmethod
    def start(
        cls,
        home: Path,
        run: RunConfig,
        *options: str,
        failpoints: str = "",
        inside: Sequence[str] = (),
        fresh: bool = False,
    ) -> Process:
        """`inside`: a command that runs the daemon's in its own place, such as ip netns exec NAME.
        `fresh`: it is started as a user's is, which takes seconds.
        """
        environ = {k: v for k, v in os.environ.items() if not k.startswith("PEERPOISE_")}
        environ |= {
            "OMP_NUM_THREADS": "1",
            "PEERPOISE_FAILPOINTS": failpoints,
            "PYTHONWARNINGS": "",
        }
        words = (
            "run",
            "--config",
            str(home / "node.toml"),
            *options,
            *["--i-am-testing"] * bool(failpoints),
        )
        command = [*inside, sys.executable, "-P", "-m", "peerpoise", *words]
        started = forkserver.real_starts() if fresh else nullcontext()
        with (home / "daemon.log").open("wb") as log, started:
            popen = subprocess.Popen(
                command,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return cls(home, popen, status.place(run.run_id, home.name))

    @property
    def code(self) -> int | None:
        return self.popen.poll()

    @property
    def log(self) -> str:
        return (self.home / "daemon.log").read_text()

    @property
    def metrics(self) -> str:
        """The address of its metrics."""
        now = self.status()
        assert now is not None
        return str(now["metrics"])

    def status(self) -> Status | None:
        """None while it starts or when it is gone."""
        try:
            return status.query(self.socket)
        except TemporaryFailure:
            return None

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """Its journal's whole lines; of these kinds, if any are given."""
        return events(self.home, *kinds)

    def reached(self, t: int) -> bool:
        """Has it finished round t, ever?"""
        return any(event["round"] >= t for event in self.events("round"))

    async def until(self, condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
        """As `until`; fails at once when the process ends first."""

        def looked() -> Any:
            ended, found = self.code is not None, condition()
            assert found or not ended, f"{self.home.name} ended with {self.code}: {self.log}"
            return found

        return await until(looked, seconds, lambda: f"{self.home.name}: {self.status()} {self.log}")

    async def state(self, state: str) -> Status:
        """Its status once it is in this state."""
        found: Status = await self.until(
            lambda: (it := self.status()) and it["state"] == state and it
        )
        return found

    async def ended(self, seconds: float = SECONDS) -> int:
        """Its exit code; a signal is negative."""
        await until(
            lambda: self.code is not None,
            seconds,
            lambda: f"{self.home.name}: {self.status()} {self.log}",
        )
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        if self.code is None:
            self.popen.kill()
        self.popen.wait()
        self.socket.unlink(missing_ok=True)


def events(home: Path, *kinds: str) -> list[dict[str, Any]]:
    try:
        lines = (home / "journal.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    found = [json.loads(line) for line in lines]
    return [event for event in found if not kinds or event["event"] in kinds]


@dataclass
class Transfer:
    """What came of one transfer, be it that its sender died on the way."""

    sender: str
    round: int
    role: int
    kind: str
    incarnation: int
    withheld: bool
    payload: bytearray = field(default_factory=bytearray)


class Witness(Daemon):
    """See the module's docstring."""

    task: asyncio.Task[int]

    @classmethod
    def of(cls, home: Path, limit: int = NEVER, insecure: bool = False) -> Witness:
        file = home / "node.toml"
        node = resolve_paths(load(NodeConfig, [file], environ={}), home)
        run = load(RunConfig, [node.run], environ={})
        identity = Identity.load(*node.identity.files)
        roster, transport = (
            Roster.load(node.roster, run.run.federation),
            Grpc(None if insecure else identity, node.listen.address),
        )
        witness = cls(node, run, roster, identity, transport)
        witness.limit, witness.transfers, witness.leave_late = limit, [], threading.Event()
        witness.leave_late.set()
        return witness

    limit: int
    """The round in which it stays: all its work done, its neighbors answered, but not over."""
    transfers: list[Transfer]
    leave_late: threading.Event
    """Cleared: whoever says goodbye waits for an answer."""

    @property
    def round(self) -> int:
        """The round it is in."""
        return self.session.progress.round if hasattr(self, "session") else -1

    @property
    def held(self) -> bool:
        return self.finished == self.limit

    def knows(self, peer: str) -> str:
        """A neighbor's presence."""
        return self.session.table.membership.neighbors[peer].presence.value

    def remembers(self, peer: str) -> int:
        """The highest sequence number of its ledger that this neighbor told."""
        heads = self.remembered._heads.get(self.roster.by_name[peer].id, {})
        return max((head.sequence for head in heads.values()), default=0)

    def released(self, sender: str) -> dict[int, set[bytes]]:
        """round -> the different answers, whole or cut, that came from this neighbor."""
        found: dict[int, set[bytes]] = defaultdict(set)
        for it in self.transfers:
            if it.sender == sender and it.role == pb.ROLE_ANSWER and it.payload:
                found[it.round].add(bytes(it.payload))
        return found

    def _on_signals(self, main: asyncio.Task[Any]) -> None:
        """They belong to the test's process."""

    def _build(self, *given: Any) -> Any:
        """One after the other: initial parameters are drawn from torch's generator, which a process
        has one of.
        """
        with BUILDING:
            return super()._build(*given)

    def _after_round(self, t: int) -> None:
        super()._after_round(t)
        while t >= self.limit:
            threading.Event().wait(0.02)
            self.compute.yield_point()

    def _session(self, *given: Any) -> Any:
        session = super()._session(*given)
        receive, call = session.transfer, session.call

        async def noted(caller: str | None, messages: AsyncIterator[bytes]) -> bytes:
            async with aclosing(self._note(messages)) as passing:
                verdict: bytes = await receive(caller, passing)
                return verdict

        async def answered(caller: str | None, method: Any, request: bytes) -> bytes:
            while method == "Leave" and not self.leave_late.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            reply: bytes = await call(caller, method, request)
            return reply

        session.transfer = noted  # type: ignore[method-assign]
        session.call = answered  # type: ignore[method-assign]
        return session

    async def _note(self, messages: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        names, first = (
            {member.id: member.name for member in self.roster.members},
            await anext(messages),
        )
        header = codec.decode(pb.Header, first)
        note = Transfer(
            names[header.sender],
            header.round,
            header.role,
            header.kind,
            header.incarnation,
            header.withheld,
        )
        self.transfers.append(note)
        yield first
        async for message in messages:
            if len(note.payload) < header.bytes:
                note.payload += message
            yield message


def get(url: str) -> str:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url, timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def identity_of(c: Cluster, name: str) -> Identity:
    home = c.homes[name]
    return Identity.load(home / "node.key", home / "node.pem", home / "ca.pem")


async def health(c: Cluster, name: str, *, asker: str, wait: bool = False) -> str:
    """What grpc's health service says to a member of the federation; `wait`: until somebody
    listens.
    """
    own, server = identity_of(c, asker), identity_of(c, name)
    async with Grpc(own, "127.0.0.1:0").channel(server.id, c.addresses[name]) as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=20, wait_for_ready=wait
        )
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


def debits(home: Path) -> dict[tuple[int, str], int]:
    """(round, recipient) -> sequence number in the ledger, read from a copy: nobody else is
    disturbed.
    """
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(home / "ledger", copy, dirs_exist_ok=True)
        [file] = Path(copy).glob("*.sqlite")
        with sqlite3.connect(file) as db:
            rows = db.execute("SELECT round, recipient, seq FROM debit").fetchall()
        db.close()
    assert len({row[:2] for row in rows}) == len(rows)
    return {(round, recipient): sequence for round, recipient, sequence in rows}


def faults(
    sender: str, witnesses: Iterable[Witness], spent: dict[tuple[int, str], int]
) -> list[str]:
    """What the witnesses saw of this node that its ledger does not vouch for."""
    found = []
    for witness in witnesses:
        me = witness.node.name
        for t, answers in witness.released(sender).items():
            longest = max(answers, key=len)
            if (t, me) not in spent:
                found.append(f"{me} has an answer of round {t} that was never debited")
            if any(not longest.startswith(answer) for answer in answers):
                found.append(f"{me} has two different answers of round {t}")
    return found


class _DaemonMemory(Memory):
    async def set_serving(self, serving: bool) -> None:
        pass


def over_memory(monkeypatch: pytest.MonkeyPatch, network: Network) -> None:
    """Witnesses of this test meet over `network` instead of gRPC."""
    monkeypatch.setitem(
        globals(), "Grpc", lambda identity, listen: _DaemonMemory(network, identity.id)
    )
