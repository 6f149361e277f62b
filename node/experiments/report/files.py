"""results.json and, where pyarrow is installed (the extra [tables]), parquet files for other
programs.

cells.parquet        a row per finished cell
evaluations.parquet  a row per cell, evaluation and node
weights.parquet      a row per cell, evaluation, node, neighbor and kind
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from node.encoding import Json
from node.experiments.report.aggregate import Line, SweepReport
from node.experiments.sweep.folder import Record
from node.experiments.sweep.results import result
from peer import files


def document(report: SweepReport) -> Json:
    """The tables as JSON."""
    return {
        "sweep": report.sweep.name,
        "title": report.sweep.title,
        "cells": report.trials,
        "finished": report.finished,
        "notes": list(report.notes),
        "settings": [
            {
                "name": part.name,
                "title": part.title,
                "about": part.about,
                "rows": [_line(it) for it in part.lines],
            }
            for part in report.parts
        ],
    }


def _line(line: Line) -> Json:
    privacy = line.privacy
    spreads = {"mean": line.mean, "worst": line.worst, "rounds_to_loss": line.rounds_to}
    return {
        "method": line.method,
        "metric": line.metrics[0].name if line.metrics else None,
        "state": line.state,
        "lr": line.lr,
        "lr_at_edge": bool(line.choice and line.choice.edge),
        "lr_tried": {
            f"{lr:g}": value for lr, value in (line.choice.tried if line.choice else {}).items()
        },
        **{key: asdict(it) if it else None for key, it in spreads.items()},
        "bytes": line.bytes,
        "seconds": line.seconds,
        "epsilon": None
        if privacy is None or privacy.mode == "none"
        else {
            "total": privacy.epsilon.total,
            "link": privacy.epsilon.link,
            "nominal": line.nominal,
            "answers_alone": line.accounted,
            "conditions": line.conditions,
        },
        "attackers": line.attackers,
        "failures": list(line.failures),
    }


def write(report: SweepReport, out: Path) -> list[Path]:
    """Returns the files it wrote.

    Raises:
        StorageError: the disk refuses.
    """
    made = [out / "results.json"]
    files.atomic_write(
        made[0],
        json.dumps(document(report), indent=1, ensure_ascii=False).encode() + b"\n",
        public=True,
    )
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return made
    known = list(_labeled(report))
    for name, rows in (
        ("cells", [_cell(about, record) for about, record in known]),
        ("evaluations", [row for about, record in known for row in _evaluations(about, record)]),
        ("weights", [row for about, record in known for row in _weights(about, record)]),
    ):
        made.append(out / f"{name}.parquet")
        parquet.write_table(
            pyarrow.Table.from_pylist(rows), content := pyarrow.BufferOutputStream()
        )
        files.atomic_write(made[-1], content.getvalue().to_pybytes(), public=True)
    return made


def _labeled(report: SweepReport) -> Iterator[tuple[Json, Record]]:
    for part in report.parts:
        for line in part.lines:
            for record in line.records:
                configuration = record["configuration"]
                about = {"setting": part.name, "method": line.row.method}
                yield (
                    about
                    | {"lr": line.lr, "seed": configuration["train"]["seed"], "late": line.late},
                    record,
                )


def _cell(about: Json, record: Record) -> Json:
    figures, configuration = record["figures"], record["configuration"]
    late = result(figures, about["late"])
    privacy = figures["summary"]["privacy"]
    return about | {
        "algorithm": configuration["algorithm"]["name"],
        "metric": late.metric.name if late else None,
        "mean": late.mean if late else None,
        "worst": late.worst if late else None,
        "rounds": configuration["train"]["rounds"],
        "bytes": figures["bytes"][-1] if figures["bytes"] else None,
        "seconds": figures["seconds"][-1] if figures["seconds"] else None,
        "cpu_seconds": record["cpu_seconds"],
        "epsilon_total": privacy["epsilon"]["total"],
        "mode": privacy["mode"],
        "adjacency": privacy["adjacency"],
        "delta": privacy["delta"],
        "batches": privacy["batches"],
        "accountant": privacy["accountant"],
        "sigma": privacy["sigma"],
        "attackers": ",".join(figures["attackers"]),
        "code": record["code"],
        "configuration": json.dumps(configuration),
    }


def _evaluations(about: Json, record: Record) -> Iterator[Json]:
    figures = record["figures"]
    epsilon = figures["epsilon"] or {}
    for k, t in enumerate(figures["rounds"]):
        tokens = figures.get("tokens")  # None, or not there in cells of earlier versions
        shared = {"round": t, "bytes": figures["bytes"][k], "seconds": figures["seconds"][k]}
        shared["tokens"] = tokens[k] if tokens else None
        shared["distance"] = figures["distance"][k]
        shared["epsilon_total_live"] = epsilon["total"][k] if epsilon else None
        for node in next(iter(figures["metrics"].values()), ()):
            values = {name: by_node[node][k] for name, by_node in figures["metrics"].items()}
            yield about | shared | {"node": node} | values


def _weights(about: Json, record: Record) -> Iterator[Json]:
    figures = record["figures"]
    for kind, by_node in figures["weights"].items():
        for node, by_peer in by_node.items():
            for peer, values in by_peer.items():
                for t, value in zip(figures["rounds"], values, strict=True):
                    yield about | {
                        "round": t,
                        "kind": kind,
                        "node": node,
                        "peer": peer,
                        "value": value,
                    }


def put(path: Path, content: bytes) -> None:
    """Writes a file, and the folder it lies in.

    Raises:
        StorageError: the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.storage_error(path.parent, error) from None
    files.atomic_write(path, content, public=True)
