"""Whole daemons on private data whose one example has a gradient that can be recognized. In mode
strict it is in nothing that leaves a node or is written: no frame, no checkpoint, model, journal,
metric, ledger or status.

The detector is the direction: √d·cos(tensor, canary) is about N(0, 1) for noise, and √d for the
clean gradient. With a large α DPDL's frames are mostly `own`: noised in strict, clean in the paper;
that and mode none are the power checks.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import safetensors.torch
import torch
from torch import Tensor

from kit import clusters
from kit.clusters import Cluster
from kit.leaks import unlisted_files
from node.daemon.snapshot import snapshot
from node.task import Task
from peer import codec
from peer.message import Layout
from peer.transport.memory import Memory, MemoryLink, Network
from peer.v1 import peer_pb2 as pb

D = 4096
BOUND = 7.0
"""Of some hundreds of N(0, 1) none is further out, but for one run in 10^9."""
SIGMA, ROUNDS, ALPHA = 8.0, 4, 1000.0

canary = torch.randn(D, generator=torch.Generator().manual_seed(77))
canary *= 3.7123456 / canary.norm()  # no round number, which a clock may show too
CLEAN = (canary, canary / canary.norm(), -canary)
"""As it is, clipped to C = 1 and divided by B = 1, and as a step against it."""


class Secret(Task):
    """A task with one example, whose gradient is the canary whatever the model is."""

    layout = Layout((("weight", (64, 64)),))
    num_examples = 1

    def initial_parameters(self, seed: int) -> Tensor:
        return torch.zeros(D)

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        return (canary.view(64, 64).expand(len(rows), 64, 64),)

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        return (parameters["weight"] * example[0]).sum()

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        return (parameters["weight"] * batch[0].mean(0)).sum()

    def evaluate(self, x: Tensor, yield_point: Any = None) -> dict[str, float]:
        return {}


@dataclass
class Tap:
    """Everything that was on the wire."""

    messages: list[bytes] = field(default_factory=list)
    tensors: dict[str, list[Tensor]] = field(default_factory=dict)

    def passed(self, message: bytes) -> bytes:
        self.messages.append(message)
        return message


class TappedLink(MemoryLink):
    tap: Tap

    async def call(self, method: Any, request: bytes, timeout: float) -> bytes:  # noqa: ASYNC109
        return self.tap.passed(await super().call(method, self.tap.passed(request), timeout))

    async def transfer(self, messages: Any) -> bytes:
        return self.tap.passed(await super().transfer(self.noted(messages)))

    async def noted(self, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        header, payload = None, b""
        async for message in messages:
            self.tap.passed(bytes(message))
            if header is None:
                header = codec.decode(pb.Header, message)
            elif len(payload) < header.bytes:
                payload += message
                parts = torch.frombuffer(bytearray(payload), dtype=torch.float32).chunk(
                    header.parts
                )
                self.tap.tensors.setdefault(pb.Role.Name(header.role), []).extend(parts)
            yield message


class Tapped(Memory):
    tap: Tap

    def link(self, node_id: str, address: str) -> MemoryLink:
        link = TappedLink(self.network, self.node_id, node_id)
        link.tap = self.tap
        return link

    async def set_serving(self, serving: bool) -> None:
        pass


@dataclass
class Seen:
    """All that a run of three nodes gave away or wrote."""

    wire: Tap
    texts: list[str]
    files: dict[Path, bytes]


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("node.learning.build.make", lambda run, data, device: Secret())

    async def play(mode: str) -> Seen:
        network, tap = Network(), Tap()

        def transport(identity: Any, listen: str) -> Tapped:
            made = Tapped(network, identity.id)
            made.tap = tap
            return made

        monkeypatch.setattr(clusters, "Grpc", transport)
        privacy = {
            "mode": mode,
            "sigma": None if mode == "none" else SIGMA,
            "rate": 1.0,
            "batch": 1,
        }
        dpdl = {"alpha": ALPHA, "lr": 0.01}
        c = Cluster.make(tmp_path / mode, rounds=ROUNDS, algorithm=dpdl, privacy=privacy)
        try:
            nodes = [c.witness(name) for name in c.homes]
            async with asyncio.timeout(60):
                await asyncio.gather(*(node.task for node in nodes))
            texts = [json.dumps(snapshot(node.watch)) for node in nodes]
            texts += [
                prometheus_client.generate_latest(node.metrics.registry).decode() for node in nodes
            ]
        finally:
            await c.end()
        files = {path: path.read_bytes() for path in (tmp_path / mode).rglob("*") if path.is_file()}
        texts += [
            content.decode()
            for path, content in files.items()
            if path.suffix in (".json", ".jsonl", ".toml")
        ]
        return Seen(tap, texts, files)

    return play


def score(tensor: Tensor) -> float:
    """√d·cos(tensor, canary)."""
    norm = float(tensor.norm() * canary.norm())
    return sqrt(D) * float(tensor.flatten() @ canary) / norm if norm else 0.0


def scores(seen: Seen) -> dict[str, float]:
    """The largest |score| in each place where tensors are."""
    kept = {
        f"{path.name.partition('-')[0]} {name}": tensor
        for path, content in seen.files.items()
        if path.suffix == ".safetensors"
        for name, tensor in safetensors.torch.load(content).items()
    }
    found = {
        role: max(abs(score(tensor)) for tensor in tensors)
        for role, tensors in seen.wire.tensors.items()
    }
    return found | {name: abs(score(tensor)) for name, tensor in kept.items()}


def written(seen: Seen) -> list[str]:
    """Traces of the canary in bytes and in text."""
    bits = [clean[:4].numpy().tobytes() for clean in CLEAN]
    found = [str(path) for path, content in seen.files.items() if any(it in content for it in bits)]
    found += ["wire" for message in seen.wire.messages if any(it in message for it in bits)]
    secrets = [float(value) for clean in CLEAN for value in (*clean[:8], clean.sum())] + [
        float(canary.norm())
    ]
    for text in seen.texts:
        for number in map(float, re.findall(r"-?\d+\.\d+(?:e-?\d+)?", text)):
            if any(abs(number - secret) <= 1e-6 * abs(secret) for secret in secrets):
                found.append(f"text: {number}")
    return found


PLACES = {
    "ROLE_QUESTION",
    "ROLE_ANSWER",
    "ROLE_MIX",
    "checkpoint x",
    "checkpoint v",
    "model.safetensors weight",
}


async def test_in_mode_strict_the_canary_is_nowhere(played: Any) -> None:
    seen = await played("strict")
    found = scores(seen)
    assert found.keys() == PLACES
    assert len(seen.wire.tensors["ROLE_ANSWER"]) == 3 * 2 * ROUNDS
    assert max(found.values()) < BOUND, found
    assert written(seen) == []
    assert unlisted_files(seen.files) == set()
    names = {path.name for path in seen.files}
    assert names >= {"journal.jsonl", "summary.json", "digits.sqlite", "run.toml"}


async def test_in_mode_paper_it_is_in_frames_and_models(played: Any) -> None:
    """The clean own gradient enters what is sent; the answers themselves are noised."""
    found = scores(await played("paper"))
    assert found["ROLE_ANSWER"] < BOUND
    for place in PLACES - {"ROLE_ANSWER"}:
        assert found[place] > 2 * BOUND, place


async def test_in_mode_none_it_is_everywhere(played: Any) -> None:
    seen = await played("none")
    found = scores(seen)
    assert all(found[place] == pytest.approx(sqrt(D), rel=0.01) for place in PLACES), found
    assert "wire" in written(seen)


async def test_a_written_figure_is_found(played: Any) -> None:
    seen = await played("strict")
    for leak in (float(canary[3]), float(canary.norm())):
        doctored = Seen(seen.wire, [json.dumps({"event": "round", "norm": leak})], seen.files)
        assert len(written(doctored)) == 1
