"""The daemon's driver against the plain loop: the same bits, whatever the network does short of
losing an edge."""

import gc

import pytest
import torch

from kit.mesh import mesh, play
from kit.toys import TALKING, VARIANTS, Stingy, cluster, results, simulated
from node.config import MixSection
from node.maths.robust import RULES
from node.rounds import lockstep
from node.rounds.buffers import ReceiveBuffer
from peer.transport.grpc import Grpc
from peer.transport.memory import Network

ROUNDS = 6


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("kind", ["ring", "full"])
async def test_memory_gives_the_bits_of_simulate(variant, kind):
    nodes, neighborhoods = cluster(variant, kind)
    await play(mesh(nodes, neighborhoods, ROUNDS))
    assert torch.equal(results(nodes), simulated(variant, kind))


@pytest.mark.virtual_time
@pytest.mark.parametrize("variant", TALKING, ids=str)
@pytest.mark.parametrize("seed", range(2))
async def test_jitter_drops_and_duplicates_change_no_bit(variant, seed):
    nodes, neighborhoods = cluster(variant, "ring")
    network = Network(seed, drop=0.1, delay=(0.0, 0.004), duplicate=0.2)
    await play(mesh(nodes, neighborhoods, 3, network=network))
    assert torch.equal(results(nodes), simulated(variant, "ring", rounds=3))


@pytest.mark.parametrize(
    "variant", [it for it in TALKING if it[0] in ("d-psgd", "dpdl", "muffliato", "ross")], ids=str
)
async def test_what_came_is_freed_with_its_round_without_the_collector(variant):
    nodes, neighborhoods = cluster(variant, "full", 3)
    gc.collect()
    before = buffers()
    gc.disable()
    try:
        await play(mesh(nodes, neighborhoods, 10))
        held = buffers() - before
    finally:
        gc.enable()
    assert held <= 3 * 2 * 5  # phases of the last round


def buffers() -> int:
    return sum(type(it) is ReceiveBuffer for it in gc.get_objects())


@pytest.mark.parametrize("variant", TALKING, ids=str)
async def test_grpc_gives_the_bits_of_simulate(variant):
    nodes, neighborhoods = cluster(variant, "full")
    transports = {name: Grpc(None, "127.0.0.1:0") for name in neighborhoods}
    await play(mesh(nodes, neighborhoods, ROUNDS, transports=transports))
    assert torch.equal(results(nodes), simulated(variant, "full"))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("variant", [("dmsgd", {}), ("dpdl", {"lr": 0.02})], ids=str)
async def test_a_robust_rule_gives_the_bits_of_simulate(variant, rule):
    mix = MixSection(rule=rule)
    expected, neighborhoods = cluster(variant, "full", 5)
    lockstep.run(expected, neighborhoods, ROUNDS, mix=mix)
    nodes, _ = cluster(variant, "full", 5)
    await play(mesh(nodes, neighborhoods, ROUNDS, mix=mix))
    assert torch.equal(results(nodes), results(expected))
    assert torch.equal(results(nodes), simulated(variant, "full", 5)) == (rule == "mean"), (
        "power: it is another mix"
    )


async def test_withheld_answers_are_missing_for_the_algorithm_but_cost_no_edge():
    variant = ("dpdl", {"lr": 0.02})
    nodes, neighborhoods = cluster(variant, "ring", gate=Stingy)
    together = mesh(nodes, neighborhoods, ROUNDS)
    await play(together)
    assert torch.equal(results(nodes), simulated(variant, "ring", gate=Stingy))
    for node in together.values():
        assert node.notes.losses == []
        assert all(
            set(weight) == set(node.neighborhood.weight) for weight in node.notes.weights.values()
        )
