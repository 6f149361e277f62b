"""Language models: every row of text is an example, whose loss is the mean negative log-likelihood
of its label tokens.

Parameters are those of the model's layers (found by structure), or LoRA adapters beside them;
everything else is frozen and shared by all tasks of a process. Right-padded to one fixed length and
causal, so that neither pads nor the other examples of a batch reach an example's loss; no attention
mask is needed.

Deviations
  * A batch's loss is the mean over its examples, not over its tokens: clipping example by example,
    gradients that are accumulated and batches of any size then mean the same.
  * Models run in evaluation mode: no dropout.
Not covered
  * Validation sets (ROSS, PDSL).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.func import functional_call

from node import data as datasets
from node import device as devices
from node.config import DataSection, RunConfig, TaskSection, TextSection
from node.data import Texts
from node.figures import ACCURACY, F1, LOSS, PERPLEXITY
from node.hooks import no_op
from node.llm import likelihood, models
from node.llm.forward import Output
from node.llm.layers import Trained, drop_weights, merged_model, share_weights, trained, with_lora
from node.llm.prompts import MASKED, Encoder, Sequences
from node.randomness import seeded
from node.task import Task, views
from peer.errors import ConfigurationError, DataError, StorageError
from peer.message import Layout

TYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
AUTOCAST = {"cuda"}
"""Types of devices on which bfloat16 models are trained under autocast."""


@dataclass(frozen=True, slots=True)
class Tested:
    """A public test set; with labels also what is asked, and which label is right, int64 [n]."""

    texts: Texts
    rows: Sequences
    questions: likelihood.Questions
    truth: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredients:
    """What a language task is made of."""

    language: models.LanguageModel
    """Without the weights that are trained."""
    trained: Trained
    text: TextSection
    encoder: Encoder
    rows: Texts
    """The node's own."""
    test: Tested | None
    again: Callable[[int], nn.Module]
    """Makes or reads the model with all its weights, for a seed."""
    inputs: Mapping[str, str]
    """What it is fed, in public, whatever the rows are: nodes compare it."""


