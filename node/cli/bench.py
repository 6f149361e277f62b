"""`peerpoise bench`: what a node's round costs on this machine, and where the time goes.

Each part is measured alone, as often as it takes for a steady median of seconds on the wall, and
counted as often as a node with the most neighbors does it in a round:

gradient  the gradients of one secret batch, clipped one by one and summed (mode none: plain)
noise     Gaussian noise on the grid for one answer
debit     one entry of the privacy ledger, on the disk of the working directory
wire  one model over loopback with mutual TLS; both ends are in this process
steps     the algorithm's own arithmetic and the averaging

Their sum is a floor: it has no network in it, no waiting for neighbors, no evaluation, no
checkpoint, and each of a machine's daemons needs a core of its own for it.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from node import device as devices
from node.algorithms import Capability, Resources, find
from node.config import ExperimentConfig, PrivacySection, load
from node.config.task import SUPERVISED
from node.experiments.resolve import resolve
from node.learning.plan import Plan
from node.learning.resources import resources
from node.maths.backends import Choice, choose
from node.maths.blocks import Block
from node.maths.clipping import clipped_sum, mean_gradient
from node.maths.policy import Draws
from node.privacy import noise
from node.privacy.accountant import Mechanism
from node.privacy.ledger import Ledger
from node.privacy.unit_task import by_unit
from node.randomness import Keys
from node.rounds import lockstep
from node.rounds.buffers import ReceiveBuffer, as_bytes
from node.task import Task
from node.tasks import make
from peer.codec import frames
from peer.errors import ConfigurationError, StorageError
from peer.identity.authority import CertificateAuthority
from peer.message import Layout, Peer
from peer.transport import Method
from peer.transport.grpc import Grpc

if TYPE_CHECKING:
    from rich.console import RenderableType

QUICKSTART = ("privacy.sigma=2.21", "privacy.delta=1e-3", "privacy.rate=0.25", "privacy.batch=90")
"""Where no file is named."""
FEWEST, SECONDS = 3, 0.7
"""A part is measured at least so often, and for at least so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one part of a round."""

    times: float
    """How often a node does it in a round."""
    seconds: float
    """Of once, on the wall."""
    share: float = 0.0
    """Of the round."""

    def within(self, round_seconds: float) -> Cost:
        """With its share of a round that takes so long."""
        return replace(self, share=self.times * self.seconds / round_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `bench` found."""

    algorithm: str
    mode: str
    model: str
    parameters: int
    device: str
    torch: str
    cores: int
    nodes: int
    rounds: int
    batch: int
    """Expected size of a batch."""
    releases: int
    """|K|: gradients a node computes a round, its own included."""
    plain_seconds: float
    """Of one backward pass over as many examples."""
    private_over_plain: float | None
    """Gradient and noise of one answer ÷ that; None in mode none."""
    slow: str
    """Why gradients are computed example by example, and what to use instead; empty: they are
    not."""
    bytes_sent: int
    """Payload bytes a node sends in a round; it receives as many."""
    parts: Mapping[str, Cost]
    round_seconds: float
    """The sum: a floor."""
    warm_up: bool
    """Only a round of the warm-up was measured, none of reinforcement."""


def read(file: Path | None, settings: Sequence[str]) -> ExperimentConfig:
    """An experiment or a run; without a file the quickstart's.

    Raises:
        ConfigurationError: one sentence.
    """
    return load(
        ExperimentConfig, [file] if file else [], settings if file else [*QUICKSTART, *settings]
    )


