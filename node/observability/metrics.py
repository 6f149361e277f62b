"""Prometheus metrics of one daemon; the only file that meets Prometheus.

Every name is in the golden list of the tests. Labels are bounded: peers are the neighbors in the
graph (anybody else is "unknown"), kinds and codes come from our own tables. Nothing private is
exported: no loss on private data, no batch size, no n_i, no share of clipped examples. Not covered:
seconds of a phase tell how long this machine computed, which grows with the secret batch; keep
/metrics on loopback where that matters.
"""

from __future__ import annotations

import asyncio
import socket
import socketserver
import threading
import time
from collections import Counter as Counter_
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    Summary,
    make_wsgi_app,
)

from peer.endpoint import endpoint
from peer.errors import ConfigurationError, TemporaryFailure
from peer.message import Peer

# Else every counter brings a second series that nobody reads.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

PHASE_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)
"""Bounds from a phase over loopback to one of a large model."""
LAG_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
"""Bounds from an idle loop to one that somebody blocks."""
READ_AGAIN_SECONDS = 60.0
"""A daemon that is done waits at most so long for whoever scrapes it to see its last figures."""


class Metrics:
    """The instruments of one daemon, in a registry of its own. Safe to use from several threads."""

    def __init__(
        self,
        *,
        version: str,
        torch: str,
        python: str,
        diagnostics: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`diagnostics`: export figures per neighbor (off in paper mode, where they are made with
        the clean gradient, unless the node's file says otherwise). `clock`: seconds, monotonic."""
        self.registry = CollectorRegistry()
        self.diagnostics = diagnostics
        self._clock = clock
        self._peers: frozenset[Peer] = frozenset()
        self._checkpointed: float | None = None
        self._connected: Counter_[str] = Counter_()
        self._training()
        self._network()
        self._privacy()
        for unknown in (
            self.consensus_distance,
            self.epsilon_limit,
            self.delta,
            self.lifetime_delta,
            self.run_rounds,
        ):
            unknown.set(float("nan"))
        info = Info("peerpoise_build", "Version of the program.", registry=self.registry)
        info.info({"version": version, "torch": torch, "python": python})
        ProcessCollector(registry=self.registry)

    def _training(self) -> None:
        self.round = self._gauge("round", "Round this node is in.")
        self.run_rounds = self._gauge("run_rounds", "T, rounds of the whole run.")
        self.rounds = self._counter("rounds", "Rounds finished since the start of this process.")
        self._phase = self._histogram(
            "phase_seconds", "Seconds of a phase, waiting included.", PHASE_SECONDS, "kind"
        )
        self._wait = Summary(
            "peerpoise_wait_seconds",
            "Seconds waited for a neighbor.",
            ["peer"],
            registry=self.registry,
        )
        self._mixing_weight = self._gauge(
            "mixing_weight_ratio", "Weight of a neighbor in the last mixing; 0 when lost.", "peer"
        )
        self._diagnostic = self._gauge(
            "diagnostic",
            "A figure of the algorithm's last round; of a neighbor, or of this node (peer is "
            "empty).",
            "name",
            "peer",
        )
        self.consensus_distance = self._gauge("consensus_distance", "Over the closed neighborhood.")
        self._task_metric = self._gauge(
            "task_metric", "A metric of the task on the PUBLIC test set.", "metric"
        )
        self.lag = self._histogram(
            "event_loop_lag_seconds", "How late the event loop wakes up.", LAG_SECONDS
        )
        age = self._gauge(
            "checkpoint_age_seconds", "Seconds since the last checkpoint; NaN before the first."
        )
        age.set_function(self._age)

    def _network(self) -> None:
        self._up = self._gauge("peer_up", "1: the neighbor is in session.", "peer")
        self._rtt = self._gauge("peer_rtt_seconds", "Round trip of the last heartbeat.", "peer")
        self._bytes = self._counter("wire_bytes", "Payload bytes.", "peer", "direction", "kind")
        self._errors = self._counter(
            "wire_errors", "Refusals and broken transfers.", "peer", "code"
        )
        self._refused = self._counter(
            "refused",
            "Calls that were refused, or hang as there are too many; of a neighbor, or: "
            "member, stranger.",
            "peer",
            "code",
        )
        self._connections = self._counter(
            "connections",
            "TLS handshakes begun by others; used: somebody with a certificate called on it.",
            "used",
        )
        self._rejected = self._counter(
            "rejected", "Payloads of a neighbor that were not finite, or broken.", "peer"
        )
        self._contradictions = self._counter(
            "contradictions",
            "Neighbors that were proved to tell different neighbors different things.",
            "peer",
        )
        self._outliers = self._counter(
            "outliers", "Payloads of a neighbor far from where the others' are.", "peer"
        )
        self._lost = self._counter(
            "lost_edges", "Rounds in which the edge to a neighbor was lost.", "peer"
        )
        self.partial_mixes = self._counter("partial_mixes", "Mixes that a neighbor left halfway.")
        self._insecure = self._gauge(
            "insecure",
            "1: no TLS, public seed of the noise, an attacker, private validation set.",
            "what",
        )
        self.tls = self._gauge("tls_enabled", "1: every connection is mutual TLS.")

    def _privacy(self) -> None:
        spent = ("scope", "mode", "adjacency", "accountant")
        self._epsilon = self._gauge(
            "privacy_epsilon_spent", "ε so far; total is the guarantee, link is not.", *spent
        )
        self.epsilon_limit = self._gauge(
            "privacy_epsilon_limit", "Limit of the lifetime ε of these data."
        )
        self.delta = self._gauge("privacy_delta", "δ of the run's ε: total and link.")
        self.lifetime_delta = self._gauge(
            "privacy_lifetime_delta", "δ of the lifetime ε of these data, and of its limit."
        )
        self._releases = self._counter(
            "releases", "Gradients released; the own one too.", "recipient"
        )
        self.withheld = self._counter(
            "releases_withheld", "Gradients not released: budget or ledger."
        )
        self.ledger_errors = self._counter(
            "privacy_ledger_errors", "Debits the ledger could not record."
        )

    def neighbors(self, peers: Iterable[Peer], me: Peer) -> None:
        """Whose names may be labels: the neighbors in the graph, and this node as a recipient."""
        self._peers = frozenset(peers) | {me}
        for peer in sorted(self._peers - {me}):
            self.up(peer, False)

    def phase(self, kind: str, seconds: float) -> None:
        self._phase.labels(kind).observe(seconds)

    def waited(self, peer: Peer, seconds: float) -> None:
        self._wait.labels(self._known(peer)).observe(seconds)

    def up(self, peer: Peer, in_session: bool) -> None:
        self._up.labels(self._known(peer)).set(in_session)

    def rtt(self, peer: Peer, seconds: float) -> None:
        self._rtt.labels(self._known(peer)).set(seconds)

    def mixing_weight(self, peer: Peer, ratio: float) -> None:
        self._mixing_weight.labels(self._known(peer)).set(ratio)

    def task_metric(self, name: str, value: float) -> None:
        """`name`: one that the task declares."""
        self._task_metric.labels(name).set(value)

    def diagnostic(self, name: str, value: float, peer: Peer | None = None) -> None:
        """`name`: one that the algorithm declares; `peer`: whom it is of, None: this node."""
        self._diagnostic.labels(name, "" if peer is None else self._known(peer)).set(value)

    def wire(self, peer: Peer, direction: str, kind: str, nbytes: int) -> None:
        """`direction`: sent | received."""
        self._bytes.labels(self._known(peer), direction, kind).inc(nbytes)

    def error(self, peer: Peer, code: str) -> None:
        """`code`: a name of the wire's Code enum."""
        self._errors.labels(self._known(peer), code).inc()

    def refused(self, peer: str, code: str) -> None:
        """`peer`: a neighbor's name, member or stranger."""
        self._refused.labels(peer, code).inc()

    def connections(self, begun: int, used: int) -> None:
        """How many there were so far."""
        for label, total in (("yes", used), ("no", begun - used)):
            child = self._connections.labels(label)
            child.inc(max(0.0, total - self._connected[label]))
            self._connected[label] = max(total, self._connected[label])

    def rejected(self, peer: Peer) -> None:
        self._rejected.labels(self._known(peer)).inc()

    def contradicted(self, peer: Peer) -> None:
        self._contradictions.labels(self._known(peer)).inc()

    def outlier(self, peer: Peer) -> None:
        self._outliers.labels(self._known(peer)).inc()

    def lost(self, peer: Peer) -> None:
        self._lost.labels(self._known(peer)).inc()

    def release(self, recipient: Peer) -> None:
        self._releases.labels(self._known(recipient)).inc()

    def epsilon(
        self, scope: str, value: float, *, mode: str, adjacency: str, accountant: str
    ) -> None:
        """`scope`: total | link | lifetime."""
        self._epsilon.labels(scope, mode, adjacency, accountant).set(value)

    def insecure(self, what: str, on: bool) -> None:
        """`what`: transport | seed | attack | validation."""
        self._insecure.labels(what).set(on)

    def checkpointed(self) -> None:
        self._checkpointed = self._clock()

    def _age(self) -> float:
        return float("nan") if self._checkpointed is None else self._clock() - self._checkpointed

    def _known(self, peer: Peer) -> Peer:
        return peer if peer in self._peers else "unknown"

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"peerpoise_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"peerpoise_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(f"peerpoise_{name}", text, labels, registry=self.registry, buckets=buckets)


class Endpoint:
    """/metrics, /-/healthy (the process answers) and /-/ready (it takes part) over HTTP, in threads
    of its own.
    """

    def __init__(
        self, metrics: Metrics, listen: str, ready: Callable[[], bool] = lambda: True
    ) -> None:
        """Binds `listen` (host:port, port 0 takes a free one) and serves until `close`.

        Raises:
            ConfigurationError: `listen` is not host:port.
            TemporaryFailure: the address can't be bound.
        """
        host, port = _address(listen)
        kind = _Server6 if ":" in host else _Server
        try:
            self._server = kind((host, port), _Handler)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise TemporaryFailure(
                f"metrics.listen = {listen} can't be bound: {why}; choose another port."
            ) from None
        self._reads: deque[float] = deque(maxlen=2)
        self._server.set_app(
            _application(metrics.registry, ready, lambda: self._reads.append(time.monotonic()))
        )
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        """The bound host:port."""
        host, port = str(self._server.server_address[0]), self._server.server_address[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def read_again(self) -> None:
        """Returns when whoever reads /metrics at intervals has read it once more; at once where
        nobody does.
        """
        if (
            len(self._reads) < 2
            or (interval := self._reads[1] - self._reads[0]) > READ_AGAIN_SECONDS
        ):
            return
        last, patience = self._reads[1], min(READ_AGAIN_SECONDS, 1.5 * interval + 0.5)
        began = time.monotonic()
        while self._reads[1] == last and time.monotonic() < began + patience:  # noqa: ASYNC110 (read in a thread)
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.1)  # the answer may still be on its way

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve(metrics: Metrics, listen: str, ready: Callable[[], bool] = lambda: True) -> Endpoint:
    """Serves until the endpoint is closed; see `Endpoint`."""
    return Endpoint(metrics, listen, ready)


def _application(
    registry: CollectorRegistry, ready: Callable[[], bool], read: Callable[[], None]
) -> Any:
    metrics = make_wsgi_app(registry)

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def plain(status: str) -> list[bytes]:
            start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
            return [status.encode() + b"\n"]

        match environ["PATH_INFO"]:
            case "/metrics":
                page: Iterable[bytes] = metrics(environ, start_response)
                read()
                return page
            case "/-/healthy":
                return plain("200 OK")
            case "/-/ready":
                return plain("200 OK" if ready() else "503 Service Unavailable")
        return plain("404 Not Found")

    return application


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False  # a scraper that hangs must not hold up the end of the daemon

    def server_bind(self) -> None:
        """As HTTPServer's, without its reverse DNS look-up, which can block for seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = (
            str(self.server_address[0]),
            int(self.server_address[1]),
        )
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = 10
    """Seconds after which a silent scraper is dropped."""

    def log_message(self, *args: object) -> None:
        pass


def _address(listen: str) -> tuple[str, int]:
    try:
        return endpoint(listen)
    except ConfigurationError as error:
        raise ConfigurationError(f"metrics.listen: {error}") from None
