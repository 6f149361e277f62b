"""Where gradients fall to the slow loop: `doctor`, `bench` and `run` say so, which layer is why, and
what to use instead.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kit.command import Call, examine
from kit.small_task import Small
from node.cli import bench
from node.maths import backends
from node.records import journal

TASK = """
import torch
from torch import nn
from torch.nn import functional
from peerpoise import module_task

def build():
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(DROPOUT), nn.Linear(8, 3))

def make_task(run, data):
    x = torch.randn(len(data), 4, generator=torch.Generator().manual_seed(0))
    return module_task(build, (x, (x[:, 0] > 0).long()), functional.cross_entropy)
"""
WHY = "vmap can't take the layer '1' (Dropout)"
DO = "To be faster, leave out dropout"


class Last(nn.Module):
    """The last step of a sequence [n, T, 4] -> [n, 3]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = self.layer(x)
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        logits: torch.Tensor = self.head(outputs[:, -1])
        return logits


class Branch(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y if y.sum() > 0 else -y


@pytest.mark.parametrize(
    ("layer", "why", "instead"),
    [
        (nn.GRU(4, 8, batch_first=True), "the layer 'layer' (GRU)", "peerpoise.module_task"),
        (
            nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5)),
            "the layer 'layer.1' (Dropout)",
            "leave out dropout",
        ),
        (Branch(4, 8), "the layer 'layer' (Branch)", "branches or shapes that depend on values"),
        (nn.Linear(4, 8), "", ""),
    ],
)
def test_the_layer_is_named(layer: nn.Module, why: str, instead: str) -> None:
    task = Small(Last(layer), torch.randn(9, 5, 4), torch.zeros(9, dtype=torch.int64))
    task.module.train()
    choice = backends.choose("auto", task)
    assert (choice.backend == "loop") == bool(why)
    assert why in choice.slow
    assert instead in choice.slow
    assert bool(choice.slow) == bool(why)


@pytest.fixture
def packed(
    peerpoise: Call, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """An experiment with a module that vmap can't take; and in `packed` two hosts of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "slow_one", raising=False)
    (tmp_path / "slow_one.py").write_text(TASK.replace("DROPOUT", "0.5"), encoding="utf-8")
    text = experiment.read_text(encoding="utf-8").replace(
        "[task]\n", '[task]\nname = "slow_one:make_task"\n'
    )
    experiment.write_text(text, encoding="utf-8")
    hosts = ("--host", "a=127.0.0.1:7443", "--host", "b=127.0.0.1:7444")
    assert peerpoise("pack", experiment, *hosts).code == 0
    return experiment


def test_doctor_bench_and_run_say_it(
    peerpoise: Call, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, findings = examine(peerpoise, "--config", tmp_path / "packed" / "a" / "node.toml")
    (finding,) = findings["gradients"]
    assert finding["level"] == "warning"
    assert WHY in finding["text"]
    assert DO in finding["text"]
    assert "peerpoise bench" in finding["do"]

    monkeypatch.setattr(bench, "SECONDS", 0.001)
    shown = " ".join(peerpoise("bench", packed).out.split())
    assert "times that" in shown, "how slow it is beside a plain pass"
    assert WHY in shown
    assert DO in shown

    ended = peerpoise("simulate", packed, "--folder", "run")
    assert f"{WHY} (" in ended.err
    assert DO in ended.err
    events = journal.read(tmp_path / "run" / "nodes" / "n0" / "journal.jsonl")
    (event,) = [event for event in events if event["event"] == "backend"]
    assert WHY in event["reason"]


def test_nothing_is_said_of_a_fast_model(
    peerpoise: Call, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "SECONDS", 0.001)
    assert json.loads(peerpoise("bench", experiment, "--json").out)["slow"] == ""
    hosts = ("--host", "a=127.0.0.1:7443", "--host", "b=127.0.0.1:7444")
    assert peerpoise("pack", experiment, *hosts).code == 0
    _, findings = examine(peerpoise, "--config", tmp_path / "packed" / "a" / "node.toml")
    (finding,) = findings["gradients"]
    assert (finding["level"], finding["text"]) == ("ok", "ghost, which gives what the loop gives")
