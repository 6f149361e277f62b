"""What liars cost FGRPO by how neighbors are weighed, with a tabular policy: six peers, two of them
with each family of questions, one of whom lies from the start and claims ever more. And how long a
verdict lasts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from kit.bandits import FAMILIES, attacked, cluster, success
from node.algorithms.fgrpo import Fgrpo, evidence_of
from node.config import AttackSection
from node.maths.audit import AuditConfig, Evidence, guilty
from node.maths.commitment import Commitment, update_digest
from node.rounds import lockstep
from peer.message import Conversation, Replies, Say, step
from peer.neighborhood import View

ROUNDS = 40
LIAR = "n5"
FLIP = {"name": "sign-flip", "words": ["state"], "vectors": [0]}
LIARS: dict[str, dict[str, Any]] = {
    "gross": {**FLIP, "factor": 3.0},
    "subtle": {**FLIP, "factor": 0.5},
    "idle": {"name": "free-rider"},
    "noise": {"name": "free-rider", "update": "noise"},
    "reward hacker": {"name": "reward-hack", "pays": "wrong"},
}
WEIGHTS: dict[str, dict[str, Any]] = {
    "uniform": {"weights": "uniform", "norm_bound": None},
    "raw gain": {"weights": "raw-gain", "norm_bound": None},
    "reported": {"gain": "reported", "norm_bound": None},
    "audited": {},
    "verdict ignored": {"audit": AuditConfig(convict=1e9), "norm_bound": None},
    "verdict lapsing": {"audit": AuditConfig(acquit=-3.0)},
}
LOSES = [
    ("gross", "uniform"),
    ("gross", "raw gain"),
    ("gross", "reported"),
    ("subtle", "raw gain"),
    ("subtle", "reported"),
    ("noise", "raw gain"),
    ("reward hacker", "uniform"),
    ("reward hacker", "raw gain"),
    ("reward hacker", "reported"),
]
"""Where a liar takes more than a tenth. Elsewhere it takes less: one of six that does nothing, or
half of the harm that another undoes, costs a plain mean next to nothing."""


@dataclass(frozen=True)
class Outcome:
    """Of the honest."""

    success: float
    """Probability of a right answer at the end."""
    verdicts: Mapping[tuple[str, str], list[bool]]
    """(receiver, peer) -> convicted, round by round."""
    acquitted: list[float]
    """z, on its own questions, of whoever was convicted in the round before and is no longer."""


@cache
def outcome(liar: str = "", weights: str = "audited", rounds: int = ROUNDS) -> Outcome:
    nodes, neighborhoods = cluster(Fgrpo, **WEIGHTS[weights])
    if liar:
        claims = {"claim": 1e3, "claim_growth": 2.0}
        attack = AttackSection.model_validate({**LIARS[liar], **claims})
        nodes[LIAR] = attacked(nodes[LIAR], attack)
    honest = {name: node for name, node in nodes.items() if not liar or name != LIAR}
    verdicts: dict[tuple[str, str], list[bool]] = defaultdict(list)
    acquitted: list[float] = []

    def look(t: int) -> None:
        for name, node in honest.items():
            for peer, convicted in node.diagnostics()["convicted"].items():
                past = verdicts[name, peer]
                if past and past[-1] and not convicted:
                    acquitted.append(evidence_of(node.state.evidence[peer])[0].z)
                past.append(bool(convicted))

    lockstep.run(nodes, neighborhoods, rounds, after_round=look)
    success_of_each = [success(node.parameters) for node in honest.values()]
    return Outcome(sum(success_of_each) / len(honest), verdicts, acquitted)


@pytest.mark.parametrize("liar", LIARS)
def test_audits_keep_nine_tenths_of_what_the_honest_reach(liar: str) -> None:
    assert outcome(liar).success >= 0.9 * outcome().success


@pytest.mark.parametrize(("liar", "weights"), LOSES)
def test_who_believes_loses_more_than_a_tenth(liar: str, weights: str) -> None:
    assert outcome(liar, weights).success < 0.9 * outcome().success


@pytest.mark.parametrize("weights", ["uniform", "reported"])
def test_an_idle_peer_costs_little_however_it_is_weighed(weights: str) -> None:
    assert outcome("idle", weights).success > 0.95 * outcome().success


def test_power_of_the_verdict() -> None:
    """Where it is ignored the first test of this file is red."""
    assert outcome("gross", "verdict ignored").success < 0.9 * outcome().success


# margins, as those of a pilot with a language model


def reached(graph: str = "full", noisy: int = 0, **options: Any) -> float:
    """Success of the honest after 20 rounds; the last peers are noise, and claim tenfold."""
    nodes, neighborhoods = cluster(Fgrpo, graph, **options)
    noise = AttackSection.model_validate({**LIARS["noise"], "claim": 10.0})
    for name in sorted(nodes)[6 - noisy :]:
        nodes[name] = attacked(nodes[name], noise)
    lockstep.run(nodes, neighborhoods, 20)
    honest = [success(nodes[name].parameters) for name in sorted(nodes)[: 6 - noisy]]
    return sum(honest) / len(honest)


def test_audits_tell_noise_from_updates_where_half_of_the_peers_are_noise() -> None:
    audited = reached(noisy=3)
    assert audited > reached(noisy=3, weights="raw-gain") + 0.04
    assert audited > reached(noisy=3, weights="reward") + 0.04
    assert audited > reached(noisy=3, weights="uniform") + 0.02


def test_relative_gains_do_neither_harm_nor_good_where_all_are_honest() -> None:
    alone: dict[str, Any] = {"relative": {"mixing": 1.0}}
    assert reached(gain="reported") == pytest.approx(reached(weights="uniform"), abs=0.06)
    assert reached(gain="reported", **alone) >= reached(weights="reward", **alone)


def test_a_ring_needs_the_pull() -> None:
    assert reached("ring") > reached("ring", pull=0.0) + 0.03


class Brake(Fgrpo):
    """Its update is honest. The model that it sends along is not: it lies where the others' last
    updates came from, but for the questions of its own family."""

    against: Tensor | None = None

    def round(self, t: int, view: View) -> Conversation:
        talk = super().round(t, view)
        said = step(talk)
        assert isinstance(said, Say)
        update, model = cast("tuple[Tensor, Tensor]", said.tensors)
        if self.against is not None:
            model = model - 100 * self.against
        heard = yield replace(said, tensors=(update, model))
        total = sum((parts[0] for parts in heard.values()), torch.zeros_like(update))
        total.view(len(FAMILIES), -1)[FAMILIES.index(self.policy.families[0])] = 0
        if total.any():
            self.against = total / total.norm()
        step(talk, heard)


@pytest.mark.parametrize(("graph", "size"), [("full", 3), ("ring", 4), ("ring", 6), ("full", 6)])
def test_a_model_that_holds_others_back_costs_less_than_a_tenth(graph: str, size: int) -> None:
    """Nobody is convicted of it; how far a model may pull is what bounds it."""
    reached = []
    for brakes in (False, True):
        nodes, neighborhoods = cluster(Fgrpo, graph, size)
        last = f"n{size - 1}"
        if brakes:
            nodes[last].__class__ = Brake
        lockstep.run(nodes, neighborhoods, 20)
        honest = [success(node.parameters) for name, node in nodes.items() if name != last]
        reached.append(sum(honest) / len(honest))
    assert reached[1] > 0.9 * reached[0]


class Sometimes(Fgrpo):
    """Honest but for some rounds, in which it sends its update times −3 and claims ever more."""

    lies: Callable[[int], bool]

    def round(self, t: int, view: View) -> Conversation:
        talk = super().round(t, view)
        said = step(talk)
        assert isinstance(said, Say)
        if self.lies(t):
            update, model = cast("tuple[Tensor, Tensor]", said.tensors)
            false = -3 * update
            own = Commitment.decode(said.note)
            claim = replace(own, update=update_digest(false), reward=1e3 * 2.0**t)
            said = replace(said, tensors=(false, model), note=claim.encode())
        heard = yield said
        step(talk, heard)


def among_some_lies(lies: Callable[[int], bool], graph: str) -> float:
    """Success of the honest after 20 rounds."""
    nodes, neighborhoods = cluster(Fgrpo, graph)
    nodes[LIAR].__class__ = Sometimes
    nodes[LIAR].lies = lies
    lockstep.run(nodes, neighborhoods, 20)
    honest = [success(node.parameters) for name, node in nodes.items() if name != LIAR]
    return sum(honest) / len(honest)


@pytest.mark.parametrize("graph", ["full", "ring"])
@pytest.mark.parametrize(
    "lies", [lambda t: t % 3 == 2, lambda t: t % 5 >= 3], ids=["one of three", "two of five"]
)
def test_helping_in_most_rounds_buys_no_lie(graph: str, lies: Callable[[int], bool]) -> None:
    """By faded evidence alone such a liar is never convicted, or let go again and again, and costs
    a sixth on a full graph."""
    assert among_some_lies(lies, graph) > 0.97 * reached(graph)


# how long a verdict lasts


@pytest.mark.parametrize(
    ("z", "before", "now"),
    [
        (-3.1, False, True),
        (-2.9, False, False),
        (-2.9, True, True),
        (0.0, True, True),
        (0.1, True, False),
        (0.0, False, False),
    ],
)
def test_a_verdict_stands_until_evidence_is_positive(z: float, before: bool, now: bool) -> None:
    assert guilty(z, before, AuditConfig()) == now


@pytest.mark.parametrize("liar", LIARS)
def test_nobody_is_let_go_while_its_updates_hurt(liar: str) -> None:
    assert all(z > 0 for z in outcome(liar).acquitted)


def test_power_of_the_lasting_verdict() -> None:
    """As evidence fades, a liar of whom nothing good was seen is let go."""
    assert any(z < 0 for z in outcome("noise", "verdict lapsing").acquitted)


def test_who_is_not_heard_stays_convicted() -> None:
    nodes, neighborhoods = cluster(Fgrpo)
    nodes[LIAR] = attacked(nodes[LIAR], AttackSection.model_validate(LIARS["gross"]))
    lockstep.run(nodes, neighborhoods, 3)
    node = nodes["n0"]
    assert node.state.convicted == (LIAR,)
    talk = node.round(3, View(neighborhoods["n0"]))
    assert isinstance(step(talk), Say)
    assert step(talk, Replies()) is None
    assert node.state.convicted == (LIAR,)


def test_honest_peers_are_convicted_rarely_and_not_for_long() -> None:
    """At most 1 % of the verdicts, also long after everybody answers nearly all right."""
    verdicts = outcome(rounds=100).verdicts
    assert len(verdicts) == 6 * 5
    assert sum(map(sum, verdicts.values())) <= 0.01 * len(verdicts) * 100
    assert max(map(sum, verdicts.values())) <= 8


def test_a_harm_too_small_to_matter_convicts_nobody() -> None:
    """A thousandth of every answer, in every round."""
    config, evidence = AuditConfig(), Evidence()
    for _ in range(100):
        evidence = evidence.observe(torch.full((16,), -0.001, dtype=torch.float64), config)
    assert -3 < evidence.z < 0
    for _ in range(3):
        evidence = evidence.observe(torch.full((16,), -0.02, dtype=torch.float64), config)
    assert evidence.z < -3, "two hundredths do"
