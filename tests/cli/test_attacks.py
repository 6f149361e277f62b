"""Attackers on the command line: never by accident, and every mistake in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kit.command import Call, Result
from node.config import AttackSection, IdentitySection, NodeConfig, load, write


def one_sentence(result: Result, *parts: str) -> None:
    assert result.code == 78, result.err
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, result.err
    assert all(part in lines[0] for part in parts), lines[0]


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["attack.name=sabotage"], "Unknown attack 'sabotage'; choose one of alie, dissensus"),
        (["attack.nodes=1"], "experiment.attack.name: Field required"),
        (["attack.name=zero", "attack.nodes=4"], "attack.nodes = 4 of 3 nodes; 1 to 2 can attack"),
        (["attack.name=zero", "attack.nodes=0"], "attack.nodes = 0 of 3"),
        (
            ["attack.name=zero", "attack.nodes=3"],
            "all 3 nodes attack and no honest node is left",
        ),
        (["attack.name=zero", 'attack.nodes=["n0","n1","n2"]'], "no honest node is left"),
        (
            ["attack.name=zero", 'attack.nodes=["n0","n7"]'],
            "attack.nodes names n7, but the nodes are n0 … n2",
        ),
        (["attack.name=zero", 'attack.nodes=["n0","n0"]'], "names a node twice"),
        (["attack.name=zero", "attack.nodes=many"], "experiment.attack.nodes"),
        (["attack.name=zero", "attack.factor=3"], "attack.factor: unknown key (zero)"),
        (
            ["attack.name=label-flip", "attack.share=2"],
            "attack.share: Input should be less than or equal to 1",
        ),
        (
            ["attack.name=label-flip", "attack.words=state"],
            "attack.words: unknown key (label-flip)",
        ),
        (
            ["attack.name=alie", 'attack.words=["model"]'],
            "attack.words.0: Input should be 'answer', 'question'",
        ),
        (
            ["attack.name=state", "attack.lie=label-flip"],
            "attack.lie = 'label-flip' is no message attack",
        ),
        (["attack.name=state", "attack.lie=state"], "attack.lie = 'state' is no message attack"),
        (["attack.name=state", "attack.lie=lies"], "Unknown attack 'lies'"),
        (["attack.name=state", "attack.z=1"], "attack.z: unknown key (sign-flip)"),
        (
            ["attack.name=state", 'attack.words=["answer"]'],
            "attack.words has no place in the attack state",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes(peerpoise: Call, experiment: Path, settings: list[str], part: str) -> None:
    options = [word for setting in settings for word in ("--set", f"experiment.{setting}")]
    one_sentence(peerpoise("config", "check", experiment, *options), part)
    one_sentence(
        peerpoise("simulate", experiment, *options, "--folder", experiment.parent / "run"), part
    )


@pytest.mark.parametrize("command", ["up", "simulate"])
def test_a_data_attack_needs_labels(
    peerpoise: Call, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    page = Path(__file__).parents[2] / "docs" / "own-task.md"
    code = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    (tmp_path / "slope_without_labels.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    call = (
        command,
        experiment,
        "--task",
        "slope_without_labels:make_task",
        "--folder",
        tmp_path / "run",
    )
    attack = ("--set", "experiment.attack.name=label-flip")
    one_sentence(
        peerpoise(*call, *attack), "label-flip can't poison the examples", "they have no labels"
    )
    assert not (tmp_path / "run").exists()


def test_centralized_has_nobody_who_could_attack(peerpoise: Call, experiment: Path) -> None:
    options = ("--set", "algorithm.name=centralized", "--set", "experiment.attack.name=zero")
    one_sentence(peerpoise("simulate", experiment, *options), "nobody attacks it")


def test_pack_prepares_honest_hosts(peerpoise: Call, experiment: Path, tmp_path: Path) -> None:
    call = ("pack", experiment, "--host", "a=h:1", "--host", "b=h:2", "--out", tmp_path / "out")
    one_sentence(
        peerpoise(*call, "--set", "experiment.attack.name=zero"), "pack prepares honest hosts"
    )
    assert not (tmp_path / "out").exists()


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """node.toml of nobody's."""
    nowhere = IdentitySection(key=tmp_path / "k", certificate=tmp_path / "c", ca=tmp_path / "a")
    write(NodeConfig(name="n0", identity=nowhere), tmp_path / "node.toml")
    return tmp_path / "node.toml"


def test_a_daemon_attacks_only_where_somebody_says_that_it_is_a_test(
    peerpoise: Call, node: Path
) -> None:
    """By option, by [attack] in its file, by --set or by the environment."""
    asked = ("run", "--config", node)
    said = "would attack its neighbors (alie)", "add --i-am-testing"
    one_sentence(peerpoise(*asked, "--attack", "alie"), *said)
    one_sentence(peerpoise(*asked, "--set", "attack.name=alie"), *said)
    one_sentence(peerpoise(*asked, "--attack", "alie", "--i-am-testing"), "run.toml")
    node.write_text(
        node.read_text(encoding="utf-8") + '\n[attack]\nname = "alie"\n', encoding="utf-8"
    )
    one_sentence(peerpoise(*asked), *said)
    one_sentence(peerpoise(*asked, "--i-am-testing"), "run.toml")


def test_the_environment_makes_nobody_an_attacker(
    peerpoise: Call, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEERPOISE_ATTACK__NAME", "zero")
    one_sentence(peerpoise("run", "--config", node), "would attack its neighbors (zero)")


def test_options_of_the_attack(peerpoise: Call, node: Path) -> None:
    one_sentence(
        peerpoise("run", "--config", node, "--attack-set", "z=1", "--i-am-testing"), "attack.name"
    )
    settings = ["attack.name=alie", "attack.z=0.5"]
    assert load(NodeConfig, [node], settings).attack == AttackSection(name="alie", z=0.5)  # type: ignore[call-arg]


def test_table_and_json_name_the_attackers(
    peerpoise: Call, experiment: Path, tmp_path: Path
) -> None:
    attack = (
        "--set",
        "privacy.mode=none",
        "--set",
        "privacy.epsilon=",
        "--set",
        "experiment.attack.name=zero",
    )
    shown = peerpoise("simulate", experiment, *attack, "--folder", tmp_path / "a")
    assert shown.code == 0, shown.err
    assert "ATTACKED by n0: zero" in shown.out, "while it runs"
    assert "ATTACKED by n0 (zero)" in " ".join(shown.out.split()), "in the table"
    found = json.loads(
        peerpoise("simulate", experiment, *attack, "--folder", tmp_path / "b", "--json").out
    )
    assert (found["attackers"], found["attack"]) == (["n0"], "zero")
    assert "attack" not in (tmp_path / "a" / "run.toml").read_text()


def test_doctor_names_an_attacker(peerpoise: Call, experiment: Path, tmp_path: Path) -> None:
    packed = peerpoise(
        "pack",
        experiment,
        "--host",
        "a=127.0.0.1:7443",
        "--host",
        "b=h:1",
        "--out",
        tmp_path / "out",
    )
    assert packed.code == 0, packed.err
    node = tmp_path / "out" / "a" / "node.toml"
    assert "ATTACKS" not in peerpoise("doctor", "--config", node).out
    node.write_text(node.read_text() + '\n[attack]\nname = "alie"\n')
    assert "ATTACKS its neighbors (alie)" in " ".join(
        peerpoise("doctor", "--config", node).out.split()
    )
    node.write_text(node.read_text() + "y = 1\n")
    assert "attack.y: unknown key (alie)" in peerpoise("config", "check", node).err
