"""Answers drawn by an OpenAI-compatible server (`POST /v1/completions`) of this node's owner: vLLM,
SGLang or llama.cpp's llama-server.

Each question is a request for all of its answers, and all questions of a step are under way at the
same time. Prompts go as tokens. A server tells the tokens of an answer as `token_ids` (vLLM,
SGLang), as names "token_id:7" (vLLM), as `logprobs.content` (llama-server), or as text alone, which
is then tokenized here; whichever it is has to give the answer's text. An answer that can't be read
so, say because llama-server leaves out tokens within a character, counts as cut off, and nothing
is learned from it. Where that is most of them, the run ends.

Servers draw up to the model's end token, and a stop string is looked for here: they differ in what
they tell of the tokens that make one.

The server's weights are those it was started with. How likely an answer was for them comes with it
(`node.maths.grpo.importance_weights`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import torch
from pydantic import BaseModel, ValidationError

from node.config import GeneratorSection
from node.hooks import no_op
from node.llm.exchange import LARGEST_REPLY, Exchange, message_of, read_key, without
from node.llm.generation import Sampling
from node.llm.tokens import Tokens
from node.maths.policy import Completions
from peer.errors import ConfigurationError, TemporaryFailure, first_line

TICK_SECONDS = 0.05
"""Neighbors are answered so often while the server works."""
NEVER = -100.0
"""Bias of tokens that are no part of an answer; the API allows no lower one."""
IMPOSSIBLE = -1e30
"""Log-probabilities below this are as good as infinite."""
CERTAIN = 1e-3
"""Log-probabilities above 0 by no more than this are rounding."""
NAMED = "token_id:"
"""How vLLM names a token by its number."""


class Entry(BaseModel):
    """A token as llama-server tells it."""

    id: int
    logprob: float


class LogProbs(BaseModel):
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    content: list[Entry] | None = None


class Choice(BaseModel):
    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    logprobs: LogProbs | None = None


class Reply(BaseModel):
    choices: list[Choice]


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens with their log-probabilities; none of either: it could not be read."""

    ids: Sequence[int] = ()
    log_probs: Sequence[float] = ()
    ended: bool = False


