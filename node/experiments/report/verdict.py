"""What may be concluded from tables: which row is best, and what privacy costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from node.algorithms import find, without_noise
from node.experiments.report.aggregate import Line, Part, SweepReport


def verdict(part: Part) -> str | None:
    """Which row is best of those that promise the same: in mode strict where there are any, else
    without noise; None: fewer than two are finished. No row is called so of one seed, none whose
    rate is at the edge of what was tried, none in mode paper, and none with everybody's data in one
    place; but public data alone, which cost nobody anything, are compared with all.
    """
    finished = [line for line in part.lines if line.state == "finished" and line.mean]
    possible = [line for line in finished if not _pooled(line) or _public(line)]
    strict = [line for line in possible if _mode(line) == "strict"]
    plain = [line for line in possible if _mode(line) == "none"]
    compared = [*strict, *filter(_public, plain)] if strict else plain
    means = {line.method: line.mean.mean for line in compared if line.mean}
    if len(means) < 2:
        return None
    highest = part.headline.best(means.values())
    leader = next(line for line in compared if means[line.method] == highest)
    if leader.choice and leader.choice.edge:
        return (
            f"No row is called best: {leader.method} leads, and its rate is at the edge of those "
            "that were tried."
        )
    if len(leader.records) < 2:
        return f"No row is called best: {leader.method} leads, with one seed."
    others = [line.method for line in compared if line.choice and line.choice.edge]
    doubt = f"; with other rates these may do better: {', '.join(others)}" if others else ""
    return f"Best: {leader.method}{doubt}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A method with noise, and the same without."""

    part: Part
    noised: Line
    plain: Line

    @property
    def worse(self) -> float:
        """By how much the headline is worse for its noise."""
        assert self.noised.mean
        assert self.plain.mean
        difference = self.plain.mean.mean - self.noised.mean.mean
        return difference if self.part.headline.higher_is_better else -difference


def costs(report: SweepReport) -> Iterator[Cost]:
    """Of every finished row in mode strict that another has everything in common with but noise,
    rate, rounds and batch.
    """
    lines = [(part, line) for part in report.parts for line in part.lines]
    finished = [(part, line) for part, line in lines if line.state == "finished" and line.mean]
    plain: dict[str, Line] = {}
    for _, line in finished:
        if _mode(line) == "none":
            plain.setdefault(_method(line), line)
    for part, line in finished:
        if _mode(line) == "strict" and (same := plain.get(_method(line))):
            yield Cost(part=part, noised=line, plain=same)


def _pooled(line: Line) -> bool:
    return find(_algorithm(line)).POOLED


def _public(line: Line) -> bool:
    return find(_algorithm(line)).PUBLIC


def _algorithm(line: Line) -> str:
    name: str = line.records[0]["configuration"]["algorithm"]["name"]
    return name


def _mode(line: Line) -> str:
    return line.privacy.mode if line.privacy else ""


def _method(line: Line) -> str:
    """All that makes a method and its data, as text."""
    config = line.records[0]["configuration"]
    name = _algorithm(line)
    options = {key: value for key, value in config["algorithm"].items() if key != "lr"}
    division = {key: value for key, value in config["experiment"].items() if key != "seed"}
    same = {key: config[key] for key in ("task", "topology", "validation", "mix", "sync")}
    start = [config["train"].get(key) for key in ("start", "public_start")]
    algorithm = {**options, "name": without_noise(name) or name}
    return json.dumps([algorithm, division, same, start], sort_keys=True)
