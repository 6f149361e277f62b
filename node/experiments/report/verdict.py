"""Which row of a table may be called best."""

from __future__ import annotations

from node.experiments.report.aggregate import Part


def verdict(part: Part) -> str | None:
    """Which row is best, of those with noise where there are any; None: fewer than two are
    finished. No row is called so whose rate is at the edge of what was tried.
    """
    finished = [line for line in part.lines if line.state == "finished" and line.mean]
    compared = [line for line in finished if line.conditions] or finished
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
    others = [line.method for line in compared if line.choice and line.choice.edge]
    doubt = f"; with other rates these may do better: {', '.join(others)}" if others else ""
    return f"Best: {leader.method}{doubt}."