def measure(config: ExperimentConfig, say: Callable[[str], None] = lambda text: None) -> Report:
    """Measures every part; `say` hears what is being measured. Ten seconds or so, more for a large
    model.

    Raises:
        ConfigurationError, DataError: the run can't be.
        StorageError: nothing can be written in the working directory.
    """
    if config.task.data == "own":
        raise ConfigurationError(
            "bench divides public data; set task.data to a set with examples like yours."
        )
    resolved = resolve(config).checked(daemons=True)
    torch.set_num_threads(1)  # as in daemons
    plan, privacy = resolved.plan, config.privacy
    where = devices.pick(config.experiment.device)
    task = make(resolved.run, max(resolved.parts.values(), key=len), where)
    task = by_unit(task, config.task)
    x = task.initial_parameters(config.train.seed)
    releases = plan.algorithm.releases(
        max(neighborhood.degree for neighborhood in plan.neighborhoods.values())
    )
    batch = (
        min(task.num_examples, privacy.batch)
        if privacy.mode == "none"
        else round(privacy.rate * task.num_examples)
    )

    say("gradients")
    plain = _median(lambda: mean_gradient(task, x, torch.arange(batch)), where)
    choice = None if privacy.mode == "none" else choose(privacy.backend, task)
    answer = {"gradient": plain} if not choice else _private(task, privacy, x, where, choice)
    say("steps")
    steps, sent = _steps(plan, task, x)
    say("wire")
    wire = asyncio.run(_wire(task.layout, x)) if sent else 0.0
    parts = {
        **{name: Cost(times=releases, seconds=seconds) for name, seconds in answer.items()},
        "steps": Cost(times=1, seconds=steps),
        "wire": Cost(times=sent / task.layout.nbytes, seconds=wire),
    }
    whole = sum(part.times * part.seconds for part in parts.values())
    return Report(
        algorithm=config.algorithm.name,
        mode=privacy.mode,
        model=config.task.model if config.task.name in SUPERVISED else config.task.name,
        parameters=task.layout.size,
        device=torch.cuda.get_device_name(where) if where.type == "cuda" else str(where),
        torch=torch.__version__,
        cores=os.cpu_count() or 1,
        nodes=len(plan.neighborhoods),
        rounds=config.train.rounds,
        batch=batch,
        releases=releases,
        plain_seconds=plain,
        private_over_plain=(None if not choice else (answer["gradient"] + answer["noise"]) / plain),
        slow=choice.slow if choice else "",
        bytes_sent=sent,
        parts={name: part.within(whole) for name, part in parts.items()},
        round_seconds=whole,
        warm_up=Capability.POLICY in find(config.algorithm.name).NEEDS,
    )


