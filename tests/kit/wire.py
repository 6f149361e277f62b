"""What the wire's tests share: a service that records, messages to send, and certificates of every
bad kind.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from peer.codec import FRAME
from peer.errors import Malformed
from peer.identity import keys
from peer.identity.authority import CertificateAuthority
from peer.identity.keys import Identity, PrivateKey
from peer.transport import Method
from peer.transport.grpc import Grpc, GrpcLink

SECONDS = 10.0


@dataclass(frozen=True)
class Federation:
    folder: Path
    ca: CertificateAuthority
    alice: Identity
    bob: Identity
    carol: Identity


@dataclass
class Recorder:
    """A service that answers everything, and whose reading a test can hold back or end."""

    take: int | None = None
    """Messages of a transfer to read before the verdict; None: all."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Reading goes on past the first message when this is set; `open()` sets it from the start."""
    calls: list[tuple[str | None, str, bytes]] = field(default_factory=list)
    callers: list[str | None] = field(default_factory=list)
    verdicts: list[bytes] = field(default_factory=list)
    read: int = 0
    started: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """A transfer's handler is over, by verdict or by being cancelled."""

    @classmethod
    def open(cls, take: int | None = None) -> Recorder:
        recorder = cls(take)
        recorder.gate.set()
        return recorder

    async def call(self, caller: str | None, method: Method, request: bytes) -> bytes:
        self.calls.append((caller, method, request))
        if request == b"malformed":
            raise Malformed("That is no message.")
        if request == b"fault":
            raise ZeroDivisionError
        if request == b"wait":
            self.started.set()
            await self.gate.wait()
        return b"answer to " + request

    async def transfer(self, caller: str | None, messages: AsyncIterator[bytes]) -> bytes:
        self.callers.append(caller)
        digest, taken = hashlib.sha256(), 0
        try:
            async for message in messages:
                taken += 1
                self.read += len(message)
                digest.update(message)
                self.started.set()
                if message == b"malformed":
                    raise Malformed("That is no message.")
                if message == b"fault":
                    raise ZeroDivisionError
                await self.gate.wait()
                if taken == self.take:
                    break
            self.verdicts.append(digest.digest())
            return digest.digest()
        finally:
            self.ended.set()


@dataclass
class Sender:
    """Yields `count` messages and remembers how many were asked for and whether it was closed."""

    count: int
    size: int = FRAME
    asked: int = 0
    closed: bool = False

    async def __call__(self) -> AsyncIterator[bytes]:
        block = bytes(self.size)
        try:
            for _ in range(self.count):
                self.asked += 1
                yield block
        finally:
            self.closed = True

    @property
    def digest(self) -> bytes:
        digest, block = hashlib.sha256(), bytes(self.size)
        for _ in range(self.count):
            digest.update(block)
        return digest.digest()


async def some(*messages: bytes) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


async def until(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Waits for what no event tells of; fails when it does not come."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def settled(value: Callable[[], int], seconds: float = 0.3) -> int:
    """The value once it has stopped changing for `seconds`."""
    last, since = value(), asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() - since < seconds:
        await asyncio.sleep(0.01)
        if value() != last:
            last, since = value(), asyncio.get_running_loop().time()
    return last


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Fails if a task or a thread that the block started is still there after it.

    When the block itself fails, what it left open is closed: grpc never ends a process with an open
    server in it.
    """
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    try:
        yield
    except BaseException:
        await close_all()
        raise
    gc.collect()
    own = asyncio.current_task()
    await until(lambda: asyncio.all_tasks() - {own} <= tasks)
    await until(lambda: {t for t in threading.enumerate() if not t.daemon} <= threads)


async def close_all() -> None:
    opened = gc.get_objects()
    for link in [one for one in opened if type(one) is GrpcLink]:
        with suppress(RuntimeError):  # of a loop that is closed: an earlier test failed
            await link.close()
    for transport in [one for one in opened if type(one) is Grpc]:
        await transport.close(0)


@dataclass(frozen=True)
class Forgery:
    """A key and a certificate as an attacker would hold them; `Identity` as such would refuse to
    load most of them.
    """

    ca: CertificateAuthority
    key: PrivateKey
    names: tuple[str, ...]
    usages: tuple[x509.ObjectIdentifier, ...] = (
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    )
    start: timedelta = timedelta(minutes=-10)
    end: timedelta = timedelta(days=1)
    self_signed: bool = False
    authority: bool = False
    """It is a CA's certificate too."""
    subject: x509.Name = x509.Name([])  # noqa: RUF009 (it can't be changed)

    @property
    def pem(self) -> bytes:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.subject)
            .issuer_name(self.subject if self.self_signed else self.ca.certificate.subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + self.start)
            .not_valid_after(now + self.end)
            .add_extension(
                x509.BasicConstraints(ca=self.authority, path_length=None), critical=True
            )
        )
        if self.usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(self.usages), critical=False)
        if self.names:
            names = x509.SubjectAlternativeName([x509.DNSName(name) for name in self.names])
            builder = builder.add_extension(names, critical=False)
        signer = self.key if self.self_signed else self.ca.key
        return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def of(self, template: Identity) -> Identity:
        """An identity made of this forgery, past every check of `Identity.load`."""
        own = keys.spki(self.key.public_key())
        return replace(
            template,
            id=keys.id_of(own),
            spki=own,
            key_pem=keys.key_pem(self.key),
            certificate_pem=self.pem,
            _key=self.key,
        )


def new_key() -> PrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def name_of(key: PrivateKey) -> str:
    return f"{keys.node_id(key.public_key())}.peerpoise"
