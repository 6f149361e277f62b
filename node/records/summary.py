"""summary.json: the result of a run. `up`, `run` and `simulate` write the same shape; its JSON
schema is docs/summary.schema.json. A field that the writer can't know is null (one daemon knows
only itself)."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isfinite, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from node.config.task import adjacency
from node.figures import BUDGET_REACHED, Metric
from peer import files
from peer.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

V = TypeVar("V")
AGAINST = "against any coalition of other nodes"
UNCOVERED = "the validation set is private and not covered"
PIECE = 1 << 18
"""Parameters that are looked at at a time: no copy of a large model is made."""
LINK = (
    "diagnostic, not a guarantee: your other answers reach the same neighbor through other "
    "nodes' models"
)


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not isfinite(value) else value


Mixing: TypeAlias = Literal[
    "doubly-stochastic", "row", "median", "trimmed_mean", "multi_krum", "clipping"
]
Figure = Annotated[float | None, BeforeValidator(_finite)]
"""A number, or null where it is unknown or not finite."""


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TaskMetric(Part):
    mean: Figure = None
    """Mean over the honest nodes."""
    worst: Figure = None
    """Of the honest node that does worst."""
    per_node: dict[str, Figure] = {}
    higher_is_better: bool = False
    unit: Literal["", "ratio"] = ""
    """ratio: a share from 0 to 1."""


class Epsilon(Part):
    total: Figure = None
    """ε_total: THE guarantee, against any coalition of other nodes; the largest of all nodes."""
    link: Figure = None
    """ε_link: what one stream of answers tells alone. A diagnostic, not a guarantee."""
    per_node: dict[str, Figure] = {}
    """ε_total of each node (they differ with the degree)."""


class Releases(Part):
    """What the accountant composes: noised gradients that left; with a shared batch, rounds."""

    made: int
    planned: int
    """Of a run in which every neighbor asks in every round. σ was calibrated for them."""

    @property
    def unused(self) -> str:
        """In words, where it is a tenth or more; else empty."""
        if self.made > 0.9 * self.planned:
            return ""
        return f"{self.made} of {self.planned} planned releases were made"


class Privacy(Part):
    mode: Literal["strict", "paper", "none"]
    """strict: standard accounting. paper: the papers' own calibration, not a guarantee. none: no
    privacy.
    """
    batches: Literal["independent", "shared"] | None = None
    adjacency: str = adjacency("")
    """Which data sets count as neighbors: replacing an example costs about twice the ε."""
    unit: str = ""
    """The privacy unit (task.unit), whose rows are protected together; empty: single examples."""
    delta: float | None = None
    sigma: Figure = None
    """Noise multiplier: noise of std sigma·C on the sum of clipped gradients."""
    accountant: str | None = None
    """Which accountant ε comes from, e.g. PLD."""
    epsilon: Epsilon = Epsilon()
    releases: Releases | None = None
    """Of all nodes together; None: not in mode strict."""
    public_validation: bool = True
    """False: the validation set is private and outside the guarantee."""
    insecure_seed: bool = False
    """True: noise and batches can be computed by anybody; there is no guarantee."""
    budget_reached: list[str] = []
    """Nodes whose data had given away what their owner allows: they went on mixing, without
    releases."""
    warning: str | None = None
    """What must be said beside every ε of this run."""


class Range(Part):
    mean: Figure = None
    max: Figure = None


class Seconds(Part):
    median: Figure = None
    """Of a cluster: the median of the nodes' medians."""
    p95: Figure = None
    """Of a cluster: the largest of the nodes' 95th percentiles."""


AlgorithmMetric: TypeAlias = Figure | dict[str, Figure] | dict[str, dict[str, Figure]]


