"""DECA (4)–(9): golden vectors, identities that hold and that don't, blocks, orders, mix_every,
bf16-delta.
"""

from itertools import pairwise
from typing import Any

import pytest
import torch

from kit.golden import EQUATIONS, close, vector, vectors
from kit.naive_deca import played
from node.algorithms import Resources
from node.algorithms.deca import Badam, Deca, State, rounded
from node.algorithms.dsgd_adam import DsgdAdam
from node.maths.blocks import BlockSchedule, active_block, partition_blocks
from node.maths.mixing import materialize, weighted_sum
from node.maths.schedule import WarmupDecay, rate
from node.rounds import lockstep
from peer.message import DType, Layout, Mix
from peer.neighborhood import Neighborhood, View
from peer.topology import make_neighborhoods

CASE = EQUATIONS["deca"]
LAYOUT = Layout((("a.weight", (2, 3)), ("a.bias", (2,)), ("b.weight", (4,)), ("c.weight", (3,))))
LAYER_GROUPS = (("a.weight", "a.bias"), ("b.weight",), ("c.weight",))
D = LAYOUT.size
ALONE = make_neighborhoods("full", ["a"])
SIGNALS = ("reference", "literal", "scaled", "trivial", "none")


class Quadratic:
    """∇ ½‖x − c‖² of one block; float64 where θ is. Notes at which rounds it was asked."""

    def __init__(self, me="a", wanted=None):
        self.wanted = torch.full((D,), float(sum(me.encode()) % 7)) if wanted is None else wanted
        self.asked = []

    def within(self, x, block):
        assert block.layout.size == block.span.stop - block.span.start

        def gradient(theta, t):
            self.asked.append((t, block.span))
            return theta - self.wanted[block.span].to(theta)

        return gradient

    def __call__(self, x, t, to):
        return x - self.wanted.to(x)

    def own(self, x, t):
        raise NotImplementedError

    def difference(self, x, before, t):
        raise NotImplementedError


def node(kind, me="a", start=None, layer_groups=LAYER_GROUPS, gate: Any = None, **options):
    resources = Resources(
        me=me,
        layout=LAYOUT,
        start=torch.linspace(-1, 1, D) if start is None else start,
        gradients=Quadratic(me) if gate is None else gate,
        layer_groups=layer_groups,
    )
    return kind(kind.Config(**options), resources)


def ring(kind, n=4, start=None, **options):
    neighborhoods = make_neighborhoods("ring", [f"n{k}" for k in range(n)])
    return {i: node(kind, i, start, **options) for i in neighborhoods}, neighborhoods


# ------------------------------------------------------------------------------------ the equations


class Given(Quadratic):
    """The golden gradient."""

    def within(self, x, block):
        return lambda theta, t: vector(CASE["g"])


@pytest.mark.parametrize("bma", SIGNALS)
def test_a_step_of_each_signal_is_the_golden_one(bma):
    """(4)–(9) in float64: θ½, θ⁺, h by way of m and v."""
    found, layout, r = CASE[bma], Layout((("block", (len(CASE["theta"]),)),)), CASE["r"]
    a1, a2 = CASE["a"]
    options = {
        "lr": CASE["gamma"],
        "a1": a1,
        "a2": a2,
        "eps": CASE["eps"],
        "weight_decay": CASE["weight_decay"],
    }
    neighborhood = Neighborhood(me="self", weight=CASE["w"], nodes=3)
    config = Deca.Config(bma=bma, steps=1000, **options)
    resources = Resources(
        me="self",
        layout=layout,
        start=vector(CASE["theta"]),
        gradients=Given(),
        layer_groups=[["block"]],
    )
    deca = Deca(config, resources)
    theta, m, v = (vector(CASE[name]) for name in ("theta", "m", "v"))
    deca.state = State(x=theta.clone(), visit=0, step=r, theta=theta, m=m, v=v)
    talk = deca.round(r, View(neighborhood))
    verb = next(talk)
    half = materialize(verb.tensors)
    assert isinstance(half, torch.Tensor)
    close(half, found["theta_half"])
    assert isinstance(verb, Mix)
    assert verb.streaming
    mixed = weighted_sum(CASE["w"], {"self": half, **vectors(CASE["theta_half_neighbors"])})
    close(mixed, found["theta_next"])
    with pytest.raises(StopIteration):
        talk.send(mixed)
    close(deca.state.theta, found["theta_next"])
    close(deca.state.m, found["m_next"])
    close(deca.state.v, found["v_next"])
    assert deca.state.step == r + 1


