"""What every algorithm of the table owes its drivers. A new algorithm is tested by its line in the
table.
"""

import copy
import dataclasses
from collections.abc import Mapping
from math import e, isfinite
from typing import Any

import pytest
import torch

import node.rounds.lockstep
from kit.toys import (
    GOSSIPING,
    LAYOUT,
    TALKING,
    VARIANTS,
    D,
    Listened,
    Still,
    Stingy,
    Toy,
    cluster,
    lossy,
    results,
    stream,
)
from node.algorithms import ALGORITHMS, Resources, find
from node.algorithms.sgd import Local, SgdConfig
from node.rounds import lockstep
from peer.errors import ConfigurationError
from peer.message import Mix
from peer.neighborhood import View


def of(variants):
    return pytest.mark.parametrize(
        "variant", variants, ids=lambda v: f"{v[0]} {v[1]}" if v[1] else v[0]
    )


every = of(VARIANTS)
kinds = pytest.mark.parametrize("kind", ["ring", "full", "star"])


def verbs_of(variant):
    """The types of the verbs of a round."""
    nodes, neighborhoods = cluster(variant, n=2)
    heard = {i: Listened(a) for i, a in nodes.items()}
    lockstep.run(heard, neighborhoods, 1)
    return [verb[0] for verb in heard["n0"].verbs[0]]


VERBS = [(variant, verbs_of(variant)) for variant in VARIANTS]
talking = of([variant for variant, verbs in VERBS if verbs])
GOSSIP = [
    (variant, verbs)
    for variant, verbs in VERBS
    if (variant[0] != "deca" or variant == GOSSIPING) and "average" not in variant[1]
]
"""Those that only mix where all gradients are zero, and whose result is what is mixed."""
mixing = of([variant for variant, verbs in GOSSIP if Mix in verbs])
only_mixing = of([variant for variant, verbs in GOSSIP if set(verbs) == {Mix}])
mixing_later = of([variant for variant, verbs in VERBS if Mix in verbs and verbs[0] is not Mix])


@every
@kinds
def test_the_sequence_of_verbs_never_depends_on_what_was_heard(variant, kind):
    sequences = []
    for loss in (None, lossy(1), lossy(2, 0.8), lambda *_: True):
        nodes, neighborhoods = cluster(variant, kind, n=5)
        heard = {i: Listened(a) for i, a in nodes.items()}
        lockstep.run(heard, neighborhoods, 5, lossy=loss)
        sequences += [listened.verbs for listened in heard.values()]
    assert all(verbs == sequences[0] for verbs in sequences)


@every
def test_the_sequence_of_verbs_is_the_same_when_answers_are_withheld(variant):
    sequences = []
    for gate in (Toy, Stingy):
        nodes, neighborhoods = cluster(variant, gate=gate)
        heard = {i: Listened(a) for i, a in nodes.items()}
        lockstep.run(heard, neighborhoods, 3)
        sequences += [listened.verbs for listened in heard.values()]
        assert all(isfinite(float(a.parameters.sum())) for a in nodes.values())
    assert all(verbs == sequences[0] for verbs in sequences)


@every
@pytest.mark.parametrize(("kind", "share"), [("ring", 0.3), ("star", 0.3), ("full", 1.0)])
def test_it_survives_missing_neighbors(variant, kind, share):
    """Finite, and still nearer to the optima than the start."""
    start = torch.full((D,), 20.0)
    nodes, neighborhoods = cluster(variant, kind, n=5, start=start)
    lockstep.run(nodes, neighborhoods, 40, lossy=lossy(3, share))
    assert torch.isfinite(results(nodes)).all()
    assert results(nodes).norm(dim=1).max() < 0.7 * start.norm()


@every
def test_it_survives_a_node_that_is_down(variant):
    nodes, neighborhoods = cluster(variant, "ring", n=4)
    del nodes["n2"]
    lockstep.run(nodes, neighborhoods, 5)
    assert torch.isfinite(results(nodes)).all()


@every
@kinds
def test_the_same_seed_gives_the_same_bits(variant, kind):
    """Whatever torch's global seed, and in whatever order the nodes are made."""
    runs = []
    for seed, backwards in ((1, False), (2, True)):
        torch.manual_seed(seed)
        nodes, neighborhoods = cluster(variant, kind)
        if backwards:
            nodes = {i: nodes[i] for i in sorted(nodes, reverse=True)}
        lockstep.run(nodes, neighborhoods, 6, lossy=lossy(4))
        runs.append(results(nodes))
    assert torch.equal(*runs)


