"""Questions with right answers: a language model answers them, and is rewarded.

As a task it is causal-lm on questions and answers, which is how its policy is warmed up; as a
policy (`node.llm.policy`) it answers by itself. Which questions are for testing only is decided by
the question's text, so that no seed brings one of them into training.

Not covered
  * GPUs: this task stays on the CPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from node.config import DataSection, ReasoningSection, RunConfig, TextSection, sentence
from node.data import Texts, questions
from node.data.own_families import scorer
from node.figures import Metric
from node.hooks import no_op
from node.llm.forward import Forward
from node.llm.policy import LanguagePolicy, divided, family_of, items_of
from node.llm.prompts import Encoder
from node.llm.tokens import StopStrings
from node.maths.grpo import GrpoConfig
from node.maths.policy import Draws
from node.randomness import Keys
from node.tasks import causal_lm
from node.tasks.causal_lm import CausalLM, Ingredients
from node.tasks.rewarded import RewardedTask
from peer.errors import ConfigurationError, DataError

EXACT = Metric(
    "exact_match",
    "Share of the test questions whose likeliest answer is the right one.",
    higher_is_better=True,
    unit="ratio",
)
REWARD = Metric(
    "reward",
    "Probability of a right answer to a test question, averaged.",
    higher_is_better=True,
)
seal, save_pretrained = causal_lm.seal, causal_lm.save_pretrained


class Reasoning(CausalLM, RewardedTask):
    """A causal-lm task that has a policy."""

    def __init__(
        self,
        of: Ingredients,
        section: ReasoningSection,
        config: GrpoConfig,
        generators: Sequence[str],
    ) -> None:
        rows, held_out = (of.rows, of.test.texts) if of.test else divided(of.rows, of.encoder)
        super().__init__(replace(of, rows=rows))
        self._rows, self._held_out = rows, held_out
        self._encoder, self._section, self.generators = of.encoder, section, generators
        self.scored = [name for name in generators if questions.find(name).scores]
        self._tested = of.test.texts if of.test else None
        names = sorted(set(family_of(self._tested))) if self._tested else []
        for part in (rows, held_out):
            check_asked(part, of.encoder)
            check_whole(part, of.encoder)
            if not (self.scored or section.scorer):  # one answer is right
                check_sayable(part, of.encoder, config)
            if section.stop:
                check_stopped(part, of.encoder, StopStrings(section.stop, of.encoder.tokens))
        self._sampled = config
        self._scorer = None
        if section.scorer:
            first = rows.take(np.arange(1))
            self._scorer = scorer(section.scorer, items_of(first, of.encoder)[0])
        self._plain = plain(names)
        by_family = [figure for name in names for figure in figures_of(name, self._plain[name])]
        self.metrics = (EXACT, REWARD, *by_family)

    def to(self, device: torch.device) -> None:
        """Stays on the CPU, whatever device there is: masks and draws of answers are there."""

    def policy(self, draws: Draws) -> LanguagePolicy:
        def forward(parameters: Mapping[str, Tensor]) -> Forward:
            return partial(self._forward, parameters)

        return LanguagePolicy(
            forward,
            self.layout,
            self._encoder,
            self._section,
            self._rows,
            self._held_out,
            draws,
            generators=self.generators,
            scorer=self._scorer,
            longest=self._sampled.max_completion_length,
            dtype=self.dtype,
            micro_batch=self.micro_batch,
        )

    def evaluate(self, x: Tensor, yield_point: Callable[[], None] = no_op) -> dict[str, float]:
        """Of the PUBLIC test questions of all families, each family alike; {} where there are
        none."""
        if self._tested is None:
            return {}
        policy = self.policy(Draws("", 0, Keys.insecure(0, ""), yield_point))
        asked = policy.asked(self._tested)
        right = policy.greedy(x.to(self.dtype), asked, self._sampled)
        likely = policy.expected(x.to(self.dtype), asked)
        families = sorted(set(asked.families))
        of = {
            name: torch.tensor([k for k, each in enumerate(asked.families) if each == name])
            for name in families
        }
        parts = {"exact_match": right.double(), "reward": likely}
        by_family = {
            f"{figure}_{self._plain[name]}": float(values[rows].mean())
            for figure, values in parts.items()
            for name, rows in of.items()
        }
        means = {
            figure: sum(by_family[f"{figure}_{self._plain[name]}"] for name in of) / len(of)
            for figure in parts
        }
        return {**means, **by_family}


def figures_of(family: str, part: str) -> tuple[Metric, Metric]:
    """EXACT and REWARD of its test questions alone; `part` ends their names."""
    about = f"Of questions of the family {family}."
    return (
        replace(EXACT, name=f"{EXACT.name}_{part}", help=about),
        replace(REWARD, name=f"{REWARD.name}_{part}", help=about, tabulated=False),
    )


def plain(families: Sequence[str]) -> dict[str, str]:
    """Each as the end of a figure's name; those that differ in signs only are numbered."""
    parts: dict[str, str] = {}
    for name in families:
        part = re.sub("[^a-z0-9]", "_", name.lower())
        alike = sum(re.sub("[^a-z0-9]", "_", other.lower()) == part for other in parts)
        parts[name] = f"{part}_{alike + 1}" if alike else part
    return parts