class Summary(Part):
    """The result of a run."""

    algorithm: str
    nodes: int = Field(ge=1)
    """N, nodes of the roster."""
    rounds: int = Field(ge=0)
    """T, rounds the run was asked for; see `complete`."""
    topology: str
    spectral_gap: Figure = None
    """1 − |λ₂| of the mixing matrix W: 1 is full averaging in one round, near 0 the models stay
    apart.
    """
    dataset: str
    seed: int
    """train.seed."""
    headline: str | None = None
    """The metric of `task_metrics` that the run is known by; null where there is no test set."""
    consensus_distance: Figure = None
    """√(1/N Σ‖x_i − x̄‖²) of the final parameters of all honest nodes that finished; of a daemon:
    over its neighborhood, as it heard it."""
    privacy: Privacy
    mixing: Mixing = "doubly-stochastic"
    """row: quorum and async promise no agreement on edges, the mean drifts. The name of a robust
    rule: it isn't linear and keeps no mean at all."""
    bytes_sent: Range = Range()
    """Payload bytes sent by a node in the whole run: tensors, without headers, TLS and what was
    sent again. simulate counts what daemons would send."""
    round_seconds: Seconds = Seconds()
    wall_seconds: Figure = None
    """From the first round to the last; of a cluster the slowest node's."""
    params_digest: dict[str, str] = {}
    """node -> SHA-256 of its final float32 parameters."""
    task_metrics: dict[str, TaskMetric] = {}
    """All metrics that the task declares, on the test set."""
    test_public: bool = True
    """False: the test set is this host's private one. `task_metrics` are then outside of ε, and an
    export leaves them out."""
    algorithm_metrics: dict[str, AlgorithmMetric] = {}
    """bytes_per_step: payload bytes a node sent per round. peak_memory_bytes: most memory a
    daemon's process held, on a GPU most that torch allocated there. Of a node also what its
    algorithm declares, of the last round, per neighbor or as one number. Of a cluster the means of
    single numbers over the honest nodes, what each of them found of its neighbors (figure -> node
    -> neighbor: weights, verdicts), and averaged_model: the test metrics of the average of the
    honest nodes' models.
    """
    version: str
    config_digest: str
    """SHA-256 of run.toml's content."""
    attackers: list[str] = []
    """Nodes that lied on purpose, to see what it does: not in mean, worst, consensus distance and
    averaged model. Only of attackers of this experiment; a real liar doesn't say so."""
    attack: str = ""
    """What they did (docs/poison.md)."""
    diverged: list[str] = []
    """Nodes whose parameters became not finite, or larger than limits.rms allows."""
    loss_not_finite: list[str] = []
    """Nodes with records whose loss is not finite while the parameters are. Of mode none only: else
    it is private.
    """
    insecure: bool = False
    """True: the transport had no TLS."""
    ledger: Literal["experiment", "data"] = "experiment"
    """data: debits went to the lifetime ledger of the private data. experiment: to a throw-away
    one.
    """
    rounds_run: dict[str, int] = {}
    """node -> the rounds it ran; fewer than `rounds` where it skipped some, most neighbors being
    further.
    """
    complete: bool
    """Every node of the roster finished, ran all rounds, and did not diverge."""

    @property
    def averaged_model(self) -> dict[str, float | None]:
        """Test metrics of the average of the honest nodes' models; {} where there are none."""
        tested = self.algorithm_metrics.get("averaged_model")
        return cast("dict[str, float | None]", tested) if isinstance(tested, dict) else {}


