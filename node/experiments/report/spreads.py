"""How tables write a figure, and a mean with its standard deviation."""

from __future__ import annotations

from node.experiments.report.aggregate import Spread
from node.figures import Metric


def figure(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def number(value: float, metric: Metric, *, beside: float | None = None) -> str:
    """A value of a metric without its unit: a ratio in percent, what is below ten with three
    decimals. With as many as the value that it stands `beside`.
    """
    figure = metric.scale * value
    few = metric.unit == "ratio" or abs(figure if beside is None else metric.scale * beside) >= 10
    return f"{figure:.1f}" if few else f"{figure:.3f}"


def shown(values: Spread | None, metric: Metric) -> str:
    """Mean and standard deviation of a metric, a ratio in percent."""
    if values is None:
        return "–"
    std = "" if values.std is None else f" ± {number(values.std, metric, beside=values.mean)}"
    return f"{number(values.mean, metric)}{std}"


def spread(value: Spread, form: str) -> str:
    return form.format(value.mean) + ("" if not value.std else f" ± {form.format(value.std)}")