def check_asked(rows: Texts, encoder: Encoder) -> None:
    """Raises DataError: a question is empty."""
    columns = [rows.columns[name] for name in encoder.text.prompt]
    for answer, *cells in zip(rows.columns[encoder.text.answer], *columns, strict=True):
        if not any(str(cell).strip() for cell in cells):
            raise DataError(
                f"The question whose right answer is {str(answer)[:80]!r} is empty "
                f"({', '.join(encoder.text.prompt)}); leave it out."
            )


def check_whole(rows: Texts, encoder: Encoder) -> None:
    """Raises ConfigurationError: a question would be cut, so that another one would be rewarded."""
    length, sizes = encoder.text.length, [*map(sum, encoder.sizes(rows))]
    if cut := [size for size in sizes if size > length]:
        raise ConfigurationError(
            f"{len(cut)} of {len(sizes)} questions have, with their answers, up to {max(cut)} "
            f"tokens, more than task.text.length = {length}; raise that, or leave them out."
        )


def check_sayable(rows: Texts, encoder: Encoder, config: GrpoConfig) -> None:
    """Raises ConfigurationError: none of a family's right answers is short enough to be said."""
    shortest: dict[str, int] = {}
    for family, (_, answer) in zip(family_of(rows), encoder.sizes(rows), strict=True):
        shortest[family] = min(answer, shortest.get(family, answer))
    if long := [name for name, least in shortest.items() if least > config.max_completion_length]:
        raise ConfigurationError(
            f"No right answer to questions of the family {long[0]!r} has at most "
            f"algorithm.max_completion_length = {config.max_completion_length} tokens with its "
            "end; raise that."
        )


def check_stopped(rows: Texts, encoder: Encoder, stop: StopStrings) -> None:
    """Raises ConfigurationError: whoever says a right answer as it is taught would be stopped
    before its end, or not at all, or be read as having said something else."""
    answers = map(str, rows.columns[encoder.text.answer])
    for prompt, answer in zip(encoder.prompts(rows), answers, strict=True):
        ids = encoder.answer(prompt, answer)
        places = [k for k in range(1, len(ids) + 1) if stop.reached(ids[:k])]
        if places[:1] != [len(ids)] or stop.before(encoder.tokens.decode(ids)).strip() != (
            answer.strip()
        ):
            raise ConfigurationError(
                f"The right answer {answer[:80]!r} with {encoder.ending!r} behind it does not end "
                "where it should: take for task.reasoning.stop texts that stand in no right "
                "answer, nor in each other, and that are no special tokens of the model."
            )


def make(run: RunConfig, data: DataSection | NDArray[np.int64]) -> Reasoning:
    """See `node.tasks.make`."""
    task = run.task
    if task.data == "questions":
        task = task.model_copy(update={"text": _text(task.text)})
    elif task.text is None or not task.text.prompt:
        raise ConfigurationError(
            'The task reasoning learns questions: set task.data = "questions", or name the columns '
            "of your own in [task.text] (prompt, answer)."
        )
    run = run.model_copy(update={"task": task})
    asked = {k: v for k, v in run.algorithm.options.items() if k in GrpoConfig.model_fields}
    config = GrpoConfig.model_validate(asked)  # as it answers in training, it answers in tests
    section = task.reasoning or ReasoningSection()
    generators = section.families if task.data == "questions" else ()
    if generators and section.scorer:
        raise ConfigurationError(
            "task.reasoning.scorer is for questions of a file; a family of your own has its scorer "
            "with it, so leave this one out."
        )
    return Reasoning(causal_lm.ingredients(run, data), section, config, generators)


def _text(text: TextSection | None) -> TextSection:
    """Which columns are question and answer is known."""
    named = {**(text or TextSection()).model_dump(), "prompt": ("question",), "answer": "answer"}
    try:
        return TextSection.model_validate(named)
    except ValidationError as error:
        raise ConfigurationError(sentence(error, TextSection, within="task.text")) from None
