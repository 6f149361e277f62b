"""Texts that end an answer: noticed when they are said, no part of what was answered, and the end of
right answers.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy
import pytest
import torch
from pydantic import ValidationError
from torch.func import functional_call

from node.config import GeneratorSection, ReasoningSection, TaskSection, TextSection
from node.data import Texts
from node.llm.generation import Sampling, completion_log_probs, generate
from node.llm.models import load, tiny_llama
from node.llm.policy import LanguagePolicy
from node.llm.prompts import Encoder
from node.llm.server import Choice, Entry, LogProbs, Server, padded
from node.llm.tokens import Bytes, StopStrings
from node.maths.grpo import GrpoConfig
from node.maths.policy import Draws, Prompts
from node.randomness import Keys
from node.task import flat, layout_of
from node.tasks.causal_lm import _encoder
from node.tasks.reasoning import check_stopped
from peer.errors import ConfigurationError

TOKENS = Bytes()
TEXT = TextSection(prompt=("question",), answer="answer", length=32)
STOPS = ("</a>", "\n")
SAMPLING = Sampling(
    max_completion_length=12,
    end=TOKENS.end,
    pad=TOKENS.pad,
    banned=(TOKENS.pad, *TOKENS.begin),
    stop=StopStrings(STOPS, TOKENS),
)


def sure(*answers: str):
    """A model that says these texts, row by row, with a token a byte, and then "z" forever."""
    at = iter(range(10_000))

    def forward(ids, **more):
        column = next(at)
        logits = torch.full((len(ids), ids.shape[1], TOKENS.size), -30.0)
        for row, text in enumerate(answers):
            said = [*TOKENS.encode(text), *[ord("z")] * 100]
            logits[row, :, said[column]] = 30.0
        return SimpleNamespace(cache=None, logits=logits)

    return forward


def texts(questions: list[str], answers: list[str]) -> Texts:
    pairs = {"question": questions, "answer": answers}
    columns = {name: numpy.array(column, object) for name, column in pairs.items()}
    return Texts(torch.zeros(len(questions), dtype=torch.int64), columns)


def server() -> Server:
    return Server(GeneratorSection(url="http://127.0.0.1:1/v1"), TOKENS)


def said(*answers: str, sampling: Sampling = SAMPLING):
    prompts = Prompts.of([[65]] * len(answers), TOKENS.pad)
    return generate(sure(*answers), prompts, sampling, torch.Generator().manual_seed(0))


def test_an_answer_ends_where_a_stop_string_does():
    drawn = said("12</a>34", "5\n6", "12</b>")
    rows = [
        TOKENS.decode(ids[mask.bool()].tolist())
        for ids, mask in zip(drawn.ids, drawn.mask, strict=True)
    ]
    assert rows == ["12</a>", "5\n", "12</b>zzzzzz"]
    assert drawn.ended.tolist() == [True, True, False]


def test_without_stop_strings_they_are_text():
    assert not said("12</a>34", sampling=replace(SAMPLING, stop=None)).ended.any()


class Dropping(Bytes):
    """As some tokenizers of words, which show no space before the first."""

    def decode(self, ids):
        return super().decode(ids).removeprefix(" ")


@pytest.mark.parametrize("tokens", [TOKENS, Dropping()])
@pytest.mark.parametrize("stops", [("ab",), ("ba", "abab"), ("é", "aé"), ("éé",), (" a",)])
def test_the_last_tokens_tell_what_the_whole_answer_would(stops, tokens):
    stop, random = StopStrings(stops, tokens), numpy.random.default_rng(1)
    found = 0
    for _ in range(300):
        ids = TOKENS.encode("".join(random.choice([*"ab é"], 12)))
        for length in range(1, len(ids) + 1):
            whole = any(text in tokens.decode(ids[:length]) for text in stops)
            assert stop.reached(ids[:length]) == whole
            if whole:
                found += 1
                break
    assert 100 < found < 300


@pytest.fixture(scope="module")
def policy():
    model = tiny_llama(torch.float32, "eager", 3).requires_grad_(True)
    layout = layout_of(model)

    def forward(parameters):
        def call(ids, **more):
            return functional_call(model, dict(parameters), (), {"input_ids": ids, **more})

        return call

    rows = texts(["1+1=", "2+2="], ["2", "4"])
    section = ReasoningSection(stop=STOPS)
    encoder = Encoder(TEXT, TOKENS, ending=STOPS[0])
    draws = Draws("n0", 1, Keys.insecure(0, "n0"))
    made = LanguagePolicy(forward, layout, encoder, section, rows, rows, draws)
    return made, flat(layout, dict(model.named_parameters()))


def test_what_stands_before_it_is_the_answer(policy):
    drawn = said("2</a>", "4\n", "2" + "\n</a>")
    assert policy[0].texts(drawn) == ["2", "4", "2"]


def test_an_answer_may_still_end_with_the_models_end_token(policy):
    drawn = said("2")
    drawn.ids[0, 1], drawn.mask[0, 2:] = TOKENS.end, 0
    assert policy[0].texts(drawn) == ["2"]


def test_right_answers_end_with_the_first_one(policy):
    """What the warm-up teaches, and whose probability audits ask for."""
    made, x = policy
    asked = made._fixed
    assert asked.answers == [TOKENS.encode("2</a>"), TOKENS.encode("4</a>")]
    sampling = made.sampling(GrpoConfig())
    for prompt, answer, p in zip(asked.prompts, asked.answers, made.fixed(x), strict=True):
        naive = 1.0
        for k, token in enumerate(answer):
            prompts = Prompts.of([[*prompt, *answer[:k]]], TOKENS.pad)
            one = said("x", sampling=replace(SAMPLING, max_completion_length=1))
            one.ids[0, 0] = token
            naive *= float(completion_log_probs(made._at(x), prompts, one, sampling).exp())
        assert float(p) == pytest.approx(naive, rel=1e-4)


def test_a_servers_answer_is_cut_behind_it():
    """Servers are not told of stop strings: here they are looked for in what was drawn."""
    ids = TOKENS.encode("12</a>zz")
    log_probs = [-0.1 * k for k in range(len(ids))]
    entries = [Entry(id=token, logprob=p) for token, p in zip(ids, log_probs, strict=True)]
    told = Choice(text="12</a>zz", finish_reason="length", logprobs=LogProbs(content=entries))
    answer = server()._answer(told, SAMPLING)
    assert (answer.ids, answer.log_probs) == (ids[:6], log_probs[:6])
    assert padded([answer], SAMPLING).ended.tolist() == [True]


def test_what_a_server_says_behind_it_need_not_be_readable():
    ids = [*TOKENS.encode("2</a>"), 0xE6]  # the first byte of a character
    log_probs = [-0.1] * (len(ids) - 1) + [float("nan")]
    entries = [Entry(id=token, logprob=p) for token, p in zip(ids, log_probs, strict=True)]
    content = LogProbs(content=entries)
    told = Choice(text="2</a>z", finish_reason="length", logprobs=content)
    assert server()._answer(told, SAMPLING).ended
    other = Choice(text="3</a>z", finish_reason="length", logprobs=content)
    assert not server()._answer(other, SAMPLING).ids, "another text's"


def test_a_text_that_ends_everything_is_refused():
    with pytest.raises(ValidationError, match="an empty text ends every answer"):
        ReasoningSection(stop=("\n", ""))


def test_a_text_that_is_no_utf_8_is_refused():
    """As a shell may hand it to --set."""
    with pytest.raises(ValidationError, match="no UTF-8"):
        ReasoningSection(stop=("\udcff",))


def test_one_text_needs_no_list():
    assert ReasoningSection.model_validate({"stop": "\n"}).stop == ("\n",)


@pytest.mark.parametrize(
    ("answer", "stops", "template"),
    [
        ("1 3", ("\n",), "{question}\n"),
        ("1 3 ", ("\n",), "{question}\n"),  # space around an answer does not count
        ("{5}", ("</a>", "\n"), "{question}\n"),
    ],
)
def test_a_right_answer_ends_with_its_stop_string(answer, stops, template):
    checked(answer, stops, template)


@pytest.mark.parametrize(
    ("answer", "stops", "template"),
    [
        ("1 3", (" ",), "{question}\n"),  # within the answer
        ("13", (" ",), "{question}"),  # in the space before it
        ("{5}", ("}}",), "{question}\n"),  # one that begins within the answer
        ("5\n", ("\n",), "{question}\n"),
        ("{5}", ("</a>", "<"), "{question}\n"),  # within another
    ],
)
def test_a_right_answer_that_would_not_end_there_is_refused(answer, stops, template):
    with pytest.raises(ConfigurationError, match="does not end where it should"):
        checked(answer, stops, template)


def checked(answer: str, stops: tuple[str, ...], template: str) -> None:
    text = TextSection(template=template, answer="answer", length=32)
    encoder = Encoder(text, TOKENS, ending=stops[0])
    check_stopped(texts(["sort 3 1"], [answer]), encoder, StopStrings(stops, TOKENS))


def test_a_stop_string_that_is_no_text_is_refused():
    """As a special token of a tokenizer, which decodes to nothing."""

    class Special(Bytes):
        def encode(self, text):
            return super().encode(text.replace("</s>", "")) + [self.end] * ("</s>" in text)

    encoder = Encoder(TEXT, Special(), ending="</s>")
    with pytest.raises(ConfigurationError, match="no special tokens"):
        check_stopped(texts(["1+1="], ["2"]), encoder, StopStrings(("</s>",), Special()))


def test_other_tasks_know_none():
    """What was left of a run of reasoning ends no text of another."""
    section = TaskSection(
        name="causal-lm", model="bytes", data="fortunes", reasoning=ReasoningSection(stop=("e",))
    )
    assert _encoder(load("bytes", torch.float32, None, 0), section).ending == ""
