"""Bytes within one process, over a network that fails on demand: product code, for simulation and
for every fault test.

Faults are drawn from one seeded stream per (sender, receiver, method), so two runs of one seed meet
the same ones as far as asyncio's order allows. Callers are authenticated by construction. What a
real connection does when it breaks happens here too: the sender gets `Unreachable`, the receiver's
handler is cancelled, and neither knows how far the other came.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
)
from contextlib import aclosing
from itertools import product
from typing import Any, TypeVar

from peer.errors import ConfigurationError, Malformed, TemporaryFailure, Unreachable
from peer.transport import Method, Service
from peer.v1 import peer_pb2

WINDOW = 3
"""Messages of one transfer that may be under way; as many as gRPC lets a writer be ahead."""

R = TypeVar("R")
_log = logging.getLogger(__name__)


class Network:
    """What lies between nodes. Faults can be changed at any time.

    seed: of all that is drawn. drop: probability that a call is lost (the question or the answer)
    or a transfer breaks (at a message drawn from the first few, or after the last). delay: (least,
    most) seconds each message takes. duplicate: probability that a call or transfer is delivered a
    second time, whose outcome nobody hears.

    Raises:
        ConfigurationError: a probability outside 0 … 1, or a delay that is negative or upside down.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        drop: float = 0.0,
        delay: tuple[float, float] = (0.0, 0.0),
        duplicate: float = 0.0,
    ) -> None:
        if not (0 <= drop <= 1 and 0 <= duplicate <= 1):
            raise ConfigurationError("drop and duplicate are probabilities between 0 and 1.")
        if not 0 <= delay[0] <= delay[1]:
            raise ConfigurationError("delay is (least, most) in seconds, neither negative.")
        self.seed, self.drop, self.delay, self.duplicate = seed, drop, delay, duplicate
        self._nodes: dict[str, Memory] = {}
        self._dead: set[str] = set()
        self._cuts: set[tuple[str, str]] = set()
        self._streams: dict[tuple[str, str, str], random.Random] = {}
        self._open: dict[asyncio.Future[Any], tuple[str, str]] = {}

    def cut(self, sources: Iterable[str], targets: Iterable[str]) -> None:
        """One way: nothing from any of `sources` reaches any of `targets`; what is under way
        breaks.
        """
        self._cuts |= set(product(sources, targets))
        self._break(lambda source, target: (source, target) in self._cuts)

    def partition(self, group: Iterable[str], other: Iterable[str]) -> None:
        """Both ways."""
        group, other = tuple(group), tuple(other)
        self.cut(group, other)
        self.cut(other, group)

    def heal(self) -> None:
        """All cuts are gone; killed nodes stay dead."""
        self._cuts.clear()

    def kill(self, node_id: str) -> None:
        """The node is gone without a word, until another `Memory` of that id serves."""
        self._nodes.pop(node_id, None)
        self._dead.add(node_id)
        self._break(lambda source, target: node_id in (source, target))

    def _break(self, gone: Callable[[str, str], bool]) -> None:
        for work, (source, target) in tuple(self._open.items()):
            if gone(source, target):
                del self._open[work]  # not there any more: the cancellation was the network's
                work.cancel()

    def attach(self, node: Memory) -> None:
        """Raises TemporaryFailure if a node with that id is there already."""
        if node.node_id in self._nodes:
            raise TemporaryFailure(f"{node.node_id} is on this network already.")
        self._nodes[node.node_id] = node
        self._dead.discard(node.node_id)

    def detach(self, node: Memory) -> None:
        if self._nodes.get(node.node_id) is node:
            self.kill(node.node_id)

    def draw(self, source: str, target: str, method: str) -> random.Random:
        """The stream of faults of one direction and method."""
        key = (source, target, method)
        return self._streams.setdefault(key, random.Random(f"{self.seed}/{'/'.join(key)}"))

    def node(self, node_id: str) -> Memory:
        """Raises Unreachable if nobody with this id serves."""
        if node_id not in self._nodes:
            raise Unreachable(f"Nobody listens as {node_id}.")
        return self._nodes[node_id]

    async def hop(self, source: str, target: str, rng: random.Random) -> None:
        """One message's way, with its delay.

        Raises:
            Unreachable: one end is dead, or the way is cut in this direction.
        """
        await asyncio.sleep(rng.uniform(*self.delay) if self.delay[1] else 0)
        if (source, target) in self._cuts or {source, target} & self._dead:
            raise Unreachable(f"{target} can't be reached from {source}.")

    async def under_way(self, source: str, target: str, work: Coroutine[object, object, R]) -> R:
        """Runs `work` until it ends or the network breaks between the two.

        Raises:
            Unreachable: it broke.
        """
        task = asyncio.ensure_future(work)
        self._open[task] = (source, target)
        try:
            return await task
        except asyncio.CancelledError:
            outer = asyncio.current_task()
            if task in self._open or (outer is not None and outer.cancelling()):
                raise
            raise Unreachable(f"The connection between {source} and {target} broke.") from None
        finally:
            self._open.pop(task, None)