def _median(work: Callable[[], object], where: torch.device = devices.CPU) -> float:
    """Seconds of one call; the first one warms up. A GPU is waited for before the clock is read."""
    work()
    seconds: list[float] = []
    while len(seconds) < FEWEST or sum(seconds) < SECONDS:
        _finish(where)
        start = time.perf_counter()
        work()
        _finish(where)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _finish(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def _private(
    task: Task, privacy: PrivacySection, x: Tensor, where: torch.device, choice: Choice
) -> dict[str, float]:
    """Seconds of what the gate does for one answer, each for a new round."""
    keys, rounds = Keys.fresh(), count()

    def total() -> Tensor:
        uniform = keys.stream("batch", next(rounds), "bench").uniform(task.num_examples)
        rows = torch.from_numpy(np.flatnonzero(uniform < privacy.rate))
        return clipped_sum(
            task,
            x,
            rows,
            privacy.clip,
            chunk=privacy.chunk,
            least=privacy.largest_batch,
            backend=choice.backend,
        )

    one = total()
    seconds = {
        "gradient": _median(total, where),
        "noise": _median(
            lambda: noise.release(
                one,
                privacy.sigma or 1.0,
                privacy.clip,
                privacy.batch,
                keys.stream("noise", next(rounds), "bench"),
            )
        ),
    }
    mechanism = Mechanism(sigma=1.0, rate=privacy.rate, batches="independent")
    with _scratch() as folder, Ledger.open(folder, "bench") as ledger:
        return {
            **seconds,
            "debit": _median(lambda: ledger.debit("bench", next(rounds), "bench", mechanism)),
        }


def _resources(plan: Plan, task: Task, me: Peer, x: Tensor) -> Resources:
    draws = Draws(me, 0, Keys.insecure(0, me))
    return resources(plan.algorithm, task, start=x, gradients=_Given(), draws=draws)


def _steps(plan: Plan, task: Task, x: Tensor) -> tuple[float, int]:
    """(seconds of a node's own arithmetic in a round, bytes that the node which sends most sends in
    it): all nodes in lockstep, with gradients that cost nothing."""
    sent = dict.fromkeys(plan.neighborhoods, 0)
    nodes = {
        name: plan.algorithm(plan.options, _resources(plan, task, name, x))
        for name in plan.neighborhoods
    }
    rounds = count()

    def phase(t: int, phase: int, kind: str, bytes_sent: Mapping[Peer, int]) -> None:
        for name, size in bytes_sent.items():
            sent[name] += size

    def run_round() -> None:
        t = next(rounds)
        lockstep.run(nodes, plan.neighborhoods, t + 1, first=t, mix=plan.run.mix, after_phase=phase)

    seconds = _median(run_round)
    return seconds / len(nodes), max(sent.values()) // next(rounds)


class _Given:
    """`node.algorithms.Gradients` for nothing."""

    def __call__(self, x: Tensor, t: int, to: Peer) -> Tensor:
        return x.clone()

    def own(self, x: Tensor, t: int) -> Tensor:
        return x.clone()

    def difference(self, x: Tensor, before: Tensor, t: int) -> Tensor:
        return x - before

    def within(self, x: Tensor, block: Block) -> Callable[[Tensor, int], Tensor]:
        return lambda theta, t: theta.clone()


async def _wire(layout: Layout, x: Tensor) -> float:
    """Seconds in which one model goes from one end of a connection to the other, with what a daemon
    does to it.
    """
    end, slot = _End(), ReceiveBuffer(layout, 1)
    content = as_bytes(x.to(slot.flat.dtype))

    async def messages() -> AsyncIterator[bytes]:
        for offset, length in frames(len(content)):
            yield bytes(content[offset : offset + length])

    with _scratch() as folder:
        authority = CertificateAuthority.create(folder / "ca")
        own, other = (authority.enrol(folder / name) for name in "ab")
        listener = Grpc(own, "127.0.0.1:0")
        link = Grpc(other, "127.0.0.1:0").link(own.id, await listener.serve(end))
        try:
            end.slot = slot
            await link.transfer(messages())
            durations: list[float] = []
            while len(durations) < FEWEST or sum(durations) < SECONDS:
                start = time.perf_counter()
                await link.transfer(messages())
                durations.append(time.perf_counter() - start)
            return statistics.median(durations)
        finally:
            await link.close()
            await listener.close(0)


class _End:
    """`peer.transport.Service` that takes models."""

    slot: ReceiveBuffer

    async def call(self, caller: str | None, method: Method, request: bytes) -> bytes:
        return request

    async def transfer(self, caller: str | None, messages: AsyncIterator[bytes]) -> bytes:
        offset = 0
        async for message in messages:
            await self.slot.write(offset, memoryview(message))
            offset += len(message)
        return b"taken"


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder on the working directory's disk, gone afterwards."""
    try:
        folder = TemporaryDirectory(prefix=".peerpoise-bench-", dir=".")
    except OSError as error:
        here = Path.cwd()
        raise StorageError(
            f"{here} can't be written: {error.strerror}; bench needs to, to try the disk."
        ) from None
    with folder as name:
        yield Path(name)


def document(report: Report) -> dict[str, object]:
    """For programs."""
    return asdict(report)


def show(report: Report) -> RenderableType:
    """For people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = (
        f"{report.algorithm}, mode {report.mode}; {report.model} of {report.parameters:,} "
        f"parameters, batches of about {report.batch}; {report.device}, torch {report.torch}"
    )
    table = Table("of a node's round", box=None, pad_edge=False)
    for title in ("times", "ms each", "ms", "share"):
        table.add_column(title, justify="right")
    for name, part in report.parts.items():
        each, times = 1000 * part.seconds, f"{part.times:.3g}"
        table.add_row(name, times, f"{each:.3g}", f"{each * part.times:.3g}", f"{part.share:.0%}")
    table.add_row("all", "", "", f"{1000 * report.round_seconds:.3g}", "")
    lines = [
        f"A plain backward pass of {report.batch} examples: {1000 * report.plain_seconds:.3g} ms"
    ]
    if report.private_over_plain is not None:
        lines[0] += f"; a private gradient: {report.private_over_plain:.1f} times that"
    if report.slow:
        lines.append(report.slow.removesuffix("."))
    lines.append(f"{report.bytes_sent:,} bytes sent and received by a node in a round")
    run = report.rounds * report.round_seconds
    lines.append(
        f"{report.rounds} rounds: at least {run:.3g} s on {report.nodes} machines like this one"
    )
    here = run * max(1.0, report.nodes / report.cores)
    lines[-1] += (
        f", {here:.3g} s with all {report.nodes} nodes on its {report.cores} cores; waiting "
        "comes on top"
    )
    if report.warm_up:
        lines.append(
            "This is a round of the warm-up; in one of reinforcement answers are drawn, learned "
            "from and audited, which a run's journal measures"
        )
    return Group(Text(head, "bold"), table, *(Text(line + ".") for line in lines))
