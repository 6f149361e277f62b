"""The task causal-lm: its losses and gradients against transformers' own and torch's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig

from kit.language import language_run
from node.config import ExperimentConfig
from node.experiments.in_process import simulate
from node.llm import models
from node.maths.backends import probe
from node.maths.clipping import clipped_sum, mean_gradient
from node.records.summary import TaskMetric
from node.task import flat, views
from node.tasks import causal_lm, make
from node.tasks.causal_lm import CausalLM
from peer.errors import DataError

ROWS = np.arange(0, 320, 20)


def task(
    rows: np.ndarray = ROWS, privacy: dict[str, Any] | None = None, **text: object
) -> CausalLM:
    return make(language_run(privacy=privacy, text=text), rows)  # type: ignore[return-value]


def test_an_examples_loss_is_transformers_own_and_a_batchs_is_the_mean_over_its_examples() -> None:
    lm = task(embeddings=True, length=200)
    x = lm.initial_parameters(0)
    model = models.tiny_llama(torch.float32, "eager", 0)
    ids, labels = lm.batch(torch.tensor([1, 5, 9]))
    assert len(set((labels != -100).sum(1).tolist())) > 1, (
        "of different lengths, or the two means are one"
    )
    theirs = torch.stack(
        [model(input_ids=i[None], labels=l[None]).loss for i, l in zip(ids, labels, strict=True)]
    )
    ours = torch.stack(
        [lm.loss(views(lm.layout, x), example) for example in zip(ids, labels, strict=True)]
    )
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(lm.mean_loss(views(lm.layout, x), (ids, labels)), theirs.mean())


def test_only_the_answer_is_learned() -> None:
    lm = task(template="Language {language}, then:", answer="text", length=64)
    ids, labels = lm.batch(torch.tensor([3]))
    prompt = len("Language de, then:") + 1
    assert (labels[0, :prompt] == -100).all()
    assert torch.equal(labels[0, prompt:], ids[0, prompt:]), (
        "the row is longer than the sequence: no pad"
    )
    logits = models.tiny_llama(torch.float32, "eager", 0)(input_ids=ids).logits[0]
    expected = functional.cross_entropy(logits[prompt - 1 : -1], ids[0, prompt:])
    torch.testing.assert_close(
        lm.loss(views(lm.layout, lm.initial_parameters(0)), (ids[0], labels[0])), expected
    )


def test_a_template_names_any_column_and_leaves_other_braces(tmp_path: Path) -> None:
    rows = [{"head-line": "Up", "the day": None, "text": "b"}] * 10
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = {"template": '{head-line}, {the day}: {"mood": {}', "length": 40}
    lm = make(language_run(data="file", path=str(tmp_path / "a.jsonl"), text=text), np.arange(1))
    ids = lm.batch(torch.tensor([0]))[0][0].tolist()
    assert bytes(token for token in ids if token < 256).decode() == 'Up, : {"mood": {} b'


def test_what_is_given_leaves_room_for_every_label_in_training_and_in_tests(tmp_path: Path) -> None:
    rows = [{"head": "x" * 50, "mood": ["up", "much further down"][k % 2]} for k in range(10)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = {"template": "{head}", "answer": "mood", "length": 40}
    labels: dict[str, Any] = {"labels": ["up", "much further down"], "classes": 2}
    lm = make(
        language_run(data="file", path=str(tmp_path / "a.jsonl"), text=text, **labels), np.arange(4)
    )
    asked = [(len(context), max(map(len, answers))) for context, answers in lm._test.questions]  # type: ignore[attr-defined]
    assert asked == [(40 - 19, 19)] * len(asked)
    learned = lm.batch(torch.arange(4))[1] != -100
    assert learned.int().argmax(1).tolist() == [40 - 19] * 4, (
        "cut as in tests, however short the answer is"
    )


def test_pads_and_neighbors_in_a_batch_reach_no_loss() -> None:
    lm = task(length=300)
    parameters = views(lm.layout, lm.initial_parameters(0))
    ids, labels = lm.batch(torch.arange(4))
    after = (labels != -100).nonzero()[:, 1].max() + 1
    changed = ids.clone()
    changed[:, after:] = 7
    assert after < ids.shape[1]
    assert torch.equal(
        lm.loss(parameters, (ids[0], labels[0])), lm.loss(parameters, (changed[0], labels[0]))
    )


def test_the_gradient_of_a_block_is_the_full_gradients_slice_and_nothing_flows_elsewhere() -> None:
    lm = task()
    x, batch = lm.initial_parameters(0), lm.batch(torch.arange(4))
    full = views(lm.layout, mean_gradient(lm, x, torch.arange(4)))
    block = lm.layer_groups[2]
    parameters = {n: p.clone().requires_grad_(n in block) for n, p in views(lm.layout, x).items()}
    gradients = torch.autograd.grad(
        lm.mean_loss(parameters, batch), [parameters[name] for name in block]
    )
    for name, gradient in zip(block, gradients, strict=True):
        torch.testing.assert_close(gradient, full[name])
    lm.mean_loss(parameters, batch).backward()
    assert {name for name, p in parameters.items() if p.grad is not None} == set(block)


def test_bfloat16_all_around_leaves_a_float32_blocks_gradient_float32() -> None:
    lm = task(dtype="bfloat16")
    x = lm.initial_parameters(0)
    assert x.dtype == torch.bfloat16
    parameters = views(lm.layout, x)
    for name in lm.layer_groups[1]:
        parameters[name] = parameters[name].float().requires_grad_()
    lm.mean_loss(parameters, lm.batch(torch.arange(2))).backward()
    assert all(parameters[name].grad.dtype == torch.float32 for name in lm.layer_groups[1])  # type: ignore[union-attr]
    fine = task()
    exact = views(fine.layout, mean_gradient(fine, x.float(), torch.arange(2)))
    for name in lm.layer_groups[1]:
        torch.testing.assert_close(parameters[name].grad, exact[name], atol=0.02, rtol=0.1)


def test_a_bfloat16_model_is_trained_under_autocast_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The CPU's autocast plays the GPU's. What is trained stays float32 where autocast wants it so:
    in norms.
    """
    lm, fine = task(dtype="bfloat16"), task()
    x, batch = lm.initial_parameters(0), lm.batch(torch.arange(4))
    norm = next(name for name in lm.layer_groups[1] if "norm" in name)

    def trained(of: CausalLM, nudge: float = 0.0) -> tuple[Tensor, Tensor]:
        """Loss and flat gradient of a block in float32."""
        parameters = views(of.layout, x.to(of.dtype))
        for name in of.layer_groups[1]:
            parameters[name] = (
                parameters[name].float().add(nudge if name == norm else 0).requires_grad_()
            )
        gradients = torch.autograd.grad(
            loss := of.mean_loss(parameters, batch),
            [parameters[name] for name in of.layer_groups[1]],
        )
        assert {g.dtype for g in gradients} == {torch.float32}
        return loss, torch.cat([g.reshape(-1) for g in gradients])

    cast, exact = trained(lm), trained(fine)
    assert torch.equal(trained(lm, 0.003)[0], cast[0]), "rounded away"
    single = lm.loss(views(lm.layout, x), (batch[0][0], batch[1][0]))
    monkeypatch.setattr(causal_lm, "AUTOCAST", set())
    assert all(map(torch.equal, trained(lm), cast)), "a CPU has no autocast"
    monkeypatch.setattr(causal_lm, "AUTOCAST", {"cpu"})
    mixed = trained(lm)
    assert mixed[1].isfinite().all()
    assert 0 < (mixed[1] - exact[1]).norm() < 0.02 * exact[1].norm()
    assert not torch.equal(trained(lm, 0.003)[0], mixed[0])
    assert all(map(torch.equal, trained(fine), exact)), "float32 is what it says"
    assert torch.equal(lm.loss(views(lm.layout, x), (batch[0][0], batch[1][0])), single), (
        "of single examples it is not"
    )


