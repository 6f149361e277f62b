"""What can't be learned is one sentence."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertConfig, MambaConfig, MixtralConfig, RwkvConfig

from kit.language import language_run
from node.config import DataSection, TaskSection
from node.llm import models
from node.tasks import make, sealed
from peer.errors import ConfigurationError, DataError, StorageError

ROWS = np.arange(4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "mlp"}, "'mlp' is no language model"),
        ({"model": "./nowhere"}, "'./nowhere' is no language model"),
        ({"model": "lost.gguf"}, "'lost.gguf' is no language model"),
        ({"data": "digits"}, "'digits' is no text"),
        ({"data": "questions"}, "'questions' has no column 'text'"),
        ({"text": {"length": 2000}}, "takes 1024 tokens at most"),
        ({"text": {"template": "chat"}}, "bytes has no chat template"),
        ({"text": {"template": "blain"}}, "'blain' is none of plain, instruction, chat"),
        (
            {"text": {"template": "{tongue}:"}},
            "names the column 'tongue'; there are text, language",
        ),
    ],
)
def test_a_run_that_does_not_fit(change: dict[str, object], says: str) -> None:
    with pytest.raises((ConfigurationError, DataError), match=says):
        make(language_run(**change), ROWS)  # type: ignore[arg-type]


def test_a_tokenizer_without_pad_or_end(model_folder: Callable[..., Path]) -> None:
    with pytest.raises(ConfigurationError, match="has no pad token; set pad_token"):
        make(language_run(model=str(model_folder(eos_token="<end>"))), ROWS)
    with pytest.raises(ConfigurationError, match="has no end token; set eos_token"):
        make(language_run(model=str(model_folder(pad_token="<pad>"))), ROWS)


def test_a_tokenizer_of_another_model(model_folder: Callable[..., Path]) -> None:
    with pytest.raises(ConfigurationError, match="has 33 tokens, its model only 16"):
        make(
            language_run(model=str(model_folder(words=" ".join(f"w{k}" for k in range(30))))), ROWS
        )


def test_a_folder_that_holds_no_model(tmp_path: Path, model_folder: Callable[..., Path]) -> None:
    with pytest.raises(
        DataError, match="There is no language model with its tokenizer in the folder"
    ):
        make(language_run(model=str(tmp_path)), ROWS)
    damaged = model_folder()
    (damaged / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="in the folder"):
        make(language_run(model=str(damaged)), ROWS)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with pytest.raises(DataError, match=r"broken.gguf can't be read as a GGUF model"):
        make(language_run(model=str(tmp_path / "broken.gguf")), ROWS)


SMALL: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_sees_later_tokens(model_folder: Callable[..., Path], dtype: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"The model .* is not causal: a token changes what is predicted"
    ):
        make(
            language_run(model=str(model_folder(BertConfig(**SMALL))), text={"dtype": dtype}), ROWS
        )
    make(
        language_run(
            model=str(model_folder(BertConfig(**SMALL, is_decoder=True))), text={"dtype": dtype}
        ),
        ROWS,
    )


def test_a_model_that_changes_as_it_runs(model_folder: Callable[..., Path]) -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 16,
        "hidden_size": 16,
        "attention_hidden_size": 16,
        "intermediate_size": 24,
    }
    with pytest.raises(
        ConfigurationError, match=r"The model .* changes its own weights when it runs"
    ):
        make(language_run(model=str(model_folder(RwkvConfig(**sizes, num_hidden_layers=8)))), ROWS)
    make(
        language_run(
            model=str(model_folder(RwkvConfig(**sizes, num_hidden_layers=8, rescale_every=0)))
        ),
        ROWS,
    )


def test_a_model_that_does_not_run(model_folder: Callable[..., Path]) -> None:
    wrong = MixtralConfig(
        **SMALL, num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=4
    )
    with pytest.raises(ConfigurationError, match=r"The model .* does not run: .*out of range"):
        make(language_run(model=str(model_folder(wrong))), ROWS)


def test_a_model_that_takes_no_adapters(model_folder: Callable[..., Path]) -> None:
    mamba = MambaConfig(vocab_size=16, hidden_size=16, num_hidden_layers=2, state_size=4)
    with pytest.raises(ConfigurationError, match="MambaForCausalLM takes no adapters"):
        make(language_run(model=str(model_folder(mamba)), text={"lora_rank": 2}), ROWS)


def test_peers_with_other_models_or_other_texts(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    mine, theirs = model_folder(), model_folder()
    run = sealed(language_run(model=str(mine)))
    assert run.task.text is not None
    assert len(run.task.text.digest) == 129
    make(run, ROWS)
    other = run.model_copy(update={"task": run.task.model_copy(update={"model": str(theirs)})})
    with pytest.raises(DataError, match="is not the one the run was made with"):
        make(other, ROWS)
    for name in ("mine", "theirs"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n' * 10)
    run = sealed(language_run(data="file", path=tmp_path / "mine.jsonl"))
    make(run, ROWS)
    other = run.model_copy(
        update={"task": run.task.model_copy(update={"path": tmp_path / "theirs.jsonl"})}
    )
    with pytest.raises(DataError, match="public texts are not the ones the run was made with"):
        make(other, ROWS)
    assert run.task.text is not None
    text = run.task.text.model_copy(update={"digest": sealed(language_run()).task.text.digest})  # type: ignore[union-attr]
    make(
        language_run().model_copy(
            update={"task": language_run().task.model_copy(update={"text": text})}
        ),
        ROWS,
    )


def test_peers_with_other_commits_of_the_hub(
    model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was downloaded before is taken, without asking anybody; only its configuration is read
    to seal.
    """
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", None)
    home = tmp_path / "models--me--mine"
    (home / "refs").mkdir(parents=True)
    seen = set()
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(model_folder(), home / "snapshots" / commit)
        (home / "refs" / "main").write_text(commit)
        models.identity.cache_clear()
        with monkeypatch.context() as without:
            without.setattr("node.llm.models.load", None)
            run = sealed(language_run(model="me/mine"))
        seen.add(run.task.text.digest)  # type: ignore[union-attr]
    assert len(seen) == 2
    make(run, ROWS)
    (home / "refs" / "main").write_text("a" * 40)
    models.identity.cache_clear()
    with pytest.raises(DataError, match="This copy of me/mine is not the one"):
        make(run, ROWS)