@every
@kinds
@pytest.mark.parametrize("stop", [1, 4])
def test_resuming_gives_the_bits_of_a_straight_run(variant, kind, stop):
    """State is the whole checkpoint: rebuilt field by field, in fresh algorithms that started
    elsewhere.
    """
    straight, neighborhoods = cluster(variant, kind)
    lockstep.run(straight, neighborhoods, 7)

    first, _ = cluster(variant, kind)
    lockstep.run(first, neighborhoods, stop)
    second, _ = cluster(variant, kind, start=torch.zeros(D))
    for i, state in ((i, a.state) for i, a in first.items()):
        fields = {
            field.name: copy.deepcopy(getattr(state, field.name))
            for field in dataclasses.fields(state)
        }
        second[i].state = type(state)(**fields)
    lockstep.run(second, neighborhoods, 7, first=stop)
    assert torch.equal(results(second), results(straight))


@every
def test_what_is_resumed_matters(variant):
    """Power of the test above: without the state the bits differ."""
    straight, neighborhoods = cluster(variant)
    lockstep.run(straight, neighborhoods, 7)
    second, _ = cluster(variant, start=torch.zeros(D))
    lockstep.run(second, neighborhoods, 7, first=4)
    assert not torch.equal(results(second), results(straight))


@talking
def test_a_round_that_is_abandoned_leaves_the_state_alone(variant):
    nodes, neighborhoods = cluster(variant)
    before = copy.deepcopy(nodes["n0"].state)
    talk = nodes["n0"].round(0, View(neighborhoods["n0"]))
    next(talk)
    talk.close()
    one, other = (flattened(state) for state in (before, nodes["n0"].state))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name]


def flattened(state):
    """Its fields, those of a state within it among them."""
    values = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {**values.pop("of", {}), **values}


class Scaled(Toy):
    """The same gate with its gradients times a factor."""

    __slots__ = ("factor",)

    factor: float

    def __call__(self, x, t, to):
        return self.factor * super().__call__(x, t, to)


def local_sgd_scale(variant):
    """A node without neighbors is SGD (with momentum β, if there is one) with its gradient times
    this. None: alone it is another optimizer.
    """
    name, options = variant
    config: Any = find(name).Config(**options)
    if "average" in options:
        return None
    match name:
        case "deca" | "badam" | "dsgd-adam" | "dec-lora" | "fgrpo" | "grpo" | "sapo":
            return None
        case "dpdl":
            return 1 + config.alpha / (1 + e)  # S = 1 with itself
        case "cga":  # v holds steps: when η decays, it remembers the old η
            return None if config.decay_every else 1.0
        case "qg-dsgdm":  # else m̂ ← (μ + (1−μ)β) m̂ + (1−μ) g, quasi-hyperbolic
            return 1.0 if config.mu == 0 else None
        case "net-fleet":  # else SGD on a recursive gradient, as in SARAH
            return 1.0 if config.restart == 1 else None
        case _:
            return 1.0


@of([variant for variant in VARIANTS if local_sgd_scale(variant)])
def test_a_lone_node_is_the_local_optimizer_up_to_the_declared_factor(variant):
    nodes, neighborhoods = cluster(variant, n=1)
    lone = nodes["n0"]
    gate = Scaled("n0")
    gate.factor = local_sgd_scale(variant)
    shared = {k: getattr(lone.config, k) for k in ("lr", "lr_decay", "decay_every", "weight_decay")}
    config = SgdConfig(beta=getattr(lone.config, "beta", 0.0), **shared)
    local = Local(config, Resources(me="n0", layout=LAYOUT, start=lone.parameters, gradients=gate))
    lockstep.run({"n0": lone}, neighborhoods, 15)
    lockstep.run({"n0": local}, neighborhoods, 15)
    torch.testing.assert_close(lone.parameters, local.parameters, rtol=1e-5, atol=1e-6)


