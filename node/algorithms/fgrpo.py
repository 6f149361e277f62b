"""FGRPO: peers with different tasks improve one reasoning model by reinforcement, and weigh each
other by how far each outdoes its own past.

Chen, Li, Wang et al., arXiv 2606.03094 (2 June 2026), known from its abstract only: everything
below is a RECONSTRUCTION. In a round node i takes E local steps of GRPO (`node.maths.grpo`) from
its model θ_i to θ_i + δ_i, says δ_i, and averages what it hears:

    D       2 × the running median (the lower one) of the norms of accepted updates; longer ones are
            shortened to it
    u_j     shares by relative gain (`node.maths.relative_gain`), over the closed neighborhood
    w_ij    (1 − μ) W_ij + μ u_j
    θ_i ← θ_i + η Σ_j w_ij δ_j + κ Σ_j W_ij (θ_j − θ_i)

κ = 0.5: the rows of u are not doubly stochastic, so models drift apart without it. With δ_j a neighbor
signs a commitment (`node.maths.commitment`): its reward R̄_j before the round, the chain of its earlier
ones, and the generators of its questions. No privacy: updates leave as they are, so every mode but
none is refused.

    gain = "reported"   g_j from the R̄_j of the chain. As the abstract has it; who lies about R̄ is believed.
    gain = "audited"    z of paired audits (`node.maths.audit`) of θ_i + ½δ_j on fresh questions of the
                        own generators, and with the pull to θ_j of j's; the smaller counts.
                        Below −3, by faded evidence or by the round's own (which can say so of 10
                        questions and more), j has no weight in the round: who helps in most rounds
                        can't spend that on a lie. On its own questions, by faded evidence, it is
                        convicted: it sends what it can't have learned. Then it has no weight until
                        its z on them is positive, for evidence fades: a liar's update hurts less
                        as models converge. On the auditor's questions nobody is convicted: honest
                        updates fall so low now and then (7 of 288 in fgrpo-tiny).
                        The whole update is checked on the own fixed questions: below −3 only the
                        own part of it is taken.
    weights             uniform | size | reward | raw-gain instead of gain: baselines of the paper's kind
    advantage           history: RAE's (SPIRAL, arXiv 2506.24119), reward minus the mean of the own past

Reconstructions
    * All of the aggregation but its idea; audits, commitments, pull and norm bound are ours.
    * Updates are shortened before they are audited, and a convicted neighbor's model is not pulled
      at either.
    * The pull is by the models that the round began with, which travel with the updates.
    * The optimizer's state stays at home and is kept over rounds: the update of a fresh Adam is three
      times as long, and hurts.
Not covered
    * An update that helps on all questions that its auditor asks, and hurts elsewhere.
    * A model that is sent in order to hold the others back: the auditor's own questions are asked
      without the pull, as honest models are behind on them. Nobody is convicted of it. In 20 rounds of
      the tabular test it costs 2 to 6 % of what the honest reach, in 40 nothing; but on a ring of four
      a tenth, and the node beside the liar a third.
    * Questions of a file can't be audited. A neighbor that names generators which are not the run's,
      or others than it named first, has no weight.
    * The warm-up, a plain mean, believes everybody; `mix.rule` applies there, and only there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from node.algorithms import Algorithm, Capability, Resources
from node.figures import Diagnostic
from node.maths import grpo_rounds
from node.maths.audit import (
    AuditConfig,
    Evidence,
    guilty,
    largest_norm,
    shortened,
    softmax_weights,
)
from node.maths.blocks import Block, BlockSchedule, active_block, partition_blocks
from node.maths.commitment import Commitment, largest, update_digest
from node.maths.grpo_rounds import GrpoRunConfig, LocalState, begin, local_steps, without_moments
from node.maths.mixing import weighted_sum
from node.maths.policy import Policy
from node.maths.relative_gain import Baseline, GainConfig, gain_weights
from peer.errors import ConfigurationError
from peer.message import MAX_NOTE, Conversation, Peer, Replies, say
from peer.neighborhood import View

REMEMBERED = 16
"""Rounds whose norms, and commitments of a neighbor, are kept."""


class FgrpoConfig(GrpoRunConfig):
    gain: Literal["audited", "reported"] = "audited"
    """By what neighbors are weighed: what audits see, or what they say of themselves."""
    weights: Literal["gain", "uniform", "size", "reward", "raw-gain"] = "gain"
    """gain: by `gain`. Others are baselines, and believe what neighbors say: size, their number of
    questions, which each then tells; reward, R̄; raw-gain, R̄ minus its mean so far."""
    relative: GainConfig = GainConfig()
    """How gains become weights."""
    audit: AuditConfig = AuditConfig()
    """How neighbors are audited."""
    eta: float = Field(default=1.0, gt=0)
    """η: share of the averaged update that is applied."""
    pull: float = Field(default=0.5, ge=0, le=1)
    """κ, towards the neighbors' models, which then travel too. 0 is for a full graph without audits and
    without losses, where all models stay equal."""
    norm_bound: float | None = Field(default=2.0, gt=0)
    """Updates are shortened to so many times the median norm; a huge number, or None: they are
    not."""
    block: BlockSchedule | None = None
    """Train and say one block of layers at a time, as DECA does; None: all parameters."""

    @property
    def audits(self) -> bool:
        """Are neighbors weighed by what audits see?"""
        return self.weights == "gain" and self.gain == "audited"

    def check_families(self, generators: Sequence[str], scored: Sequence[str]) -> None:
        if self.audits and not generators:
            raise ConfigurationError(
                'algorithm.gain = "audited" needs questions that others can make from a seed '
                '(task.data = "questions"); with those of a file set algorithm.gain = "reported".'
            )
        if len(largest(generators).encode()) > MAX_NOTE:
            raise ConfigurationError(
                "The names of task.reasoning.families are too long to travel with every update: "
                f"{len(largest(generators).encode()):,} bytes, at most {MAX_NOTE:,}; shorten them."
            )
        if self.audits and self.audit.convict >= self.audit.largest_z:
            raise ConfigurationError(
                f"With algorithm.audit.questions = {self.audit.questions} and forgetting = "
                f"{self.audit.forgetting:g} z never falls below {-self.audit.largest_z:.3g}, so "
                f"convict = {self.audit.convict:g} convicts nobody; ask more questions, or lower "
                "it."
            )
        if self.audits and scored and self.audit.score == "probability":
            raise ConfigurationError(
                f"The family {scored[0]!r} has a scorer, so that the probability of one answer says "
                'little: set algorithm.audit.score = "sampled".'
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class State(LocalState):
    chain: tuple[int, str] = (-1, "")
    """Round and digest of the own last commitment."""
    heard: dict[str, dict[str, str]] = field(default_factory=dict)
    """Neighbor -> round -> digest, of its last commitments."""
    baselines: dict[str, tuple[int, float, float]] = field(default_factory=dict)
    """`Baseline`s of the closed neighborhood."""
    evidence: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)
    """`Evidence` of each on its own questions, and on this node's."""
    convicted: tuple[str, ...] = ()
    """Whom audits convicted, until their evidence is positive; sorted."""
    families: dict[str, str] = field(default_factory=dict)
    """The generators that each named first; a commitment that names others counts for nothing."""
    norms: tuple[float, ...] = ()
    """Median norms of accepted updates, of the last rounds."""
    visit: int = -1
    """Blocks: which one was trained last, counted from 0."""