def schema() -> str:
    """The JSON schema, as it stands in docs/summary.schema.json."""
    return json.dumps(Summary.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


def digest(x: Tensor) -> str:
    """SHA-256 (hex) of the parameters as little-endian float32."""
    hasher = hashlib.sha256()
    for piece in _pieces(x.detach().cpu()):
        hasher.update(piece.float().numpy().astype("<f4", copy=False).tobytes())
    return hasher.hexdigest()


def norm(x: Tensor) -> float:
    """‖x‖ of the parameters [d], in float64."""
    import torch

    return sqrt(
        sum(
            float(torch.linalg.vector_norm(piece, dtype=torch.float64)) ** 2 for piece in _pieces(x)
        )
    )


def _pieces(x: Tensor) -> Iterator[Tensor]:
    return (x[start : start + PIECE] for start in range(0, len(x), PIECE))


def merge(summaries: Sequence[Summary], parameters: Mapping[str, Tensor] | None = None) -> Summary:
    """The cluster's summary from those of its nodes, and their final parameters where they are at
    hand.

    Raises:
        DataError: no summaries, or summaries of different runs.
    """
    from node.maths.mixing import consensus_distance

    if not summaries:
        raise DataError("No node left a summary.")
    if len({summary.config_digest for summary in summaries}) > 1:
        raise DataError("These summaries belong to different runs: their config_digest differs.")
    first = summaries[0]
    complete = len(summaries) == first.nodes and all(summary.complete for summary in summaries)
    attackers = sorted(name for summary in summaries for name in summary.attackers)
    honest = [summary for summary in summaries if not summary.attackers]
    xs = (
        [parameters[name] for name in sorted(parameters) if name not in attackers]
        if parameters
        else []
    )
    return first.model_copy(
        update={
            "headline": next((summary.headline for summary in summaries if summary.headline), None),
            "attackers": attackers,
            "attack": next((summary.attack for summary in summaries if summary.attackers), ""),
            "diverged": sorted(name for summary in summaries for name in summary.diverged),
            "loss_not_finite": sorted(
                name for summary in summaries for name in summary.loss_not_finite
            ),
            "consensus_distance": consensus_distance(xs) if xs else None,
            "privacy": _merge_privacy([summary.privacy for summary in summaries]),
            "bytes_sent": Range(
                mean=_mean(summary.bytes_sent.mean for summary in summaries),
                max=_max(summary.bytes_sent.max for summary in summaries),
            ),
            "round_seconds": Seconds(
                median=_median(summary.round_seconds.median for summary in summaries),
                p95=_max(summary.round_seconds.p95 for summary in summaries),
            ),
            "wall_seconds": _max(summary.wall_seconds for summary in summaries),
            "rounds_run": _union(summary.rounds_run for summary in summaries),
            "params_digest": _union(summary.params_digest for summary in summaries),
            "task_metrics": _merge_metrics(summaries, attackers),
            "algorithm_metrics": {
                **_means([summary.algorithm_metrics for summary in honest]),
                **_of_neighbors(honest),
            },
            "insecure": any(summary.insecure for summary in summaries),
            "test_public": all(summary.test_public for summary in summaries),
            "complete": complete,
        }
    )


def task_metric(
    metric: Metric, per_node: Mapping[str, float | None], attackers: Sequence[str] = ()
) -> TaskMetric:
    """A metric of these nodes: mean and worst of the honest ones, as far as they are finite."""
    known = [
        value
        for name, value in per_node.items()
        if value is not None and isfinite(value) and name not in attackers
    ]
    return TaskMetric(
        mean=_mean(known),
        worst=metric.worst(known) if known else None,
        per_node=dict(sorted(per_node.items())),
        higher_is_better=metric.higher_is_better,
        unit=metric.unit,
    )


def seconds(rounds: Sequence[float]) -> Seconds:
    """Median and 95th percentile of the rounds' seconds."""
    ordered = sorted(rounds)
    if not ordered:
        return Seconds()
    return Seconds(
        median=statistics.median(ordered),
        p95=ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
    )


def write(path: Path, summary: Summary) -> None:
    """Writes summary.json, whole or not at all.

    Raises:
        StorageError: the disk refuses.
    """
    files.atomic_write(path, summary.model_dump_json(indent=2).encode() + b"\n", point="summary")


def read(path: Path) -> Summary:
    """Reads summary.json.

    Raises:
        DataError: the file is missing or no summary.
    """
    try:
        return Summary.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"The summary {path} can't be read: {error.strerror or error}.") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{path} is no summary of this version: {place}: {first['msg']}.") from None


