"""SAPO, rollout sharing: peers send each other their questions and answers with what these earned,
and learn from them as well; no model travels. Gensyn, "Sharing is caring: efficient LM post-training
with collective RL experience sharing" (SAPO), arXiv 2509.08721, as a baseline of FGRPO.

**No privacy of any kind: questions and answers leave in plain.**

    own        E steps of GRPO on own answers
    shared     for each neighbor, a step on `shared` of its groups whose rewards differ, with the
               ratio ϱ = π/π_neighbor of the log-probabilities it sent, clipped as in GRPO

Deviations
    * One step a neighbor, not one on a mixed batch. Ratios are clipped on the neighbor's own
      log-probabilities: taken as if on-policy, shared answers destroy a policy.
Reconstructions
    * Which groups are taken: the first whose rewards differ.
Not covered
    * Rewards are believed as they are sent, since a receiver has no scorer for others' questions.
    * `mask_truncated_completions` is for own answers; shared ones don't tell whether they end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from node.algorithms import Algorithm, Capability, Resources
from node.figures import Diagnostic
from node.maths import grpo_rounds
from node.maths.grpo import advantages, has_spread
from node.maths.grpo_rounds import GrpoRunConfig, LocalState, begin, local_steps, stepped
from node.maths.policy import Completions, Policy, Prompts, Rollouts
from peer.errors import ConfigurationError
from peer.message import Conversation, Layout, Peer, say
from peer.neighborhood import View

SCALE = float(1 << 16)
"""Tokens are sent as multiples of its inverse: exact in float32, and small beside `limits.rms`."""
LEAST = -1e4
"""Least log-probability of a token that is believed."""


class SapoConfig(GrpoRunConfig):
    shared: int = Field(default=2, ge=1)
    """Groups of answers that are taken from each neighbor in a round."""
    max_prompt_length: int = Field(default=64, ge=1)
    """Tokens of a question that are sent; a longer one loses its beginning."""

    @property
    def two_sided(self) -> SapoConfig:
        """With an upper limit of the ratio for bad answers, too: a neighbor says how likely it found
        them, and one that says "hardly" would be the whole gradient."""
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        return self if self.delta else self.model_copy(update={"delta": 1 + 2 * high})

    @property
    def layout(self) -> Layout:
        """Of the answers of a step."""
        n = self.questions * self.num_generations
        answers = (n, self.max_completion_length)
        return Layout(
            (
                ("prompts", (n, self.max_prompt_length)),
                ("answers", answers),
                ("log_probs", answers),
                ("figures", (n, 3)),  # lengths of prompt and answer, reward
            )
        )


class Sapo(Algorithm):
    Config = SapoConfig
    NEEDS = frozenset({Capability.POLICY})
    PRIVATE = False
    DIAGNOSTICS = (
        Diagnostic("taken", "Groups of answers taken from the neighbor."),
        Diagnostic("clip_ratio", "Share of their tokens whose ratio was clipped."),
        *grpo_rounds.DIAGNOSTICS,
    )
    config: SapoConfig
    state: LocalState
    checkpointable = True

    def __init__(self, config: SapoConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        assert resources.policy is not None
        self.policy: Policy = resources.policy
        if self.policy.questions < config.questions:
            raise ConfigurationError(
                f"algorithm.questions = {config.questions}, but this node has "
                f"{self.policy.questions}: everybody sends equally many answers, so lower it."
            )
        self.state = LocalState.at(resources.start)
        self._figures: dict[str, float | Mapping[Peer, float]] = {}

    def diagnostics(self) -> Mapping[str, float | Mapping[Peer, float]]:
        return self._figures

    def round(self, t: int, view: View) -> Conversation:
        if t < self.config.warmup.rounds:
            self.checkpointable = False
            self.state = yield from grpo_rounds.warm_up(
                self.config, self.state, lambda x: self.gradients(x, t, self.me)
            )
            self.checkpointable = True
        else:
            yield from self.share(t)

    def share(self, t: int) -> Conversation:
        """A round of own steps, and a step on what each neighbor sent."""
        c, state = self.config, begin(self.config, self.state)
        state, x, figures = local_steps(c, self.policy, t, state)
        mine = self.policy.rollouts(x, c, t, c.local_steps)
        figures["tokens"] += float(mine.completions.mask.sum())
        heard = yield from say("rollouts", encoded(mine, c), c.layout)
        taken, clipped = {}, {}
        for peer, sent in heard.items():
            theirs = chosen(decoded(sent, c, self.policy.vocabulary), c)
            clipped[peer] = 0.0
            taken[peer] = 0.0 if theirs is None else len(theirs.rewards) / c.num_generations
            if theirs is None:
                continue
            update = self.policy.gradient(
                x,
                theirs,
                c.two_sided,
                advantages(theirs.rewards, c),
                state.reference,
                on_policy=False,
            )
            clipped[peer] = update.clip_low + update.clip_high
            state = stepped(c, x, update, state)
        self._figures = {**figures, "taken": taken, "clip_ratio": clipped}
        self.state = replace(state, x=x)


def encoded(rollouts: Rollouts, c: SapoConfig) -> Tensor:
    """Answers of a step as one flat vector of the configuration's layout."""
    prompts, drawn = rollouts.prompts, rollouts.completions
    n, most = len(rollouts.rewards), c.max_prompt_length
    tokens, answers, log_probs = torch.zeros(n, most), *torch.zeros(2, n, c.max_completion_length)
    kept = prompts.ids[:, -most:]
    tokens[:, most - kept.shape[1] :] = kept / SCALE
    answers[:, : drawn.ids.shape[1]] = drawn.ids / SCALE
    log_probs[:, : drawn.ids.shape[1]] = drawn.log_probs
    lengths = [prompts.mask[:, -most:].sum(1), drawn.mask.sum(1), rollouts.rewards]
    figures = torch.stack([column.float() for column in lengths], 1)
    return torch.cat([part.flatten() for part in (tokens, answers, log_probs, figures)])


