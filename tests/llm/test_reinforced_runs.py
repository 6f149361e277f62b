"""Short runs by reinforcement of every kind: adapters, bfloat16, blocks, questions of a file."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from kit.own_families import sums, written
from node.config import ExperimentConfig
from node.data.families import Item
from node.data.texts import public
from node.experiments.in_process import make_learners, simulate
from node.experiments.resolve import resolve
from node.experiments.sweep.trial import figures
from node.maths.policy import Draws
from node.randomness import Keys
from node.tasks.reasoning import Reasoning
from peer.errors import ConfigurationError, DataError, TaskError

ALGORITHM = {
    "name": "fgrpo",
    "questions": 2,
    "num_generations": 3,
    "max_completion_length": 4,
    "local_steps": 1,
    "audit": {"questions": 2},
}


def config(**sections: dict[str, Any]) -> ExperimentConfig:
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
    return ExperimentConfig.model_validate(values)


def run(folder: Path, **sections: dict[str, Any]) -> Any:
    return simulate(config(**sections), folder)


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
    "texts that end an answer": {
        "task": {"reasoning": {"families": ["largest", "sort"], "stop": ["\n"]}},
        "algorithm": {**ALGORITHM, "warmup": {"rounds": 1}},
    },
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


@pytest.mark.parametrize(("kind", "warm_up", "steps"), [("KL", 1, 1), ("shared answers", 0, 2)])
def test_cells_count_the_tokens_that_were_drawn(
    kind: str, warm_up: int, steps: int, tmp_path: Path
) -> None:
    """None in the warm-up; what SAPO draws in order to share it counts."""
    summary = run(tmp_path, **KINDS[kind], train={"rounds": 3, "evaluate_every": 1})
    found = figures(tmp_path, summary)["tokens"]
    assert found[:warm_up] == [0] * warm_up
    answers, longest = 2 * 3 * steps, 16 if kind == "shared answers" else 4
    gained = [b - a for a, b in pairwise([0, *found])][warm_up:]
    assert all(answers <= tokens <= answers * longest for tokens in gained)
    assert max(gained) > answers * longest / 2, "an untrained policy rarely ends an answer"


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


def test_no_question_of_a_file_is_learned_and_tested(tmp_path: Path) -> None:
    """However often it stands there."""
    file = file_of(tmp_path)
    file.write_text("\n".join([file.read_text()] * 10), encoding="utf-8")
    task = config(**from_file(file, gain="reported")).task
    train, test = public(task)
    asked = [{*part.columns["q"]} for part in (train, test)]
    assert not asked[0] & asked[1]
    assert len(asked[0] | asked[1]) == 60
    assert len(test) == 10 * len(asked[1]) > 0


def test_questions_of_a_file_can_not_be_audited(tmp_path: Path) -> None:
    """Whatever a column says of their family."""
    with pytest.raises(ConfigurationError, match=r'set algorithm\.gain = "reported"'):
        run(tmp_path / "run", **from_file(file_of(tmp_path)))


def test_questions_that_nobody_is_asked_are_one_sentence(tmp_path: Path) -> None:
    """Their column is not named, or one of them is empty."""
    sections = from_file(file := file_of(tmp_path), gain="reported")
    text = {**sections["task"]["text"], "prompt": ()}
    with pytest.raises(ConfigurationError, match="name the columns of your own"):
        run(tmp_path / "run", **{**sections, "task": {**sections["task"], "text": text}})
    for empty in ("", None, " "):
        lines = file.read_text(encoding="utf-8").splitlines()
        lines[7] = json.dumps({"q": empty, "a": "8", "family": "sort"})
        file.write_text("\n".join(lines), encoding="utf-8")
        with pytest.raises(DataError, match=r"The question whose right answer is '8' is empty"):
            run(tmp_path / "run", **sections)


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
        ({"task": {"text": {"length": 10, "test_size": 6, "embeddings": True}}}, "more than task.text.length = 10; raise that"),
        ({"task": {"text": {"length": 48, "test_size": 6, "template": "Q {question} A {answer}"}}}, "'answer' is the answer, so that prompt and template can't show it"),
        ({"algorithm": {**ALGORITHM, "max_completion_length": 3}}, "the family 'sort' has at most algorithm.max_completion_length = 3"),
        ({"algorithm": {**ALGORITHM, "audit": {"questions": 1}}}, "convicts nobody; ask more questions"),
    ],
    ids=[
        "a mode", "async", "another task", "a family", "a family that is not allowed",
        "questions that are cut", "answers that are shown", "answers that are cut", "audits that convict nobody",
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_sentence(
    sections: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        run(tmp_path, **sections)
    assert "\n" not in str(caught.value)


JUDGE = "def score(item, text):\n    return float(len(text) == len(item['answer']))\n"
"""Any answer as long as the right one."""


def judged(file: Path, scorer: str, **algorithm: Any) -> dict[str, dict[str, Any]]:
    sections = from_file(file, **{"gain": "reported", **algorithm})
    return {**sections, "task": {**sections["task"], "reasoning": {"scorer": scorer}}}


def test_a_scorer_says_what_is_right_of_questions_of_a_file(tmp_path: Path) -> None:
    """Whatever a column says of their family: here one of ours, whose one answer does not count."""
    name = written(tmp_path / "judge.py", JUDGE)
    sections = judged(file_of(tmp_path), name)
    assert run(tmp_path / "run", **sections).complete
    nodes = make_learners(resolve(config(**sections)))
    task = nodes["n0"].task
    assert isinstance(task, Reasoning)
    policy = task.policy(Draws("n0", 1, Keys.insecure(0, "n0")))
    items = [Item("What is 30 + 1?", "31")] * 3
    assert policy._judged("sort", items, ["31", "77", "7"]) == [1.0, 1.0, 0.0]
    own = policy._train.take([0])
    assert own.items[0].prompt.startswith("What is ")
    assert own.families == ["sort"]


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("x = 1", "there is no function score"),
        (
            "def score(item, text): return 0.5",
            "score gives 0.5 for the right answer to the first question",
        ),
        ("def score(item, text): return 1 / 0", "score, given .* raised ZeroDivisionError"),
    ],
)
def test_a_scorer_with_a_mistake_is_one_sentence(code: str, sentence: str, tmp_path: Path) -> None:
    name = written(tmp_path / "judge.py", code)
    with pytest.raises(TaskError, match=f"The scorer {name!r}: {sentence}") as caught:
        run(tmp_path / "run", **judged(file_of(tmp_path), name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"scorer": "judge"}, "scorer is own:package.module or own:FILE.py"),
        ({"scorer": "own:judge", "match": "numeric"}, "scorer and match both say what is right"),
    ],
)
def test_a_scorer_that_is_none_is_refused(section: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        config(task={"reasoning": section})


def test_families_bring_their_own_scorers(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is for questions of a file"):
        run(tmp_path, task={"reasoning": {"families": ["largest", "sort"], "scorer": "own:judge"}})


def test_by_a_scorer_of_ones_own_nobody_else_can_audit(tmp_path: Path) -> None:
    name = written(tmp_path / "judge.py", JUDGE)
    with pytest.raises(ConfigurationError, match=r'set algorithm\.gain = "reported"'):
        run(tmp_path / "run", **judged(file_of(tmp_path), name, gain="audited"))


# families of somebody's own


@pytest.fixture
def name(tmp_path: Path) -> str:
    return sums(tmp_path)


def with_family(name: str, **audit: Any) -> dict[str, dict[str, Any]]:
    return {
        "task": {"reasoning": {"families": [name, "sort"]}},
        "algorithm": {**ALGORITHM, "audit": {"questions": 2, **audit}},
    }


def test_a_family_with_a_scorer_is_learned_and_audited(name: str, tmp_path: Path) -> None:
    """By both nodes, each from its own copy of the code."""
    summary = run(tmp_path / "run", **with_family(name, score="sampled"))
    assert summary.complete
    assert summary.diverged == []
    assert 0 <= summary.task_metrics["exact_match"].mean <= 1
    assert {"exact_match_sort", metric_of(name)} <= {*summary.task_metrics}
    again = run(tmp_path / "again", **with_family(name, score="sampled"))
    assert again.params_digest == summary.params_digest
    journal = (tmp_path / "run" / "nodes" / "n0" / "journal.jsonl").read_text(encoding="utf-8")
    rounds = [line for line in map(json.loads, journal.splitlines()) if line["event"] == "round"]
    assert all(line["diagnostics"]["scorer_failures"] == 0 for line in rounds)
    assert all(line["diagnostics"]["audit_tokens"] > 1000 for line in rounds)


def metric_of(name: str) -> str:
    return "exact_match_" + re.sub("[^a-z0-9]", "_", name.lower())


@pytest.mark.parametrize("algorithm", ["grpo", "sapo"])
def test_other_algorithms_learn_by_a_scorer_too(algorithm: str, name: str, tmp_path: Path) -> None:
    options = {"name": algorithm, "questions": 2, "num_generations": 3, "local_steps": 1}
    assert run(tmp_path / "run", **{**with_family(name), "algorithm": options}).complete


def test_a_scorer_is_audited_by_what_is_drawn_or_not_at_all(name: str) -> None:
    """Known before anything runs, and before a model is made."""
    with pytest.raises(ConfigurationError, match=r'set algorithm\.audit\.score = "sampled"'):
        resolve(config(**with_family(name))).checked()
    resolve(config(**with_family(name, score="sampled"))).checked()


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ('return {"question": "1+1=", "answer": "2"}', "so few different questions that none is"),
        (
            'random.Random(int.from_bytes(seed.to_bytes(4, "big")))\n'
            '    return {"question": f"{seed}=", "answer": "2"}',
            r"sample, given 144115188075855872, raised OverflowError",
        ),
    ],
    ids=["one question", "not any seed"],
)
def test_a_family_that_auditors_can_not_use_is_one_sentence(
    code: str, sentence: str, tmp_path: Path
) -> None:
    name = written(tmp_path / "one.py", f"import random\n\ndef sample(seed):\n    {code}\n")
    with pytest.raises((ConfigurationError, TaskError), match=sentence) as caught:
        run(tmp_path / "run", **with_family(name))
    assert "\n" not in str(caught.value)


def test_figures_of_two_families_have_two_names(tmp_path: Path) -> None:
    code = 'def sample(seed):\n    return {"question": f"{seed}=", "answer": str(seed)[-3:]}\n'
    names = [written(tmp_path / name, code) for name in ("a_b.py", "a-b.py")]
    metrics = run(tmp_path / "run", task={"reasoning": {"families": names}}).task_metrics
    assert len([name for name in metrics if name.startswith("exact_match_")]) == 2


def test_a_mistake_in_a_family_is_one_sentence(tmp_path: Path) -> None:
    name = written(tmp_path / "sums.py", "def sample(seed):\n    return seed / 0\n")
    with pytest.raises(TaskError, match=r"sample, given 0, raised ZeroDivisionError") as caught:
        run(tmp_path / "run", **with_family(name))
    assert "\n" not in str(caught.value)
