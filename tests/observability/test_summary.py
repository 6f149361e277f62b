"""summary.json: one schema, honest merging, and no ε without what it means."""

import hashlib
import json
import os
import re
import struct
import subprocess
import sys
from io import StringIO
from pathlib import Path

import jsonschema
import pytest
import torch
from pydantic import ValidationError
from rich.console import Console

from node.figures import ACCURACY, LOSS, PERPLEXITY
from node.records import summary
from node.records.summary import (
    Epsilon,
    Privacy,
    Range,
    Releases,
    Seconds,
    Summary,
    TaskMetric,
    task_metric,
)
from peer.errors import DataError, StorageError

SCHEMA = Path(__file__).parents[2] / "docs" / "summary.schema.json"
STRICT = Privacy(mode="strict", batches="independent", delta=1e-3, sigma=2.21, accountant="PLD")


def one(
    name: str = "n0", accuracy: float | None = 0.9, total: float = 7.5, **fields: object
) -> Summary:
    """What one daemon writes."""
    privacy = STRICT.model_copy(
        update={"epsilon": Epsilon(total=total, link=3.25, per_node={name: total})}
    )
    return Summary.model_validate(
        {
            "algorithm": "dpdl",
            "nodes": 3,
            "rounds": 100,
            "topology": "ring",
            "dataset": "digits",
            "seed": 0,
            "headline": "accuracy",
            "privacy": privacy,
            "bytes_sent": Range(mean=100.0, max=100.0),
            "round_seconds": summary.seconds([0.1, 0.2, 0.3]),
            "wall_seconds": 30.0,
            "params_digest": {name: "ab"},
            "task_metrics": measured(name, accuracy),
            "version": "0.1.0",
            "config_digest": "cd",
            "complete": True,
        }
        | fields
    )


def measured(name: str, accuracy: float | None, loss: float = 0.5) -> dict[str, TaskMetric]:
    return {
        "accuracy": task_metric(ACCURACY, {name: accuracy}),
        "loss": task_metric(LOSS, {name: loss}),
    }


def test_the_committed_schema_is_current():
    """After a change: python -c "import node.records.summary as s; print(s.schema(), end='')" >
    docs/summary.schema.json
    """
    assert SCHEMA.read_text() == summary.schema()


def test_the_schema_has_the_fields_the_documents_promise():
    promised = """algorithm nodes rounds topology spectral_gap dataset seed headline consensus_distance privacy
        mixing
        bytes_sent round_seconds wall_seconds params_digest task_metrics algorithm_metrics version config_digest
        insecure ledger attackers attack diverged loss_not_finite
        rounds_run complete test_public"""
    assert set(Summary.model_fields) == set(promised.split())
    assert set(TaskMetric.model_fields) == {"mean", "worst", "per_node", "higher_is_better", "unit"}
    assert set(Epsilon.model_fields) == {"total", "link", "per_node"}
    privacy = (
        "mode batches adjacency unit delta sigma accountant epsilon releases public_validation "
        "insecure_seed budget_reached warning"
    )
    assert set(Privacy.model_fields) == set(privacy.split())


def test_what_is_written_fits_the_schema_and_comes_back(tmp_path):
    written = one(consensus_distance=float("nan"))
    summary.write(tmp_path / "summary.json", written)
    content = json.loads((tmp_path / "summary.json").read_text())
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(content)
    assert content["consensus_distance"] is None
    assert content["task_metrics"]["accuracy"] == {
        "mean": 0.9,
        "worst": 0.9,
        "per_node": {"n0": 0.9},
        "higher_is_better": True,
        "unit": "ratio",
    }
    assert summary.read(tmp_path / "summary.json") == written


@pytest.mark.parametrize(
    "change", [{"speed": 1}, {"mixing": "wet"}, {"nodes": 0}, {"rounds": None}]
)
def test_the_schema_refuses_what_is_no_summary(change):
    content = json.loads(one().model_dump_json()) | change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, json.loads(SCHEMA.read_text()))
    with pytest.raises(ValidationError):
        Summary.model_validate(content)


def test_a_file_that_is_no_summary_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="can't be read"):
        summary.read(tmp_path / "summary.json")
    (tmp_path / "summary.json").write_text('{"algorithm": "dpdl"}')
    with pytest.raises(DataError, match="no summary of this version: nodes"):
        summary.read(tmp_path / "summary.json")


def test_a_full_disk_keeps_the_old_summary(tmp_path, small_files):
    path = tmp_path / "summary.json"
    summary.write(path, one())
    with small_files(100), pytest.raises(StorageError, match="File too large"):
        summary.write(path, one(seed=5))
    assert summary.read(path).seed == 0


