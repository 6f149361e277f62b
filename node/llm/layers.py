"""What of a model is trained: its layers, found by structure, and how they are grouped.

The layers are the members of the largest `nn.ModuleList` (by parameters) that tokens run through
and that is in no other, as a layer's experts are; no list of names. Lists as long beside it hold
parts of the same layers: XLM keeps attention and feed-forward apart.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Mapping, Set
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from node.config import TextSection
from node.llm.optional import peft
from peer.errors import ConfigurationError, first_line
from peer.message import Layout


@dataclass(frozen=True, slots=True)
class Trained:
    """Names of the parameters that are trained, one group for each layer, in the order of the
    layers.
    """

    layer_groups: tuple[tuple[str, ...], ...]
    layout: Layout


def trained(model: nn.Module, text: TextSection) -> Trained:
    """Where what stands outside of the layers is trained as well, embeddings come with the first
    layer, what else there is (last norm, head) with the last one. Of tied weights the first name
    counts: what layers share is the first one's.

    Raises:
        ConfigurationError: no layers are recognized, it does not run with adapters, or nothing is
            left to train.
    """
    inside = layers(model, _reached(model))
    named = dict(model.named_parameters())  # each tied parameter once
    if text.lora_rank:
        named = {name: value for name, value in named.items() if ".lora_" in name}
    layer_groups = [tuple(name for name in named if name.startswith(place)) for place in inside]
    if text.embeddings and not text.lora_rank:
        outside = [name for name in named if not name.startswith(sum(inside, ()))]
        first = tuple(name for name in outside if name in _embeddings(model))
        last = tuple(name for name in outside if name not in first)
        layer_groups[0], layer_groups[-1] = first + layer_groups[0], layer_groups[-1] + last
    kept = tuple(group for group in layer_groups if group)
    if not kept:
        raise ConfigurationError(
            "Nothing of the model would be trained; see task.text.lora_rank and embeddings."
        )
    fields = tuple((name, tuple(named[name].shape)) for group in kept for name in group)
    return Trained(kept, Layout(fields))


def layers(model: nn.Module, reached: Set[nn.Module]) -> list[tuple[str, ...]]:
    """How the names of each layer's parameters begin.

    Raises:
        ConfigurationError: the model has no such list.
    """
    lists = {
        name: it
        for name, it in model.named_modules()
        if isinstance(it, nn.ModuleList) and not reached.isdisjoint(it.modules())
    }
    sizes = {
        name: sum(value.numel() for value in it.parameters())
        for name, it in lists.items()
        if not any(name.startswith(f"{other}.") for other in lists)
    }
    if not any(sizes.values()):
        raise ConfigurationError(
            f"No layers are recognized in {type(model).__name__}: it has no nn.ModuleList that "
            "tokens run through."
        )
    count = len(lists[max(sizes, key=lambda name: sizes[name])])
    alike = [name for name in sizes if len(lists[name]) == count]
    return [tuple(f"{name}.{k}." for name in alike) for k in range(count)]


def _reached(model: nn.Module) -> set[nn.Module]:
    """The modules that tokens run through: not those for images, say."""
    reached: set[nn.Module] = set()
    with ExitStack() as hooks, torch.inference_mode():
        for module in model.modules():
            hooks.enter_context(module.register_forward_hook(lambda inner, *_: reached.add(inner)))
        try:
            model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=False)
        except Exception as error:  # models raise what they like; without adapters it ran
            raise ConfigurationError(
                f"The model does not run with adapters (task.text.lora_rank): {first_line(error)}."
            ) from None
    return reached


def _embeddings(model: nn.Module) -> set[str]:
    """Names of the parameters of embeddings (tokens, positions)."""
    names = [name for name, it in model.named_modules() if isinstance(it, nn.Embedding)]
    return {f"{name}.weight" for name in names}


def with_lora(model: nn.Module, text: TextSection) -> nn.Module:
    """The model with LoRA adapters beside the linear maps of its layers; it shares the model's
    weights.

    Raises:
        ConfigurationError: peft has none for such a model.
    """
    library = peft()
    lora = library.LoraConfig(
        r=text.lora_rank,
        lora_alpha=text.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings(action="ignore"):  # peft asks transformers for names of before
        try:
            adapted: nn.Module = library.get_peft_model(share_weights(model), lora)
        except ValueError as error:
            name, reason = type(model).__name__, str(error).split(". ")[0].rstrip(".")
            raise ConfigurationError(
                f"{name} takes no adapters (task.text.lora_rank): {reason}."
            ) from None
    bases: list[Any] = [it.base_layer for it in adapted.modules() if hasattr(it, "base_layer")]
    innermost = [base for base in bases if not hasattr(base, "base_layer")]
    weights = [id(w) for base in innermost for w in base.parameters(recurse=False)]
    if len(set(weights)) < len(weights):
        raise ConfigurationError(
            f"{type(model).__name__} takes no adapters (task.text.lora_rank): they can't be merged "
            "into weights that its layers share."
        )
    return adapted.eval().requires_grad_(False)


def drop_weights(model: nn.Module, names: Collection[str]) -> nn.Module:
    """Other modules with the same tensors but for these parameters, which keep their shapes
    only.
    """
    empty = {
        id(it): nn.Parameter(it.to("meta"), requires_grad=False)
        for it in map(model.get_parameter, names)
    }
    return _copied(model, empty)


def merged_model(model: nn.Module, learned: Mapping[str, Tensor]) -> Any:
    """The same with these parameters in place, as a transformers model; adapters are merged."""
    put = {
        id(model.get_parameter(name)): nn.Parameter(it.clone(), requires_grad=False)
        for name, it in learned.items()
    }
    made: object = _copied(model, put)
    return copy.deepcopy(made).merge_and_unload() if hasattr(made, "merge_and_unload") else made


def share_weights(model: nn.Module) -> nn.Module:
    """Other modules with the same tensors, so that `functional_call` in one thread does not meet
    another's.
    """
    return _copied(model, {})


def _copied(model: nn.Module, instead: Mapping[int, nn.Parameter]) -> nn.Module:
    """Other modules with the same tensors, or those that stand instead of one (by its id), tied
    where they were.
    """
    kept = {id(it): it for it in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, {**kept, **instead})