class CausalLM(Task):
    """A `Task`, safe to use from several threads: parameters are arguments."""

    indexes = bundled = True

    def __init__(self, of: Ingredients) -> None:
        self.inputs = of.inputs
        self._train = of.encoder.sequences(of.rows)
        self.num_examples, self._units = len(self._train), of.rows.units
        self.micro_batch = of.text.micro_batch
        self.adapted = bool(of.text.lora_rank)
        self.dtype = TYPES[of.text.dtype]
        self.layout = of.trained.layout
        self.layer_groups = of.trained.layer_groups
        labeled = of.test is not None and bool(of.test.questions)
        self.metrics = (ACCURACY, F1, PERPLEXITY, LOSS) if labeled else (PERPLEXITY, LOSS)
        self.text, self._test, self._again = of.text, of.test, of.again
        self._model = of.language.model
        self._repeats = of.language.repeats
        self._chooses = "logits_to_keep" in signature(_inner(of.language.model).forward).parameters
        self._local = threading.local()

    def initial_parameters(self, seed: int) -> Tensor:
        """The weights the model comes with, or drawn from the seed, flat [d] in the task's type."""
        model = self._again(seed)
        if self.text.lora_rank:
            with seeded(seed):
                model = with_lora(model, self.text)
        named = dict(model.named_parameters())
        return torch.cat(
            [named[name].detach().reshape(-1).to(self.dtype) for name, _ in self.layout.fields]
        )

    def to(self, device: torch.device) -> None:
        self.device, self._train = device, self._train.to(device)

    @property
    def units(self) -> NDArray[np.int64] | None:
        return self._units

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Token ids and labels, int64 [n, length] each; −100 where nothing is learned."""
        rows = rows.to(self.device)
        return self._train.ids[rows].long(), self._train.labels[rows].long()

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        ids, labels = (it.unsqueeze(0) for it in example)
        return _mean(self._forward(parameters, ids).logits, likelihood.shifted(labels))

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        """Parameters of any float type; those that ask for a gradient get it in their own. A
        bfloat16 model computes under autocast on an NVIDIA GPU."""
        ids, labels = batch[0], likelihood.shifted(batch[1])
        more: dict[str, object] = {}
        places = (labels != MASKED).any(0).nonzero()[:, 0]
        longest = int(places[-1]) + 1  # what is after the last label changes nothing
        ids, labels = ids[:, :longest], labels[:, :longest]
        if (
            self._chooses
        ):  # the head is a fifth of SmolLM2's work, and few positions predict an answer
            more["logits_to_keep"] = places
            labels = labels[:, places]
        kind, mixed = (
            self.device.type,
            self.dtype == torch.bfloat16 and self.device.type in AUTOCAST,
        )
        with torch.autocast(
            kind, torch.bfloat16, enabled=mixed, cache_enabled=False
        ):  # a weight is used once
            logits = self._forward(parameters, ids, **more).logits
        return _mean(logits, labels)

    def evaluate(self, x: Tensor, yield_point: Callable[[], None] = no_op) -> dict[str, float]:
        """loss (mean over the examples) and perplexity (over all label tokens) on the PUBLIC test
        set; where the run names labels accuracy in [0, 1] and macro-F1 too. {} where there is no
        test set."""
        if self._test is None:
            return {}
        parameters = views(self.layout, devices.onto(x.detach().to(self.dtype), self.device))

        def forward(ids: Tensor, **more: object) -> Output:
            with torch.inference_mode():
                return self._forward(parameters, ids, **more)

        if not self._test.questions:
            likelihoods = likelihood.sequences(
                forward, self._test.rows.to(self.device), yield_point
            )
            return _figures(likelihoods.nll[:, 0], likelihoods.tokens[:, 0])
        if self._repeats:
            final = torch.tensor(
                [-1], device=self.device
            )  # 1 would do, but leaves a view that the head is copied for
            last = {"logits_to_keep": final} if self._chooses else {}
            likelihoods = likelihood.answers(
                forward, self._test.questions, self.device, yield_point, **last
            )
        else:
            likelihoods = likelihood.score_without_cache(
                forward, self._test.questions, self.device, yield_point
            )
        right, truth = torch.arange(len(self._test.truth)), self._test.truth
        chosen = likelihoods.loss.argmin(1)
        return {
            "accuracy": float((chosen == truth).double().mean()),
            "f1": likelihood.macro_f1(truth, chosen),
            **_figures(likelihoods.nll[right, truth], likelihoods.tokens[right, truth]),
        }

    def _forward(self, parameters: Mapping[str, Tensor], ids: Tensor, **more: object) -> Output:
        if not torch.is_autocast_enabled(self.device.type):  # which casts where it wants to
            parameters = {name: value.to(self.dtype) for name, value in parameters.items()}
        arguments = {"input_ids": ids, "use_cache": False, **more}
        output: Output = functional_call(
            self._module(), {**_tensors(self._model, self.device), **parameters}, (), arguments
        )
        return output

    def _module(self) -> nn.Module:
        """This thread's own modules: functional_call swaps tensors inside them while it runs."""
        if not hasattr(self._local, "module"):
            self._local.module = share_weights(self._model)
        module: nn.Module = self._local.module
        return module