def test_the_norm_of_the_reference_signal_is_one_over_the_block_and_has_a_floor():
    nodes, neighborhoods = ring(
        Deca, steps=100, layers_per_block=3, bma="reference", b1=0.0, b2=0.0, lr=1e-5
    )
    lockstep.run(nodes, neighborhoods, 1)
    for it in nodes.values():
        torch.testing.assert_close(it.state.m.norm(), torch.tensor(1.0))
        torch.testing.assert_close(it.state.v, it.state.m.square())
    tiny, neighborhoods = ring(Deca, steps=100, layers_per_block=3, b1=0.0, lr=1e-12)
    lockstep.run(tiny, neighborhoods, 1)
    assert all(it.state.m.norm() < 0.1 for it in tiny.values())


class Curved:
    """∇ of a quadratic of its own curvature for every node, which drifts with t; float64."""

    def __init__(self, seed):
        draw = torch.Generator().manual_seed(seed)
        self.wanted, self.bend = (
            torch.rand(D, generator=draw, dtype=torch.float64) for _ in range(2)
        )

    def of(self, theta, place, t):
        return (1 + self.bend[place]) * (theta - 3 * self.wanted[place]) + t % 3 / 10

    def within(self, x, block):
        return lambda theta, t: self.of(theta, block.span, t)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mix_every": {"mix_every": 2},
    "mix_every = steps": {"mix_every": 5},
    "decay on a course": {"weight_decay": 0.2, "warmup": 7, "decay": "cosine"},
    "clipped": {"clip_norm": 0.5},
    "bf16-delta": {"wire": "bf16-delta"},
    "bf16-delta, mix_every": {"wire": "bf16-delta", "mix_every": 2},
    "ascending single layers": {"order": "ascending", "layers_per_block": 1},
    "all": {
        "mix_every": 3,
        "weight_decay": 0.1,
        "decay": "linear",
        "clip_norm": 1.0,
        "order": "ascending",
    },
    "γ falls to 0 within the run": {"decay": "linear", "decay_until": 30},
}


@pytest.mark.parametrize("bma", SIGNALS)
@pytest.mark.parametrize("name", OPTIONS)
def test_it_is_the_naive_one_on_a_ring(bma, name):
    """Five nodes, visits of five steps, one of them cut short by the end; float64."""
    told: dict[str, Any] = {"bma": bma, "lr": 0.05, "steps": 5, "decay_until": 60, **OPTIONS[name]}
    nothing = {
        "warmup": 0,
        "decay": "no",
        "weight_decay": 0.0,
        "mix_every": 1,
        "wire": "float32",
        "clip_norm": 1e9,
    }
    neighborhoods = make_neighborhoods("ring", [f"n{k}" for k in range(5)])
    gates = {i: Curved(k) for k, i in enumerate(neighborhoods)}
    start = torch.linspace(-1, 1, D, dtype=torch.float64)
    nodes = {i: node(Deca, i, start, gate=gates[i], **told) for i in neighborhoods}
    lockstep.run(nodes, neighborhoods, 43)
    blocks = [it.span for it in nodes["n0"].blocks]
    blocks = blocks if told.get("order") == "ascending" else blocks[::-1]
    weights = {i: neighborhood.weight for i, neighborhood in neighborhoods.items()}
    found = played(weights, blocks, start, lambda i, *at: gates[i].of(*at), 43, nothing | told)
    error = 1e-4 if "wire" in told else 1e-9  # bfloat16 is summed in float32
    for i in nodes:
        torch.testing.assert_close(nodes[i].parameters, found[i], rtol=error, atol=error)


# --------------------------------------------------------------------------------------- identities


