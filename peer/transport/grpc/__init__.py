"""Bytes over gRPC on one mutually authenticated TLS 1.3 port; the only folder that meets grpc.

Frames are raw bytes on a generic stream-stream method, written and read one at a time, so
back-pressure is true: a writer gets no further than two or three frames ahead of a reader that
stopped. Each link has two connections, or control messages would wait behind bulk.

A listener admits a call in this order: TLS 1.3 with a certificate of the federation, SHA-256(key)
== the certificate's only name, a token of its caller's bucket (admission.py), a member of the
roster, not revoked, within its caller's quota of open calls; only then is anything read. The
dialling side is shown no certificate by grpc: TLS checks chain and name there, the handshake's
signature checks the key (session.py); the connection of bulk is asked for a signature of its own
before anything is sent on it, and again whenever it was reconnected.

Strangers can hold connections, at most CONNECTIONS, for HANDSHAKE_SECONDS each; further ones are
closed as they come.

Not covered: a certificate that expires stays usable on connections made before; grpc doesn't tell
of TLS handshakes that failed; whoever has a certificate of the CA, be it a removed member, costs a
TLS handshake and a look at its headers per connection, however often it comes.
"""

from __future__ import annotations

import os
import sys

from peer.errors import ConfigurationError

CIPHERS = "ECDHE-PSK-AES128-CBC-SHA"
"""grpc has no switch for the TLS version. This one suite of TLS 1.2 fits no certificate, so 1.2
can't be negotiated, while the suites of 1.3 are not affected. grpc reads it once: it has to stand
before the first import."""

if "grpc" in sys.modules and os.environ.get("GRPC_SSL_CIPHER_SUITES") != CIPHERS:
    raise ConfigurationError(
        "grpc was imported before peer.transport.grpc, which must first forbid it TLS 1.2."
    )
os.environ["GRPC_SSL_CIPHER_SUITES"] = CIPHERS
# Failed handshakes reach people as sentences, not as C++ log lines.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from peer.transport.grpc.link import GrpcLink  # noqa: E402
from peer.transport.grpc.transport import Grpc  # noqa: E402

__all__ = ["Grpc", "GrpcLink"]