def test_digest_is_that_of_little_endian_float32():
    values = [1.0, -2.5, 3e-9]
    assert (
        summary.digest(torch.tensor(values))
        == hashlib.sha256(struct.pack("<3f", *values)).hexdigest()
    )
    assert (
        summary.digest(torch.tensor(values)[::2])
        == hashlib.sha256(struct.pack("<2f", 1.0, 3e-9)).hexdigest()
    )


def test_merge_keeps_what_each_honest_node_found_of_its_neighbors():
    parts = [
        one(name, 0.9, 7.5, algorithm_metrics={"tokens": 2.0, "weight": {"n2": weight}})
        for name, weight in (("n0", 0.5), ("n1", 0.0))
    ]
    parts.append(one("n2", 0.9, 7.5, algorithm_metrics={"weight": {"n0": 1.0}}, attackers=["n2"]))
    merged = summary.merge(parts)
    assert merged.algorithm_metrics["weight"] == {"n0": {"n2": 0.5}, "n1": {"n2": 0.0}}
    assert merged.algorithm_metrics["tokens"] == 2.0
    assert summary.Summary.model_validate_json(merged.model_dump_json()) == merged
    assert merged.averaged_model == {}


def test_merge_of_a_whole_cluster():
    parts = [
        one("n0", 0.9, 7.5),
        one("n1", 0.8, 7.9),
        one("n2", 0.97, 7.5, wall_seconds=40.0, task_metrics=measured("n2", 0.97, 2.0)),
    ]
    parts[1] = parts[1].model_copy(update={"bytes_sent": Range(mean=400.0, max=400.0)})
    parts[2] = parts[2].model_copy(update={"round_seconds": Seconds(median=0.5, p95=2.0)})
    xs = {"n0": torch.zeros(2), "n1": torch.zeros(2), "n2": torch.tensor([3.0, 0.0])}
    merged = summary.merge(parts, xs)
    accuracy = merged.task_metrics["accuracy"]
    assert merged.headline == "accuracy"
    assert accuracy.per_node == {"n0": 0.9, "n1": 0.8, "n2": 0.97}
    assert (accuracy.mean, accuracy.worst) == pytest.approx((0.89, 0.8))
    assert merged.privacy.epsilon == Epsilon(
        total=7.9, link=3.25, per_node={"n0": 7.5, "n1": 7.9, "n2": 7.5}
    )
    assert merged.bytes_sent == Range(mean=200.0, max=400.0)
    assert merged.round_seconds == Seconds(median=0.2, p95=2.0)
    assert merged.wall_seconds == 40
    assert merged.params_digest == {"n0": "ab", "n1": "ab", "n2": "ab"}
    assert merged.task_metrics["loss"] == TaskMetric(
        mean=1.0, worst=2.0, per_node={"n0": 0.5, "n1": 0.5, "n2": 2.0}
    )
    assert merged.consensus_distance == pytest.approx(2**0.5)
    assert merged.complete
    assert summary.merge(parts).consensus_distance is None


def test_nodes_whose_parameters_are_not_finite_are_named():
    merged = summary.merge([one("n1", diverged=["n1"]), one("n0", diverged=["n0"]), one("n2")])
    assert merged.diverged == ["n0", "n1"]
    assert "take a lower lr" in printed(merged)
    merged = summary.merge(
        [one("n1", diverged=["n1"]), one("n0", diverged=["n0"], loss_not_finite=["n0"])]
    )
    assert "a batch's loss is not finite at n0: look into the data there" in printed(merged)
    assert "lr" not in printed(merged)
    assert "DIVERGED: the parameters of n0, n1 are not finite, or beyond limits.rms" in printed(
        merged
    )
    assert "DIVERGED" not in printed(one())


def test_perplexity_is_kept_of_each_node_and_averaged_over_the_honest_ones():
    each: dict[str, float | None] = {"n0": 4.0, "n1": 8.0, "n2": 99.0}
    parts = [
        one(
            name,
            headline="perplexity",
            task_metrics={"perplexity": task_metric(PERPLEXITY, {name: value})},
            attackers=["n2"] if name == "n2" else [],
        )
        for name, value in each.items()
    ]
    merged = summary.merge(parts)
    assert merged.task_metrics == {"perplexity": TaskMetric(mean=6.0, worst=8.0, per_node=each)}
    assert Summary.model_validate_json(merged.model_dump_json()) == merged
    Console(file=(text := StringIO())).print(summary.table(merged, one()))
    assert re.search(r"test perplexity, mean +│ 6 +│ – ", text.getvalue())


