"""Answers that an OpenAI-compatible server draws: a real one, in a process of its own, that serves
the model `bytes` in the forms of vLLM, llama-server and others, and with their faults.
"""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kit.generation_server import FORMS, Running, serving
from node.config import GeneratorSection, NodeConfig, RunConfig, load
from node.learning.build import build
from node.learning.plan import Plan
from node.llm.generation import completion_log_probs, generate
from node.llm.policy import LanguagePolicy
from node.llm.server import Answer, padded
from node.maths.grpo import advantages
from node.maths.grpo_rounds import GrpoRunConfig, LocalState, stepped
from node.maths.policy import Completions, Draws, Prompts
from node.randomness import Keys, public_generator
from node.rounds.compute import Compute
from node.task import views
from node.tasks import make
from peer.errors import ConfigurationError, PeerpoiseError, TemporaryFailure
from peer.topology import make_neighborhoods

pytest.importorskip("transformers")
CONFIG = GrpoRunConfig(questions=3, num_generations=4, max_completion_length=4, lr=5e-4)
TASK = {
    "name": "reasoning",
    "model": "bytes",
    "data": "questions",
    "text": {"length": 32, "embeddings": True},
    "reasoning": {"families": ["sort"]},
}


@pytest.fixture(scope="module")
def task() -> Any:
    return make(RunConfig(privacy={"mode": "none"}, task=TASK), np.arange(100))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def x(task: Any) -> torch.Tensor:
    """After a short warm-up: digits and ends, and now and then a right answer."""
    x, generator = task.initial_parameters(0), torch.Generator().manual_seed(0)
    leaf = x.requires_grad_()
    adam = torch.optim.Adam([leaf], lr=3e-3)
    for _ in range(80):
        rows = torch.randint(task.num_examples, (16,), generator=generator)
        loss = task.mean_loss(views(task.layout, leaf), task.batch(rows))
        adam.zero_grad()
        loss.backward()
        adam.step()
    return leaf.detach()


@pytest.fixture
def server(task: Any, x: torch.Tensor, tmp_path: Path) -> Iterator[Running]:
    with serving(tmp_path, views(task.layout, x)) as running:
        yield running


def policy(task: Any, section: GeneratorSection | None, **hooks: Any) -> LanguagePolicy:
    draws = Draws("n0", 1, Keys.insecure(0, "n0"), generator=section)
    policy: LanguagePolicy = task.policy(replace(draws, **hooks))
    return policy


def test_what_the_server_drew_is_what_is_learned_from(
    task: Any, x: torch.Tensor, server: Running
) -> None:
    """In every form: token by token the answers that its seeds give here, and as likely as for the
    trainer."""
    for form, limit in product(FORMS, (3, 4)):
        config = CONFIG.model_copy(update={"max_completion_length": limit})
        one = policy(task, server.section(form))
        rollouts = one.rollouts(x, config, 0, 0)
        drawn, expected = rollouts.completions, drawn_here(one, x, config)
        readable = drawn.mask.any(1)
        assert readable.all() or form == "text", "bytes that are no characters are lost in a text"
        for field in ("ids", "mask", "ended"):
            assert torch.equal(getattr(drawn, field)[readable], getattr(expected, field)[readable])
        assert not drawn.ended.all() if limit == 3 else drawn.ended.any(), "three digits, an end"
        trained = completion_log_probs(one._at(x), rollouts.prompts, drawn, one.sampling(config))
        assert (trained - drawn.log_probs)[drawn.mask.bool()].abs().max() < 1e-4
        update = one.gradient(x, rollouts, config, torch.ones(len(drawn.ids)))
        assert update.mismatch < 1e-4
        assert update.gradient is not None


def drawn_here(one: LanguagePolicy, x: torch.Tensor, config: GrpoRunConfig) -> Completions:
    """The same answers, drawn by the same seeds."""
    generator = public_generator(1, "n0", 0, "rollouts 0")
    rows = torch.randperm(len(one._train), generator=generator)[: CONFIG.questions]
    seeds = torch.randint(2**31, (CONFIG.questions,), generator=generator)
    sampling, answers = one.sampling(config), []
    for row, seed in zip(rows.tolist(), seeds.tolist(), strict=True):
        prompts = Prompts.of([one._train.prompts[row]] * CONFIG.num_generations, sampling.pad)
        drawn = generate(one._at(x), prompts, sampling, torch.Generator().manual_seed(seed))
        lengths = drawn.mask.sum(1).tolist()
        ids, values, ended = (it.tolist() for it in (drawn.ids, drawn.log_probs, drawn.ended))
        answers += [
            Answer(ids[k][:length], values[k][:length], ended[k])
            for k, length in enumerate(lengths)
        ]
    return padded(answers, sampling)


