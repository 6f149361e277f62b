"""Answers drawn from a language model: in batches, with a cache of keys and values, prompts padded
on the left; and the log-probabilities of answers for training, from one pass over both.

A token's log-probability is that of softmax(logits / temperature), at temperature 0 of
softmax(logits), over all tokens but those that never are part of an answer (padding, begin). Top-p
cuts only what is drawn. Draws come from one uniform number per row and token by the inverse of the
cumulative distribution, so two policies that are asked with the same numbers are coupled: where
they agree they say the same. Masks are on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from node.hooks import no_op
from node.llm.forward import Forward
from node.llm.tokens import StopStrings
from node.maths.policy import Completions, Prompts
from peer.failpoint import failpoint

BANNED = -1e9
"""Logit of tokens that are no part of an answer: finite, since −inf times a mask of 0 is NaN."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn."""

    max_completion_length: int
    """Tokens of an answer at most, its end included."""
    end: int
    """The token that ends an answer."""
    pad: int
    """Stands before prompts and behind answers."""
    banned: tuple[int, ...] = ()
    """Tokens that are never drawn."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    """Draws from the smallest set of tokens that has this probability."""
    stop: StopStrings | None = None
    """What ends an answer beside `end`; its tokens are part of it."""

    def is_ended(self, ids: Sequence[int]) -> bool:
        """Is the last of an answer's tokens its end?"""
        return ids[-1] == self.end or (self.stop is not None and self.stop.reached(ids))


@torch.no_grad()
def generate(
    forward: Forward,
    prompts: Prompts,
    sampling: Sampling,
    generator: torch.Generator,
    yield_point: Callable[[], None] = no_op,
) -> Completions:
    """An answer to each prompt.

    Args:
        generator: of the uniform numbers, one for every row and token, whether it is used or not.
        yield_point: called after every token.
    """
    n, limit = len(prompts.ids), sampling.max_completion_length
    uniform = torch.rand(limit, n, generator=generator, dtype=torch.float64)
    ended = torch.zeros(n, dtype=torch.bool)
    mask, position = prompts.mask, prompts.mask.sum(1, keepdim=True)
    output = forward(
        prompts.ids, use_cache=True, attention_mask=mask, position_ids=_positions(mask)
    )
    ids, masks, log_probs = [], [], []
    for number in range(limit):
        log_p = _log_softmax(output.logits[:, -1], sampling)
        drawn = _draw(log_p, sampling, uniform[number])
        token = torch.where(ended, sampling.pad, drawn)
        ids.append(token)
        masks.append(~ended)
        log_probs.append(torch.where(ended, 0.0, log_p.gather(1, drawn[:, None])[:, 0]))
        ended = ended | _ended(ids, sampling)
        failpoint("token_drawn")
        yield_point()
        if ended.all() or number + 1 == limit:
            break
        mask = torch.cat([mask, mask.new_ones(n, 1)], 1)
        output = forward(
            token[:, None],
            use_cache=True,
            cache=output.cache,
            attention_mask=mask,
            position_ids=position,
        )
        position = position + 1
    return Completions(
        ids=torch.stack(ids, 1),
        mask=torch.stack(masks, 1).long(),
        log_probs=torch.stack(log_probs, 1).float(),
        ended=ended,
    )


def _ended(ids: Sequence[Tensor], sampling: Sampling) -> Tensor:
    """As `Sampling.is_ended` of every row, bool [n]; `ids` are the answers' tokens so far, each
    [n]."""
    ended, stop = ids[-1] == sampling.end, sampling.stop
    if stop is None:
        return ended
    rows = torch.stack([*ids[-stop.window :]], 1).tolist()
    return ended | torch.tensor([stop.reached(row) for row in rows])


def completion_log_probs(
    forward: Forward, prompts: Prompts, completions: Completions, sampling: Sampling
) -> Tensor:
    """Of every token of the answers under a policy, differentiable, float32 [n, T]."""
    mask = torch.cat([prompts.mask, completions.mask], 1)
    logits = forward(
        torch.cat([prompts.ids, completions.ids], 1),
        use_cache=False,
        attention_mask=mask,
        position_ids=_positions(mask),
    ).logits
    length = completions.ids.shape[1]
    log_p = _log_softmax(logits[:, -length - 1 : -1], sampling)
    return log_p.gather(2, completions.ids[..., None])[..., 0]


def _positions(mask: Tensor) -> Tensor:
    """Of every token in its own text; 0 for padding before it."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def _log_softmax(logits: Tensor, sampling: Sampling) -> Tensor:
    """float32, whatever the model's type."""
    logits = logits.float()
    if sampling.temperature not in (0.0, 1.0):
        logits = logits / sampling.temperature
    if sampling.banned:
        banned = torch.zeros(logits.shape[-1], dtype=torch.bool)
        banned[list(sampling.banned)] = True
        logits = logits.masked_fill(banned, BANNED)
    return logits.log_softmax(-1)


def _draw(log_p: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """A token of every row of log_p [n, size], int64 [n]; `uniform` in [0, 1) [n] decides."""
    if sampling.temperature == 0:
        return log_p.argmax(-1)
    p = log_p.double().exp()
    if sampling.top_p < 1:
        p = p * _nucleus(p, sampling.top_p)
    total = p.cumsum(-1)
    # Never behind the last token that has a probability, whatever rounding makes of the sum.
    last = (total < total[:, -1:]).sum(-1, keepdim=True)
    place = torch.searchsorted(total, uniform[:, None] * total[:, -1:], right=True)
    return torch.minimum(place, last)[:, 0]


def _nucleus(p: Tensor, top_p: float) -> Tensor:
    """1 for the tokens of the smallest set with probability `top_p`, [n, size]."""
    ordered, order = torch.sort(p, dim=-1, descending=True, stable=True)
    kept = (ordered.cumsum(-1) - ordered < top_p).to(p.dtype)
    return torch.zeros_like(p).scatter_(-1, order, kept)
