"""Figures that a run shows of itself: declared once, where they are made, and shown everywhere.

A task declares its test metrics, an algorithm its diagnostics. Journal, Prometheus metrics, status,
summary and reports know none of them by name. Of a task and an algorithm only what is declared is
shown, so a declaration is the place to review for privacy: a metric is measured on the PUBLIC test
set (or on a private one, and not shown to others then: data.test_public), a diagnostic is made of
what neighbors released (in mode paper with the clean own gradient, so those per neighbor are hidden
there).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Literal, TypeAlias, get_args

from node.encoding import Json

Unit: TypeAlias = Literal["", "ratio"]
BUDGET_REACHED = "budget reached: still mixing, no releases"
"""What a run says where the data have given away what their owner allows."""
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
LONGEST = 200
"""Characters of a text in a declaration."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One test metric of a task."""

    name: str
    """As `Task.evaluate` names it: small letters, digits and _."""
    help: str = ""
    """What it is, in a sentence."""
    higher_is_better: bool = False
    unit: Unit = ""
    """ratio: a share from 0 to 1, shown in percent."""
    title: str = ""
    """What tables call it, where that is not its name."""
    plural: str = ""
    """What they call several of its values, where that is not its label."""
    tabulated: bool = True
    """Does it have a column of its own in reports?"""

    @property
    def label(self) -> str:
        return self.title or self.name

    @property
    def labels(self) -> str:
        return self.plural or self.label

    @property
    def scale(self) -> float:
        """What a value is multiplied by before it is shown."""
        return 100.0 if self.unit == "ratio" else 1.0

    def worst(self, values: Iterable[float]) -> float:
        """Of at least one value."""
        return min(values) if self.higher_is_better else max(values)

    def best(self, values: Iterable[float]) -> float:
        """Of at least one value."""
        return max(values) if self.higher_is_better else min(values)

    def show(self, value: float | None) -> str:
        """The value for people, e.g. 83.1%; n/a: it is not finite."""
        if value is None or not isfinite(value):
            return "n/a"
        return f"{value:.1%}" if self.unit == "ratio" else f"{value:.4g}"


def unfit(metric: Metric) -> str | None:
    """What keeps a declaration of somebody's own from being shown, in a few words; None: nothing.
    It goes into file formats, tables and terminals.
    """
    if type(metric) is not Metric:
        return "something else than a peerpoise.Metric"
    texts = (metric.name, metric.help, metric.title, metric.plural)
    if not all(isinstance(text, str) and len(text) <= LONGEST for text in texts):
        return f"a text that is none, or longer than {LONGEST} characters"
    if not NAME.fullmatch(metric.name):
        return f"the name {metric.name!r}; small letters, digits and _ are expected, a letter first"
    if not all(text.isprintable() for text in texts):
        return f"characters that can't be printed in {metric.name}"
    if metric.unit not in get_args(Unit):
        return f'the unit {metric.unit!r} of {metric.name}; "ratio" is one, and "" for none'
    if not all(isinstance(flag, bool) for flag in (metric.higher_is_better, metric.tabulated)):
        return f"something else than True or False in {metric.name}"
    return None


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One figure of `Algorithm.diagnostics`, of the last round."""

    name: str
    help: str = ""
    per_neighbor: bool = True
    """False: one number of this node."""


ACCURACY = Metric(
    "accuracy",
    "Share of the test examples that are classified correctly.",
    higher_is_better=True,
    unit="ratio",
    plural="accuracies",
)
F1 = Metric("f1", "Mean of the labels' F1.", higher_is_better=True, unit="ratio", title="macro-F1")
LOSS = Metric("loss", "Mean loss of a test example.", tabulated=False)
AUC = Metric(
    "auc",
    "Chance that an example of a class is ranked above one of another: area under the ROC curve.",
    higher_is_better=True,
    title="AUC",
)
BALANCED_ACCURACY = Metric(
    "balanced_accuracy",
    "Mean of the classes' shares that are classified correctly.",
    higher_is_better=True,
    unit="ratio",
    title="balanced accuracy",
)
LOG_LOSS = Metric(
    "loss",
    "Mean of −log of the probability that the model gave to the right class.",
    title="log loss",
)
BASE_RATE = Metric(
    "base_rate",
    "Share of the second class in the test set: a fact of the data, not of the model.",
    unit="ratio",
    title="base rate",
    tabulated=False,
)
CALIBRATION_ERROR = Metric(
    "calibration_error",
    "Mean distance of predicted probabilities from observed shares, in ten bins.",
    unit="ratio",
    title="calibration error",
)
R2 = Metric(
    "r2",
    "Share of the variance that is explained; 0 is what the test set's own mean would reach.",
    higher_is_better=True,
    title="R²",
)
MSE = Metric("mse", "Mean squared error, in the squared unit of the label.", title="MSE")
MAE = Metric("mae", "Mean absolute error, in the unit of the label.", title="MAE")
PERPLEXITY = Metric("perplexity", "e to the mean loss of a label token.")
COMMON_METRICS = (ACCURACY, F1, PERPLEXITY, LOSS)
"""What a task of somebody's own may measure without declaring it."""


def headline(declared: Iterable[Metric], measured: Mapping[str, float | None]) -> Metric | None:
    """The figure a run is known by: the first of the declared metrics that was measured."""
    return next((metric for metric in declared if metric.name in measured), None)


def headline_text(declared: Iterable[Metric], measured: Mapping[str, float | None]) -> str:
    """The headline for people, e.g. "accuracy 83.1%"; empty: nothing was measured."""
    metric = headline(declared, measured)
    return f"{metric.label} {metric.show(measured[metric.name])}" if metric else ""


def check_declared(names: Iterable[str], declared: Iterable[Metric | Diagnostic]) -> None:
    """Raises ValueError: one of the names is not declared, and may not leave this node."""
    if unknown := sorted(set(names) - {it.name for it in declared}):
        raise ValueError(f"the figure {', '.join(unknown)} is not declared")


def document(declared: Iterable[Metric | Diagnostic]) -> list[Json]:
    """Declarations as JSON has them; `Metric(**it)` reads one again."""
    return [asdict(it) for it in declared]
