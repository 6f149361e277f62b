"""What data may give away is their owner's decision, in node.toml; and a planned ε that promises
nothing is said.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kit.command import Call
from node.config import NodeConfig, load
from node.privacy.accountant import WEAK

WEAK_RUN = ("privacy.epsilon=", "privacy.sigma=1e-4")
HARMLESS = ("privacy.epsilon=", "privacy.sigma=2.0")
PROMISES_NOTHING = "promises next to nothing"


def options(*settings: str) -> list[str]:
    return [word for it in settings for word in ("--set", it)]


def packed(peerpoise: Call, experiment: Path, out: Path, *settings: str) -> Path:
    """A federation of one with data of its own: 20 images of 8×8."""
    host = ("--host", "a=127.0.0.1:7443", "--data", "a=ward:data.npz", "--out", out)
    result = peerpoise(
        "pack", experiment, *host, *options("task.data=own", "start.timeout_s=0.2", *settings)
    )
    assert result.code == 0, result.err
    np.savez(out / "a" / "data.npz", x=np.full((20, 8, 8), 0.5, np.float32), y=np.arange(20) % 10)
    return out / "a"


def run(peerpoise: Call, home: Path, *settings: str) -> tuple[int, str]:
    ports = ("listen.address=127.0.0.1:0", "metrics.listen=", "budget.ledger_dir=ledger")
    result = peerpoise("run", "--config", home / "node.toml", *options(*ports, *settings))
    return result.code, result.err


@pytest.mark.parametrize(
    "mode", [WEAK_RUN, HARMLESS, ("privacy.epsilon=", "privacy.mode=none")], ids=str
)
def test_own_data_need_a_budget_or_the_word_unlimited(
    peerpoise: Call, experiment: Path, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    """Whoever writes run.toml would decide otherwise. Nothing is made or marked before the owner
    has spoken.
    """
    home = packed(peerpoise, experiment, tmp_path / "out", *mode)
    code, said = run(peerpoise, home, "budget.epsilon=")
    assert (code, said.count("\n")) == (78, 1)
    assert "budget.epsilon is missing in the node's file" in said
    assert not (home / "ledger").exists()
    assert not (home / "state").exists()
    result = peerpoise(
        "config", "check", home / "node.toml", *options("budget.epsilon=", "metrics.listen=")
    )
    assert (result.code, "budget.epsilon is missing" in result.err) == (78, True)
    assert run(peerpoise, home, 'budget.epsilon="unlimited"')[0] == 0, (
        "the power check: the owner may say so"
    )


def test_what_pack_writes_allows_this_run_and_no_second_one(
    peerpoise: Call, experiment: Path, tmp_path: Path
) -> None:
    home = packed(peerpoise, experiment, tmp_path / "out", *HARMLESS)
    node = load(NodeConfig, [home / "node.toml"], environ={})
    assert isinstance(node.budget.epsilon, float)
    assert "# epsilon, at this delta: what these data may ever give away" in (
        home / "node.toml"
    ).read_text(encoding="utf-8")
    assert f"ε_total {node.budget.epsilon:g}" in (home / "README.txt").read_text(encoding="utf-8")
    assert run(peerpoise, home)[0] == 0
    found = json.loads((home / "state" / "summary.json").read_text())["privacy"]["epsilon"]["total"]
    assert 0.9 * node.budget.epsilon < found <= node.budget.epsilon
    again = packed(peerpoise, experiment, tmp_path / "again", *HARMLESS)
    (home / "ledger").rename(again / "ledger")
    assert run(peerpoise, again)[0] == 3, "the budget of the data is spent"


def test_a_target_is_what_pack_writes(peerpoise: Call, experiment: Path, tmp_path: Path) -> None:
    node = load(
        NodeConfig, [packed(peerpoise, experiment, tmp_path / "out") / "node.toml"], environ={}
    )
    assert (node.budget.limit, node.budget.delta) == (8.0, 1e-3)


def test_of_a_second_run_the_owner_is_asked_for_epsilon_and_no_delta_is_written(
    peerpoise: Call, experiment: Path, tmp_path: Path
) -> None:
    """At a δ that the author of run.toml chose, what the data have spent could count for next to
    nothing.
    """
    packed(peerpoise, experiment, tmp_path / "out")
    host = ("--host", "a=127.0.0.1:7443", "--data", "a=ward:data.npz", "--out", tmp_path / "second")
    known = ("--federation", tmp_path / "out" / "federation")
    lax = options("task.data=own", "privacy.delta=0.9")
    assert peerpoise("pack", experiment, *host, *known, *lax).code == 0
    written = (tmp_path / "second" / "a" / "node.toml").read_text(encoding="utf-8")
    budget = load(NodeConfig, [tmp_path / "second" / "a" / "node.toml"], environ={}).budget
    assert (budget.epsilon, budget.delta) == (None, 1e-5)
    assert "budget.delta, as in earlier runs" in " ".join(written.replace("#", "").split())


@pytest.mark.parametrize(
    "settings", [("privacy.mode=none", "privacy.epsilon="), ("privacy.insecure_seed=1",)], ids=str
)
def test_where_no_number_can_be_kept_pack_writes_the_word(
    peerpoise: Call, experiment: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    home = packed(peerpoise, experiment, tmp_path / "out", *settings)
    assert load(NodeConfig, [home / "node.toml"], environ={}).budget.epsilon == "unlimited"
    assert "nothing bounds what they give away" in (home / "README.txt").read_text(encoding="utf-8")
    code, said = run(peerpoise, home, "budget.epsilon=8")
    assert (code, 'set budget.epsilon = "unlimited"' in said) == (78, True), (
        "a number is never passed over"
    )


@pytest.mark.parametrize("value", ["inf", "nan", "0", "-1", '"all"'])
def test_only_a_positive_number_or_the_word(
    peerpoise: Call, experiment: Path, tmp_path: Path, value: str
) -> None:
    home = packed(peerpoise, experiment, tmp_path / "out")
    code, said = run(peerpoise, home, f"budget.epsilon={value}")
    assert (code, "budget.epsilon" in said) == (78, True)


@pytest.mark.parametrize(("epsilon", "said"), [(WEAK + 1, True), (WEAK, False)])
def test_the_bound_of_an_epsilon_that_promises_nothing(
    peerpoise: Call, experiment: Path, epsilon: float, said: bool
) -> None:
    words = options(f"privacy.epsilon={epsilon}")
    assert (PROMISES_NOTHING in peerpoise("config", "check", experiment, *words).err) is said


@pytest.mark.parametrize(("settings", "said"), [(WEAK_RUN, True), (HARMLESS, False)], ids=str)
def test_a_planned_epsilon_that_promises_nothing_is_a_warning_everywhere(
    peerpoise: Call, experiment: Path, tmp_path: Path, settings: tuple[str, ...], said: bool
) -> None:
    words = options(*settings)
    assert (PROMISES_NOTHING in peerpoise("config", "check", experiment, *words).err) is said
    planned = json.loads(peerpoise("plan", experiment, *words, "--json").out)
    assert (PROMISES_NOTHING in (planned["privacy"]["warning"] or "")) is said
    folder = tmp_path / "simulated"
    simulated = peerpoise("simulate", experiment, *words, "--folder", folder, "--json")
    assert (PROMISES_NOTHING in simulated.err) is said
    assert (PROMISES_NOTHING in (json.loads(simulated.out)["privacy"]["warning"] or "")) is said
    home = packed(peerpoise, experiment, tmp_path / "out", *settings)
    doctor = json.loads(peerpoise("doctor", "--config", home / "node.toml", "--json").out)
    assert any(PROMISES_NOTHING in it["text"] for it in doctor["findings"]) is said
    assert (PROMISES_NOTHING in run(peerpoise, home)[1]) is said
    written = (home / "state" / "journal.jsonl").read_text(encoding="utf-8")
    assert (PROMISES_NOTHING in written) is said