def test_a_row_with_nothing_to_learn_and_a_label_beyond_the_length(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": ""}\n' * 10)
    with pytest.raises(DataError, match="row 2, has nothing in the column 'text'"):
        make(language_run(data="file", path=str(tmp_path / "a.jsonl")), ROWS)
    (tmp_path / "a.jsonl").write_text('{"text": "a long label"}\n{"text": "short"}\n' * 10)
    labels: dict[str, Any] = {"labels": ["a long label", "short"], "classes": 2}
    with pytest.raises(ConfigurationError, match="A label has 14 tokens"):
        make(
            language_run(
                data="file", path=str(tmp_path / "a.jsonl"), **labels, text={"length": 20}
            ),
            ROWS,
        )


def test_a_label_without_tokens() -> None:
    with pytest.raises(ConfigurationError, match=r"The label '' of task.labels has no tokens"):
        make(language_run(labels=["de", ""], classes=2, text={"answer": "language"}), ROWS)


def test_own_texts_need_a_path_and_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.\n\nTwo.")
    run = language_run(data="own")
    for where, says in ((ROWS, "needs real nodes"), (DataSection(name="mine"), "needs data.path"),
                        (DataSection(path=tmp_path / "a.txt"), "needs data.name")):  # fmt: skip
        with pytest.raises(ConfigurationError, match=says):
            make(run, where)
    task = make(run, DataSection(path=tmp_path / "a.txt", name="mine"))
    assert task.num_examples == 2
    assert task.evaluate(task.initial_parameters(0)) == {}


def test_ross_and_pdsl_are_refused() -> None:
    run = language_run()
    validation = run.validation.model_copy(update={"size": 5})
    with pytest.raises(ConfigurationError, match="knows no validation set"):
        make(run.model_copy(update={"validation": validation}), ROWS)


def test_images_are_learned_by_another_task() -> None:
    run = language_run()
    task = TaskSection(data="fortunes", classes=10)
    with pytest.raises(ConfigurationError, match="is text"):
        make(run.model_copy(update={"task": task}), ROWS)


def test_without_a_home_a_converted_model_has_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    homeless(monkeypatch)
    with pytest.raises(StorageError, match="set HOME or XDG_CACHE_HOME"):
        models.converted(tmp_path / "model.gguf")


def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user without an entry in passwd."""
    for variable in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