def test_layers_are_found_by_structure(model_folder: Callable[..., Path]) -> None:
    small: dict[str, Any] = {"vocab_size": 16, "max_position_embeddings": 64}
    gpt2 = GPT2Config(vocab_size=16, n_positions=64, n_embd=16, n_layer=3, n_head=2)
    neox = GPTNeoXConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        tie_word_embeddings=False,
        **small,
    )
    for config in (None, gpt2, neox):
        run = language_run(model=str(model_folder(config)))
        frozen, every = (
            make(language_run(model=run.task.model, text={"embeddings": embeddings}), ROWS)
            for embeddings in (False, True)
        )
        whole = AutoModelForCausalLM.from_pretrained(run.task.model)
        for lm in (frozen, every):
            assert [name for stage in lm.layer_groups for name in stage] == [
                name for name, _ in lm.layout.fields
            ]
            assert len(lm.layer_groups) == 3
        assert all(
            f".{k}." in name for k, stage in enumerate(frozen.layer_groups) for name in stage
        )
        assert every.layout.size == sum(p.numel() for p in whole.parameters())
        x = every.initial_parameters(0)
        ids, labels = every.batch(torch.tensor([2]))
        torch.testing.assert_close(
            every.loss(views(every.layout, x), (ids[0], labels[0])),
            whole(input_ids=ids, labels=labels).loss,
        )