def conditions(privacy: Privacy, against: str = AGAINST) -> str:
    """What must stand beside every ε_total: mode, adjacency, δ, batches, accountant, who colludes,
    what voids it.
    """
    delta = "δ unknown" if privacy.delta is None else f"δ = {privacy.delta:g}"
    parts = [f"mode {privacy.mode}", privacy.adjacency, delta]
    if privacy.batches:
        parts.append(f"{privacy.batches} batches")
    parts.append(privacy.accountant or "accountant unknown")
    parts.append(
        against if privacy.mode == "strict" else "NOT a guarantee: the papers' own calibration"
    )
    if privacy.insecure_seed:
        parts.append("VOID: insecure_seed makes the noise public")
    if not privacy.public_validation:
        parts.append(UNCOVERED)
    return ", ".join(parts)


def table(summary: Summary, baseline: Summary | None = None) -> Table:
    """The final table; `baseline` (the same run without noise) stands beside it. What ε promises is
    said once, below.
    """
    from rich.table import Table

    columns = [summary] if baseline is None else [summary, baseline]
    rows = Table(
        "",
        *(_title(column) for column in columns),
        title=heading(summary),
        title_justify="left",
        caption=promise(summary.privacy),
        caption_justify="left",
    )
    if summary.headline:
        tests = [_tested(column, summary.headline) for column in columns]
        rows.add_row(f"test {summary.headline}, mean", *(mean for mean, _ in tests))
        rows.add_row(f"test {summary.headline}, worst node", *(worst for _, worst in tests))
    for name, cells in zip(ROWS, zip(*map(_cells, columns), strict=True), strict=True):
        rows.add_row(name, *cells)
    return rows


ROWS = (
    "ε_total",
    "ε_link",
    "consensus distance",
    "bytes sent per node",
    "seconds per round",
    "wall seconds",
)


def _tested(summary: Summary, name: str) -> tuple[str, str]:
    """Mean of the nodes, and the worst of them."""
    values = summary.task_metrics.get(name, TaskMetric())
    metric = Metric(name, unit=values.unit)
    mean, worst = (
        "–" if value is None else metric.show(value) for value in (values.mean, values.worst)
    )
    return mean, worst


def _title(summary: Summary) -> str:
    privacy = summary.privacy
    return f"{summary.algorithm}, " + (
        "without noise" if privacy.mode == "none" else f"privacy mode {privacy.mode}"
    )


def heading(summary: Summary) -> str:
    gap = "" if summary.spectral_gap is None else f" (spectral gap {summary.spectral_gap:.2g})"
    graph = f"{summary.topology}{gap}"
    text = (
        f"{summary.dataset}, {summary.nodes} nodes, {graph}, {summary.rounds} rounds, seed "
        f"{summary.seed}"
    )
    notes = [] if summary.complete else [_incomplete(summary)]
    if summary.attackers:
        notes.append(
            f"ATTACKED by {', '.join(summary.attackers)} ({summary.attack}); figures of the "
            "honest nodes"
        )
    if summary.diverged:
        cause = "take a lower lr"
        if summary.loss_not_finite:
            cause = (
                f"a batch's loss is not finite at {', '.join(summary.loss_not_finite)}: "
                "look into the data there"
            )
        notes.append(
            f"DIVERGED: the parameters of {', '.join(summary.diverged)} are not finite, or "
            f"beyond limits.rms; {cause}"
        )
    notes += ["INSECURE transport: no TLS"] if summary.insecure else []
    if summary.mixing not in ("doubly-stochastic", "row"):
        notes.append(f"mixing by {summary.mixing}: not doubly stochastic")
    if summary.privacy.budget_reached:
        notes.append(f"{', '.join(summary.privacy.budget_reached)}: {BUDGET_REACHED}")
    notes += [summary.privacy.warning] if summary.privacy.warning else []
    return "\n".join([text, *notes])


def _incomplete(summary: Summary) -> str:
    fewer = [
        f"{name} ran {count} rounds only"
        for name, count in sorted(summary.rounds_run.items())
        if count < summary.rounds
    ]
    return "INCOMPLETE: " + (", ".join(fewer) or "not every node finished")