def torch_adam(start, wanted, rounds, share=lambda t: 1.0, norm=1e9, **options):
    x = start.clone().requires_grad_()
    optimizer = torch.optim.AdamW([x], **{"weight_decay": 0.0, **options})
    course = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    for _ in range(rounds):
        optimizer.zero_grad()
        (0.5 * (x - wanted).square().sum()).backward()
        torch.nn.utils.clip_grad_norm_([x], norm)
        optimizer.step()
        course.step()
    return x.detach()


def rising_and_falling(t):
    return (t + 1) / 6 if t < 5 else 1 - (t - 5) / 25


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({}, {}),
        ({"weight_decay": 0.1}, {}),
        (
            {"weight_decay": 0.1, "warmup": 5, "decay": "linear", "decay_until": 30},
            {"share": rising_and_falling},
        ),
        ({"clip_norm": 0.3}, {"norm": 0.3}),
    ],
    ids=["plain", "decay", "course", "clipped"],
)
@pytest.mark.parametrize("kind", [Deca, Badam, DsgdAdam])
def test_without_a_signal_and_without_neighbors_it_is_torch_adam(kind, options, theirs):
    tour = {"steps": 1000, "layers_per_block": 3} if kind is not DsgdAdam else {}
    one = node(kind, lr=0.05, **options, **tour, **({"bma": "none"} if kind is Deca else {}))
    start = one.parameters.clone()
    lockstep.run({"a": one}, ALONE, 30)
    decay = {"weight_decay": options.get("weight_decay", 0.0)}
    expected = torch_adam(start, one.gradients.wanted, 30, lr=0.05, **decay, **theirs)
    torch.testing.assert_close(one.parameters, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bma", ["reference", "literal", "scaled"])
def test_b_of_one_is_no_signal(bma):
    ones, neighborhoods = ring(Deca, steps=5, bma=bma, b1=1.0, b2=1.0, lr=0.05)
    none, _ = ring(Deca, steps=5, bma="none", lr=0.05)
    lockstep.run(ones, neighborhoods, 12)
    lockstep.run(none, neighborhoods, 12)
    assert all(torch.equal(ones[i].parameters, none[i].parameters) for i in none)


@pytest.mark.parametrize("bma", ["reference", "literal", "scaled", "trivial"])
def test_a_signal_is_not_adam_even_alone(bma):
    """h holds the local step."""
    one = node(Deca, bma=bma, lr=0.05, steps=1000, layers_per_block=3)
    start = one.parameters.clone()
    lockstep.run({"a": one}, ALONE, 30)
    expected = torch_adam(start, one.gradients.wanted, 30, lr=0.05)
    assert (one.parameters - expected).abs().max() > 1e-3


def test_badam_is_deca_without_exchange_and_signal():
    alone, badam = (
        node(Deca, bma="none", steps=3, layers_per_block=1),
        node(Badam, steps=3, layers_per_block=1),
    )
    for it in (alone, badam):
        lockstep.run({"a": it}, ALONE, 20)
    assert torch.equal(alone.parameters, badam.parameters)


@pytest.mark.parametrize(("bma", "sign"), [("literal", -1), ("scaled", 1), ("reference", 1)])
def test_on_a_complete_graph_with_the_same_data_the_signal_is_the_local_step_alone(bma, sign):
    neighborhoods = make_neighborhoods("full", ["a", "b", "c"])
    start = torch.linspace(-1, 1, D)
    nodes = {
        i: node(Deca, "a", start, bma=bma, steps=100, layers_per_block=3, b1=0.0)
        for i in neighborhoods
    }
    lockstep.run(nodes, neighborhoods, 1)
    alone = node(Deca, start=start, bma="none", steps=100, layers_per_block=3)
    lockstep.run({"a": alone}, ALONE, 1)
    step = start - alone.parameters
    for it in nodes.values():
        torch.testing.assert_close(it.parameters, alone.parameters, rtol=1e-6, atol=1e-6)
        cosine = torch.nn.functional.cosine_similarity(it.state.m, sign * step, dim=0)
        assert cosine > 0.9


class Dead(Quadratic):
    """Its first half has no gradient, as weights behind a unit that is never active."""

    def within(self, x, block):
        gradient = super().within(x, block)
        return lambda theta, t: gradient(theta, t).index_fill(0, torch.arange(D // 2), 0.0)


@pytest.mark.parametrize("bma", SIGNALS)
def test_weights_without_a_gradient_stay_where_all_nodes_agree(bma):
    """An average that is off by rounding would be a signal, and Adam makes whole steps of it."""
    neighborhoods = make_neighborhoods("full", [f"n{k}" for k in range(7)])
    start = torch.linspace(-1, 1, D) / 3
    options = {"bma": bma, "steps": 100, "layers_per_block": 3, "lr": 0.01}
    nodes = {i: node(Deca, i, start, gate=Dead(i), **options) for i in neighborhoods}
    lockstep.run(nodes, neighborhoods, 20)
    for each in nodes.values():
        assert torch.equal(each.parameters[: D // 2], start[: D // 2])
        assert (each.parameters[D // 2 :] != start[D // 2 :]).all(), "power: the others moved"


# -------------------------------------------------------------------------------- blocks and orders


def test_blocks_are_consecutive_layers_and_together_the_model():
    for each in (1, 2, 3, 5):
        blocks = partition_blocks(LAYOUT, LAYER_GROUPS, each)
        assert [block.span.start for block in blocks] == [
            0,
            *[block.span.stop for block in blocks],
        ][:-1]
        assert blocks[-1].span.stop == D
        assert [name for block in blocks for name, _ in block.layout.fields] == [
            name for name, _ in LAYOUT.fields
        ]
        assert len(blocks) == -(-3 // each)
    with pytest.raises(AssertionError):
        partition_blocks(LAYOUT, LAYER_GROUPS[:2], 1)


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_every_block_is_visited_once_a_cycle_for_r_steps_and_all_nodes_agree(order):
    nodes, neighborhoods = ring(Deca, order=order, steps=4, layers_per_block=1, order_seed=3)
    lockstep.run(nodes, neighborhoods, 4 * 3 * 2)
    asked = [it.gradients.asked for it in nodes.values()]
    assert all(each == asked[0] for each in asked)
    places = [place.start for _, place in asked[0]]
    visits = [places[k] for k in range(0, len(places), 4)]
    assert places == [start for start in visits for _ in range(4)]
    assert sorted(visits[:3]) == sorted(visits[3:]) == [0, 8, 12]
    if order != "random":
        assert visits[:3] == ([0, 8, 12] if order == "ascending" else [12, 8, 0])


def test_a_random_order_is_the_seed_s_and_changes_from_cycle_to_cycle():
    blocks = partition_blocks(
        Layout(tuple((str(k), (1,)) for k in range(6))), [[str(k)] for k in range(6)], 1
    )

    def orders(seed):
        tour = BlockSchedule(order="random", order_seed=seed)
        return [
            [active_block(blocks, 6 * cycle + k, tour).span.start for k in range(6)]
            for cycle in range(8)
        ]

    assert all(sorted(order) == list(range(6)) for order in orders(1))
    assert len({tuple(order) for order in orders(1)}) > 4
    assert orders(1) == orders(1) != orders(2)


def test_only_the_active_block_moves_and_moments_begin_at_zero_in_each():
    one = node(Badam, steps=3, layers_per_block=1, order="ascending")
    before = one.parameters.clone()
    lockstep.run({"a": one}, ALONE, 3)
    moved = one.parameters != before
    assert moved[:8].all()
    assert not moved[8:].any()
    assert len(one.state.m) == 8
    lockstep.run({"a": one}, ALONE, 4, first=3)
    assert (len(one.state.m), one.state.step) == (4, 1)
    g = one.gradients.asked and before[8:12] - one.gradients.wanted[8:12]
    torch.testing.assert_close(one.state.m, 0.1 * g)


def test_with_one_block_moments_begin_anew_in_every_visit():
    one = node(Badam, steps=3, layers_per_block=3)
    lockstep.run({"a": one}, ALONE, 4)
    assert one.state.step == 1


def test_who_comes_back_in_another_visit_begins_there_with_zero_moments():
    one = node(Badam, steps=3, layers_per_block=1, order="ascending")
    lockstep.run({"a": one}, ALONE, 2)
    lockstep.run({"a": one}, ALONE, 5, first=4)
    assert one.gradients.asked[-1] == (4, slice(8, 12))
    assert one.state.step == 1


@pytest.mark.parametrize("cut", [1, 4, 5, 7])
@pytest.mark.parametrize(
    "options", [{}, {"bma": "scaled", "mix_every": 2}, {"wire": "bf16-delta"}], ids=str
)
def test_a_state_goes_on_bit_for_bit_from_the_middle_of_a_block(cut, options):
    through, neighborhoods = ring(Deca, steps=5, layers_per_block=1, **options)
    lockstep.run(through, neighborhoods, 13)
    first, _ = ring(Deca, steps=5, layers_per_block=1, **options)
    lockstep.run(first, neighborhoods, cut)
    second, _ = ring(Deca, steps=5, layers_per_block=1, **options)
    for i, it in second.items():
        it.state = first[i].state
    lockstep.run(second, neighborhoods, 13, first=cut)
    assert all(torch.equal(second[i].parameters, through[i].parameters) for i in through)


# ----------------------------------------------------------------------------- storage and the wire


def test_a_model_in_bfloat16_is_trained_in_float32_where_it_is_active():
    """A step of 1e-4 is lost in bfloat16; R of them are not."""
    start = torch.ones(D, dtype=torch.bfloat16)
    one = node(
        Badam,
        start=start,
        steps=50,
        layers_per_block=3,
        lr=1e-4,
        gate=Quadratic(wanted=torch.zeros(D)),
    )
    lockstep.run({"a": one}, ALONE, 1)
    assert one.state.theta.dtype == torch.float32
    assert torch.equal(one.parameters, start)
    lockstep.run({"a": one}, ALONE, 49, first=1)
    assert one.parameters.dtype == torch.bfloat16
    assert (one.parameters < start).all()


def test_the_payload_is_the_block_alone_and_the_gradient_s_own_memory():
    """One exchange a step, of |block| float32; θ½ is filled in where g was."""
    handed = []

    class Noting(Quadratic):
        def within(self, x, block):
            inner = super().within(x, block)

            def gradient(theta, t):
                handed.append(inner(theta, t))
                return handed[-1]

            return gradient

    nodes, neighborhoods = ring(Deca, steps=2, layers_per_block=1, gate=Noting())
    talk = nodes["n0"].round(0, View(neighborhoods["n0"]))
    verb = next(talk)
    assert verb.tensors.flat.data_ptr() == handed[0].data_ptr()
    assert (verb.layout.size, verb.layout.nbytes, verb.streaming) == (3, 12, True)


def test_mix_every_s_speaks_every_s_th_step_and_in_the_last_of_a_visit():
    nodes, neighborhoods = ring(Deca, steps=5, mix_every=2, layers_per_block=1)
    spoken = []
    lockstep.run(
        nodes,
        neighborhoods,
        10,
        after_phase=lambda t, phase, kind, sent: spoken.append((t, sent["n0"])),
    )
    assert [t for t, _ in spoken] == [1, 3, 4, 6, 8, 9]
    assert [sent for _, sent in spoken] == [2 * 12] * 3 + [2 * 16] * 3


def test_between_mixings_it_is_adam_and_the_signal_spans_them():
    """s = 3, scaled: h = (θ₀ − θ⁺)/Σγ · (√v̂ + ε) with θ₀ before the first of the three steps."""
    options = {"steps": 9, "layers_per_block": 3, "lr": 0.05}
    deca, neighborhoods = ring(
        Deca, mix_every=3, bma="scaled", warmup=2, b1=0.5, b2=0.25, **options
    )
    badam = {i: node(Badam, i, warmup=2, **options) for i in neighborhoods}
    start = deca["n0"].parameters.clone()
    lockstep.run(deca, neighborhoods, 2)
    lockstep.run(badam, neighborhoods, 2)
    assert all(torch.equal(deca[i].state.m, badam[i].state.m) for i in deca)
    lockstep.run(deca, neighborhoods, 3, first=2)
    lockstep.run(badam, neighborhoods, 3, first=2)
    gammas = sum(rate(t, deca["n0"].config) for t in range(3))
    for i, it in deca.items():
        m, v = badam[i].state.m, badam[i].state.v
        h = (start - it.parameters) / gammas * ((v / (1 - 0.999**3)).sqrt() + 1e-8)
        torch.testing.assert_close(it.state.m, 0.5 * m + 0.5 * h)
        torch.testing.assert_close(it.state.v, 0.25 * v + 0.75 * h.square())


def test_bf16_of_the_change_keeps_the_mean_but_mixes_no_disagreement_away():
    """Power: bfloat16 of θ½ itself loses most steps of this size."""
    start, found = torch.linspace(0.5, 1.5, D), {}
    for wire in ("float32", "bf16-delta"):
        nodes, neighborhoods = ring(
            Deca, start=start, wire=wire, bma="none", steps=200, layers_per_block=3, lr=5e-5
        )
        lockstep.run(nodes, neighborhoods, 60)
        found[wire] = torch.stack([it.parameters for it in nodes.values()])
    moved = (found["float32"].mean(0) - start).abs().mean()
    assert (found["bf16-delta"].mean(0) - found["float32"].mean(0)).abs().mean() < 0.02 * moved
    apart = {wire: float((x - x.mean(0)).norm()) for wire, x in found.items()}
    assert apart["bf16-delta"] > 3 * apart["float32"]
    assert (start.bfloat16() - (start - 5e-5).bfloat16()).eq(0).float().mean() > 0.5


def test_bf16_of_the_change_takes_half_the_bytes():
    nodes, neighborhoods = ring(Deca, wire="bf16-delta", steps=5, layers_per_block=1)
    verb = next(nodes["n0"].round(0, View(neighborhoods["n0"])))
    assert (verb.layout.dtype, verb.layout.nbytes) == (DType.BFLOAT16, 6)


@pytest.mark.parametrize("keep", [True, False])
def test_what_rounding_leaves_over_goes_with_the_next_change(keep):
    """All that was said and what is left over is all that changed. Power: forgotten leftovers add
    up.
    """
    before, left, said, wanted = torch.ones(D), torch.zeros(D), torch.zeros(D), torch.zeros(D)
    for t in range(200):
        half = before - 1e-4 * torch.linspace(0.9, 1.1, D) / (1 + t % 3)
        change = torch.empty(D, dtype=torch.bfloat16)
        assert list(rounded(change, left, half, before, iter([7, D - 7]))) == [7, D - 7]
        said, wanted = said + change.double(), wanted + (half.double() - before.double())
        left = left if keep else torch.zeros(D)
    wrong = float((said + left - wanted).abs().max() / wanted.abs().max())
    assert (wrong < 1e-6) is keep


# ------------------------------------------------------------------------------------- the schedule


def test_the_rate_warms_up_and_falls():
    cosine = WarmupDecay(lr=1.0, warmup=4, decay="cosine").on_run(20)
    rates = [rate(t, cosine) for t in range(21)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == 1.0
    assert all(b < a for a, b in pairwise(rates[4:]))
    assert rates[12] == pytest.approx(0.5)
    assert rates[20] == pytest.approx(0, abs=1e-12)
    assert rate(15, WarmupDecay(lr=2.0, decay="linear", decay_until=20)) == pytest.approx(0.5)
    assert rate(99, WarmupDecay(lr=2.0)) == 2.0


def test_clip_norm_shortens_the_gradient_and_leaves_a_short_one():
    for norm, expected in ((1.0, 1.0), (1e6, None)):
        one = node(
            Badam,
            steps=5,
            layers_per_block=3,
            clip_norm=norm,
            gate=Quadratic(wanted=torch.full((D,), 9.0)),
        )
        start = one.parameters.clone()
        lockstep.run({"a": one}, ALONE, 1)
        g = one.state.m / 0.1
        torch.testing.assert_close(float(g.norm()), expected or float((start - 9).norm()))


def test_the_model_at_rest_is_what_was_kept():
    assert isinstance(node(Badam).state, State)
    assert isinstance(node(Deca).state, State)
