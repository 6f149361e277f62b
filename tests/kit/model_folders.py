"""Tiny models in folders, as transformers reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_model(
    folder: Path, config: Any = None, *, words: str = "good bad film the was a", **special: str
) -> Path:
    """A tiny Llama (or another configuration's model) with a tokenizer of words; `special` are its
    tokens.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    special = special or {"eos_token": "<end>", "pad_token": "<pad>"}
    vocabulary = {word: k for k, word in enumerate(["<unk>", "<end>", "<pad>", *words.split()])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer: Any = PreTrainedTokenizerFast
    tokenizer(tokenizer_object=inner, unk_token="<unk>", **special).save_pretrained(folder)
    config = config or LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM
    model.from_config(config).save_pretrained(folder)
    return folder
