"""A tabular policy: for every family a row of logits over ten answers, of which one is right; each
question of a family shifts them a little. Exact, and a thousand times faster than a language model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from node.algorithms import Resources
from node.attacks import Attack
from node.config import AttackSection
from node.maths.grpo import GrpoConfig, grpo_loss, has_spread, token_weights
from node.maths.policy import Completions, PolicyGradient, Prompts, Rollouts
from node.randomness import public_generator
from peer.message import Layout
from peer.neighborhood import Neighborhood
from peer.topology import GraphOptions, make_neighborhoods

FAMILIES = ("f0", "f1", "f2")
ANSWERS, QUESTIONS = 10, 64
LAYOUT = Layout((("logits", (len(FAMILIES), ANSWERS)),))
RIGHT = (3, 5, 7)
_SHIFTS = torch.randn(QUESTIONS, ANSWERS, generator=torch.Generator().manual_seed(5))


class TabularPolicy:
    """One node's; it learns one family, or several."""

    tokens_read = scorer_failures = 0
    questions = vocabulary = QUESTIONS
    evaluation = bytes(32)

    def __init__(self, me: str, families: Sequence[str]) -> None:
        self.me, self.families = me, tuple(families)
        self.rewarded = True
        """False: every answer earns the same."""

    def logits(self, x: Tensor, family: str, questions: Tensor) -> Tensor:
        """[n, ANSWERS]."""
        return x.view(len(FAMILIES), ANSWERS)[FAMILIES.index(family)] + _SHIFTS[questions]

    def rollouts(self, x: Tensor, config: GrpoConfig, t: int, step: int) -> Rollouts:
        draw = public_generator(0, self.me, t, f"rollouts {step}")
        asked = torch.randint(QUESTIONS, (config.questions,), generator=draw)
        asked = asked.repeat_interleave(config.num_generations)
        family = self.families[(t + step) % len(self.families)]
        log_p = self.logits(x, family, asked).log_softmax(1)
        drawn = torch.multinomial(log_p.exp(), 1, generator=draw)
        right = drawn[:, 0] == RIGHT[FAMILIES.index(family)]
        place = torch.full_like(asked, FAMILIES.index(family))
        return Rollouts(
            prompts=Prompts(torch.stack([place, asked], 1), torch.ones(len(asked), 2)),
            completions=Completions(
                drawn,
                torch.ones_like(drawn),
                log_p.gather(1, drawn),
                torch.ones(len(asked), dtype=torch.bool),
            ),
            rewards=right.float() if self.rewarded else torch.ones(len(asked)),
            exact=right,
            seconds=1.0,
        )

    def gradient(
        self,
        x: Tensor,
        rollouts: Rollouts,
        config: GrpoConfig,
        advantages: Tensor,
        reference: Tensor | None = None,
        *,
        on_policy: bool = True,
    ) -> PolicyGradient:
        leaf = x.detach().clone().requires_grad_()
        family = FAMILIES[int(rollouts.prompts.ids[0, 0])]
        log_p = self.logits(leaf, family, rollouts.prompts.ids[:, 1]).log_softmax(1)
        drawn = log_p.gather(1, rollouts.completions.ids)
        weights = token_weights(rollouts.completions.mask, config, 1)
        clip_low = clip_high = 0.0
        if advantages.any():
            old = drawn.detach() if on_policy else rollouts.completions.log_probs
            terms = grpo_loss(drawn, old, advantages, weights, config)
            torch.autograd.backward(terms.loss)
            clip_low, clip_high = (
                terms.clipped_low / terms.tokens,
                terms.clipped_high / terms.tokens,
            )
        spread = has_spread(rollouts.rewards, config)
        return PolicyGradient(
            gradient=leaf.grad,
            entropy=0.0,
            clip_low=clip_low,
            clip_high=clip_high,
            kl=0.0,
            zero_spread=1 - float(spread.double().mean()),
            mismatch=0.0,
            seconds=1.0,
        )

    def probabilities(self, x: Tensor, family: str, questions: Tensor) -> Tensor:
        p = self.logits(x.detach(), family, questions).double().softmax(1)
        return p[:, RIGHT[FAMILIES.index(family)]]

    def reward(self, x: Tensor) -> float:
        return float(self.fixed(x).mean())

    def fixed(self, x: Tensor) -> Tensor:
        every = torch.arange(QUESTIONS)
        return torch.cat([self.probabilities(x, name, every) for name in self.families])

    def audit_seed(self, t: int, commitment: bytes) -> int:
        return int.from_bytes(hashlib.sha256(bytes([t]) + commitment).digest()[:7], "big")

    def knows(self, families: Sequence[str]) -> bool:
        return bool(families) and {*families} <= {*FAMILIES}

    def right(self, x: Tensor, families: Sequence[str], seed: int, count: int) -> Tensor:
        self.tokens_read += count
        draw = torch.Generator().manual_seed(seed)
        asked = torch.randint(QUESTIONS, (count,), generator=draw)
        parts = [self.probabilities(x, name, asked)[None] for name in families]
        return torch.cat(parts)[torch.arange(count) % len(families), torch.arange(count)]


class NoGradients:
    """There is no supervised loss here."""

    def __call__(self, x: Tensor, t: int, to: str) -> Tensor:
        raise AssertionError("no warm-up was asked for")


def cluster(
    algorithm: Any, graph: str = "full", nodes: int = 6, families: Any = None, **options: Any
) -> tuple[dict[str, Any], dict[str, Neighborhood]]:
    """(nodes by name, neighborhoods); node k learns family k mod 3, or `families` of its name."""
    names = [f"n{k}" for k in range(nodes)]
    neighborhoods = make_neighborhoods(graph, names, GraphOptions())
    made, no_gradients = {}, cast(Any, NoGradients())
    for k, name in enumerate(names):
        own = (families or {}).get(name, (FAMILIES[k % len(FAMILIES)],))
        config = algorithm.Config(lr=0.3, a2=0.9, **options)
        made[name] = algorithm(
            config.on_graph(1.0 if graph == "full" else 0.5, nodes),
            Resources(
                me=name,
                layout=LAYOUT,
                start=torch.zeros(LAYOUT.size),
                gradients=no_gradients,
                policy=TabularPolicy(name, own),
            ),
        )
    return made, neighborhoods


def attacked(node: Any, attack: AttackSection) -> Any:
    """The same node, but an attacker."""
    resources = Resources(
        me=node.me,
        layout=LAYOUT,
        start=node.parameters,
        gradients=node.gradients,
        policy=node.policy,
    )
    given = Attack.of(attack)
    algorithm = type(node)(node.config, given.on_resources(resources))
    return given.on_algorithm(algorithm, 0)


def success(x: Tensor) -> float:
    """Probability of a right answer over all families."""
    policy = TabularPolicy("", FAMILIES)
    return float(policy.fixed(x).mean())
