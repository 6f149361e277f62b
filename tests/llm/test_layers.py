"""Which modules are taken for a model's layers, where they are of several kinds, in several lists,
or share weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    GitConfig,
    JambaConfig,
    MixtralConfig,
    PhimoeConfig,
    XLMConfig,
    Zamba2Config,
)

from kit.language import language_run
from node.llm.layers import layers
from node.maths.blocks import partition_blocks
from node.maths.clipping import mean_gradient
from node.privacy.block_objective import BlockObjective
from node.task import views
from node.tasks import make
from node.tasks.causal_lm import save_pretrained
from peer.errors import ConfigurationError

ROWS = np.arange(4)
SMALL: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "pad_token_id": 2,
}
ZAMBA2 = Zamba2Config(
    **SMALL,
    num_hidden_layers=6,
    layers_block_type=["mamba", "hybrid", "hybrid", "mamba", "hybrid", "hybrid"],
    num_mem_blocks=2,
    n_mamba_heads=2,
    mamba_ngroups=1,
    mamba_d_state=4,
    adapter_rank=2,
    num_key_value_heads=2,
)
"""Layers 1 and 4, and 2 and 5, share a transformer."""
JAMBA = JambaConfig(
    **SMALL,
    num_hidden_layers=4,
    attn_layer_period=2,
    attn_layer_offset=1,
    expert_layer_period=2,
    num_experts=4,
    expert_layer_offset=1,
    mamba_d_state=4,
    mamba_dt_rank=2,
    num_key_value_heads=2,
    use_mamba_kernels=False,
)
MIXTRAL = MixtralConfig(
    **SMALL,
    num_hidden_layers=3,
    num_key_value_heads=2,
    num_local_experts=2,
    num_experts_per_tok=2,
)
GIT = GitConfig(
    **SMALL,
    num_hidden_layers=3,
    vision_config={
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    },
)
"""Its image encoder is the larger part."""
XLM = XLMConfig(
    vocab_size=16, emb_dim=16, n_layers=3, n_heads=2, causal=True, max_position_embeddings=64
)
"""Attention, feed-forward and norms in lists of their own."""


@pytest.mark.parametrize(
    ("config", "count", "outside"),
    [
        (ZAMBA2, 6, ("model.embed", "model.final")),
        (JAMBA, 4, ("model.embed", "model.final", "lm_head")),
        (GIT, 3, ("git.embeddings", "git.image_encoder", "git.visual", "output")),
        (
            XLM,
            3,
            (
                "transformer.position",
                "transformer.embeddings",
                "transformer.layer_norm_emb",
                "pred_layer",
            ),
        ),
    ],
    ids=["zamba2", "jamba", "git", "xlm"],
)
def test_all_layers_are_trained_and_a_block_gets_its_slice_of_the_full_gradient(
    config: Any, count: int, outside: tuple[str, ...], model_folder: Callable[..., Path]
) -> None:
    """What layers share is the first one's, with what comes through the others."""
    torch.manual_seed(0)
    run = language_run(model=str(model_folder(config)))
    task: Any = make(run, ROWS)
    model = AutoModelForCausalLM.from_pretrained(run.task.model)
    names = [name for stage in task.layer_groups for name in stage]
    assert len(task.layer_groups) == count
    assert sorted(names) == sorted(
        name for name, _ in model.named_parameters() if not name.startswith(outside)
    )
    ids, labels = task.batch(torch.arange(4))
    logits = model(input_ids=ids).logits[:, :-1].transpose(1, 2)
    losses = functional.cross_entropy(logits, labels[:, 1:], ignore_index=-100, reduction="none")
    (losses.sum(1) / (labels[:, 1:] != -100).sum(1)).mean().backward()
    x = task.initial_parameters(0)
    for block in partition_blocks(task.layout, task.layer_groups, 1):
        gradient = mean_gradient(BlockObjective(task, x, block), x[block.span], torch.arange(4))
        grads: list[Any] = [model.get_parameter(name).grad for name, _ in block.layout.fields]
        expected = [grad.reshape(-1) for grad in grads]
        assert gradient.any()
        torch.testing.assert_close(gradient, torch.cat(expected), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("config", [JAMBA, MIXTRAL], ids=["jamba", "mixtral"])
def test_adapters_of_layers_of_several_kinds_and_of_experts_are_trained_and_merged(
    config: Any, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    run = language_run(model=str(model_folder(config)), text={"lora_rank": 2})
    task: Any = make(run, ROWS)
    x = task.initial_parameters(0)
    for _ in range(3):
        x -= 10 * mean_gradient(task, x, torch.arange(4))
    save_pretrained(run, task.layout, x, tmp_path / "whole")
    ids, plain = torch.arange(8).reshape(1, 8), AutoModelForCausalLM.from_pretrained(run.task.model)
    with torch.inference_mode():
        ours = task._forward(views(task.layout, x), ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")(input_ids=ids).logits
        before = plain(input_ids=ids).logits
    torch.testing.assert_close(merged, ours, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(before, ours, atol=1e-3)


def test_a_model_that_does_not_run_with_adapters(model_folder: Callable[..., Path]) -> None:
    folder = model_folder(
        PhimoeConfig(**SMALL, num_hidden_layers=3, num_key_value_heads=2, num_local_experts=2)
    )
    make(language_run(model=str(folder)), ROWS)
    with pytest.raises(
        ConfigurationError, match=r"does not run with adapters \(task.text.lora_rank\): "
    ):
        make(language_run(model=str(folder), text={"lora_rank": 2}), ROWS)


def test_weights_that_layers_share_take_no_adapters(model_folder: Callable[..., Path]) -> None:
    with pytest.raises(
        ConfigurationError, match=r"Zamba2ForCausalLM takes no adapters .* that its layers share"
    ):
        make(language_run(model=str(model_folder(ZAMBA2)), text={"lora_rank": 2}), ROWS)


def linears(n: int, width: int) -> nn.ModuleList:
    return nn.ModuleList([nn.Linear(width, width) for _ in range(n)])


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = linears(3, 9)


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = linears(5, 2)
        self.blocks = nn.ModuleList([Layer(), nn.Linear(2, 2), nn.Identity()])
        self.norms = linears(3, 2)
        self.eyes = linears(9, 99)


def test_they_are_the_largest_outermost_list_that_tokens_run_through_and_those_as_long() -> None:
    odd = Odd()
    seen = {it for name, it in odd.named_modules() if not name.startswith("eyes")}
    assert layers(odd, seen) == [(f"blocks.{k}.", f"norms.{k}.") for k in range(3)]


def test_a_model_without_layers() -> None:
    for model in (
        nn.Sequential(nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.ReLU()])),
    ):
        with pytest.raises(
            ConfigurationError, match="No layers are recognized in Sequential: it has no"
        ):
            layers(model, set(model.modules()))
    odd = Odd()
    with pytest.raises(ConfigurationError, match="that tokens run through"):
        layers(odd, set())
