"""Answers by likelihood against a loop that knows no cache; figures against scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, BloomConfig, Lfm2Config, LlamaConfig, MambaConfig

from kit.language import language_run
from node.llm import models
from node.llm.likelihood import macro_f1
from node.tasks import make
from node.tasks.causal_lm import CausalLM

LABELS = ["good", "bad the was", "bad a"]
SMALL: dict[str, Any] = {"vocab_size": 16, "hidden_size": 16, "eos_token_id": 1, "pad_token_id": 2}
HEADS: dict[str, Any] = {
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    **SMALL,
}


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    lines = []
    for k in range(60):
        words = " ".join(generator.choice(["film", "the", "was", "a"], generator.integers(1, 9)))
        lines.append('{"review": "%s", "mood": "%s"}' % (words, LABELS[(0, 0, 0, 1, 1, 2)[k % 6]]))  # noqa: UP031
    (tmp_path / "reviews.jsonl").write_text("\n".join(lines))
    return tmp_path / "reviews.jsonl"


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(initializer_range=0.5, **HEADS),
        BloomConfig(initializer_range=0.5, n_layer=3, n_head=2, **SMALL),  # has no sdpa
        MambaConfig(num_hidden_layers=3, state_size=4, **SMALL),  # neither that nor a cache
        Lfm2Config(
            layer_types=["conv", "full_attention", "conv"], **HEADS, num_key_value_heads=1
        ),  # no such cache
    ],
    ids=lambda it: it.model_type,
)
def test_the_models_answer_is_the_label_whose_example_has_the_lowest_loss(
    config: Any, reviews: Path, model_folder: Callable[..., Path]
) -> None:
    torch.manual_seed(0)
    folder = model_folder(config)
    text = {"template": "the {review} was", "answer": "mood", "length": 12}
    run = language_run(
        model=str(folder), data="file", path=str(reviews), labels=LABELS, classes=3, text=text
    )
    task: Any = make(run, np.arange(6))
    assert task._repeats == (config.model_type in ("llama", "bloom")), "else the slow way is tested"
    figures = task.evaluate(task.initial_parameters(0))
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokens = models.load(str(folder), torch.float32, "eager", 0).tokens
    truth, guessed, summed, losses, nll, count = [], [], [], [], 0.0, 0
    for context, labels, right in zip(
        [context for context, _ in task._test.questions],
        [labels for _, labels in task._test.questions],
        task._test.truth.tolist(),
        strict=True,
    ):
        assert [label[:-1] for label in labels] == [tokens.encode(label) for label in LABELS]
        each = []
        for label in labels:
            logits = model(input_ids=torch.tensor([context + label])).logits[0]
            logits = logits[len(context) - 1 : -1]
            each.append(functional.cross_entropy(logits, torch.tensor(label)).item())
        truth.append(right)
        guessed.append(int(np.argmin(each)))
        summed.append(int(np.argmin(np.multiply(each, [len(label) for label in labels]))))
        losses.append(each[right])
        nll, count = nll + each[right] * len(labels[right]), count + len(labels[right])
    assert len(set(map(len, [context for context, _ in task._test.questions]))) > 2, (
        "prompts of several lengths"
    )
    assert np.mean(np.equal(truth, guessed)) != np.mean(np.equal(truth, summed)), (
        "or sums would do as well"
    )
    assert figures["accuracy"] == pytest.approx(np.mean(np.equal(truth, guessed)))
    assert figures["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert figures["perplexity"] == pytest.approx(np.exp(nll / count), rel=1e-5)
    metrics = pytest.importorskip(
        "sklearn.metrics", reason="pip install 'peerpoise[demo]' brings scikit-learn"
    )
    assert figures["f1"] == pytest.approx(metrics.f1_score(truth, guessed, average="macro"))


def test_the_cache_of_bytes_serves_all_labels() -> None:
    assert models.checked(models.load("bytes", torch.float32, None, 0), "bytes").repeats


def test_macro_f1_is_scikit_learns() -> None:
    metrics = pytest.importorskip(
        "sklearn.metrics", reason="pip install 'peerpoise[demo]' brings scikit-learn"
    )
    generator = np.random.default_rng(1)
    for _ in range(20):
        truth, answered = generator.integers(0, 5, 30), generator.integers(1, 7, 30)
        expected = metrics.f1_score(truth, answered, average="macro")
        f1 = macro_f1(torch.from_numpy(truth), torch.from_numpy(answered))
        assert f1 == pytest.approx(expected)


def test_perplexity_is_over_all_label_tokens_and_yields_between_chunks() -> None:
    task = make(language_run(text={"length": 100, "test_size": 20}), np.arange(4))
    assert isinstance(task, CausalLM)
    assert task._test is not None
    yields: list[int] = []
    figures = task.evaluate(task.initial_parameters(0), lambda: yields.append(1))
    model = models.tiny_llama(torch.float32, "eager", 0)
    nll, count, losses = 0.0, 0, []
    for ids, labels in zip(task._test.rows.ids.long(), task._test.rows.labels.long(), strict=True):
        loss, n = (
            model(input_ids=ids[None], labels=labels[None]).loss.item(),
            int((labels != -100).sum()),
        )
        nll, count = nll + loss * n, count + n
        losses.append(loss)
    assert figures == pytest.approx(
        {"loss": np.mean(losses), "perplexity": np.exp(nll / count)}, rel=1e-5
    )
    assert len(yields) == 2
