"""Answers by likelihood against a loop that knows no cache; figures against scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from language_runs import language_run
from torch.nn import functional
from transformers import AutoModelForCausalLM

from node.llm import models
from node.llm.likelihood import macro_f1
from node.tasks import make

LABELS = ["good", "bad the was", "bad a"]


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    lines = []
    for k in range(60):
        words = " ".join(generator.choice(["film", "the", "was", "a"], generator.integers(1, 9)))
        lines.append('{"review": "%s", "mood": "%s"}' % (words, LABELS[k % 3]))  # noqa: UP031
    (tmp_path / "reviews.jsonl").write_text("\n".join(lines))
    return tmp_path / "reviews.jsonl"


def test_the_models_answer_is_the_label_whose_example_has_the_lowest_loss(
    reviews: Path, model_folder: Callable[..., Path]
) -> None:
    folder = model_folder()
    text = {"template": "the {review} was", "answer": "mood", "length": 12}
    run = language_run(model=str(folder), data="file", path=str(reviews), labels=LABELS, classes=3, text=text)
    it = make(run, np.arange(6))
    found = it.evaluate(it.start(0))
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokens = models.load(str(folder), torch.float32, "eager", 0).tokens
    truth, guessed, losses, nll, count = [], [], [], 0.0, 0
    for given, labels, right in zip(
        [given for given, _ in it._test.questions],
        [labels for _, labels in it._test.questions],
        it._test.truth.tolist(),
        strict=True,
    ):
        assert [label[:-1] for label in labels] == [tokens.encode(label) for label in LABELS]
        each = []
        for label in labels:
            logits = model(input_ids=torch.tensor([given + label])).logits[0, len(given) - 1 : -1]
            each.append(functional.cross_entropy(logits, torch.tensor(label)).item())
        truth.append(right)
        guessed.append(int(np.argmin(each)))
        losses.append(each[right])
        nll, count = nll + each[right] * len(labels[right]), count + len(labels[right])
    assert len(set(map(len, [given for given, _ in it._test.questions]))) > 2, "prompts of several lengths"
    assert found["accuracy"] == pytest.approx(np.mean(np.array(truth) == np.array(guessed)))
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(nll / count), rel=1e-5)
    metrics = pytest.importorskip("sklearn.metrics")
    assert found["f1"] == pytest.approx(metrics.f1_score(truth, guessed, average="macro"))


def test_macro_f1_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(1)
    for _ in range(20):
        truth, found = generator.integers(0, 5, 30), generator.integers(1, 7, 30)
        expected = metrics.f1_score(truth, found, average="macro")
        assert macro_f1(torch.from_numpy(truth), torch.from_numpy(found)) == pytest.approx(expected)


def test_perplexity_is_over_all_label_tokens_and_breathes_between_chunks() -> None:
    it = make(language_run(text={"length": 100, "test_size": 20}), np.arange(4))
    breaths: list[int] = []
    found = it.evaluate(it.start(0), lambda: breaths.append(1))
    model = models.scratch(torch.float32, "eager", 0)
    nll, count, losses = 0.0, 0, []
    for ids, labels in zip(it._test.rows.ids.long(), it._test.rows.labels.long(), strict=True):
        loss, n = model(input_ids=ids[None], labels=labels[None]).loss.item(), int((labels != -100).sum())
        nll, count = nll + loss * n, count + n
        losses.append(loss)
    assert found == pytest.approx({"loss": np.mean(losses), "perplexity": np.exp(nll / count)}, rel=1e-5)
    assert len(breaths) == 2