def _mean(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the examples of the mean over an example's labels."""
    return (likelihood.token_losses(logits, labels).sum(1) / (labels != MASKED).sum(1)).mean()


def _figures(nll: Tensor, tokens: Tensor) -> dict[str, float]:
    return {
        "loss": float((nll / tokens).mean()),
        "perplexity": float((nll.sum() / tokens.sum()).exp()),
    }


@lru_cache(maxsize=2)
def _tensors(model: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """All weights and buffers of a model that are there, on the device."""
    every = (*model.named_parameters(), *model.named_buffers())
    return {name: it.to(device) for name, it in every if not it.is_meta}


def _inner(model: Any) -> Any:
    """Without peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _attention(run: RunConfig) -> str | None:
    return None if run.privacy.mode == "none" else "eager"  # vmap knows all of eager's kernels


def _model(run: RunConfig) -> tuple[models.LanguageModel, Trained]:
    """What all tasks of a process share: the model without the weights that are trained, and which
    those are.
    """
    text = (run.task.text or TextSection()).model_copy(update={"digest": ""})
    return _shared(run.task.model, text, _attention(run), run.train.seed)


@lru_cache(maxsize=2)
def _shared(
    name: str, text: TextSection, attention: str | None, seed: int
) -> tuple[models.LanguageModel, Trained]:
    language = models.checked(models.load(name, TYPES[text.dtype], attention, seed), name)
    model = language.model
    if text.lora_rank:
        with seeded(0):  # of the shapes only; `initial_parameters` draws
            model = with_lora(model, text)
    ours = trained(model, text)
    names = [name for name, _ in ours.layout.fields]
    return replace(language, model=drop_weights(model, names)), ours


def make(run: RunConfig, data: DataSection | NDArray[np.int64]) -> CausalLM:
    """See `node.tasks.make`."""
    return CausalLM(ingredients(run, data))


def ingredients(run: RunConfig, data: DataSection | NDArray[np.int64]) -> Ingredients:
    """Raises as `node.tasks.make`."""
    task, text = run.task, run.task.text or TextSection()
    if run.validation.size is not None or run.validation.path is not None:
        raise ConfigurationError(
            f"{task.name} knows no validation set: take an algorithm that needs none (not ross or "
            "pdsl); no [validation]."
        )
    language, ours = _model(run)
    encoder = _encoder(language, task)
    _check_model(task)
    if text.digest and not text.digest.endswith(_texts_digest(task.model_dump_json())):
        raise DataError("These public texts are not the ones the run was made with; take the same.")

    def again(seed: int) -> nn.Module:
        return models.load(task.model, TYPES[text.dtype], _attention(run), seed).model

    if task.data == "own":
        rows, own_test = _own(task, data)
        test = _tested(encoder, own_test) if own_test else None
    else:
        rows, test = _public(task, data), _public_test(language, task.model_dump_json())
    return Ingredients(
        language=language,
        trained=ours,
        text=text,
        encoder=encoder,
        rows=rows,
        test=test,
        again=again,
        inputs=_inputs(task, text, language),
    )


def _inputs(task: TaskSection, text: TextSection, language: models.LanguageModel) -> dict[str, str]:
    """What the model is fed: from the run file and the kind of its tokens, never from the texts."""
    return {
        "template": text.template,
        "prompt": ", ".join(text.prompt),
        "answer": text.answer,
        "classes": ", ".join(task.labels),
        "length": str(text.length),
        "tokens": f"{language.tokens.size} {type(language.tokens).__name__}",
        **({"stop": repr(stop[0])} if (stop := _stop(task)) else {}),
    }


def _stop(task: TaskSection) -> tuple[str, ...]:
    """Texts that end an answer: `task.reasoning` is for that task alone."""
    return task.reasoning.stop if task.reasoning and task.name == "reasoning" else ()


def _check_model(task: TaskSection) -> None:
    """Raises DataError: it is not the one that `seal` saw."""
    known = task.text.digest if task.text else ""
    if known and not known.startswith(models.identity(task.model)):
        raise DataError(
            f"This copy of {task.model} is not the one the run was made with; install the same."
        )


def save_pretrained(run: RunConfig, layout: Layout, x: Tensor, folder: Path) -> None:
    """Writes the run's whole model with parameters x [d] and its tokenizer, if it has one, as
    transformers reads them; adapters are merged into the layers. Texts are not needed.

    Raises:
        ConfigurationError: there is no such model.
        DataError: x is another model's, or this copy of it is another one.
        StorageError: the disk refuses.
    """
    text, (language, ours) = run.task.text or TextSection(), _model(run)
    if layout.digest != ours.layout.digest:
        raise DataError(f"What was saved has other tensors than {run.task.model}.")
    _check_model(run.task)
    model = merged_model(language.model, views(layout, x.to(TYPES[text.dtype])))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
        language.tokens.save(folder)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{folder} can't be written: {error}; free space or check permissions."
        ) from None


def _encoder(language: models.LanguageModel, task: TaskSection) -> Encoder:
    """Raises ConfigurationError: the model is for shorter sequences, or no such template."""
    text = task.text or TextSection()
    if language.longest is not None and text.length > language.longest:
        raise ConfigurationError(
            f"task.text.length = {text.length}, but {task.model} takes {language.longest} tokens "
            "at most."
        )
    return Encoder(text, language.tokens, task.labels, ending=next(iter(_stop(task)), ""))


def _tested(encoder: Encoder, rows: Texts) -> Tested:
    rows = rows.balanced(encoder.text.test_size)
    questions = list(encoder.questions(rows)) if encoder.labels else []
    return Tested(rows, encoder.sequences(rows), questions, rows.y)


@lru_cache(maxsize=2)
def _public_test(language: models.LanguageModel, section: str) -> Tested:
    """Read and encoded once for all nodes of a process."""
    task = TaskSection.model_validate_json(section)
    return _tested(_encoder(language, task), _texts(task)[1])


def seal(run: RunConfig) -> RunConfig:
    """The run with the digest of its model and public texts, which every node compares with its own
    copies.
    """
    text = run.task.text or TextSection()
    digest = f"{models.identity(run.task.model)}:{_texts_digest(run.task.model_dump_json())}"
    task = run.task.model_copy(update={"text": text.model_copy(update={"digest": digest})})
    return run.model_copy(update={"task": task})


@lru_cache(maxsize=2)
def _texts_digest(section: str) -> str:
    task = TaskSection.model_validate_json(section)
    read = () if task.data == "own" else _texts(task)
    return hashlib.sha256("".join(it.digest() for it in read).encode()).hexdigest()


def _own(task: TaskSection, data: DataSection | NDArray[np.int64]) -> tuple[Texts, Texts | None]:
    if not isinstance(data, DataSection):
        raise ConfigurationError(
            "task.data = own needs real nodes, or a file for each: up --data NODE=PATH. A model "
            "that was learned so is tested in a node's own folder, such as RUN/nodes/n0."
        )
    if data.path is None:
        raise ConfigurationError(
            "task.data = own needs data.path in the node's file: a table, .jsonl, .txt or folder."
        )
    if not data.name:
        raise ConfigurationError(
            "Own data needs data.name in the node's file: its privacy ledger goes by that name."
        )
    test = datasets.read_texts(data.test, task.per_row) if data.test else None
    return datasets.read_texts(data.path, task), test


def _public(task: TaskSection, data: DataSection | NDArray[np.int64]) -> Texts:
    train, text = _texts(task)[0], task.text or TextSection()
    if missing := [name for name in (*text.prompt, text.answer) if name not in train.columns]:
        raise ConfigurationError(
            f"task.data = {task.data!r} has no column {missing[0]!r}; name in task.text.prompt and "
            f"answer some of {', '.join(sorted(train.columns))}."
        )
    if not isinstance(data, DataSection):
        return train.take(data)
    if data.path is not None:
        raise ConfigurationError(
            f"data.path is set, but the run learns {task.data}; set task.data to own."
        )
    return train.take(datasets.rows(data.rows, len(train))) if data.rows else train


def _texts(task: TaskSection) -> tuple[Texts, Texts]:
    train, test = datasets.public_sets(task)
    if not isinstance(train, Texts) or not isinstance(test, Texts):
        raise ConfigurationError(
            f"task.data = {task.data!r} is no text; take fortunes, or file or own with [task.text]."
        )
    return train, test
