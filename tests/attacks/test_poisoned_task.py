"""The seam of data attacks: which examples the gate sees."""

from typing import Any

import numpy as np
import pytest
import torch

from node.attacks import Attack
from node.config import AttackSection, RunConfig
from node.task import Task
from node.tasks import make
from peer.errors import ConfigurationError
from peer.message import Layout

RUN = RunConfig.model_validate(
    {"task": {"data": "digits"}, "train": {"seed": 3}, "privacy": {"mode": "none"}}
)
ROWS = torch.arange(50)


@pytest.fixture
def task():
    return make(RUN, np.arange(100, 300))


def spoilt(task, name, me="n1", run=RUN, **options):
    return Attack.of(AttackSection(name=name, **options)).on_task(task, run, me)


def test_label_flip(task):
    x, y = task.batch(ROWS)
    found_x, found_y = spoilt(task, "label-flip").batch(ROWS)
    assert torch.equal(found_y, 9 - y)
    assert torch.equal(found_x, x)
    three = RUN.model_copy(update={"task": RUN.task.model_copy(update={"classes": 12})})
    assert torch.equal(spoilt(task, "label-flip", run=three).batch(ROWS)[1], 11 - y)


def test_a_share_of_the_labels_is_flipped_always_the_same(task):
    """Whatever rows stand beside a row in its batch."""
    y = task.batch(ROWS)[1]
    some = spoilt(task, "label-flip", share=0.5)
    flipped = some.batch(ROWS)[1] != y  # 9 − y is never y
    assert 15 < int(flipped.sum()) < 35
    one_by_one = torch.stack([some.batch(row.view(1))[1][0] for row in ROWS.flip(0)]).flip(0)
    assert torch.equal(one_by_one, some.batch(ROWS)[1])
    assert not torch.equal(
        some.batch(ROWS)[1], spoilt(task, "label-flip", "n2", share=0.5).batch(ROWS)[1]
    )
    assert torch.equal(spoilt(task, "label-flip", share=0.0).batch(ROWS)[1], y)


def test_feature_noise(task):
    """std·z, of every example once; labels stay."""
    x, y = task.batch(ROWS)
    noisy = spoilt(task, "feature-noise", std=2.0)
    found_x, found_y = noisy.batch(ROWS)
    assert torch.equal(found_y, y)
    noise = (found_x - x).flatten()
    assert abs(float(noise.mean())) < 0.15
    assert abs(float(noise.std()) - 2.0) < 0.1
    assert torch.equal(noisy.batch(ROWS[7:9])[0], found_x[7:9])
    assert torch.equal(spoilt(task, "feature-noise", std=0.0).batch(ROWS)[0], x)


def test_all_else_is_the_honest_tasks(task):
    """Also what is measured: on true test images."""
    found = spoilt(task, "label-flip")
    x = task.initial_parameters(3)
    assert torch.equal(found.initial_parameters(3), x)
    assert (found.num_examples, found.layout, found.device) == (
        200,
        task.layout,
        torch.device("cpu"),
    )
    assert found.evaluate(x) == task.evaluate(x)
    assert [part.shape[0] for part in found.batch(ROWS[:0])] == [0, 0], "an empty batch is one too"


class Points(Task):
    """Examples as they are given; nothing is learned from them."""

    layout = Layout((("w", (1,)),))

    def __init__(self, *parts):
        self.parts, self.num_examples = parts, len(parts[0])

    def batch(self, rows):
        return tuple(part[rows] for part in self.parts)

    def loss(self, parameters, example):
        raise NotImplementedError

    mean_loss: Any = loss
    initial_parameters: Any = loss
    evaluate: Any = loss


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("label-flip", [torch.rand(3)]),
        ("label-flip", [torch.rand(3, 2), torch.rand(3)]),
        ("label-flip", [torch.arange(3)]),
        ("label-flip", [torch.rand(3, 2), torch.zeros(3, 2, dtype=torch.int64)]),
        ("feature-noise", [torch.arange(6).view(3, 2), torch.arange(3)]),
    ],
)
def test_what_has_no_labels_or_features_is_refused(name, parts):
    with pytest.raises(
        ConfigurationError,
        match=f"The attack {name} can't poison the examples of classification: the",
    ):
        spoilt(Points(*parts), name)


def test_features_without_labels_can_be_noised():
    assert not torch.equal(
        spoilt(Points(torch.ones(3)), "feature-noise").batch(ROWS[:3])[0], torch.ones(3)
    )
