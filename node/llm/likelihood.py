"""What a language model is worth on a test set: perplexity, and the label it finds likeliest.

A label's loss is that of the example which has it as its answer: the mean negative log-likelihood
of its tokens and the end, so that long labels are at no disadvantage. The model's answer is the
label with the lowest loss. The prompt runs through the model once, and its keys and values serve
all labels; where they can't be repeated it runs with every label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from node.llm.forward import Forward
from node.llm.prompts import MASKED, Sequences

CHUNK = 8
"""Sequences per forward pass."""
Questions = Sequence[tuple[list[int], list[list[int]]]]
"""(prompt, every label's tokens) of each row."""


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """Of k answers to each of n rows: summed negative log-likelihoods and their numbers of tokens,
    float64 [n, k].
    """

    nll: Tensor
    tokens: Tensor

    @property
    def loss(self) -> Tensor:
        """Per token, [n, k]."""
        return self.nll / self.tokens


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of each label [n, length] by the logits [n, length, size] that
    predict it, float32 [n, length]; 0 where it is masked."""
    flat = functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=MASKED, reduction="none"
    )
    return flat.view(labels.shape)


def shifted(labels: Tensor) -> Tensor:
    """What each position predicts: labels [n, length] one place earlier."""
    return functional.pad(labels[:, 1:], (0, 1), value=MASKED)


def sequences(forward: Forward, rows: Sequences, yield_point: Callable[[], None]) -> Likelihoods:
    """Of the answers that the rows have, [n, 1]."""
    parts = []
    for start in range(0, len(rows), CHUNK):
        if start:
            yield_point()
        ids, labels = (it[start : start + CHUNK].long() for it in (rows.ids, rows.labels))
        # what is after the last label changes nothing
        longest = int((labels != MASKED).nonzero()[:, 1].max()) + 1
        losses = token_losses(forward(ids[:, :longest]).logits, shifted(labels[:, :longest]))
        parts.append(torch.stack([losses.double().sum(1), (labels != MASKED).double().sum(1)]))
    nll, tokens = torch.cat(parts, 1).cpu().unsqueeze(2)
    return Likelihoods(nll, tokens)


def answers(
    forward: Forward,
    questions: Questions,
    device: torch.device,
    yield_point: Callable[[], None],
    **last: Tensor,
) -> Likelihoods:
    """Of all labels as answers, [n, k]. `last` are arguments that ask for the last token's logits
    only.
    """
    k = len(questions[0][1])
    sums = torch.zeros(2, len(questions), k, dtype=torch.float64)
    for number, rows in enumerate(_alike(questions, max(1, 4 * CHUNK // k))):
        if number:
            yield_point()
        sums[:, rows] = _together(forward, [questions[row] for row in rows], device, last).cpu()
    return Likelihoods(sums[0], sums[1])


def score_without_cache(
    forward: Forward, questions: Questions, device: torch.device, yield_point: Callable[[], None]
) -> Likelihoods:
    """The same for models whose cache can't be repeated: the prompt runs with every label."""
    rows = [(prompt, label) for prompt, labels in questions for label in labels]
    ids = pad_sequence([torch.tensor(prompt + label) for prompt, label in rows], True)
    labels = pad_sequence(
        [torch.tensor([MASKED] * len(prompt) + label) for prompt, label in rows], True, MASKED
    )
    likelihoods = sequences(forward, Sequences(ids, labels).to(device), yield_point)
    return Likelihoods(
        *(it.view(len(questions), -1) for it in (likelihoods.nll, likelihoods.tokens))
    )


def _alike(questions: Questions, most: int) -> list[list[int]]:
    """Row numbers in groups of `most` whose prompts have equally many tokens: then nothing needs to
    be padded before the answers.
    """
    length = [len(prompt) for prompt, _ in questions]
    groups: list[list[int]] = []
    for row in sorted(range(len(questions)), key=lambda row: (length[row], row)):
        if groups and len(groups[-1]) < most and length[groups[-1][0]] == length[row]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _together(
    forward: Forward, questions: Questions, device: torch.device, last: dict[str, Tensor]
) -> Tensor:
    """[2, n, k]: negative log-likelihoods and numbers of tokens of all labels, for rows with
    equally long prompts.
    """
    n, k = len(questions), len(questions[0][1])
    longest = max(len(label) for _, labels in questions for label in labels)
    ids = torch.tensor(
        [[label + [MASKED] * (longest - len(label)) for label in labels] for _, labels in questions]
    )
    ids = ids.view(n * k, longest).to(device)
    prompts = torch.tensor([prompt for prompt, _ in questions], device=device)
    output = forward(prompts, use_cache=True, **last)
    output.cache.batch_repeat_interleave(k)
    first = output.logits[:, -1:].repeat_interleave(k, 0)
    rest = forward(ids[:, :-1].clamp(min=0), cache=output.cache, use_cache=True).logits
    losses = token_losses(torch.cat([first, rest], 1), ids).double().sum(1)
    return torch.stack([losses.view(n, k), (ids != MASKED).double().sum(1).view(n, k)])


def macro_f1(truth: Tensor, answered: Tensor) -> float:
    """Mean of the classes' F1 over all classes that are the truth or an answer, each int64 [n]."""
    scores = []
    for label in {*truth.tolist(), *answered.tolist()}:
        hit = int(((truth == label) & (answered == label)).sum())
        scores.append(2 * hit / int((truth == label).sum() + (answered == label).sum()))
    return sum(scores) / len(scores)
