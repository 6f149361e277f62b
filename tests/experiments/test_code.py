"""Which code a cell's figures depend on."""

from __future__ import annotations

import ast

import pytest

from node.experiments.sweep import code


def test_what_computes_is_in_it_and_what_shows_is_not():
    found = code.reached(code.START, "node.algorithms.dpdl", "node.tasks.classification")
    assert {
        "node.experiments.in_process",
        "node.maths.mixing",
        "node.maths.cosine",
        "node.privacy.gate",
        "node.tasks.classification",
        "node.models.images",
        "node.data.idx",
        "peer.topology",
        "node.algorithms.dpdl",
        "node.data.partition",
    } <= found
    assert not found & {
        "node.algorithms.xavg",
        "node.records.journal",
        "node.config",
        "node.cli.app",
        "node.experiments.sweep.loop",
    }


def test_algorithms_have_versions_of_their_own():
    assert code.version("dpdl") != code.version("xavg")
    assert code.version("dp-xavg") == code.version("xavg")


def test_so_have_tasks():
    assert code.version("xavg") != code.version("xavg", "causal-lm")
    assert not any(
        "node.llm" in name for name in code.reached(code.START, "node.tasks.classification")
    )
    assert "node.llm.layers" in code.reached(code.START, "node.tasks.causal_lm")


BEFORE = {
    "mean": "def mean(x):\n    return sum(x) / len(x)\n\n\ndef spread(x):\n    return max(x) - "
    "min(x)\n",
    "use": "from node.mean import mean, spread\n\nclass Use:\n    def run(self, x):\n        "
    "self.x = mean(x)\n",
}
SAME = {
    "words": {
        "mean": '"""Other words."""\ndef mean(x):\n    """More."""\n    return (sum(x)  # '
        "aside\n / len(x))\n"
        "def spread(x): return max(x) - min(x)\n",
        "use": BEFORE["use"],
    },
    "annotations": {
        "mean": "T: TypeAlias = list\nM = TypeVar('M')\ndef mean(x: T[M]) -> M:\n    return sum(x) / len(x)\n"
        "def spread(x: T[M]) -> M:\n    return max(x) - min(x)\n",
        "use": "from node.mean import mean, spread\n\nclass Use:\n    @overload\n    def run(self): ...\n"
        "    def run(self, x: int) -> None:\n        self.x: int = mean(x)\n",
    },
    "a moved file": {
        "use": BEFORE["use"].replace("node.mean", "node.maths.average"),
        "maths.average": BEFORE["mean"],
    },
    "other names": {
        "mean": BEFORE["mean"]
        .replace("mean", "average")
        .replace("(x", "(values")
        .replace("x)", "values)")
        .replace("mavalues", "max"),
        "use": BEFORE["use"]
        .replace("mean", "average")
        .replace("Use", "User")
        .replace("self.x", "self.result"),
    },
}
OTHER = {
    "another function of ours": {**BEFORE, "use": BEFORE["use"].replace("= mean", "= spread")},
    "another function of Python's": {**BEFORE, "mean": BEFORE["mean"].replace("sum", "max")},
    "another operator": {**BEFORE, "mean": BEFORE["mean"].replace("/", "*")},
    "a field's type": {**BEFORE, "mean": "class A:\n    x: int = 1\n" + BEFORE["mean"]},
    "one module more": {**BEFORE, "more": "X = 1\n"},
}


def digest(sources):
    return code.digest(ast.parse(text) for text in sources.values())


@pytest.mark.parametrize("sources", SAME.values(), ids=SAME)
def test_words_files_and_names_do_not_count(sources):
    assert digest(sources) == digest(BEFORE)


@pytest.mark.parametrize("sources", OTHER.values(), ids=OTHER)
def test_what_runs_does(sources):
    assert digest(sources) != digest(BEFORE)


def test_what_an_error_says_does_not_count():
    texts = (
        "def f():\n    raise ValueError(f'no {x}')\n",
        "def f():\n    raise ValueError(f'not one {x}')\n",
    )
    assert len({code.digest([ast.parse(text)]) for text in texts}) == 1