@of([variant for variant in VARIANTS if find(variant[0]).PRIVATE])
@pytest.mark.parametrize(("n", "kind"), [(1, "full"), (5, "ring"), (5, "full")])
def test_it_draws_as_many_gradients_as_it_declares(variant, n, kind):
    """|K|: distinct recipients per round, oneself among them. Only neighbors are served."""
    nodes, neighborhoods = cluster(variant, kind, n)
    lockstep.run(nodes, neighborhoods, 4)
    for i, algorithm in nodes.items():
        served = algorithm.gradients._served
        assert sorted(served) == [0, 1, 2, 3]
        assert {len(to) for to in served.values()} == {algorithm.releases(neighborhoods[i].degree)}
        assert set().union(*served.values()) <= set(neighborhoods[i].weight)


# --- the mean of x and lost edges -----------------------------------------------------------------


def gossip(variant, loss, rounds=6, n=6, kind="full"):
    """Largest drift of the mean of x under zero gradients, and how far the nodes were and are
    apart.

    Without momentum, which may remember what mixing did.
    """
    name, options = variant
    still = {key: 0.0 for key in ("weight_decay", "beta") if key in find(name).Config.model_fields}
    nodes, neighborhoods = cluster((name, {**options, **still}), kind, n, gate=Still)
    for i, algorithm in nodes.items():
        x = 3 * torch.randn(D, generator=stream("x", i), dtype=torch.float64)
        state = algorithm.state
        vectors = [
            it.name for it in dataclasses.fields(state) if torch.is_tensor(getattr(state, it.name))
        ]
        algorithm.state = dataclasses.replace(
            state, **{**{name: torch.zeros_like(x) for name in vectors}, "x": x}
        )
    before = results(nodes)
    lockstep.run(nodes, neighborhoods, rounds, lossy=loss)
    after = results(nodes)
    return (
        float((after.mean(0) - before.mean(0)).abs().max()),
        float(before.std(0).max()),
        float(after.std(0).max()),
    )


def undirected(loss):
    return lambda t, phase, a, b: loss(t, phase, *sorted((a, b)))


@mixing
@kinds
def test_the_mean_is_kept_when_edges_are_lost_at_both_ends(variant, kind):
    drift, before, after = gossip(variant, undirected(lossy(5)), kind=kind)
    assert drift < 1e-13
    assert after < 0.7 * before, "and the others still mix"


@mixing
def test_the_mean_drifts_when_an_edge_is_lost_at_one_end_of_the_mix(variant):
    """Power check: the header came to one end only, which nobody can know; it is counted, not
    repaired.
    """
    phase = verbs_of(variant).index(Mix)
    drift, _, _ = gossip(variant, lambda t, p, a, b: (t, p, a, b) == (0, phase, "n0", "n1"))
    assert drift > 0.01


@mixing_later
def test_an_edge_lost_at_one_end_before_the_mix_is_dropped_at_both(variant, monkeypatch):
    """Power check: without the agreement the mean drifts."""
    phase = verbs_of(variant).index(Mix) - 1
    one_end = lossy(6)

    def loss(t, p, a, b):
        return p == phase and one_end(t, p, a, b)

    assert gossip(variant, loss)[0] < 1e-13
    monkeypatch.setattr(
        node.rounds.lockstep, "agreed", lambda me, heard, headers: frozenset(heard) & headers.keys()
    )
    assert gossip(variant, loss)[0] > 0.01


@only_mixing
def test_an_algorithm_that_only_mixes_drops_the_edge_at_both_ends_in_the_next_round(
    variant, monkeypatch
):
    """One direction is lost in round 0: the mean drifts there and stays where it is from then
    on.
    """

    def loss(t, phase, a, b):
        return (t, a, b) == (0, "n0", "n1")

    once, _, _ = gossip(variant, loss, rounds=1)
    assert gossip(variant, loss, rounds=2)[0] == pytest.approx(once, abs=1e-13)
    monkeypatch.setattr(
        node.rounds.lockstep, "agreed", lambda me, heard, headers: frozenset(heard) & headers.keys()
    )
    assert gossip(variant, loss, rounds=2)[0] != pytest.approx(once, abs=1e-3)


@mixing
def test_a_withheld_answer_costs_no_edge(variant):
    """The neighbor was heard, if only to say that there is no answer: both still mix."""
    apart = []
    for gate in (Still, StillStingy):
        name, options = variant
        nodes, neighborhoods = cluster((name, {**options, "weight_decay": 0.0}), gate=gate)
        lockstep.run(nodes, neighborhoods, 3)
        apart.append(results(nodes))
    assert torch.equal(*apart)


