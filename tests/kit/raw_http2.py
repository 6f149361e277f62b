"""HTTP/2 by hand over TLS: frames that no library would send, to attack daemons that a test itself
started.

Only what a client needs to open streams (RFC 9113), with HPACK (RFC 7541) written without Huffman
codes.
"""

from __future__ import annotations

import socket
import ssl
import struct
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from peer.identity.keys import DOMAIN, Identity

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
SECONDS = 10.0
SERVICE = "/peerpoise.peer.v1.Peer/"


class Raw:
    """One connection. Every method may raise OSError once the other end has cut it."""

    def __init__(self, identity: Identity, address: str, node_id: str) -> None:
        host, _, port = address.rpartition(":")
        plain = socket.create_connection((host, int(port)), SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = _context(identity).wrap_socket(plain, server_hostname=f"{node_id}.{DOMAIN}")
        self.stream = -1
        """The last one that was opened."""
        self._read = b""
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.socket.close()

    def open(self, path: str, *extra: bytes, ends: bool = True) -> int:
        """Opens a stream with a request's headers and these further ones, encoded; returns its
        number. `ends`: the block of headers does."""
        self.stream += 2
        block = request(path) + b"".join(extra)
        first, rest = block[:16384], block[16384:]
        self.send(HEADERS, 0 if rest or not ends else END_HEADERS, self.stream, first)
        while rest:
            first, rest = rest[:16384], rest[16384:]
            self.send(CONTINUATION, 0 if rest or not ends else END_HEADERS, self.stream, first)
        return self.stream

    def message(self, stream: int, content: bytes, end: bool = True) -> None:
        """One grpc message."""
        self.send(
            DATA, END_STREAM if end else 0, stream, struct.pack(">BI", 0, len(content)) + content
        )

    def reset(self, stream: int) -> None:
        self.send(RST_STREAM, 0, stream, struct.pack(">I", 8))

    def send(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self.socket.sendall(frame(kind, flags, stream, payload))

    def drain(self, seconds: float = 0.0) -> list[tuple[int, int, int, bytes]]:
        """The whole frames (kind, flags, stream, payload) that are here, or come within `seconds`;
        pings and settings are answered, windows are opened again.

        Raises:
            ConnectionError: the other end closed the connection.
        """
        self.socket.settimeout(max(seconds, 1e-4))
        try:
            got = self.socket.recv(1 << 16)
            if not got:
                raise ConnectionResetError("closed")
            self._read += got
        except (TimeoutError, ssl.SSLWantReadError):
            pass
        finally:
            self.socket.settimeout(SECONDS)
        found = []
        while len(self._read) >= 9:
            length = int.from_bytes(self._read[:3], "big")
            if len(self._read) < 9 + length:
                break
            kind, flags, stream = (
                self._read[3],
                self._read[4],
                int.from_bytes(self._read[5:9], "big"),
            )
            payload, self._read = self._read[9 : 9 + length], self._read[9 + length :]
            found.append((kind, flags, stream, payload))
            if kind in (SETTINGS, PING) and not flags & ACK:
                self.send(kind, ACK, 0, b"" if kind == SETTINGS else payload)
            if kind == DATA and length:
                self.send(WINDOW_UPDATE, 0, 0, struct.pack(">I", length))
        return found


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def request(path: str) -> bytes:
    """The headers of a grpc call."""
    pairs = {
        ":method": "POST",
        ":scheme": "https",
        ":path": path,
        ":authority": "x",
        "te": "trailers",
    }
    return b"".join(
        literal(*pair) for pair in {**pairs, "content-type": "application/grpc"}.items()
    )


def literal(name: str, value: str, *, indexed: bool = False) -> bytes:
    """A header in letters; `indexed`: the other end is to keep it in its table."""
    return (b"\x40" if indexed else b"\x00") + _string(name) + _string(value)


def again(index: int = 62) -> bytes:
    """One byte that stands for a whole header of the table; 62 is the newest that was kept."""
    return bytes([0x80 | index])


def _string(text: str) -> bytes:
    content, prefix = text.encode(), b""
    if len(content) < 127:
        return bytes([len(content)]) + content
    rest = len(content) - 127
    while rest >= 128:
        prefix += bytes([rest % 128 | 128])
        rest //= 128
    return b"\x7f" + prefix + bytes([rest]) + content


def _context(identity: Identity) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=identity.ca_pem.decode())
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    with tempfile.TemporaryDirectory() as folder:  # the ssl module takes files only
        key = Path(folder) / "key"
        key.write_bytes(identity.key_pem + identity.certificate_pem)
        context.load_cert_chain(key)
    return context
