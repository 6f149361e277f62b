"""One daemon: THE composition root, the only place where transport and algorithm meet.

`bootstrap.py` has read its files and opened its port. It waits for its neighbors, runs its rounds
in the compute thread and on the event loop, keeps journal, checkpoints and metrics, and stops
within seconds when asked to.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import platform
import signal
import time
from collections.abc import Mapping

import torch

from node import data, device
from node.attacks import Attack
from node.config import NodeConfig, RunConfig
from node.daemon import startup
from node.daemon.background import background, root_cause
from node.daemon.reload import Reload, keep_version
from node.daemon.telemetry import Telemetry
from node.data.profile import in_other_units
from node.hooks import Hooks
from node.learning.build import build
from node.learning.known_data import KnownData
from node.learning.learner import Learner
from node.learning.plan import Plan
from node.observability import metrics, status
from node.observability.sentences import Sentences
from node.observability.voice import Form, Voice
from node.privacy.ledger import Ledger
from node.process import stopping_signals
from node.records import checkpoint, summary
from node.records.checkpoint import MODEL
from node.records.journal import Journal, code_version, round_seconds
from node.records.peer_heads import LedgerWitness, NeighborLedgerHeads
from node.rounds.compute import Compute
from node.rounds.driver import Driver
from node.tasks.loading import source_digest
from peer import files
from peer.discovery.addresses import own_addresses
from peer.errors import (
    EXIT_OK,
    BudgetSpent,
    ConfigurationError,
    Diverged,
    LedgerError,
    StorageError,
)
from peer.identity.keys import Identity
from peer.identity.roster import Roster
from peer.membership import Membership
from peer.neighborhood import View, Views
from peer.session.mailbox import Mailbox
from peer.session.peers import PeerTable, RunParameters
from peer.session.session import Session
from peer.transport.grpc import Grpc

STOP_SECONDS = 4.0
"""The compute thread ends at its next yield point; a daemon that was asked to stop waits so long
for it, then goes.
"""
LINGER_SECONDS = 30.0
"""After the last round a daemon stays reachable for slower neighbors, at most so long."""


class Daemon:
    """One process's life."""

    def __init__(
        self,
        node: NodeConfig,
        run: RunConfig,
        roster: Roster,
        identity: Identity,
        transport: Grpc,
        *,
        log: Form = "text",
        quiet: bool = True,
    ) -> None:
        """`log`, `quiet`: what is said on standard error (`Voice`)."""
        self.node, self.run = node, run
        self.roster, self.identity = roster, identity
        self.transport = transport
        self.insecure = transport.insecure
        self.plan = Plan.of(run, run.neighborhoods(roster.names))
        if self.plan.algorithm.POOLED:
            raise ConfigurationError(
                f"{run.algorithm.name} pools all data in one place; it exists in simulate only."
            )
        self.views = Views(self._view(roster))
        self.attack = Attack.of(node.attack) if node.attack else None
        self.remembered = NeighborLedgerHeads(startup.heads_file(node))
        self.journal = Journal(node.folder / "journal.jsonl", startup.journal_header(node, run))
        self.metrics = metrics.Metrics(
            version=code_version(),
            torch=torch.__version__,
            python=platform.python_version(),
            diagnostics=run.privacy.mode != "paper" or node.metrics.diagnostics,
        )
        sentences = Sentences(node.name, run, version=code_version(), folder=node.folder)
        self.voice = Voice(sentences, form=log, quiet=quiet)
        self.watch = Telemetry(
            run=run,
            name=node.name,
            journal=self.journal,
            metrics=self.metrics,
            budget=node.budget,
            public_test=node.data.test_public,
            voice=self.voice,
        )
        if self.plan.warning:
            self.watch.warnings.append(self.plan.warning)
        self.finished = -1
        """The last round that is complete."""
        self.rounds_run = 0
        """How many are, those of earlier processes included."""
        self.tested: dict[str, float] = {}
        self.sent_before = 0.0
        """Payload bytes sent by earlier processes of this node."""
        self.reload: Reload | None = None
        self._began = time.monotonic()
        self._stopping = ""

    def _view(self, roster: Roster) -> View:
        """The plan's: a roster can only remove members, and they stay in the graph."""
        neighborhood = self.plan.neighborhoods[self.node.name]
        return View(neighborhood, roster.version, roster.effective_round)

    async def live(self) -> int:
        """Run until the last round or SIGTERM. Returns the exit code."""
        self._mark_insecure()
        self.compute = Compute(self.node.compute.threads)
        main = asyncio.current_task()
        assert main is not None
        self._on_signals(main)
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._live(stack)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            if self.watch.state != "finished":
                self.watch.log_event("end", reason="stopped", signal=self._stopping, complete=False)
            return EXIT_OK
        except BaseExceptionGroup as group:
            error = root_cause(group)
            raise error from error.__cause__
        finally:
            self.compute.stop()
            self.journal.close()
            self.voice.close()
        return self._exit_code()

    def _exit_code(self) -> int:
        return BudgetSpent.exit_code if self.learner.gate.exhausted else EXIT_OK

    async def _live(self, stack: contextlib.AsyncExitStack) -> None:
        self.watch.loop = type(asyncio.get_running_loop()).__module__.split(".")[0]
        endpoint = None
        if self.node.metrics.listen:
            endpoint = metrics.serve(
                self.metrics, self.node.metrics.listen, lambda: status.is_ready(self.watch.state)
            )
            stack.callback(endpoint.close)
            self.watch.metrics_address = endpoint.address
        startup.serve_status(stack, self.node, self.run, self.watch)
        if ledger := await self.compute.run(startup.open_ledger, self.node, self.run):
            stack.enter_context(ledger)
        stack.push_async_callback(
            self._rest
        )  # the ledger is closed after the compute thread has ended
        self.learner = self.watch.learner = await self.compute.run(self._build, ledger)
        self.watch.computes_by(self.learner.gate)
        first = await self.compute.run(self._resume)
        incarnation = await self.compute.run(startup.next_incarnation, self.node.folder)
        transport = self.transport
        self.session = session = self._session(transport, incarnation)
        session.progress.first = first
        self.watch.attach(self.learner, session, self.addresses)
        stack.push_async_callback(transport.close, 0.5)
        stack.push_async_callback(session.close)
        bound = await transport.serve(session)
        neighbors = self.learner.neighborhood.neighbors
        self.watch.log_event("listening", address=bound, neighbors=neighbors)
        await self._announce(bound)
        driver = Driver(
            algorithm=self.learner.algorithm,
            views=self.views,
            layout=self.learner.task.layout,
            session=session,
            compute=self.compute,
            sync=self.run.sync,
            mix=self.run.mix,
            bounds=self.learner.bounds,
            honest=self.attack is None,
            rounds=self.run.train.rounds,
            watcher=self.watch,
            completed=self._completed,
            after_round=self._after_round,
        )
        self.reload = self._reload()
        work = (
            session.run(),
            self.addresses.run(),
            self.reload.run(),
            self.watch.measure_lag(),
            self.watch.note_waits(),
            self._count_connections(),
        )
        async with background(*work):
            try:
                await self._run_rounds(driver, first)
            except BaseException as error:
                cause = root_cause(error) if isinstance(error, BaseExceptionGroup) else error
                await self._enter("stopping", self._stopping or type(cause).__name__)
                await self._leave(session)
                if isinstance(cause, Diverged):
                    self._conclude(diverged=True)
                raise
        if endpoint:
            await endpoint.read_again()

    async def _run_rounds(self, driver: Driver, first: int) -> None:
        rounds = self.run.train.rounds
        if first < rounds:
            await self._enter("waiting for peers")
            await driver.wait_for_neighbors(self.run.start)
            await self._enter("running")
            await driver.run(first)
        await self._enter("lingering")
        if first < rounds or not (self.node.folder / "summary.json").exists():
            await self.compute.run(self._conclude)
        await self.session.goodbye(finished=True)
        await driver.linger(LINGER_SECONDS)
        await self.compute.run(self._remember)
        await self._enter("finished")

    async def _enter(self, state: str, reason: str = "") -> None:
        """A node is ready while it runs rounds: gRPC's health, /-/ready and the status socket say
        the same.
        """
        self.watch.set_state(state, reason)
        await self.transport.set_serving(status.is_ready(state))

    async def _leave(self, session: Session) -> None:
        """Asked to stop, or failed: ends work, keeps the last complete round if its state still
        stands, says goodbye.
        """
        self.compute.stop()
        ended, _ = await asyncio.gather(
            self.compute.join(STOP_SECONDS), session.goodbye(finished=False)
        )
        whole = self.learner.algorithm.checkpointable and not self.learner.diverged
        if ended and self.finished >= 0 and whole:
            self._checkpoint(self.finished)

    async def _rest(self) -> None:
        self.compute.stop()
        await self.compute.join(0.5)

    # -- parts, in the order in which they are needed

    def _build(self, ledger: Ledger | None) -> Learner:
        self.watch.log_event("data", digest=data.digest(self.node.data, self.run.task))
        known = KnownData(run=self.run, data=self.node.data, budget=self.node.budget)
        learner = build(
            self.plan,
            self.node.name,
            self.node.data,
            ledger=ledger,
            limit=self.node.budget.limit,
            limit_delta=self.node.budget.delta,
            device=self.node.compute.device,
            generator=self.node.generator,
            attack=self.attack,
            admit=known.admit,
            hooks=Hooks(
                yield_point=self.compute.yield_point,
                warn=self.watch.warn,
                on_release=self.watch.released,
                on_withheld=self.watch.withheld,
            ),
        )
        for other in known.accepted:
            self.watch.log_event(
                "known", name=other.name, epsilon=other.epsilon, delta=self.node.budget.delta
            )
        if odd := in_other_units(self.node.data.path, self.run.task):
            self.watch.warn(
                f"Columns that look as if they were in another unit than run.toml says: "
                f"{', '.join(odd)}. Nobody else is told; peerpoise doctor says why."
            )
        learner.remarks = known.remarks
        for remark in known.remarks:
            self.watch.warn(remark)
        return learner

    def _resume(self) -> int:
        """Loads the newest checkpoint of this run; the first round that may be entered."""
        learner, run = self.learner, self.run
        files.forget_drafts(self.node.folder)
        loaded = checkpoint.latest(self.node.folder, type(learner.algorithm.state), self.watch.warn)
        at = -1
        if loaded is not None and loaded.extra.get("run") == run.run_id:
            learner.algorithm.state = loaded.state
            self.finished = at = loaded.round
            self.rounds_run = int(loaded.extra.get("rounds_run", at + 1))
            self.sent_before = float(loaded.extra.get("bytes", 0.0))
            self.watch.round_seconds = round_seconds(self.journal.path, at + 1)
        debited = (
            learner.ledger.last_round(run.run_id)
            if learner.ledger and run.privacy.mode != "none"
            else -1
        )
        if max(at, debited) >= 0:
            self.watch.log_event("resume", checkpoint=at, round=1 + max(at, debited))
        self.watch.spent(max(at, debited), stated=False)
        return 1 + max(at, debited)

    def _session(self, transport: Grpc, incarnation: int) -> Session:
        learner = self.learner
        name, neighborhood, run = self.node.name, learner.neighborhood, self.run
        ids = {member.name: member.id for member in self.roster.members}
        inputs = learner.task.inputs
        table = PeerTable(
            me=name,
            ids=ids,
            parameters=RunParameters(
                run=run.run_id,
                roster=self.roster.version,
                digests=self._digests(inputs),
                words={"inputs": _in_words(inputs)},
                own_code=source_digest(run.task.own_code),
            ),
            incarnation=incarnation,
            membership=Membership.of(name, neighborhood.neighbors, run.sync.deadline_s),
            observer=self.watch,
        )
        self.addresses = startup.address_book(
            self.node, run.run_id, self.roster, self.identity, transport, table, self.watch.warn
        )
        session = Session(
            table,
            identity=self.identity,
            transport=transport,
            mailbox=Mailbox(run.sync.staleness if run.sync.mode == "async" else None),
            discovery=self.addresses,
            heartbeat_seconds=min(1.0, run.sync.deadline_s / 5),
            work=self.compute,
            witness=LedgerWitness(
                learner.ledger,
                self.identity,
                ids=ids,
                heads=self.remembered,
                check=self._check_remembered,
            ),
            exchange=self.addresses.answer,
            version=code_version(),
        )
        for name in self.roster.removed:
            transport.revoke(ids[name])
            session.remove(ids[name])
        transport.refused = lambda caller, code: self.watch.refused(
            table.names.get(caller or "", ""), code
        )
        return session

    def _digests(self, inputs: Mapping[str, str]) -> dict[str, bytes]:
        """SHA-256 of what every node of a run must have in common; what is empty is left out."""
        words = json.dumps(dict(inputs), sort_keys=True).encode()
        digests = {
            "roster": self.roster.digest,
            "layout": self.learner.task.layout.digest,
            "validation": bytes.fromhex(self.run.validation.digest),
            "inputs": hashlib.sha256(words).digest() if inputs else b"",
            "start": self.learner.start_digest,
        }
        return {name: digest for name, digest in digests.items() if digest}

    def _reload(self) -> Reload:
        return Reload(
            self.node,
            self.run.run.federation,
            self.roster,
            self.identity,
            adopt=self._adopt,
            rotate=self._rotate,
            warn=self.watch.warn,
        )

    def _adopt(self, roster: Roster, removed: frozenset[str]) -> None:
        """A newer roster: removed members are cut off at once, and neighbors learn the version."""
        self.roster = roster
        try:
            keep_version(self.node.folder, roster)
        except StorageError as error:  # a full disk costs the note, not the run
            self.watch.warn(str(error))
        for name in sorted(removed):
            node_id = roster.by_name[name].id
            self.transport.revoke(node_id)
            self.session.remove(node_id)
        self.views.adopt(self._view(roster))
        self.session.adopt(roster.version)
        self.watch.log_event("roster", version=roster.version, round=self.session.progress.round)
        self.watch.adopted(removed)

    def _rotate(self, identity: Identity) -> None:
        if not self.insecure:
            self.transport.rotate(identity)
        self.watch.log_event("certificate", expires=identity.expires.isoformat())
        self.watch.renewed()

    async def _count_connections(self) -> None:
        """Now and then, for metrics and warnings."""
        while True:
            await asyncio.sleep(1.0)
            self.watch.connections(self.transport.connections, self.transport.connections_used)

    async def _announce(self, bound: str) -> None:
        """Lets the discoveries tell others where this node is, if any of them tells."""
        if not {"exchange", "mdns"} & {*self.node.peers.discovery}:
            return
        try:
            addresses = await asyncio.to_thread(own_addresses, bound, self.node.listen.advertise)
            await self.addresses.announce(addresses)
        except ConfigurationError as error:
            self.watch.warn(str(error))

    def _check_remembered(self, sequence: int, digest: bytes) -> None:
        """Does a neighbor remember more than the ledger holds? Asked before own work, so before
        more is released.
        """
        ledger = self.learner.ledger
        if ledger is None:
            return

        def check() -> None:
            try:
                ledger.check_remembered(sequence, digest)
            except LedgerError as error:
                self.metrics.ledger_errors.inc()
                self.watch.warn(str(error))

        self.session.spawn(self.compute.run_priority(check))

    # -- in the compute thread

    def _completed(self, t: int) -> None:
        self.finished, self.rounds_run = t, self.rounds_run + 1

    def _after_round(self, t: int) -> None:
        train = self.run.train
        due = bool(train.evaluate_every) and (t + 1) % train.evaluate_every == 0
        if (t + 1) % train.checkpoint_every == 0 or t + 1 == train.rounds:
            if self.learner.diverged and self.attack is None:
                raise Diverged
            self._checkpoint(t)
        if due or t + 1 == train.rounds:
            self.tested = self._evaluate()
            self.watch.tested(t, self.tested)
        self.watch.spent(t, stated=due)

    def _evaluate(self) -> dict[str, float]:
        return self.learner.evaluate(
            self.compute.yield_point, warn=lambda error: self.watch.warn(str(error), error.brief)
        )

    def _checkpoint(self, t: int) -> None:
        """A full disk costs the checkpoint, not the run; the older ones are untouched."""
        began = time.monotonic()
        try:
            about = {
                "run": self.run.run_id,
                "bytes": str(self._bytes_sent()),
                "rounds_run": str(self.rounds_run),
            }
            path = checkpoint.save(self.node.folder, t, self.learner.algorithm.state, about)
        except StorageError as error:
            self.watch.warn(str(error))
        else:
            self.watch.checkpointed(t, path.name, time.monotonic() - began)
        self._remember()

    def _remember(self) -> None:
        """Keeps what neighbors stated of their ledgers, for the next process and the next run."""
        try:
            self.remembered.save()
        except StorageError as error:
            self.watch.warn(str(error))

    def _bytes_sent(self) -> float:
        return self.sent_before + sum(self.session.transfers.sent_bytes.values())

    def _conclude(self, diverged: bool = False) -> None:
        """Model and summary of a run that is over. `diverged`: it ends so, and there is no
        model.
        """
        learner, watch, folder = self.learner, self.watch, self.node.folder
        tested = {} if diverged else self.tested or self._evaluate()
        peak = device.peak_memory(learner.task.device)
        figures: dict[str, float | Mapping[str, float]] = {"peak_memory_bytes": peak}
        figures |= watch.diagnostics
        run_summary = learner.summarize(
            rounds_run=self.rounds_run,
            metrics=tested,
            consensus_distance=watch.distance,
            bytes_sent=self._bytes_sent(),
            measured=figures,
            round_seconds=summary.seconds(watch.round_seconds),
            wall_seconds=sum(watch.round_seconds),
            insecure=self.insecure,
            test_public=self.node.data.test_public,
            ledger="experiment" if self.node.budget.experiment else "data",
            diverged=diverged,
        )
        if not diverged:
            learner.save_model(folder / MODEL)
        summary.write(folder / "summary.json", run_summary)
        self.watch.log_event(
            "end",
            reason="diverged" if diverged else "finished",
            exit_code=Diverged.exit_code if diverged else self._exit_code(),
            wall_seconds=time.monotonic() - self._began,
            complete=run_summary.complete,
            params_digest=run_summary.params_digest[self.node.name],
            metrics=tested,
            epsilon=learner.stated(run_summary.privacy),
        )

    # -- signals

    def _on_signals(self, main: asyncio.Task[object]) -> None:
        """SIGTERM and SIGINT: stop in order; the second one ends the process at once. SIGHUP: where
        there is a terminal, it has closed, which is the same; a service reads roster and
        certificate again."""
        loop = asyncio.get_running_loop()

        def stop(number: signal.Signals) -> None:
            if self._stopping:
                os._exit(128 + number)
            self._stopping = number.name
            main.cancel()

        for number in stopping_signals():
            loop.add_signal_handler(number, stop, number)
        if signal.SIGHUP in stopping_signals() and not os.isatty(0):
            loop.add_signal_handler(signal.SIGHUP, self._read_again)

    def _read_again(self) -> None:
        if self.reload is not None:
            self.reload.now()

    def _mark_insecure(self) -> None:
        watch, privacy = self.watch, self.run.privacy
        marks = {
            "transport": self.insecure,
            "seed": privacy.insecure_seed is not None,
            "attack": self.attack is not None,
            "validation": privacy.mode != "none" and not self.run.validation.public,
        }
        watch.insecure = [what for what, on in marks.items() if on]
        self.metrics.tls.set(not self.insecure)
        for what, on in marks.items():
            self.metrics.insecure(what, on)
        if self.attack:
            watch.warn(self.attack.warning)
        if self.insecure:
            watch.warn(
                "There is no TLS: anybody on the network can read and forge what is exchanged."
            )
        for text in watch.warnings:
            watch.announce(text)


def _in_words(inputs: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in inputs.items()) or "nothing is stated"
