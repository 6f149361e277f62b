"""Run folders: their names, and two runs that want one at the same moment."""

from __future__ import annotations

import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kit.command import Call
from node.config import ExperimentConfig, PrivacySection, RunConfig, TrainSection, load
from node.experiments import continued, local_cluster
from peer.errors import StorageError

CONFIG = ExperimentConfig.model_validate({"run": {"name": "small"}, "privacy": {"mode": "none"}})


def test_runs_of_one_second_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: local_cluster._run_folder(CONFIG, None), range(16)))
    assert len(set(folders)) == 16
    assert all(folder.name.startswith("small-") for folder in folders)
    assert any(folder.name.endswith("-2") for folder in folders)


def test_of_two_that_found_a_folder_empty_one_goes_on(tmp_path: Path) -> None:
    def claim(number: int) -> str:
        try:
            local_cluster._run_folder(CONFIG, tmp_path / "run")
            return "mine"
        except StorageError as error:
            return str(error)

    for _ in range(20):
        with ThreadPoolExecutor(4) as pool:
            outcomes = list(pool.map(claim, range(4)))
        assert outcomes.count("mine") == 1
        assert all(text.endswith("choose another folder or move it away.") or "just started" in text
                   for text in outcomes if text != "mine")  # fmt: skip
        (tmp_path / "run" / "nodes").rmdir()


def test_a_folder_that_can_not_be_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match=r"runs.* can't be written: "):
        local_cluster._run_folder(CONFIG, None)


@pytest.mark.parametrize(
    "name",
    ["a$b", "$HOME", "`id`", "[bold]x", "%s {x}", "a b", "-x", "~", "läuft jetzt", "..", "a:b"],
)
def test_odd_names_are_folders(
    peerpoise: Call, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = ("--set", f"run.name={name}", "--set", "privacy.epsilon=", "--set", "privacy.sigma=2")
    result = peerpoise("simulate", experiment, *changes, "--set", "train.rounds=1")
    assert result.code == 0, result.err
    [folder] = (tmp_path / "runs").iterdir()
    assert folder.name.startswith(f"{name}-2")
    assert peerpoise("eval", folder).code == 0


def test_continue_writes_what_a_person_would_have(
    peerpoise: Call, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What followed from the first run's graph and rounds follows anew in the second's."""
    monkeypatch.chdir(tmp_path)
    kind = ("algorithm.name=muffliato", "topology.kind=ring", "privacy.mode=none", "train.rounds=1")
    words = [word for it in (*kind, "privacy.epsilon=") for word in ("--set", it)]
    hosts = [
        word for k, name in enumerate("abcde") for word in ("--host", f"{name}=127.0.0.1:{k + 1}")
    ]
    assert peerpoise("pack", experiment, *words, *hosts, "--out", "one").code == 0
    packed = load(RunConfig, [tmp_path / "one" / "run.toml"], environ={})
    assert packed.algorithm.options["gossip"] == 3
    assert peerpoise("simulate", experiment, *words, "--folder", "model").code == 0
    Path("model/model.safetensors").rename("one/model.safetensors")
    changes = ("--set", "topology.kind=full", "--set", "train.rounds=7")
    assert peerpoise("continue", "one", *changes).code == 0
    written = tomllib.loads(Path("next.toml").read_text(encoding="utf-8"))
    assert written["algorithm"] == {"name": "muffliato"}
    assert written["train"] == {"rounds": 7, "start": "next.safetensors"}
    assert written["topology"] == {"kind": "full"}
    assert written["run"] == {"name": "test"}
    assert written["experiment"] == {"nodes": 5, "seed": 1}
    assert Path("next.safetensors").read_bytes() == Path("one/model.safetensors").read_bytes()
    assert peerpoise("config", "check", "next.toml").code == 0


def test_what_was_said_of_the_first_start_is_not_said_of_the_second() -> None:
    """The model that a second run starts from was learned from private data."""
    train = TrainSection(start=Path("first.safetensors"), public_start=True)
    run = RunConfig(train=train, privacy=PrivacySection(mode="none"))
    assert (
        continued._values(run, [], {})["train"]
        .keys()
        .isdisjoint({"start", "start_digest", "public_start"})
    )


def test_a_second_run_has_no_warm_up() -> None:
    """Its model had one."""
    options = {"name": "fgrpo", "warmup": {"rounds": 20, "lr": 0.003}, "questions": 4}
    run = RunConfig.model_validate(
        {
            "algorithm": options,
            "task": {"name": "reasoning", "model": "bytes", "data": "questions"},
            "privacy": {"mode": "none"},
            "train": {"rounds": 50},
        }
    )
    values = continued._values(run, [], {})
    assert values["algorithm"] == {"name": "fgrpo", "questions": 4}
    assert values["train"]["rounds"] == 30