def decoded(sent: Tensor, c: SapoConfig, vocabulary: int) -> Rollouts | None:
    """What a neighbor sent; None: it is no such thing."""
    parts = {name: sent[place].view(shape) for name, shape, place in c.layout.slices()}
    ids, answers = ((SCALE * parts[name]).round() for name in ("prompts", "answers"))
    prompt_length, answer_length, rewards = parts["figures"].unbind(1)
    usable = (
        _within(ids, 0, vocabulary - 1)
        and _within(answers, 0, vocabulary - 1)
        and _within(prompt_length, 1, c.max_prompt_length)
        and _within(answer_length, 1, c.max_completion_length)
        and _within(parts["log_probs"], LEAST, 0)
    )
    if not usable:
        return None
    # As wide as the longest of them: padding that all rows have would be computed with.
    widest, longest = int(prompt_length.max()), int(answer_length.max())
    prompt_mask = (torch.arange(widest) >= widest - prompt_length[:, None]).long()
    answer_mask = (torch.arange(longest) < answer_length[:, None]).long()
    return Rollouts(
        prompts=Prompts(ids[:, -widest:].long(), prompt_mask),
        completions=Completions(
            answers[:, :longest].long(),
            answer_mask,
            parts["log_probs"][:, :longest],
            torch.ones(len(ids), dtype=torch.bool),
        ),
        rewards=rewards,
        exact=torch.zeros(len(ids), dtype=torch.bool),
        seconds=0.0,
    )


def _within(values: Tensor, low: float, high: float) -> bool:
    return bool(((values >= low) & (values <= high)).all())


def chosen(rollouts: Rollouts | None, c: SapoConfig) -> Rollouts | None:
    """The first groups whose rewards differ; None: there are none."""
    if rollouts is None:
        return None
    groups = has_spread(rollouts.rewards, c).nonzero()[: c.shared, 0]
    if not len(groups):
        return None
    rows = (groups[:, None] * c.num_generations + torch.arange(c.num_generations)).flatten()
    return Rollouts(
        prompts=rollouts.prompts.rows(rows),
        completions=rollouts.completions.rows(rows),
        rewards=rollouts.rewards[rows],
        exact=rollouts.exact[rows],
        seconds=0.0,
    )