def test_one_weight_that_is_embedding_and_head_is_one_parameter_and_gets_both_gradients() -> None:
    lm = task(embeddings=True)
    names = [name for name, _ in lm.layout.fields]
    assert names[0] == "model.embed_tokens.weight"
    assert "lm_head.weight" not in names
    model = models.tiny_llama(torch.float32, "eager", 0).requires_grad_()
    ids, labels = lm.batch(torch.tensor([0]))
    model(input_ids=ids, labels=labels).loss.backward()
    ours = views(lm.layout, mean_gradient(lm, lm.initial_parameters(0), torch.tensor([0])))
    torch.testing.assert_close(ours[names[0]], model.get_parameter(names[0]).grad)
    assert lm.layout.size == 984_576


def test_adapters_are_all_that_is_trained_with_lora() -> None:
    lora, without = task(lora_rank=2), task()
    assert all(".lora_" in name for name, _ in lora.layout.fields)
    assert len(lora.layer_groups) == 4
    assert lora.layout.size == 4 * 2 * (4 * 2 * 128 + 3 * (128 + 448))
    x, batch = lora.initial_parameters(3), lora.batch(torch.arange(3))
    assert torch.equal(x, lora.initial_parameters(3))
    assert not torch.equal(x, lora.initial_parameters(4))
    at_first = without.mean_loss(views(without.layout, without.initial_parameters(0)), batch)
    torch.testing.assert_close(
        lora.mean_loss(views(lora.layout, x), batch), at_first, msg="B is zero at the start"
    )
    for _ in range(3):
        x = x - mean_gradient(lora, x, torch.arange(3))
    assert lora.mean_loss(views(lora.layout, x), batch) < at_first


def test_per_example_gradients_by_vmap_are_those_of_the_loop() -> None:
    lm = task(privacy={"mode": "strict", "sigma": 1.0})
    x = lm.initial_parameters(0)
    assert probe(lm) == "vmap"
    by_vmap = clipped_sum(lm, x, torch.arange(5), 0.5, backend="vmap")
    by_loop = clipped_sum(lm, x, torch.arange(5), 0.5, backend="loop")
    torch.testing.assert_close(by_vmap, by_loop, atol=1e-5, rtol=1e-4)


def test_the_start_is_drawn_from_the_seed_and_frozen_weights_from_the_runs() -> None:
    first, second = task(), task(np.arange(3))
    assert torch.equal(first.initial_parameters(5), second.initial_parameters(5))
    assert not torch.equal(first.initial_parameters(5), first.initial_parameters(6))
    assert not torch.equal(
        flat(first.layout, views(first.layout, first.initial_parameters(0))),
        torch.zeros(first.layout.size),
    )


def test_a_micro_batch_is_what_the_run_says() -> None:
    assert task(micro_batch=3).micro_batch == 3
    assert task().micro_batch is None


@pytest.mark.extras
@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["d-psgd", "local"])
def test_peers_with_a_language_each_learn(algorithm: str, tmp_path: Path) -> None:
    run = language_run(text={"length": 48, "embeddings": True, "test_size": 20})
    config = ExperimentConfig.model_validate(
        {
            **run.model_dump(),
            "algorithm": {"name": algorithm, "lr": 0.05},
            "experiment": {"nodes": 5, "partition": "column", "column": "language"},
        }
    )
    train = config.train.model_copy(update={"rounds": 8, "evaluate_every": 4})
    privacy = config.privacy.model_copy(update={"batch": 4})
    summary = simulate(config.model_copy(update={"train": train, "privacy": privacy}), tmp_path)
    perplexity = summary.task_metrics["perplexity"]
    assert isinstance(perplexity, TaskMetric)
    each = [value for value in perplexity.per_node.values() if value is not None]
    assert perplexity.mean == pytest.approx(np.mean(each))
    assert perplexity.mean is not None
    assert len(each) == 5
    assert perplexity.mean < 120, "259 are the tokens"
    lines = [
        json.loads(it)
        for it in (tmp_path / "nodes" / "n0" / "journal.jsonl").read_text().splitlines()
    ]
    tests = [line for line in lines if line["event"] == "test"]
    assert tests[0]["metrics"]["perplexity"] > tests[1]["metrics"]["perplexity"]


def test_what_was_exported_of_bytes_begins_another_run(tmp_path: Path) -> None:
    """It has no tokenizer; a model of another size without one is refused."""
    run = language_run(text={"embeddings": True})
    x = make(run, ROWS).initial_parameters(0) + 0.5
    causal_lm.save_pretrained(run, make(run, ROWS).layout, x, tmp_path / "exported")
    again = make(language_run(model=str(tmp_path / "exported"), text={"embeddings": True}), ROWS)
    assert torch.equal(again.initial_parameters(1), x)
    assert torch.equal(again.batch(torch.arange(4))[0], make(run, ROWS).batch(torch.arange(4))[0])
    config = tmp_path / "exported" / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 259', '"vocab_size": 260'))
    with pytest.raises(DataError, match="no language model with its tokenizer"):
        make(language_run(model=str(tmp_path / "exported")), ROWS)