class Server:
    """The server of the node's file, for a policy with these tokens."""

    def __init__(self, section: GeneratorSection, tokens: Tokens) -> None:
        """Raises ConfigurationError: its key can't be used."""
        self.section, self.tokens = section, tokens
        self.name = f"The generation server {section.url}"
        self._key = read_key(section.key) if section.key else None

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        count: int,
        sampling: Sampling,
        generator: torch.Generator,
        yield_point: Callable[[], None] = no_op,
    ) -> Completions:
        """`count` answers to each prompt, in consecutive rows.

        Args:
            generator: of one seed for each prompt; whether it makes answers repeat is up to the
                server.
            yield_point: called again and again while the server works.

        Raises:
            TemporaryFailure: the server can't be reached, fails, or takes too long.
            ConfigurationError: it refuses, has another tokenizer, tells no log-probabilities, or
                says what no such server says.
        """
        seeds = torch.randint(2**31, (len(prompts),), generator=generator).tolist()
        requests = [
            Exchange(self.section, self._request(prompt, count, sampling, seed), self._key)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        self._wait(requests, yield_point)
        answers = [each for request in requests for each in self._read(request, count, sampling)]
        if sum(bool(answer.ids) for answer in answers) < len(answers) / 2:
            raise ConfigurationError(
                f"{self.name} tells tokens that are not those of its text: it serves another "
                "model than the run's, or one with another tokenizer."
            )
        return padded(answers, sampling)

    def _request(
        self, prompt: Sequence[int], count: int, sampling: Sampling, seed: int
    ) -> dict[str, object]:
        """What servers would cut of the distribution by themselves is named, to be left alone."""
        return {
            **({"model": self.section.model} if self.section.model else {}),
            "prompt": list(prompt),
            "n": count,
            "max_tokens": sampling.max_completion_length,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "seed": seed,
            "stop_token_ids": [sampling.end],
            "logit_bias": {str(token): NEVER for token in sampling.banned},
            "logprobs": 1,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }

    def _wait(self, requests: Sequence[Exchange], yield_point: Callable[[], None]) -> None:
        """Until all are answered. Raises as `answers`."""
        deadline = time.monotonic() + self.section.timeout_s
        for request in requests:
            request.start()
        try:
            while under_way := [request for request in requests if request.is_alive()]:
                under_way[0].join(TICK_SECONDS)
                yield_point()
                for request in requests:
                    self._check_reached(request)
                if time.monotonic() > deadline:
                    raise TemporaryFailure(
                        f"{self.name} has not answered within generator.timeout_s = "
                        f"{self.section.timeout_s:g} s; raise it, or ask for fewer or shorter "
                        "answers."
                    )
        finally:
            for request in requests:
                request.cancel()
        for request in requests:
            self._check_reached(request)

    def _check_reached(self, request: Exchange) -> None:
        if request.error is not None and not request.is_alive():
            why = without(self._key, first_line(request.error))
            raise TemporaryFailure(
                f"{self.name} can't be reached ({why}); start it, or leave [generator] out of the "
                "node's file."
            )

    def _read(self, request: Exchange, count: int, sampling: Sampling) -> list[Answer]:
        """The answers of a reply."""
        if len(request.reply) > LARGEST_REPLY:
            raise ConfigurationError(
                f"{self.name} says more than {LARGEST_REPLY >> 20} MiB at once; ask for fewer or "
                "shorter answers."
            )
        if request.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise ConfigurationError(
                f"{self.name} wants {'another' if self._key else 'a'} key (status "
                f"{request.status}); name a file that has it in generator.key of the node's file."
            )
        if request.status != HTTPStatus.OK:
            message = message_of(request.reply, self._key)
            words = f"answers with status {request.status}: {message}"
            passes = request.status >= 500 and request.status != HTTPStatus.NOT_IMPLEMENTED
            if passes or request.status == HTTPStatus.TOO_MANY_REQUESTS:
                raise TemporaryFailure(f"{self.name} {words}.")
            raise ConfigurationError(f"{self.name} {words}; see generator in the node's file.")
        try:
            choices = Reply.model_validate_json(request.reply).choices
        except ValidationError:
            raise ConfigurationError(
                f"{self.name} answers with something that is no OpenAI-compatible completion."
            ) from None
        if len(choices) != count:
            raise ConfigurationError(
                f"{self.name} gives {len(choices)} answers to a question instead of {count} "
                f"(llama-server: -np {count})."
            )
        if not any(choice.logprobs for choice in choices):
            raise ConfigurationError(
                f"{self.name} tells no log-probabilities of its answers, which can't be learned "
                "from without."
            )
        choices = sorted(choices, key=lambda choice: choice.index)
        return [self._answer(choice, sampling) for choice in choices]

    def _answer(self, choice: Choice, sampling: Sampling) -> Answer:
        """Up to its end."""
        ids, log_probs = self._tokens(choice)
        if choice.finish_reason == "stop" and ids[-1:] != [sampling.end]:
            ids = [*ids, sampling.end]  # left out, as it is no text
        if len(log_probs) > sampling.max_completion_length:
            raise ConfigurationError(
                f"{self.name} gives an answer of {len(log_probs)} tokens where at most "
                f"{sampling.max_completion_length} were asked for."
            )
        if len(ids) != len(log_probs) or not self._are_ours(ids, sampling):
            return Answer()
        lengths = range(1, len(ids) + 1)
        length = next((k for k in lengths if sampling.is_ended(ids[:k])), None)
        if not self._is_text(ids, choice.text, length):
            return Answer()
        values = [math.nan if value is None else value for value in log_probs[:length]]
        if not all(IMPOSSIBLE < value <= CERTAIN for value in values):
            raise ConfigurationError(
                f"{self.name} tells log-probabilities that are none (NaN, infinite or above 0)."
            )
        return Answer(ids[:length], values, ended=length is not None)

    def _tokens(self, choice: Choice) -> tuple[list[int], Sequence[float | None]]:
        """The tokens of an answer and how likely they were, as the server tells them."""
        if (detail := choice.logprobs) is None:
            return [], ()
        if detail.content is not None:
            content = detail.content
            return [entry.id for entry in content], [entry.logprob for entry in content]
        if choice.token_ids is not None:
            return choice.token_ids, detail.token_logprobs
        numbers = [name.removeprefix(NAMED) for name in detail.tokens if name.startswith(NAMED)]
        if detail.tokens and len(numbers) == len(detail.tokens) and all(map(is_number, numbers)):
            return [int(number) for number in numbers], detail.token_logprobs
        return self.tokens.encode(choice.text), detail.token_logprobs

    def _are_ours(self, ids: Sequence[int], sampling: Sampling) -> bool:
        """Can a policy say these tokens?"""
        return all(0 <= token < self.tokens.size for token in ids) and not (
            {*ids} & {*sampling.banned}
        )

    def _is_text(self, ids: Sequence[int], text: str, length: int | None) -> bool:
        """Are the first `length` (None: all) of these the tokens that the text begins with? Bytes
        that are no characters may be lost. What a stop string cuts off need not be read."""
        kept = characters(self.tokens.decode(ids[:length]))
        if length is not None and length < len(ids):
            return characters(text).startswith(kept)
        return kept == characters(text)


def characters(text: str) -> str:
    """Without those that stand for bytes which are none, nor space around it."""
    return text.replace("\ufffd", "").strip()


def is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def padded(answers: Sequence[Answer], sampling: Sampling) -> Completions:
    """Answers as rows, padded on the right."""
    longest = max(1, *(len(answer.ids) for answer in answers))
    rooms = [longest - len(answer.ids) for answer in answers]
    pairs = list(zip(answers, rooms, strict=True))
    return Completions(
        ids=torch.tensor([[*answer.ids, *[sampling.pad] * room] for answer, room in pairs]),
        mask=torch.tensor([[1] * len(answer.ids) + [0] * room for answer, room in pairs]),
        log_probs=torch.tensor([[*answer.log_probs, *[0.0] * room] for answer, room in pairs]),
        ended=torch.tensor([answer.ended for answer in answers]),
    )