def test_merge_of_an_incomplete_cluster_says_so():
    assert not summary.merge([one("n0"), one("n1", None)]).complete
    assert summary.merge([one("n0"), one("n1", None)]).task_metrics["accuracy"].mean == 0.9
    assert not summary.merge([one("n0"), one("n1"), one("n2", complete=False)]).complete
    with pytest.raises(DataError, match="No node"):
        summary.merge([])
    with pytest.raises(DataError, match="different runs"):
        summary.merge([one("n0"), one("n1", config_digest="other")])


def test_one_bad_node_marks_the_cluster():
    bad = one("n1", insecure=True)
    bad = bad.model_copy(
        update={"privacy": bad.privacy.model_copy(update={"insecure_seed": True, "warning": "oh"})}
    )
    merged = summary.merge([one("n0"), bad, one("n2")])
    assert merged.insecure
    assert merged.privacy.insecure_seed
    assert merged.privacy.warning == "oh"


def printed(*columns: Summary) -> str:
    console = Console(width=240, record=True, file=open(os.devnull, "w", encoding="utf-8"))
    with console.file:
        console.print(summary.table(*columns))
    return " ".join(console.export_text().split())


def test_the_table_shows_both_columns_and_never_a_bare_epsilon():
    none = one("n0", 0.968).model_copy(update={"privacy": Privacy(mode="none")})
    text = printed(one(), none)
    for words in (
        "90.0%",
        "96.8%",
        "dpdl, privacy mode strict",
        "dpdl, without noise",
        "none: no privacy",
        "7.50",
        "3.25",
    ):
        assert words in text
    for words in (
        "mode strict",
        "add/remove one example",
        "δ = 0.001",
        "PLD",
        "independent batches",
    ):
        assert words in text
    assert summary.LINK in text
    assert text.count(summary.AGAINST) == 1, "said once, below the table"
    assert "at most e^7.50 times as likely" in text
    assert "INCOMPLETE" not in text


def test_the_table_says_what_voids_a_guarantee():
    privacy = one().privacy
    paper = one(
        privacy=privacy.model_copy(update={"mode": "paper", "warning": "Nominal."}),
        insecure=True,
        complete=False,
    )
    text = printed(paper)
    for words in ("NOT a guarantee", "Nominal.", "INSECURE transport", "INCOMPLETE"):
        assert words in text
    assert summary.AGAINST not in text
    assert "VOID: insecure_seed" in printed(
        one(privacy=privacy.model_copy(update={"insecure_seed": True}))
    )
    private = privacy.model_copy(update={"public_validation": False})
    assert "validation set is private" in printed(one(privacy=private))
    for log_event in ("VOID", "NOT a guarantee", "validation"):
        assert log_event not in printed(one())


def test_releases_that_were_not_made_are_counted():
    """Noise that was calibrated for more than was sent, as in mode async."""

    def having(made: int) -> Privacy:
        return one().privacy.model_copy(update={"releases": Releases(made=made, planned=100)})

    assert not Releases(made=95, planned=100).unused
    nodes = [one(name, privacy=having(made)) for name, made in (("n0", 40), ("n1", 20))]
    merged = summary.merge(nodes)
    assert merged.privacy.releases == Releases(made=60, planned=200)
    assert "Only 60 of 200 planned releases were made" in printed(merged)
    assert "planned releases" not in printed(one(privacy=having(100)), one())


def test_nodes_that_mixed_without_releasing_are_named():
    bad = one("n1")
    bad = bad.model_copy(
        update={"privacy": bad.privacy.model_copy(update={"budget_reached": ["n1"]})}
    )
    merged = summary.merge([one("n0"), bad, one("n2")])
    assert merged.privacy.budget_reached == ["n1"]
    assert "n1: budget reached: still mixing, no releases" in printed(merged)
    assert "budget" not in printed(one())


def test_an_empty_summary_can_be_shown():
    unknown = Summary(
        algorithm="local",
        nodes=1,
        rounds=1,
        topology="ring",
        dataset="own",
        seed=0,
        version="0",
        config_digest="",
        complete=True,
        privacy=Privacy(mode="strict"),
    )
    assert "ε_total: mode strict, add/remove one example, δ unknown" in printed(unknown)


def test_seconds_of_rounds():
    assert summary.seconds([]) == Seconds()
    assert summary.seconds([2.0]) == Seconds(median=2.0, p95=2.0)
    assert summary.seconds([float(k) for k in range(100, 0, -1)]) == Seconds(median=50.5, p95=96.0)


def test_reading_a_summary_needs_no_torch(tmp_path):
    summary.write(tmp_path / "summary.json", one())
    code = (
        "import sys; from pathlib import Path; from node.records import summary; "
        "summary.table(summary.read(Path(sys.argv[1])))"
    )
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "summary.json")], check=True)
