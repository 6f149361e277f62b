"""What the outputs of a model are held against: a loss, and the metrics of a test set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional

from node.figures import (
    ACCURACY,
    AUC,
    BALANCED_ACCURACY,
    BASE_RATE,
    CALIBRATION_ERROR,
    LOG_LOSS,
    LOSS,
    MAE,
    MSE,
    R2,
    Metric,
)
from node.maths import scores
from node.task import Value


class Goal(ABC):
    """Outputs of a model are float [n, outputs], labels y [n]."""

    metrics: tuple[Metric, ...]
    """The headline first; `loss` is one of them."""

    @abstractmethod
    def loss(self, outputs: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        """reduction: mean | sum."""

    @abstractmethod
    def measure(self, outputs: Tensor, y: Tensor) -> dict[str, float]:
        """The metrics of a whole test set, but for its loss."""

    @abstractmethod
    def value(self, outputs: Tensor, y: Tensor, kind: Value) -> Tensor:
        """Scalar: what the model is worth, by accuracy or negative mean loss."""


class Classes(Goal):
    """One of several classes, by the cross-entropy of logits."""

    metrics: tuple[Metric, ...] = (ACCURACY, LOSS)

    def loss(self, outputs: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        return functional.cross_entropy(outputs, y, reduction=reduction)

    def measure(self, outputs: Tensor, y: Tensor) -> dict[str, float]:
        return {"accuracy": int((outputs.argmax(1) == y).sum()) / len(y)}

    def value(self, outputs: Tensor, y: Tensor, kind: Value) -> Tensor:
        if kind == "accuracy":
            return (outputs.argmax(1) == y).float().mean()
        return -self.loss(outputs, y)


class TableClasses(Classes):
    """The same of a table, whose classes are seldom equally frequent."""

    metrics: tuple[Metric, ...] = (ACCURACY, BALANCED_ACCURACY, AUC, LOG_LOSS)

    def measure(self, outputs: Tensor, y: Tensor) -> dict[str, float]:
        truth = y.cpu().numpy()
        probabilities = outputs.double().softmax(1).cpu().numpy()
        return {
            **super().measure(outputs, y),
            "balanced_accuracy": scores.balanced_accuracy(probabilities.argmax(1), truth),
            "auc": scores.mean_auc(probabilities, truth),
        }


class TwoClasses(TableClasses):
    """Of two, the second is the one that is looked for."""

    metrics = (AUC, BALANCED_ACCURACY, ACCURACY, LOG_LOSS, BASE_RATE, CALIBRATION_ERROR)

    def measure(self, outputs: Tensor, y: Tensor) -> dict[str, float]:
        margin = (outputs[:, 1] - outputs[:, 0]).double()
        positive = y.cpu().numpy() == 1
        return {
            **super().measure(outputs, y),
            "auc": scores.auc(margin.cpu().numpy(), positive),
            "base_rate": float(positive.mean()),
            "calibration_error": scores.calibration_error(margin.sigmoid().cpu().numpy(), positive),
        }


@dataclass(frozen=True, slots=True)
class Number(Goal):
    """A number, by the squared error of one output. It is learned as (y − center)/scale, and its
    metrics but the loss are in its own unit."""

    center: float
    scale: float
    metrics = (R2, MSE, MAE, LOSS)

    def loss(self, outputs: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        return functional.mse_loss(outputs.squeeze(1), y, reduction=reduction)

    def measure(self, outputs: Tensor, y: Tensor) -> dict[str, float]:
        predicted, truth = (self._unscaled(it) for it in (outputs.squeeze(1), y))
        errors = predicted - truth
        return {
            "r2": scores.r2(predicted, truth),
            "mse": float((errors**2).mean()),
            "mae": float(np.abs(errors).mean()),
        }

    def value(self, outputs: Tensor, y: Tensor, kind: Value) -> Tensor:
        return -self.loss(outputs, y)

    def _unscaled(self, values: Tensor) -> scores.Floats:
        unscaled: scores.Floats = values.double().cpu().numpy() * self.scale + self.center
        return unscaled
