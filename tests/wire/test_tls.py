"""TLS 1.2 can't be negotiated, on either side; every case runs in a process of its own, because
grpc reads the setting once. The power checks show that 1.2 would be spoken without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kit.wire import Federation

LISTENER = """
import asyncio, json, ssl, sys
files = json.loads(sys.argv[1])
defended = sys.argv[2] == "defended"
if defended:
    from peer.identity.keys import Identity
    from peer.transport.grpc import Grpc
import grpc
from pathlib import Path

class Service:
    async def call(self, caller, method, request): return b"yes"
    async def transfer(self, caller, messages): return b"yes"

async def listen():
    if defended:
        identity = Identity.load(*(Path(files[f]) for f in ("key", "pem", "ca")))
        transport = Grpc(identity, "127.0.0.1:0")
        address = await transport.serve(Service())
        return int(address.rpartition(":")[2]), lambda: transport.close(0)
    key, pem, ca = (Path(files[f]).read_bytes() for f in ("key", "pem", "ca"))
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, pem)], ca, True))
    await server.start()
    return port, lambda: server.stop(None)

def dial(port, version):
    import socket
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(files["ca"])
    context.load_cert_chain(files["pem"], files["key"])
    context.set_alpn_protocols(["h2"])
    context.minimum_version = context.maximum_version = version
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as raw, context.wrap_socket(raw) as secure:
            secure.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            return secure.version() if secure.recv(9) else "closed"
    except (ssl.SSLError, ConnectionError) as error:
        return "refused"

async def main():
    port, stop = await listen()
    answers = [await asyncio.to_thread(dial, port, v) for v in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)]
    await stop()
    print(json.dumps(answers))

asyncio.run(main())
"""

DIALLER = """
import asyncio, json, socket, ssl, sys, threading
files = json.loads(sys.argv[1])
defended = sys.argv[2] == "defended"
if defended:
    from peer.identity.keys import Identity
    from peer.errors import Unreachable
    from peer.transport.grpc import Grpc
import grpc
from pathlib import Path

def listen(version):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_verify_locations(files["ca"])
    context.load_cert_chain(files["pem"], files["key"])
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    context.minimum_version = context.maximum_version = version
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)
    outcome = []
    def accept():
        raw, _ = listener.accept()
        raw.settimeout(5)
        try:
            with context.wrap_socket(raw, server_side=True) as secure:
                outcome.append(secure.version() if secure.recv(24).startswith(b"PRI") else "closed")
        except (ssl.SSLError, ConnectionError):
            outcome.append("refused")
        finally:
            listener.close()
    thread = threading.Thread(target=accept)
    thread.start()
    return listener.getsockname()[1], thread, outcome

async def dial(port):
    address = f"127.0.0.1:{port}"
    if defended:
        identity = Identity.load(*(Path(files[f]) for f in ("key", "pem", "ca")))
        link = Grpc(identity, "127.0.0.1:0").link(identity.id, address)
        try:
            await link.call("Beat", b"", 3)
        except Unreachable:
            pass
        await link.close()
        return
    key, pem, ca = (Path(files[f]).read_bytes() for f in ("key", "pem", "ca"))
    options = [("grpc.ssl_target_name_override", files["name"])]
    async with grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(ca, key, pem), options=options) as channel:
        try:
            await channel.unary_unary("/x/y")(b"", timeout=3)
        except grpc.aio.AioRpcError:
            pass

async def main():
    answers = []
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        port, thread, outcome = listen(version)
        await dial(port)
        await asyncio.to_thread(thread.join)
        answers += outcome
    print(json.dumps(answers))

asyncio.run(main())
"""


@pytest.fixture
def files(federation: Federation, tmp_path: Path) -> str:
    alice = federation.alice
    paths = {"name": f"{alice.id}.peerpoise"}
    for name, pem in (("key", alice.key_pem), ("pem", alice.certificate_pem), ("ca", alice.ca_pem)):
        (tmp_path / name).write_bytes(pem)
        (tmp_path / name).chmod(0o600)
        paths[name] = str(tmp_path / name)
    return json.dumps(paths)


def run(script: str, files: str, mode: str, **environment: str) -> list[str]:
    env = (
        {k: v for k, v in os.environ.items() if not k.startswith("GRPC_")}
        | {"GRPC_VERBOSITY": "NONE"}
        | environment
    )
    command = [sys.executable, "-c", script, files, mode]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    answers: list[str] = json.loads(done.stdout)
    return answers


def test_a_listener_speaks_1_3_and_no_1_2(files: str) -> None:
    assert run(LISTENER, files, "defended") == ["refused", "TLSv1.3"]


def test_a_dialler_speaks_1_3_and_no_1_2(files: str) -> None:
    assert run(DIALLER, files, "defended") == ["refused", "TLSv1.3"]


def test_power_without_the_setting_a_listener_speaks_1_2(files: str) -> None:
    assert run(LISTENER, files, "bare") == ["TLSv1.2", "TLSv1.3"]


def test_power_without_the_setting_a_dialler_speaks_1_2(files: str) -> None:
    assert run(DIALLER, files, "bare") == ["TLSv1.2", "TLSv1.3"]


def test_a_users_environment_cannot_bring_1_2_back(files: str) -> None:
    suites = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384"
    assert run(LISTENER, files, "defended", GRPC_SSL_CIPHER_SUITES=suites) == ["refused", "TLSv1.3"]


def test_grpc_imported_too_early_is_an_error_and_not_a_silent_hole() -> None:
    script = "import grpc\ntry:\n  import peer.transport.grpc\nexcept Exception as e: print(type(e).__name__, e)"
    env = {k: v for k, v in os.environ.items() if not k.startswith("GRPC_")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("ConfigurationError grpc was imported before")


class Shown:
    """What grpc tells of a connection. A real one of TLS 1.2 can't be had: that is what the other
    tests say.
    """

    def __init__(self, version: bytes, certificate: bytes) -> None:
        self.shown = {"ssl_tls_version": [version], "x509_pem_cert": [certificate]}

    def auth_context(self) -> dict[str, list[bytes]]:
        return self.shown

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    async def abort(self, code: object, why: str) -> None:
        raise ConnectionAbortedError(why)


async def test_a_listener_asks_for_1_3_once_more_at_every_call(federation: Federation) -> None:
    """Should grpc read its setting no longer, or elsewhere."""
    from peer.transport.grpc import Grpc

    listener, bob = Grpc(federation.alice, "127.0.0.1:0"), federation.bob
    assert await listener._authenticate(Shown(b"TLSv1.3", bob.certificate_pem)) == bob.id  # type: ignore[arg-type]
    for version in (b"TLSv1.2", b""):
        with pytest.raises(ConnectionAbortedError, match=r"TLS 1\.3 is required"):
            await listener._authenticate(Shown(version, bob.certificate_pem))  # type: ignore[arg-type]