@pytest.mark.long
def test_answers_follow_the_models_distribution(
    task: Any, x: torch.Tensor, server: Running
) -> None:
    many = CONFIG.model_copy(update={"questions": 1, "num_generations": 600})
    drawn = policy(task, server.section()).rollouts(x, many, 0, 0)
    here = policy(task, None)
    log_p = here._at(x)(drawn.prompts.ids[:1]).logits[0, -1].detach()
    log_p[list(here.sampling(many).banned)] = -1e9
    p = log_p.softmax(0)
    share = torch.bincount(drawn.completions.ids[:, 0], minlength=len(p)) / 600
    assert p.max() > 10 * p.mean(), "power: it is no uniform distribution"
    assert ((share - p).abs() < 5 * (p * (1 - p) / 600).sqrt() + 2 / 600).all()


def test_a_server_that_is_behind_is_corrected_and_the_policy_learns(
    task: Any, x: torch.Tensor, server: Running
) -> None:
    """To begin with an odd byte, from answers of the weights that it began with. How fast depends on
    the last bits of the warm-up, and so on the processor: with six seeds by 0.15 to 0.43."""
    warnings: list[str] = []
    config = CONFIG.model_copy(update={"questions": 8, "num_generations": 8})
    one = policy(task, server.section(), warn=warnings.append)
    now, state, mismatches = x.clone(), LocalState.at(x), []
    for step in range(7):
        rollouts = one.rollouts(now, config, 0, step)
        rewards = (rollouts.completions.ids[:, 0] % 2 == 1).float()
        update = one.gradient(now, rollouts, config, advantages(rewards, config))
        state = stepped(config, now, update, state)
        mismatches.append(update.mismatch)
    assert mismatches[0] < 1e-4
    assert mismatches[-1] > 0.01, "of a model that answers itself, this would be refused"
    assert odd(one, now) > odd(one, x) + 0.1
    assert warnings == []


def odd(one: LanguagePolicy, x: torch.Tensor) -> float:
    """Probability that answers begin with an odd byte."""
    prompts = Prompts.of(one._train.prompts[:16], one.sampling(CONFIG).pad)
    logits = one._at(x)(prompts.ids, attention_mask=prompts.mask).logits
    return float(logits[:, -1].detach().softmax(1)[:, 1::2].sum(1).mean())


def test_weights_are_those_of_importance_and_can_be_left_out(
    task: Any, x: torch.Tensor, server: Running
) -> None:
    one = policy(task, server.section(factor=0.9))
    rollouts = one.rollouts(x, CONFIG, 0, 0)
    drawn = rollouts.completions
    rewards = torch.rand(len(drawn.ids), generator=torch.Generator().manual_seed(0))
    advantage = advantages(rewards, CONFIG)

    def gradient(cap: float | None) -> torch.Tensor:
        config = CONFIG.model_copy(update={"importance_sampling_cap": cap})
        update = one.gradient(x, rollouts, config, advantage)
        assert update.gradient is not None
        return update.gradient

    trained = completion_log_probs(one._at(x), rollouts.prompts, drawn, one.sampling(CONFIG))
    ratio = (trained - drawn.log_probs).detach().exp()[drawn.mask.bool()]
    least, most = float(ratio.min()), float(ratio.max())
    assert least < 0.9
    assert most > 1.1
    assert not torch.allclose(gradient(None), gradient(most), rtol=1e-2, atol=1e-5)
    # Below every weight the cap is a common factor.
    torch.testing.assert_close(
        gradient(least / 2), gradient(None) * least / 2, rtol=1e-4, atol=1e-6
    )


@pytest.mark.long
def test_a_server_that_is_far_away_is_one_warning(
    task: Any, x: torch.Tensor, server: Running
) -> None:
    warnings: list[str] = []
    one = policy(task, server.section(factor=0.3), warn=warnings.append)
    for step in range(2):
        one.gradient(x, one.rollouts(x, CONFIG, 0, step), CONFIG, torch.ones(12))
    assert len(warnings) == 1
    assert "far from the one that is trained" in warnings[0]


