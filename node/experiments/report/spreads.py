"""How tables write a figure, and a mean with its standard deviation."""

from __future__ import annotations

from node.experiments.report.aggregate import Spread
from node.figures import Metric


def figure(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def number(value: float, metric: Metric) -> str:
    """A value of a metric without its unit: a ratio in percent."""
    return f"{metric.scale * value:.1f}"


def shown(values: Spread | None, metric: Metric) -> str:
    """Mean and standard deviation of a metric, a ratio in percent."""
    if values is None:
        return "–"
    std = "" if values.std is None else f" ± {number(values.std, metric)}"
    return f"{number(values.mean, metric)}{std}"


def spread(value: Spread, form: str) -> str:
    return form.format(value.mean) + ("" if not value.std else f" ± {form.format(value.std)}")
