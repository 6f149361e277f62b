"""Requests to a generation server over HTTP, each in a thread of its own."""

from __future__ import annotations

import json
import re
import socket
import threading
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection, IncompleteRead
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from node.config import GeneratorSection
from node.config.section import readable
from peer import files
from peer.errors import ConfigurationError, TemporaryFailure, first_line

CONNECT_SECONDS = 5.0
LARGEST_REPLY = 1 << 26
"""Bytes of a reply that are read."""
LONGEST_KEY = 4096


def read_key(file: Path) -> SecretStr:
    """The API key in a file that nobody else can read.

    Raises:
        ConfigurationError: others can read or exchange it, or there is no key in it.
    """
    try:
        if text := files.exposed(file):
            raise ConfigurationError(text)
        with file.open("rb") as stream:
            key = stream.read(2 * LONGEST_KEY).decode(errors="replace").strip()
    except OSError as error:
        raise ConfigurationError(
            f"generator.key: {file} can't be read: {error.strerror}."
        ) from None
    if not re.fullmatch(rf"[!-~]{{1,{LONGEST_KEY}}}", key):
        raise ConfigurationError(
            f"generator.key: {file} is to hold a key and nothing else, a line of letters, digits "
            "and signs."
        )
    return SecretStr(key)


class Exchange(threading.Thread):
    """A request and its reply, in a thread of its own."""

    def __init__(
        self, section: GeneratorSection, request: dict[str, object], key: SecretStr | None = None
    ) -> None:
        super().__init__(name="generator", daemon=True)
        self.status, self.reply = 0, b""
        self.error: Exception | None = None
        self._path = f"{urlsplit(section.url).path.rstrip('/')}/completions"
        self._body = json.dumps(request)
        self._key = key
        self._connection = connection_to(section.url)
        self._socket: socket.socket | None = None

    def run(self) -> None:
        try:
            self._connection.connect()
            self._socket = self._connection.sock
            self._socket.settimeout(None)  # whoever waits cancels
            headers = {"Content-Type": "application/json", "Connection": "close"}
            if self._key:
                headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
            self._connection.request("POST", self._path, self._body, headers)
            with self._connection.getresponse() as response:
                reply = response.read(LARGEST_REPLY + 1)
                if response.length and len(reply) <= LARGEST_REPLY:
                    raise IncompleteRead(reply, response.length)
                self.status, self.reply = response.status, reply
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


def check_there(url: str) -> None:
    """Raises TemporaryFailure: nobody listens there."""
    connection = connection_to(url)
    try:
        connection.connect()
    except (OSError, HTTPException, UnicodeError) as error:
        raise TemporaryFailure(
            f"The generation server {url} can't be reached ({first_line(error)}); start it before "
            "the node."
        ) from None
    finally:
        connection.close()


def message_of(reply: bytes, key: SecretStr | None = None) -> str:
    """What a server says of an error, in a line."""
    text = reply[:10_000].decode(errors="replace")
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        reply_json = json.loads(text)
        text = str(reply_json.get("error", reply_json)["message"])
    line = (text.strip().splitlines() or ["nothing"])[0]
    return readable(without(key, line))[:200].rstrip(".")


def without(key: SecretStr | None, text: str) -> str:
    """What somebody else wrote, who may repeat the key."""
    return text.replace(key.get_secret_value(), "…") if key else text