class Memory:
    """Implements `peer.transport.Transport` for one node of a `Network`."""

    insecure = False

    def __init__(self, network: Network, node_id: str) -> None:
        self.network, self.node_id = network, node_id
        self.refused: Callable[[str | None, int], None] = lambda caller, code: None
        self.connections = self.connections_used = 0
        self._service: Service | None = None
        self._repeats: set[asyncio.Task[None]] = set()

    async def serve(self, service: Service) -> str:
        """Joins the network; returns "id:0", which nobody has to dial.

        Raises:
            TemporaryFailure: a node with this id is there already.
        """
        self.network.attach(self)
        self._service = service
        return f"{self.node_id}:0"

    def link(self, node_id: str, address: str) -> MemoryLink:
        """The way to another node; `address` is not looked at."""
        return MemoryLink(self.network, self.node_id, node_id)

    def revoke(self, node_id: str) -> None:
        """Nothing passes between the two any more."""
        self.network.partition((self.node_id,), (node_id,))

    async def close(self, grace: float) -> None:
        """Leaves the network; what is under way breaks at once (`grace` is for transports that can
        be late).
        """
        self.network.detach(self)
        repeats = tuple(self._repeats)
        for task in repeats:
            task.cancel()
        await asyncio.gather(*repeats, return_exceptions=True)

    async def deliver(self, work: Callable[[Service], Coroutine[object, object, bytes]]) -> bytes:
        """Lets the service do its part.

        Raises:
            Unreachable: it called the bytes malformed, or has a fault of its own.
        """
        assert self._service is not None
        try:
            return bytes(await work(self._service))
        except Malformed as error:
            raise Unreachable(
                f"{self.node_id} refused the call: {error}", peer_pb2.CODE_MALFORMED
            ) from None
        except Exception:
            _log.exception("A call could not be served.")
            raise Unreachable(f"{self.node_id} has a fault of its own.") from None

    def repeat(self, work: Callable[[Service], Coroutine[object, object, bytes]]) -> None:
        """Delivers once more, unheard."""

        async def again() -> None:
            try:
                await self.deliver(work)
            except Unreachable:
                pass

        task = asyncio.ensure_future(again())
        self._repeats.add(task)
        task.add_done_callback(self._repeats.discard)


class MemoryLink:
    """Implements `peer.transport.Link`."""

    def __init__(self, network: Network, source: str, target: str) -> None:
        self.network, self.source, self.node_id = network, source, target

    async def call(self, method: Method, request: bytes, timeout: float) -> bytes:  # noqa: ASYNC109
        """One control message and its answer, within `timeout` seconds.

        Raises:
            Unreachable: lost on the way, no answer in time, or the peer refused the call.
        """
        try:
            async with asyncio.timeout(timeout):
                return await self.network.under_way(
                    self.source, self.node_id, self._call(method, bytes(request))
                )
        except TimeoutError:
            raise Unreachable(f"{self.node_id} gave no answer in time.") from None

    async def _call(self, method: Method, request: bytes) -> bytes:
        network, rng = self.network, self.network.draw(self.source, self.node_id, method)
        lost, first, twice = (
            rng.random() < network.drop,
            rng.random() < 0.5,
            rng.random() < network.duplicate,
        )
        await network.hop(self.source, self.node_id, rng)
        if lost and first:
            raise Unreachable(f"A call to {self.node_id} was lost.")

        def work(service: Service) -> Coroutine[object, object, bytes]:
            return service.call(self.source, method, request)

        node = network.node(self.node_id)
        reply = await node.deliver(work)
        if twice:
            node.repeat(work)
        await network.hop(self.node_id, self.source, rng)
        if lost:
            raise Unreachable(f"An answer of {self.node_id} was lost.")
        return reply

    async def transfer(self, messages: AsyncIterable[bytes]) -> bytes:
        """Sends the messages as the receiver takes them; a verdict before the last stops the
        sending.

        Raises:
            Unreachable: it broke, or the peer refused the call.
        """
        return await self.network.under_way(self.source, self.node_id, self._transfer(messages))

    async def _transfer(self, messages: AsyncIterable[bytes]) -> bytes:
        network, rng = self.network, self.network.draw(self.source, self.node_id, "Transfer")
        breaks = rng.randrange(5) if rng.random() < network.drop else None
        twice = rng.random() < network.duplicate
        await network.hop(self.source, self.node_id, rng)
        node = network.node(self.node_id)
        pipe: asyncio.Queue[bytes | None] = asyncio.Queue(WINDOW)
        copy: list[bytes] = []

        async def receive() -> bytes:
            async with aclosing(_drain(pipe)) as arriving:
                return await node.deliver(lambda service: service.transfer(self.source, arriving))

        async def send() -> None:
            sent = 0
            async with _closing(messages) as leaving:
                async for message in leaving:
                    await network.hop(self.source, self.node_id, rng)
                    if sent == breaks:
                        raise Unreachable(f"A transfer to {self.node_id} broke on the way.")
                    await pipe.put(bytes(message))
                    if twice:
                        copy.append(bytes(message))
                    sent += 1
            await pipe.put(None)

        sending, receiving = asyncio.ensure_future(send()), asyncio.ensure_future(receive())
        try:
            await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and not receiving.done():
                sending.result()
            verdict = await receiving
        finally:
            for task in (sending, receiving):
                task.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)
        if twice:
            node.repeat(lambda service: service.transfer(self.source, _listed(copy)))
        await network.hop(self.node_id, self.source, rng)
        if breaks is not None:
            raise Unreachable(f"A verdict of {self.node_id} was lost.")
        return verdict

    async def close(self) -> None:
        """Nothing is held."""


class _closing:
    """`aclosing` for what may be a generator or any other iterable."""

    def __init__(self, messages: AsyncIterable[bytes]) -> None:
        self._iterator = aiter(messages)

    async def __aenter__(self) -> AsyncIterator[bytes]:
        return self._iterator

    async def __aexit__(self, *_: object) -> None:
        if hasattr(self._iterator, "aclose"):
            await self._iterator.aclose()


async def _drain(pipe: asyncio.Queue[bytes | None]) -> AsyncGenerator[bytes, None]:
    while (message := await pipe.get()) is not None:
        yield message


async def _listed(messages: list[bytes]) -> AsyncGenerator[bytes, None]:
    for message in messages:
        yield message
