"""Which code a cell's figures depend on."""

from __future__ import annotations

import sys

import pytest

from node.sweep import code


def test_what_computes_is_in_it_and_what_shows_is_not():
    found = code.reached(code.START, "node.algorithms.dpdl", "node.tasks.classification")
    assert {
        "node.experiment", "node.maths.mixing", "node.maths.cosine", "node.privacy.door", "node.partition",
        "node.tasks.classification", "node.models.images", "node.data.idx", "peer.topology", "node.algorithms.dpdl",
    } <= found  # fmt: skip
    assert not found & {"node.algorithms.xavg", "node.journal", "node.config", "node.cli", "node.sweep.loop"}


def test_algorithms_have_versions_of_their_own():
    assert code.version("dpdl") != code.version("xavg")
    assert code.version("dp-xavg") == code.version("xavg")


def test_so_have_tasks():
    assert code.version("xavg") != code.version("xavg", "causal-lm")
    assert not any("node.llm" in name for name in code.reached(code.START, "node.tasks.classification"))
    assert "node.llm.layers" in code.reached(code.START, "node.tasks.causal_lm")


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ('"""Other words."""\nX = 1  # a comment\n\n\ndef f():\n    """More."""\n    return (X)\n', True),
        ("X = 2\ndef f():\n    return X\n", False),
        ("X = 1\ndef f():\n    return -X\n", False),
    ],
)
def test_only_what_runs_counts(tmp_path, monkeypatch, text, same):
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, content in (("probe_before", "X = 1\ndef f():\n    return X\n"), ("probe_after", text)):
        (tmp_path / f"{name}.py").write_text(content)
        sys.modules.pop(name, None)
    code._file.cache_clear()
    code._meaning.cache_clear()
    assert (code._meaning("probe_before") == code._meaning("probe_after")) is same
    code._file.cache_clear()
    code._meaning.cache_clear()
