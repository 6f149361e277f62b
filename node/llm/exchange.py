"""Requests to a generation server over HTTP, each in a thread of its own."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from node.config import GeneratorSection
from node.config.section import readable

CONNECT_SECONDS = 5.0
LARGEST_REPLY = 1 << 26
"""Bytes of a reply that are read."""


class Exchange(threading.Thread):
    """A request and its reply, in a thread of its own."""

    def __init__(self, section: GeneratorSection, request: dict[str, object]) -> None:
        super().__init__(name="generator", daemon=True)
        self.status, self.reply = 0, b""
        self.error: Exception | None = None
        self._path = f"{urlsplit(section.url).path.rstrip('/')}/completions"
        self._body = json.dumps(request)
        self._connection = connection_to(section.url)
        self._socket: socket.socket | None = None

    def run(self) -> None:
        try:
            self._connection.connect()
            self._socket = self._connection.sock
            self._socket.settimeout(None)  # whoever waits cancels
            headers = {"Content-Type": "application/json", "Connection": "close"}
            self._connection.request("POST", self._path, self._body, headers)
            with self._connection.getresponse() as response:
                self.status, self.reply = response.status, response.read(LARGEST_REPLY + 1)
        except (OSError, HTTPException) as error:
            self.error = error
        finally:
            self._connection.close()

    def cancel(self) -> None:
        """Whoever still waits for a reply gets none."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


def connection_to(url: str) -> HTTPConnection:
    """Not made yet."""
    place = urlsplit(url)
    kind = HTTPSConnection if place.scheme == "https" else HTTPConnection
    return kind(place.hostname or "", place.port, timeout=CONNECT_SECONDS)


def message_of(reply: bytes) -> str:
    """What a server says of an error, in a line."""
    text = reply[:10_000].decode(errors="replace")
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        reply_json = json.loads(text)
        text = str(reply_json.get("error", reply_json)["message"])
    return readable((text.strip().splitlines() or ["nothing"])[0])[:200].rstrip(".")
