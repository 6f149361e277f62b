"""The one-run audit: close to the claim and not above it; half the noise, a lost clip and a batch
that is never drawn are caught; and the same over gRPC.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest
import torch
from torch import Tensor

import node.maths.clipping
from kit import LONG
from kit.mesh import mesh, play
from node.audit import Options
from node.audit.canaries import Attacker, Setting, attackers, listen, refuted
from node.audit.knowledge import knowledge
from node.audit.overheard import participants
from node.audit.scores import Scores, weights
from node.config import ExperimentConfig
from node.learning.plan import Plan
from node.privacy import noise
from node.privacy.ledger import Ledger
from node.randomness import Stream
from node.rounds import lockstep
from peer.errors import ConfigurationError
from peer.identity.authority import CertificateAuthority
from peer.transport.grpc import Grpc

SIGMAS = {1: 1.6953, 4: 0.8376, 8: 0.6274}
"""ε_total → σ of 50 rounds of one release at q = 0.05, δ = 1e-5."""
CANARIES = 40_000 if LONG else 6_400
COALITION = Attacker(title="all neighbors", nodes=("n1", "n3"))


def setting(
    epsilon: int = 8,
    algorithm: str = "d-psgd",
    canaries: int = CANARIES,
    rounds: int = 50,
    **privacy: object,
) -> Setting:
    values = {
        "algorithm": {"name": algorithm},
        "train": {"rounds": 50},
        "experiment": {"nodes": 4},
        "privacy": {"sigma": SIGMAS[epsilon], "insecure_seed": 1, "batch": 64, **privacy},
    }
    config = ExperimentConfig.model_validate(values)
    plan = Plan.of(config.run_config, config.neighborhoods(config.experiment.names))
    return Setting.of(plan, Options(canaries=canaries, rounds=rounds))


@pytest.mark.parametrize("epsilon", SIGMAS)
def test_the_bounds_are_below_the_claim_and_the_family_s_is_close(epsilon: int) -> None:
    made = setting(epsilon)
    heard = listen(made, COALITION)
    claimed, family = made.claimed, made.epsilon(heard.sigma)
    assert claimed is not None
    assert claimed == pytest.approx(epsilon, rel=2e-3)
    assert 0 < heard.one_run <= family <= claimed
    assert family >= 0.85 * claimed
    assert refuted(made, heard) == ""


def halved(total: Tensor, sigma: float, clip: float, divisor: int, stream: Stream) -> Tensor:
    return honest(total, sigma / 2, clip, divisor, stream)


honest: Callable[..., Tensor] = noise.release


@pytest.mark.parametrize("epsilon", SIGMAS)
def test_half_the_noise_is_caught(epsilon: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "release", halved)
    made = setting(epsilon, canaries=2500)
    heard = listen(made, COALITION)
    assert heard.sure_sigma < 0.6 * made.mechanism.sigma
    assert epsilon < 8 or "and the run claims" in refuted(made, heard)


def test_twice_the_clip_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Canaries come ten times as long as C."""
    clipped = node.maths.clipping.clipped_sum

    def twice(task: object, x: object, rows: object, clip: float, **more: object) -> Tensor:
        return clipped(task, x, rows, 2 * clip, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("node.privacy.gate.clipped_sum", twice)
    made = setting(8, canaries=2500)
    assert listen(made, COALITION).sure_sigma < 0.7 * made.mechanism.sigma


def test_a_release_that_is_not_debited_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger claims less than the plan, and what is heard is more than that."""
    debit = Ledger.debit

    def forgetful(self: Ledger, run: str, t: int, *more: object) -> None:
        if t % 3 == 0:
            debit(self, run, t, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Ledger, "debit", forgetful)
    made = setting(8, canaries=2500)
    heard = listen(made, COALITION)
    assert made.claimed is not None
    assert heard.spent < 0.8 * made.claimed
    assert "received is that of ε_total" in refuted(made, heard)


def test_who_is_farther_away_sees_less() -> None:
    made = setting(8, canaries=2500)
    near, both, far = (listen(made, each) for each in attackers(made, ()))
    assert [it.attacker.nodes for it in (near, both, far)] == [("n1",), ("n1", "n3"), ("n2",)]
    assert made.mechanism.sigma < both.sigma < 0.95 * near.sigma < 0.8 * far.sigma < 10


def test_without_noise_nothing_is_promised_and_everything_seen() -> None:
    made = setting(mode="none", sigma=None, canaries=2500)
    heard = listen(made, COALITION)
    assert (heard.sigma, made.epsilon(heard.sigma), made.claimed) == (0.0, inf, None)
    assert heard.one_run > 2.5
    assert refuted(made, heard) == ""


def test_mode_paper_promises_nothing_and_its_clean_gradient_is_seen() -> None:
    """At the same σ, and with the same batches, strict mode's releases show less."""
    paper = setting(algorithm="dpdl", mode="paper", canaries=2500, rounds=20)
    assert paper.claimed is None
    heard = listen(paper, COALITION)
    strict = listen(
        setting(algorithm="dpdl", batches="shared", canaries=2500, rounds=20), COALITION
    )
    assert heard.sigma < 0.9 * strict.sigma


def test_all_releases_of_an_algorithm_that_answers_are_counted() -> None:
    made = setting(algorithm="dpdl", canaries=2500, rounds=20)
    assert made.mechanism.releases == 3
    assert 1 < listen(made, COALITION).sigma / made.mechanism.sigma < 1.12


def test_what_pdsl_releases_is_heard_and_counted() -> None:
    """Weights by Shapley values are left out, answers are not."""
    made = setting(algorithm="pdsl", canaries=900, rounds=10)
    heard = listen(made, COALITION)
    assert made.mechanism.releases == 3
    assert 1 < heard.sigma / made.mechanism.sigma < 1.25
    assert refuted(made, heard) == ""


async def test_over_grpc_it_hears_the_same(tmp_path_factory: pytest.TempPathFactory) -> None:
    """mTLS, sessions and drivers; the curious node keeps what comes out of its own port."""
    folder, rounds = tmp_path_factory.mktemp("people"), 4
    made, curious = setting(canaries=400), ("n1",)
    ca = CertificateAuthority.create(folder / "ca")
    people = {name: ca.enrol(folder / name) for name in made.plan.neighborhoods}

    async def over(carrier: str) -> Tensor:
        task = made.canaries()
        by = weights(knowledge(made.plan, curious, rounds), made.target)
        scores = Scores(by, made.side**2)
        gates = made.gates(task, curious, Ledger.in_memory())
        start = task.initial_parameters(0)
        algorithms = participants(
            made.plan, gates, curious, scores, layout=task.layout, start=start
        )
        if carrier == "grpc":
            transports = {name: Grpc(people[name], "127.0.0.1:0") for name in people}
            ids = {name: people[name].id for name in people}
            nodes = mesh(
                algorithms,
                made.plan.neighborhoods,
                rounds,
                transports=transports,
                identities=people,
                ids=ids,
                layout=task.layout,
            )
            await play(nodes)
        else:
            lockstep.run(algorithms, made.plan.neighborhoods, rounds)
        return scores.total

    wire, loop = await over("grpc"), await over("loop")
    assert bool(loop.any())
    assert torch.allclose(wire, loop, rtol=1e-12, atol=1e-12)


def test_the_target_is_none_of_the_curious() -> None:
    config = ExperimentConfig.model_validate(
        {"topology": {"kind": "star"}, "privacy": {"sigma": 1.0}, "experiment": {"nodes": 3}}
    )
    plan = Plan.of(config.run_config, config.neighborhoods(config.experiment.names))
    assert Setting.of(plan, Options(canaries=400)).target == "n0"
    assert Setting.of(plan, Options(canaries=400, curious=("n0",))).target == "n1"


def test_who_says_nothing_is_not_audited() -> None:
    made = setting(algorithm="local", canaries=400)
    with pytest.raises(ConfigurationError, match="nothing to audit"):
        listen(made, COALITION)