def _cells(summary: Summary) -> tuple[str, ...]:
    epsilon, none = summary.privacy.epsilon, summary.privacy.mode == "none"
    return (
        "none: no privacy" if none else _show(epsilon.total, "{:.2f}"),
        "–" if none else _show(epsilon.link, "{:.2f}"),
        _show(summary.consensus_distance, "{:.4g}"),
        f"{_show(summary.bytes_sent.mean, '{:,.0f}')} (largest "
        f"{_show(summary.bytes_sent.max, '{:,.0f}')})",
        f"{_show(summary.round_seconds.median, '{:.3f}')} (p95 "
        f"{_show(summary.round_seconds.p95, '{:.3f}')})",
        _show(summary.wall_seconds, "{:.1f}"),
    )


def promise(privacy: Privacy) -> str | None:
    """What ε says, in plain words, with its conditions; None: mode none has none."""
    total, link = privacy.epsilon.total, privacy.epsilon.link
    if privacy.mode == "none":
        return None
    words = f"ε_total: {conditions(privacy)}."
    if total is not None and privacy.mode == "strict" and not privacy.insecure_seed:
        whom = f"all rows of one {privacy.unit}" if privacy.unit else "one example"
        words += (
            f" So whatever the other nodes see, with {whom} more or less in a node's data it "
            f"is at most e^{total:.2f} times as likely, but for a probability of δ."
        )
    if privacy.releases and privacy.releases.unused:
        words += f" Only {privacy.releases.unused}; the noise was made for all of them."
    return words if link is None else f"{words} ε_link: one neighbor alone; {LINK}."


def _show(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _merge_privacy(parts: Sequence[Privacy]) -> Privacy:
    epsilon = Epsilon(
        total=_max(part.epsilon.total for part in parts),
        link=_max(part.epsilon.link for part in parts),
        per_node=_union(part.epsilon.per_node for part in parts),
    )
    warning = next((part.warning for part in parts if part.warning), None)
    counts = [part.releases for part in parts if part.releases]
    releases = Releases(
        made=sum(count.made for count in counts), planned=sum(count.planned for count in counts)
    )
    return parts[0].model_copy(
        update={
            "epsilon": epsilon,
            "releases": releases if counts else None,
            "budget_reached": sorted(name for part in parts for name in part.budget_reached),
            "warning": warning,
            "insecure_seed": any(part.insecure_seed for part in parts),
        }
    )


def _union(parts: Iterable[Mapping[str, V]]) -> dict[str, V]:
    return dict(sorted((name, value) for part in parts for name, value in part.items()))


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return sum(known) / len(known) if known else None


def _median(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return statistics.median(known) if known else None


def _max(values: Iterable[float | None]) -> float | None:
    return max(_known(values), default=None)


def _merge_metrics(summaries: Sequence[Summary], attackers: Sequence[str]) -> dict[str, TaskMetric]:
    merged = {}
    for name in sorted({name for summary in summaries for name in summary.task_metrics}):
        parts = [it.task_metrics[name] for it in summaries if name in it.task_metrics]
        metric = Metric(name, higher_is_better=parts[0].higher_is_better, unit=parts[0].unit)
        merged[name] = task_metric(metric, _union(part.per_node for part in parts), attackers)
    return merged


def _of_neighbors(summaries: Sequence[Summary]) -> dict[str, dict[str, Any]]:
    """Figure -> node -> neighbor -> value, from summaries of single nodes."""
    figures: dict[str, dict[str, Any]] = {}
    for summary in summaries:
        for name, values in summary.algorithm_metrics.items():
            if isinstance(values, Mapping):
                figures.setdefault(name, {}).update(dict.fromkeys(summary.params_digest, values))
    return figures


def _means(parts: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Of the plain figures."""
    names = sorted(
        {name for part in parts for name, value in part.items() if not isinstance(value, Mapping)}
    )
    return {name: _mean(part.get(name) for part in parts) for name in names}
