"""What stands in an exported model beside its parameters: enough to use it without the run that
made it, and to say where it comes from.
"""

from __future__ import annotations

from typing import TypeAlias

from pydantic import BaseModel, ConfigDict

from node.config import RunConfig, TaskSection
from node.records.summary import Privacy, Summary, conditions

INPUT_SHAPE = "input_shape"
"""The key of channels, height and width in the files that a run leaves, as JSON."""
COORDINATES = "coordinates"
"""The key of `coordinates` in those files and in a start, if there are any."""
INFO = "peerpoise"
"""The key of `ModelInfo` in an exported file, as JSON."""
CARD_MARK = "<!-- Written by peerpoise export, which may write it again. -->"
"""Ends a model card, so that no other file is taken for one."""
Shape: TypeAlias = tuple[int, int, int]


class ModelInfo(BaseModel):
    """Of an exported model. Nothing in it is private: it is made of run file and summary."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: str
    """Of peerpoise."""
    run: str
    run_id: str
    node: str | None = None
    """Whose model it is; None: the average of all."""
    nodes: int
    """How many took part."""
    algorithm: str
    rounds: int
    rounds_run: int | None = None
    """Those that the node has run: fewer if it was away. None: not known."""
    task: TaskSection
    input_shape: Shape | None = None
    """Channels, height and width of an input; a table's row is 1 × 1 × inputs."""
    metrics: dict[str, float] = {}
    """On the public test set, of the average or of the node."""
    privacy: str
    """ε with its conditions, in a sentence."""


def coordinates(run: RunConfig) -> str:
    """In which a model is fed images, "" for their own: a model of others is another model."""
    task = run.task
    if task.whiten is None:
        return ""
    settings = {key: getattr(task, key) for key in ("mean", "std", "transform", "whiten")}
    return f"{settings} by validation set {run.validation.digest}"


def privacy_sentence(privacy: Privacy) -> str:
    """What is promised to a record of the training data."""
    if privacy.epsilon.total is None:
        return privacy.warning or "No differential privacy."
    promise = f"ε_total ≤ {privacy.epsilon.total:.3g} ({conditions(privacy)})"
    return f"{promise}. {privacy.warning}" if privacy.warning else f"{promise}."


def metrics_of(summary: Summary, node: str | None) -> dict[str, float]:
    """Test metrics of a node's model, or of the average; {} where they are not known."""
    if node is None:
        figures = summary.averaged_model
    else:
        figures = {name: each.per_node.get(node) for name, each in summary.task_metrics.items()}
    return {name: value for name, value in figures.items() if value is not None}


def _rounds(info: ModelInfo) -> str:
    fewer = info.rounds_run is not None and info.rounds_run < info.rounds
    return f"{info.rounds_run} of {info.rounds}" if fewer else str(info.rounds)


def card(info: ModelInfo, file: str) -> str:
    """A model card, Markdown."""
    measured = [f"| {name} | {value:.4g} |" for name, value in info.metrics.items()]
    whose = f"the model of {info.node}" if info.node else "the average of all nodes' models"
    task = info.task
    learned = ", ".join(task.features) or f"inputs of {info.input_shape}"
    if task.transform:
        learned += f", which peerpoise.{task.transform} makes of images"
    rows = [
        ("file", file),
        ("what", f"{task.model}, {whose}"),
        ("learns", f"{task.name}: {task.label} from {learned}"),
        ("classes", ", ".join(task.labels) or str(task.classes)),
        ("data", "each node's own" if task.data == "own" else str(task.path or task.data)),
        ("trained by", f"{info.algorithm}, {_rounds(info)} rounds, {info.nodes} nodes"),
        ("run", f"{info.run} ({info.run_id})"),
        ("privacy", info.privacy),
        ("software", f"peerpoise {info.version}"),
    ]
    if task.name == "regression":
        rows = [row for row in rows if row[0] != "classes"]
    lines = [f"# {info.run}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {text} |" for name, text in rows]
    if measured:
        lines += ["", "On the public test set:", "", "| | |", "|---|---|", *measured]
    return "\n".join([*lines, "", CARD_MARK]) + "\n"