FAULTS: dict[str, tuple[type[PeerpoiseError], str]] = {
    "no-logprobs": (ConfigurationError, "tells no log-probabilities of its answers"),
    "nan": (ConfigurationError, r"log-probabilities that are none \(NaN"),
    "below-float32": (ConfigurationError, r"log-probabilities that are none \(NaN"),
    "dying": (TemporaryFailure, r"can't be reached \(IncompleteRead"),
    "not-json": (ConfigurationError, "no OpenAI-compatible completion"),
    "long": (ConfigurationError, "an answer of 1000 tokens where at most 4 were asked for"),
    "other-tokenizer": (ConfigurationError, "serves another model than the run's, or one with an"),
    "few": (ConfigurationError, "gives 3 answers to a question instead of 4"),
    "huge": (ConfigurationError, "says more than 64 MiB at once"),
    "failing": (TemporaryFailure, "answers with status 503: The engine is gone"),
    "unknown-model": (ConfigurationError, "with status 404: The model `x` does not exist; see gen"),
}


def test_a_fault_is_one_sentence(task: Any, x: torch.Tensor, server: Running) -> None:
    for fault, (kind, words) in FAULTS.items():
        section = server.section(fault=fault)
        with pytest.raises(kind, match=words) as caught:
            policy(task, section).rollouts(x, CONFIG, 0, 0)
        sentence = str(caught.value)
        assert sentence.startswith(f"The generation server {section.url} ")
        assert sentence.endswith(".")
        assert "\n" not in sentence


def test_an_answer_whose_tokens_are_not_told_is_not_learned_from(
    task: Any, x: torch.Tensor, server: Running
) -> None:
    one = policy(task, server.section(fault="within-a-character"))
    rollouts = one.rollouts(x, CONFIG, 0, 0)
    readable = rollouts.completions.mask.any(1)
    assert readable.tolist() == [False, True, True, True] * 3
    assert not rollouts.completions.ended[~readable].any()
    assert not rollouts.rewards[~readable].any()
    update = one.gradient(x, rollouts, CONFIG, torch.ones(12))
    assert update.gradient is not None
    assert update.gradient.isfinite().all()


def test_a_server_that_is_not_there_is_one_sentence(task: Any, x: torch.Tensor) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        section = GeneratorSection(url=f"http://127.0.0.1:{free.getsockname()[1]}/v1")
        with pytest.raises(TemporaryFailure, match=r"can't be reached \(.*refused.*\); start it"):
            policy(task, section).rollouts(x, CONFIG, 0, 0)


@pytest.mark.long
def test_a_server_that_takes_too_long_is_one_sentence(
    task: Any, x: torch.Tensor, server: Running
) -> None:
    section = server.section(fault="held-forever").model_copy(update={"timeout_s": 0.3})
    with pytest.raises(TemporaryFailure, match="has not answered within generator"):
        policy(task, section).rollouts(x, CONFIG, 0, 0)


async def test_neighbors_are_answered_while_the_server_works(
    task: Any, x: torch.Tensor, server: Running
) -> None:
    compute = Compute()
    section = server.section(fault="held-for-neighbors")
    one = policy(task, section, yield_point=compute.yield_point)
    rollouts = asyncio.create_task(compute.run(one.rollouts, x, CONFIG, 0, 0))
    for k in range(3):
        before = compute.progress
        assert await compute.run_priority(abs, k) == k
        await until_progress(compute, before + 2)
    assert not rollouts.done()
    server.release("held-for-neighbors")
    assert len((await rollouts).rewards) == 12
    compute.stop()
    assert await compute.join(10)


async def until_progress(compute: Compute, least: int) -> None:
    async with asyncio.timeout(30):
        while compute.progress < least:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.long
