"""DECA over real daemons: the bits of the simulation, and kill -9 in the middle of a block."""

from __future__ import annotations

import asyncio
import signal
from itertools import pairwise
from typing import Any

import pytest

from kit.clusters import NEVER, Process, debits

STEPS, ROUNDS, NAMES = 5, 25, ["n0", "n1", "n2", "n3"]
SETTINGS: dict[str, Any] = {
    "nodes": 4,
    "kind": "ring",
    "rounds": ROUNDS,
    "algorithm": {"name": "deca", "lr": 0.01, "steps": STEPS, "layers_per_block": 1},
    "task": {"model": "mlp"},
    "privacy": {"mode": "none", "sigma": None},
}
BLOCKS = 2
VICTIM = "n1"


def since_start(process: Process, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for event in process.events("header", kind):
        found = [] if event["event"] == "header" else [*found, event]
    return found


@pytest.mark.cluster
async def test_killed_in_the_middle_of_a_block_it_returns_at_its_place(cluster: Any) -> None:
    """Its neighbors go on without it, and wait in a round near the end until it is back."""
    deadline = 8.0
    async with cluster(**SETTINGS, sync={"deadline_s": deadline}) as c:
        others = [c.witness(name, limit=ROUNDS - 6) for name in NAMES if name != VICTIM]
        first = c.start(VICTIM, failpoints=f"mid_stream=kill@{2 * 7 + 1}")
        assert await first.ended() == -signal.SIGKILL
        died = 1 + max(event["round"] for event in first.events("round"))
        assert died % STEPS not in (0, STEPS - 1), "in the middle"
        again = c.start(VICTIM)
        around = [it for it in others if it.node.name in ("n0", "n2")]
        await again.until(
            lambda: all(it.held and VICTIM in it.session.table.membership.agreed() for it in around)
        )
        for witness in others:
            witness.limit = 1 << 30
        assert await again.ended() == 0
        for witness in others:
            assert await witness.task == 0
            rounds = list(
                Process(c.homes[witness.node.name], first.popen, first.socket).events("round")
            )
            assert [event["round"] for event in rounds] == list(range(ROUNDS)), "it never stopped"
            assert (
                max(event["seconds"] for event in rounds if event["round"] < ROUNDS - 7)
                < deadline + 5
            )
        assert since_start(again, "resume")[0]["checkpoint"] == died - 1
        places = [
            (event["round"], *(event["diagnostics"][name] for name in ("cycle", "block", "step")))
            for event in since_start(again, "round")
        ]
        assert places[-1][0] == ROUNDS - 1
        for t, cycle, block, _ in places:
            visit = t // STEPS
            assert (cycle, block) == (visit // BLOCKS, BLOCKS - 1 - visit % BLOCKS)
        for (before, *_, earlier), (t, *_, step) in pairwise(places):
            if t % STEPS == 0:
                assert step == 0
            elif t == before + 1:
                assert step == earlier + 1
            else:  # it came back, maybe in the middle of another block
                assert step <= t % STEPS


@pytest.mark.cluster
@pytest.mark.parametrize("mode", ["none", "strict"])
async def test_a_cluster_gives_the_bits_of_the_simulation(
    cluster: Any, tmp_path: Any, mode: str
) -> None:
    """Noised too, where the noise can be computed. What is not guaranteed is said in status,
    journal and summary.
    """
    from node.experiments.in_process import simulate
    from node.learning.warnings import NO_PRIVACY, SEED_WARNING
    from node.records.summary import read

    noised = {"mode": "strict", "sigma": 2.2, "insecure_seed": 7}
    settings = (
        SETTINGS if mode == "none" else {**SETTINGS, "rounds": 2 * STEPS + 2, "privacy": noised}
    )
    async with cluster(**settings) as c:
        live = [c.witness(name, limit=0) for name in NAMES[1:]]
        process = c.start(NAMES[0])
        seen = await process.state("running")
        for witness in live:
            witness.limit = NEVER
        assert await process.ended() == 0
        for witness in live:
            assert await witness.task == 0
        simulated = simulate(c.config, tmp_path / "simulated")
        found = {name: read(home / "summary.json") for name, home in c.homes.items()}
        assert {
            name: it.params_digest[name] for name, it in found.items()
        } == simulated.params_digest
        said = NO_PRIVACY if mode == "none" else SEED_WARNING
        assert said in seen["warnings"]
        assert said in [event["text"] for event in process.events("warning")]
        assert {it.privacy.warning for it in (simulated, *found.values())} == {said}
        if mode == "strict":
            for home in c.homes.values():
                mine = [(t, recipient) for t, recipient in debits(home) if t >= 0]
                assert mine == [(t, home.name) for t in range(c.config.train.rounds)], (
                    "one a round, for oneself"
                )


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("algorithm", "every"),
    [
        (SETTINGS["algorithm"], 1),
        pytest.param({"name": "dsgd-adam", "lr": 0.01}, 1, marks=pytest.mark.long),
        pytest.param({"name": "d-psgd", "lr": 0.1}, NEVER, marks=pytest.mark.long),
    ],
    ids=["deca", "dsgd-adam", "d-psgd"],
)
async def test_stopped_in_mid_round_it_goes_on_as_if_never_stopped(
    cluster: Any, tmp_path: Any, algorithm: dict[str, Any], every: int
) -> None:
    """Where moments change in place the last checkpoint stands; elsewhere the last round is kept by
    the stop.
    """
    from node.experiments.in_process import simulate
    from node.records.summary import read

    held, train = STEPS - 3, {"checkpoint_every": every}
    settings = {**SETTINGS, "nodes": 2, "rounds": STEPS + 2, "algorithm": algorithm, "train": train}
    async with cluster(**settings) as c:
        other, process = c.witness("n1", limit=held), c.start("n0")
        await process.until(
            lambda: (it := process.status()) and it["round"] == held + 1 and it["waiting_for"]
        )
        process.popen.terminate()
        assert await process.ended() == 0
        other.task.cancel()
        await asyncio.wait([other.task])
        again, other = c.start("n0"), c.witness("n1")
        assert await again.ended() == 0
        assert await other.task == 0
        assert since_start(again, "resume")[0]["checkpoint"] == held
        digest = read(c.homes["n0"] / "summary.json").params_digest["n0"]
        assert digest == simulate(c.config, tmp_path / "simulated").params_digest["n0"]
