"""Short runs by reinforcement of every kind: adapters, bfloat16, blocks, questions of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from node.config import ExperimentConfig
from node.experiments.in_process import simulate
from peer.errors import ConfigurationError, DataError

ALGORITHM = {
    "name": "fgrpo",
    "questions": 2,
    "num_generations": 3,
    "max_completion_length": 4,
    "local_steps": 1,
    "audit": {"questions": 2},
}


def run(folder: Path, **sections: dict[str, Any]) -> Any:
    values: dict[str, dict[str, Any]] = {
        "algorithm": ALGORITHM,
        "topology": {"kind": "full"},
        "task": {
            "name": "reasoning",
            "model": "bytes",
            "data": "questions",
            "reasoning": {"families": ["largest", "sort"]},
            "text": {"length": 32, "test_size": 6, "embeddings": True},
        },
        "train": {"rounds": 3, "evaluate_every": 0},
        "privacy": {"mode": "none", "batch": 2},
        "experiment": {"nodes": 2, "partition": "column", "column": "family"},
    }
    for name, section in sections.items():
        values[name] = section if name == "algorithm" else {**values.get(name, {}), **section}
    return simulate(ExperimentConfig.model_validate(values), folder)


KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "adapters": {
        "task": {"text": {"length": 32, "test_size": 6, "lora_rank": 2}},
        "algorithm": {**ALGORITHM, "lr": 1e-2},
    },
    "bfloat16": {"task": {"text": {"length": 32, "test_size": 6, "dtype": "bfloat16"}}},
    "parts of a batch": {
        "task": {"text": {"length": 32, "test_size": 6, "micro_batch": 4, "embeddings": True}}
    },
    "blocks": {"algorithm": {**ALGORITHM, "block": {"layers_per_block": 2, "steps": 1}}},
    "KL": {"algorithm": {**ALGORITHM, "beta": 0.1, "warmup": {"rounds": 1}}},
    "own history": {"algorithm": {**ALGORITHM, "advantage": "history"}},
    "a warm-up alone": {"algorithm": {**ALGORITHM, "warmup": {"rounds": 9}}},
    "shared answers": {
        "algorithm": {"name": "sapo", "questions": 2, "num_generations": 3, "local_steps": 1}
    },
    "each alone": {"algorithm": {"name": "grpo", "questions": 2, "num_generations": 3}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_runs(kind: str, tmp_path: Path) -> None:
    summary = run(tmp_path, **KINDS[kind])
    assert summary.complete
    assert summary.diverged == []
    assert 0 <= summary.task_metrics["exact_match"].mean <= 1


def test_adapters_are_all_that_travels(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole").bytes_sent.mean
    adapters = run(tmp_path / "adapters", **KINDS["adapters"]).bytes_sent.mean
    assert adapters < 0.1 * whole


def file_of(folder: Path, rows: int = 60) -> Path:
    file = folder / "questions.jsonl"
    lines = [{"q": f"What is {k} + 1?", "a": str(k + 1), "family": "sort"} for k in range(rows)]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return file


def from_file(file: Path, **algorithm: Any) -> dict[str, dict[str, Any]]:
    return {
        "task": {
            "data": "file",
            "path": file,
            "text": {"prompt": ("q",), "answer": "a", "length": 40, "test_size": 6},
            "reasoning": {"match": "numeric"},
        },
        "algorithm": {**ALGORITHM, **algorithm},
        "experiment": {"nodes": 2, "partition": "iid", "column": ""},
    }


def test_questions_of_a_file(tmp_path: Path) -> None:
    summary = run(tmp_path / "run", **from_file(file_of(tmp_path), gain="reported"))
    assert summary.complete
    assert summary.task_metrics["exact_match"].mean is not None


def test_questions_of_a_file_can_not_be_audited(tmp_path: Path) -> None:
    """Whatever a column says of their family."""
    with pytest.raises(ConfigurationError, match=r'set algorithm\.gain = "reported"'):
        run(tmp_path / "run", **from_file(file_of(tmp_path)))


def test_a_line_that_is_cut_off_is_one_sentence(tmp_path: Path) -> None:
    file = file_of(tmp_path)
    file.write_text(file.read_text()[:-7], encoding="utf-8")
    with pytest.raises(DataError, match=r"questions.jsonl"):
        run(tmp_path / "run", **from_file(file, gain="reported"))


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"privacy": {"mode": "strict", "sigma": 1.0, "delta": 1e-3}}, "has no differential privacy"),
        ({"sync": {"mode": "async"}}, "an update belongs to its round"),
        ({"task": {"name": "causal-lm", "text": {"prompt": ("question",), "answer": "answer"}}}, "the task asks no questions"),
        ({"task": {"reasoning": {"families": ["sort", "chess"]}}}, "Unknown family 'chess'"),
        ({"task": {"reasoning": {"families": ["gym:n_queens"]}}}, "is none of base_conversion"),
    ],
    ids=["a mode", "async", "another task", "a family", "a family that is not allowed"],
)  # fmt: skip
def test_what_does_not_go_together_is_one_sentence(
    sections: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        run(tmp_path, **sections)
    assert "\n" not in str(caught.value)