class Fgrpo(Algorithm):
    Config = FgrpoConfig
    NEEDS = frozenset({Capability.POLICY})
    PRIVATE = False
    DIAGNOSTICS = (
        Diagnostic("weight", "What the neighbor's update weighed."),
        Diagnostic("gain", "The neighbor's relative gain, or z of its audits."),
        Diagnostic("convicted", "1: its updates hurt its own questions, or it commits to others."),
        *grpo_rounds.DIAGNOSTICS,
        Diagnostic("audit_tokens", "Tokens read for audits.", per_neighbor=False),
        Diagnostic("rolled_back", "1: only the own part was taken.", per_neighbor=False),
    )
    config: FgrpoConfig
    state: State
    checkpointable = True

    def __init__(self, config: FgrpoConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        assert resources.policy is not None
        self.policy: Policy = resources.policy
        self.state = State.at(resources.start)
        self.blocks: tuple[Block, ...] = ()
        if config.block:
            if not resources.layer_groups:
                raise ConfigurationError(
                    "algorithm.block trains layers one after another, and the task names none."
                )
            groups = resources.layer_groups
            self.blocks = partition_blocks(resources.layout, groups, config.block.layers_per_block)
        self._figures: dict[str, float | Mapping[Peer, float]] = {}

    def diagnostics(self) -> Mapping[str, float | Mapping[Peer, float]]:
        return self._figures

    def span(self, t: int) -> slice:
        block = self.block(t)
        return block.span if block else slice(None)

    def block(self, t: int) -> Block | None:
        """The one that round t trains; None: all parameters."""
        schedule, since = self.config.block, t - self.config.warmup.rounds
        if not schedule or since < 0:
            return None
        return active_block(self.blocks, since // schedule.steps, schedule)

    def round(self, t: int, view: View) -> Conversation:
        if t < self.config.warmup.rounds:
            self.checkpointable = False
            self.state = yield from grpo_rounds.warm_up(
                self.config, self.state, lambda x: self.gradients(x, t, self.me)
            )
            self.checkpointable = True
        else:
            yield from self.reinforce(t, view)

    def reinforce(self, t: int, view: View) -> Conversation:
        """A round of local steps, and of what neighbors make of theirs."""
        c, state, block = self.config, begin(self.config, self.state), self.block(t)
        if block and (visit := (t - c.warmup.rounds) // block_steps(c)) != state.visit:
            state = replace(without_moments(state), visit=visit, norms=())
        span = self.span(t)
        reward = self.policy.reward(state.x)
        tokens = self.policy.tokens_read
        state, after, figures = local_steps(c, self.policy, t, state, span)
        before = state.x[span]  # no copy: nobody writes into what was said
        own = after[span] - before
        del after  # as large as the model, and neighbors may take long
        payload: tuple[Tensor, ...] = (own, before) if c.pull else (own,)
        commitment = self.commitment(t, state, own, reward)
        layout = block.layout if block else None
        heard = yield from say("update", payload, layout, note=commitment.encode())
        updates, state = self.read(t, state, heard, Update(commitment, payload))
        updates = self.bound(updates, state.norms)
        row = dict(view.neighborhood.weight)
        gains, state = self.gains(t, state, updates, span, row)
        convicted = gains.convicted | (frozenset(heard) - frozenset(updates))
        trusted = set(updates) - convicted - gains.harmful
        row = dict(view.neighborhood.without(set(view.neighborhood.neighbors) - trusted).weight)
        w = self.weights(row, gains.score)
        step = weighted_sum(w, {j: updates[j].delta for j in w})
        theta = before + c.eta * step
        if c.pull:
            theta += c.pull * sum_of(pulls(row, before, own, updates), before)
        x, rolled_back = self.checked(state.x, span, theta, own)
        self._figures = {
            **figures,
            "weight": {j: w.get(j, 0.0) for j in heard},
            "gain": {j: gains.score.get(j, 0.0) for j in heard},
            "convicted": {j: float(j in convicted) for j in heard},
            "audit_tokens": float(self.policy.tokens_read - tokens),
            "rolled_back": float(rolled_back),
        }
        accepted = [norm_of(updates[j].delta) for j in w]
        norms = (*state.norms, largest_norm(accepted, 1.0))[-REMEMBERED:]
        self.state = replace(state, x=x, chain=(t, commitment.digest), norms=norms)

    def commitment(self, t: int, state: State, delta: Tensor, reward: float) -> Commitment:
        previous_round, previous = state.chain
        return Commitment(
            round=t,
            update=update_digest(delta),
            reward=reward,
            evaluation=self.policy.evaluation.hex(),
            families=self.policy.families,
            questions=self.policy.questions if self.config.weights == "size" else 0,
            previous_round=previous_round,
            previous=previous,
        )

    def read(
        self, t: int, state: State, heard: Replies[tuple[Tensor, ...]], own: Update
    ) -> tuple[dict[Peer, Update], State]:
        """The updates whose commitments hold, the own one included, and the state that remembers
        them. Who denies its past, as one that was restarted does, begins without a baseline.
        """
        updates, chains = {self.me: own}, dict(state.heard)
        baselines = dict(state.baselines)
        for j, parts in heard.items():
            chain = chains.get(j, {})
            commitment = commitment_of(heard.notes.get(j, b""), t, parts[0])
            if commitment is None:
                continue
            updates[j] = Update(commitment, parts)
            if chain and not goes_on(chain, commitment):
                baselines.pop(j, None)
            kept = {**chain, str(t): commitment.digest}
            chains[j] = dict(sorted(kept.items(), key=lambda item: int(item[0]))[-REMEMBERED:])
        return updates, replace(state, heard=chains, baselines=baselines)

    def bound(self, updates: Mapping[Peer, Update], past: Sequence[float]) -> dict[Peer, Update]:
        """Neighbors' updates of at most D."""
        if self.config.norm_bound is None:
            return dict(updates)
        norms = {j: norm_of(each.delta) for j, each in updates.items()}
        most = largest_norm([*past, *norms.values()], self.config.norm_bound)
        return {
            j: each
            if j == self.me
            else replace(each, parts=(shortened(each.delta, norms[j], most), *each.parts[1:]))
            for j, each in updates.items()
        }

    def gains(
        self,
        t: int,
        state: State,
        updates: Mapping[Peer, Update],
        span: slice,
        row: Mapping[Peer, float],
    ) -> tuple[Gains, State]:
        """How much each outdoes its past, as it says or as audits see, and who is convicted."""
        c = self.config
        past = {j: Baseline(*state.baselines.get(j, (0, 0.0, 0.0))) for j in updates}
        claims = {j: each.commitment.reward for j, each in updates.items()}
        if c.weights == "raw-gain":
            claimed = {
                j: claims[j] - past[j].mean if past[j].observations else 0.0 for j in updates
            }
        elif c.weights == "reward":
            claimed = claims
        elif c.weights == "size":
            claimed = {j: float(each.commitment.questions) for j, each in updates.items()}
        else:
            claimed = {j: past[j].gain(claims[j], c.relative) for j in updates}
        after = {j: past[j].observe(claims[j], c.relative) for j in updates}
        baselines = {**state.baselines, **{j: astuple(each) for j, each in after.items()}}
        state = replace(state, baselines=baselines)
        if not c.audits:
            return Gains(claimed), state
        return self.audited(t, state, updates, span, row)

    def audited(
        self,
        t: int,
        state: State,
        updates: Mapping[Peer, Update],
        span: slice,
        row: Mapping[Peer, float],
    ) -> tuple[Gains, State]:
        """Each is tried about as it would be applied."""
        c, evidence, families_of = self.config.audit, dict(state.evidence), dict(state.families)
        unknown, hurting = set(), set()
        for j, each in updates.items():
            first = families_of.setdefault(j, ",".join(each.commitment.families))
            known = self.policy.knows(each.commitment.families)
            if not known or first != ",".join(each.commitment.families):
                unknown.add(j)
        before, own = state.x[span], updates[self.me].delta
        pulled = pulls(row, before, own, updates) if self.config.pull else {}
        for j in sorted({*self.chosen(t, updates)} - unknown):
            commitment, delta = updates[j].commitment, updates[j].delta
            seed = self.policy.audit_seed(t, bytes.fromhex(commitment.digest))
            theirs, ours = evidence_of(evidence.get(j))
            tried = state.x.clone()
            tried[span] += c.scale * delta
            on_ours = self.change(state.x, tried, self.policy.families, seed)
            if j in pulled:  # a model may well be behind on others' questions, but not on its own
                tried[span] += self.config.pull * pulled[j]
            on_theirs = self.change(state.x, tried, commitment.families, seed)
            if min(Evidence().observe(each, c).z for each in (on_ours, on_theirs)) < -c.convict:
                hurting.add(j)  # who helped in earlier rounds can't spend that on a lie
            ours, theirs = ours.observe(on_ours, c), theirs.observe(on_theirs, c)
            evidence[j] = (theirs.total, theirs.squares, ours.total, ours.squares)
        z = {j: min(each.z for each in evidence_of(evidence.get(j))) for j in updates}
        of_theirs = {j: evidence_of(evidence.get(j))[0].z for j in updates if j != self.me}
        convicted = {j for j in of_theirs if guilty(of_theirs[j], j in state.convicted, c)}
        absent = {*state.convicted} - {*of_theirs}
        harmful = frozenset(j for j in z if j != self.me and (z[j] < -c.convict or j in hurting))
        gains = Gains(z, frozenset(convicted | unknown), harmful)
        kept = tuple(sorted(convicted | absent))
        return gains, replace(state, evidence=evidence, convicted=kept, families=families_of)

    def change(self, x: Tensor, tried: Tensor, families: Sequence[str], seed: int) -> Tensor:
        """Of the probabilities to answer the same fresh questions right, float64 [p]."""
        asked = (families, seed, self.config.audit.questions)
        return self.policy.right(tried, *asked) - self.policy.right(x, *asked)

    def chosen(self, t: int, updates: Mapping[Peer, Update]) -> list[Peer]:
        """Whom to audit in this round, which nobody else knows, and itself."""
        most, others = self.config.audit.neighbors_per_round, {*updates} - {self.me}
        if most is None or most >= len(others):
            return sorted(updates)
        drawn = sorted(others, key=lambda j: self.policy.audit_seed(t, j.encode()))
        return sorted({self.me, *drawn[:most]})

    def weights(self, row: Mapping[Peer, float], score: Mapping[Peer, float]) -> dict[Peer, float]:
        """w_ij over the peers of row i of W."""
        c, scores = self.config, {j: score[j] for j in row}
        match c.weights:
            case "gain":
                u = gain_weights(scores, c.relative)
            case "reward" | "raw-gain":
                u = softmax_weights(scores)
            case "size" if sum(scores.values()) > 0:
                u = {j: scores[j] / sum(scores.values()) for j in row}
            case _:
                u = dict.fromkeys(row, 1 / len(row))
        mu = c.relative.mixing
        return {j: (1 - mu) * row[j] + mu * u[j] for j in sorted(row)}

    def checked(self, x: Tensor, span: slice, theta: Tensor, own: Tensor) -> tuple[Tensor, bool]:
        """The new model [d]: with θ in the span, unless it is worse on the own fixed questions than
        the one before; then only the own update is taken."""
        after = x.clone()
        after[span] = theta
        c = self.config
        if not c.audits:
            return after, False
        differences = self.policy.fixed(after) - self.policy.fixed(x)
        if Evidence().observe(differences, c.audit).z >= -c.audit.convict:
            return after, False
        after[span] = x[span] + own
        return after, True


@dataclass(frozen=True, slots=True)
class Update:
    """What a peer said in a round."""

    commitment: Commitment
    parts: tuple[Tensor, ...]
    """δ, and with a pull the model before it, each flat [n]."""

    @property
    def delta(self) -> Tensor:
        return self.parts[0]


@dataclass(frozen=True, slots=True)
class Gains:
    """By what peers are weighed, and who is not."""

    score: Mapping[Peer, float]
    convicted: frozenset[Peer] = frozenset()
    harmful: frozenset[Peer] = frozenset()
    """Who has no weight in this round: what it sent hurts the auditor's own questions, by all
    evidence, or those or its own by that of this round alone."""


def commitment_of(note: bytes, t: int, delta: Tensor) -> Commitment | None:
    """What a neighbor committed itself to with δ in round t; None: it is none, or of another round or
    update."""
    try:
        commitment = Commitment.decode(note)
    except ValueError:
        return None
    if commitment.round != t or commitment.update != update_digest(delta):
        return None
    return commitment


def goes_on(chain: Mapping[str, str], commitment: Commitment) -> bool:
    """Does it follow what was heard of its peer, as far as this node heard it?"""
    newest = max(map(int, chain), default=-1)
    if commitment.previous_round > newest:  # this node missed some
        return True
    return chain.get(str(commitment.previous_round)) == commitment.previous


def evidence_of(kept: tuple[float, float, float, float] | None) -> tuple[Evidence, Evidence]:
    """On the peer's questions, and on the own ones."""
    total, squares, own_total, own_squares = kept or (0.0, 0.0, 0.0, 0.0)
    return Evidence(total, squares), Evidence(own_total, own_squares)


def pulls(
    row: Mapping[Peer, float], before: Tensor, own: Tensor, updates: Mapping[Peer, Update]
) -> dict[Peer, Tensor]:
    """W_ij (θ_j − θ_i) of every neighbor, [n]; no difference is longer than the median of them and
    of the own update. Twice the median would converge faster on a ring of four honest peers, and let
    one liar undo three times as much (`Not covered` above)."""
    apart = {j: updates[j].parts[1] - before for j in sorted(row) if j in updates}
    norms = {j: norm_of(each) for j, each in apart.items()}
    most = largest_norm([norm_of(own), *norms.values()], 1.0)
    return {j: row[j] * shortened(each, norms[j], most) for j, each in apart.items() if norms[j]}


def sum_of(parts: Mapping[Peer, Tensor], like: Tensor) -> Tensor:
    """In sorted order."""
    return sum((parts[j] for j in sorted(parts)), torch.zeros_like(like))


def norm_of(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x))


def block_steps(c: FgrpoConfig) -> int:
    """Rounds in a block."""
    return c.block.steps if c.block else 1