async def test_a_daemon_that_stops_does_not_wait_for_the_server(
    task: Any, x: torch.Tensor, server: Running
) -> None:
    compute = Compute()
    section = server.section(fault="held-forever")
    one = policy(task, section, yield_point=compute.yield_point)
    rollouts = asyncio.create_task(compute.run(one.rollouts, x, CONFIG, 0, 0))
    await until_progress(compute, 3)
    compute.stop()
    assert await compute.join(10)
    with pytest.raises(asyncio.CancelledError):
        await rollouts


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        ({"name": "d-psgd"}, "d-psgd draws no answers"),
        ({"name": "grpo", "temperature": 0.7}, "temperature = 1 and top_p = 1 only"),
        ({"name": "grpo", "top_p": 0.9}, "temperature = 1 and top_p = 1 only"),
    ],
    ids=str,
)
def test_runs_that_have_no_use_for_a_server_are_refused(
    algorithm: dict[str, Any], words: str
) -> None:
    run = RunConfig(privacy={"mode": "none"}, task=TASK, algorithm=algorithm)  # type: ignore[arg-type]
    plan = Plan.of(run, make_neighborhoods("full", ["n0", "n1"], run.wiring))
    section = GeneratorSection(url="http://127.0.0.1:1/v1")
    with pytest.raises(ConfigurationError, match=words):
        build(plan, "n0", np.arange(100), ledger=None, generator=section)


KEY = "sk-7/+=~of_nobody"


def key_file(folder: Path, key: bytes = KEY.encode() + b"\n", mode: int = 0o600) -> Path:
    file = folder / "server.key"
    file.write_bytes(key)
    file.chmod(mode)
    return file


def test_a_server_with_a_key_answers_who_has_it(task: Any, x: torch.Tensor, tmp_path: Path) -> None:
    """And nobody is told it who reads what went wrong, whatever the server repeats."""
    file = key_file(tmp_path)
    with serving(tmp_path, views(task.layout, x), "--key", KEY) as server:

        def ask(key: Path | None, fault: str = "none") -> Any:
            section = server.section(fault=fault).model_copy(update={"key": key})
            return policy(task, section).rollouts(x, CONFIG, 0, 0)

        assert len(ask(file).rewards) == 12
        with pytest.raises(ConfigurationError, match=r"wants a key \(status 401\); name a file"):
            ask(None)
        with pytest.raises(TemporaryFailure, match=r"status 500: What is …\?") as told_on:
            ask(file, "tattling")
        assert KEY not in "".join(traceback.format_exception(told_on.value))
        file.write_text("another")
        with pytest.raises(ConfigurationError, match=r"wants another key \(status 401\)") as caught:
            ask(file)
        assert "another." not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "mode", "words"),
    [
        (b"x", 0o640, "server.key can be read by others; run: chmod 600"),
        (b"", 0o600, "is to hold a key and nothing else"),
        (b"two words", 0o600, "is to hold a key and nothing else"),
        (b"x\r\nX-Other: header", 0o600, "is to hold a key and nothing else"),
        ("schlüssel".encode(), 0o600, "is to hold a key and nothing else"),
        (b"x" * 5000, 0o600, "is to hold a key and nothing else"),
    ],
)
def test_a_key_that_is_none_or_anybodys_is_one_sentence(
    task: Any, tmp_path: Path, key: bytes, mode: int, words: str
) -> None:
    """Before anything is asked."""
    file = key_file(tmp_path, key, mode)
    section = GeneratorSection(url="http://127.0.0.1:1/v1", key=file)
    with pytest.raises(ConfigurationError, match=words) as caught:
        policy(task, section)
    assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(ConfigurationError, match="can't be read: No such file"):
        policy(task, section)


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://host/v1", True),
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.1/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://host/v1", False),
        ("http://10.0.0.1:8000/v1", False),
    ],
)
def test_a_key_does_not_travel_in_plain(url: str, safe: bool) -> None:
    GeneratorSection(url=url)
    if safe:
        assert GeneratorSection(url=url, key=Path("key")).key
        return
    with pytest.raises(ValidationError, match="would be sent in plain; use https"):
        GeneratorSection(url=url, key=Path("key"))


@pytest.mark.parametrize("url", ["https://me:secret@host/v1", "https://host/v1?key=secret"])
def test_a_key_does_not_stand_in_an_address(url: str, tmp_path: Path) -> None:
    """Which is shown in errors."""
    file = tmp_path / "node.toml"
    file.write_text(
        f'name = "a"\nidentity = {{ key = "k", certificate = "c", ca = "ca" }}\n[generator]\nurl = "{url}"\n'
    )
    with pytest.raises(
        ConfigurationError, match=r"generator\.url: a key does not belong"
    ) as caught:
        load(NodeConfig, [file])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host/v1", "http://", "http://h:port/v1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        GeneratorSection(url=url)
