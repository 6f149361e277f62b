"""Answers drawn in batches: what the trainer sees is what was drawn from."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.func import functional_call

from node.llm.generation import (
    Sampling,
    _draw,
    _log_softmax,
    completion_log_probs,
    generate,
)
from node.llm.models import tiny_llama
from node.llm.tokens import Bytes
from node.maths.policy import Prompts

TEXTS = ["a", "What is 3 + 4?", "Reverse: abc", "x" * 30]
TOKENS = Bytes()
SAMPLING = Sampling(
    max_completion_length=12, end=TOKENS.end, pad=TOKENS.pad, banned=(TOKENS.pad, *TOKENS.begin)
)
GREEDY = replace(SAMPLING, temperature=0.0)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def forward(request):
    model = tiny_llama(torch.float32, request.param, 3)
    with torch.no_grad():
        for parameter in model.parameters():  # sharper than as drawn
            parameter.mul_(3 if parameter.dim() > 1 else 1)

    def call(ids, **more):
        return functional_call(model, {}, (), {"input_ids": ids, **more})

    return call


def prompts(texts=TEXTS):
    return Prompts.of([[*TOKENS.begin, *TOKENS.encode(text)] for text in texts], TOKENS.pad)


def drawn(forward, sampling=SAMPLING, seed=0, given=None, **more):
    generator = torch.Generator().manual_seed(seed)
    return generate(forward, given or prompts(), sampling, generator, **more)


def test_generator_and_trainer_agree(forward):
    """Left padding, the cache and one pass over both give the same log-probabilities."""
    for temperature in (1.0, 0.7):
        sampling = replace(SAMPLING, temperature=temperature)
        completions = drawn(forward, sampling)
        trained = completion_log_probs(forward, prompts(), completions, sampling)
        apart = (trained - completions.log_probs)[completions.mask.bool()].abs().max()
        assert apart < 1e-4
        assert trained.isfinite().all()


def test_padding_before_a_prompt_changes_nothing(forward):
    alone = [drawn(forward, GREEDY, given=prompts([text])) for text in TEXTS]
    together = drawn(forward, GREEDY)
    for row, one in enumerate(alone):
        length = int(one.mask.sum())
        assert one.ids[0, :length].tolist() == together.ids[row, :length].tolist()
        torch.testing.assert_close(
            one.log_probs[0, :length], together.log_probs[row, :length], rtol=1e-4, atol=1e-4
        )


def test_an_answer_counts_up_to_its_end():
    """Power: what follows is padding, whatever the model says."""
    logits = torch.full((1, 1, TOKENS.size), -30.0)
    script = iter([65, TOKENS.end, 66, 67])

    def forward(ids, **more):
        said = logits.clone().repeat(len(ids), ids.shape[1], 1)
        said[0, :, next(script)] = 30.0
        said[1:, :, 70] = 30.0
        return SimpleNamespace(cache=None, logits=said)

    completions = generate(
        forward, prompts(["a", "b"]), replace(SAMPLING, max_completion_length=4), torch.Generator()
    )
    assert completions.ids[0].tolist() == [65, TOKENS.end, TOKENS.pad, TOKENS.pad]
    assert completions.mask[0].tolist() == [1, 1, 0, 0]
    assert completions.log_probs[0, 2:].tolist() == [0, 0]
    assert completions.ended.tolist() == [True, False]


def test_the_same_seed_gives_the_same_answers_and_another_others(forward):
    one, again, other = (drawn(forward, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.ids, again.ids)
    assert torch.equal(one.log_probs, again.log_probs)
    assert not torch.equal(one.ids, other.ids)


def test_banned_tokens_are_never_drawn():
    log_p = torch.full((1, TOKENS.size), 0.0)
    uniform = torch.linspace(0, 1, 2000, dtype=torch.float64)[:-1]
    rows = _log_softmax(log_p, SAMPLING).expand(len(uniform), -1)
    tokens = set(_draw(rows, SAMPLING, uniform).tolist())
    assert tokens == set(range(TOKENS.size)) - set(SAMPLING.banned)


def test_draws_follow_the_distribution_and_top_p_cuts_its_tail():
    p = torch.tensor([0.1, 0.5, 0.15, 0.25])
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    rows = p.log().expand(len(uniform), -1)
    plain = Sampling(max_completion_length=1, end=0, pad=0)
    counts = torch.bincount(_draw(rows, plain, uniform), minlength=4)
    assert counts.tolist() == pytest.approx([1000, 5000, 1500, 2500], abs=2)
    cut = Sampling(max_completion_length=1, end=0, pad=0, top_p=0.7)
    counts = torch.bincount(_draw(rows, cut, uniform), minlength=4)
    assert counts.tolist() == pytest.approx([0, 6667, 0, 3333], abs=2)


def test_coupled_draws_differ_only_where_the_policies_do():
    """Common random numbers: a small change of the distribution changes few of the draws."""
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.48, 0.32, 0.2])
    plain = Sampling(max_completion_length=1, end=0, pad=0)
    one, other = (_draw(x.log().expand(len(uniform), -1), plain, uniform) for x in (p, q))
    assert (one != other).double().mean() < 0.03


def test_it_yields_after_every_token(forward):
    called = []
    completions = drawn(forward, yield_point=lambda: called.append(1))
    assert len(called) == completions.ids.shape[1]


def test_log_probs_have_a_gradient_in_the_models_parameters():
    model = tiny_llama(torch.float32, None, 0)
    named = {name: value.clone().requires_grad_() for name, value in model.named_parameters()}

    def call(ids, **more):
        return functional_call(model, named, (), {"input_ids": ids, **more})

    completions = drawn(call)
    completion_log_probs(call, prompts(), completions, SAMPLING)[
        completions.mask.bool()
    ].sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in named.values())