class StillStingy(Stingy):
    """Zero gradients, and those only for oneself."""

    __slots__ = ()

    def __call__(self, x, t, to):
        return torch.zeros_like(super().__call__(x, t, to))


# --- strict mode ----------------------------------------------------------------------------------


class Secretive(Toy):
    """Releases that do not depend on the data (as noise without bound would make them), beside a
    secret clean gradient.

    strict: own is the release; paper: the clean gradient, which then enters what is sent.
    """

    __slots__ = ("mode", "secret")

    mode: str
    secret: torch.Tensor

    def __call__(self, x, t, to):
        return torch.randn(D, generator=stream(self._me, t, to))

    def own(self, x, t):
        return self(x, t, self._me) if self.mode == "strict" else self.secret

    def difference(self, x, before, t):
        return torch.randn(D, generator=stream(self._me, t, "difference"))


def frames(variant, mode, canary):
    """All that is said in three rounds by nodes whose clean gradient is the canary."""
    nodes, neighborhoods = cluster(variant, gate=Secretive)
    for algorithm in nodes.values():
        algorithm.gradients.mode, algorithm.gradients.secret = mode, torch.full((D,), canary)
    heard = {i: Listened(a) for i, a in nodes.items()}
    lockstep.run(heard, neighborhoods, 3)
    return [part for i in sorted(heard) for part in heard[i].said] + [
        nodes[i].parameters for i in sorted(nodes)
    ]


@every
def test_in_strict_mode_all_that_is_said_is_made_of_releases(variant):
    """The same releases with another secret: the same frames and models."""
    one, two = frames(variant, "strict", 1.0), frames(variant, "strict", -7.0)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_the_papers_clean_own_gradient_is_seen_in_the_frames():
    """Power check of the test above: DPDL in paper mode."""
    one, two = (frames(("dpdl", {}), "paper", canary) for canary in (1.0, -7.0))
    assert not all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# --- the table ------------------------------------------------------------------------------------


@every
def test_its_configuration_is_frozen_strict_and_explained(variant):
    config = find(variant[0]).Config
    assert config.model_config["frozen"]
    assert config.model_config["extra"] == "forbid"
    assert all(field.description for field in config.model_fields.values())


@every
def test_its_state_is_a_frozen_dataclass_of_tensors_numbers_and_strings(variant):
    nodes, _ = cluster(variant, n=2)
    state = nodes["n0"].state
    assert dataclasses.is_dataclass(state)
    kinds_of_value = (torch.Tensor, int, float, str, tuple, dict, type(None))
    assert all(
        isinstance(getattr(state, field.name), kinds_of_value)
        for field in dataclasses.fields(state)
    )


@every
def test_its_diagnostics_name_neighbors_only(variant):
    nodes, neighborhoods = cluster(variant, "ring", n=5)
    lockstep.run(nodes, neighborhoods, 2)
    for i, algorithm in nodes.items():
        per_neighbor = {it.name for it in algorithm.DIAGNOSTICS if it.per_neighbor}
        for name, value in algorithm.diagnostics().items():
            assert (name in per_neighbor) == isinstance(value, Mapping)
            values = value if isinstance(value, Mapping) else {}
            assert set(values) in (set(), set(neighborhoods[i].neighbors))
            assert all(isfinite(value) for value in values.values())


def test_an_unknown_algorithm_is_a_sentence():
    with pytest.raises(
        ConfigurationError,
        match="choose one of badam, centralized, cga, d-psgd, dec-lora, deca, dmsgd, dp-centralized, ",
    ):
        find("sgd")


@every
def test_it_tells_all_that_it_declares_and_nothing_else(variant):
    nodes, neighborhoods = cluster(variant)
    lockstep.run(nodes, neighborhoods, 2)
    for algorithm in nodes.values():
        assert {*algorithm.diagnostics()} == {it.name for it in algorithm.DIAGNOSTICS}


def test_who_is_silent_declares_it() -> None:
    """GRPO's toys have no warm-up, in which it talks."""
    silent = {name for name in ALGORITHMS if find(name).SILENT}
    assert silent | {"grpo"} == set(ALGORITHMS) - {name for name, _ in TALKING}
