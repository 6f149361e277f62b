"""What curious nodes hear: honest nodes that keep what their neighbors tell them, and put it
together.

A message is kept where it comes out of the wire, so the same node works in one process, over memory
and over gRPC. What one of them says itself tells the others nothing that they had not been told.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from node.algorithms import Algorithm, Capability, Gradients, Resources
from node.audit import Unfit
from node.config import MixSection
from node.learning.plan import Plan
from node.maths.adam import AdamConfig
from node.maths.coalitions import Kind, ShapleyConfig
from node.maths.robust import rule_of
from node.rounds import lockstep
from peer.message import Ask, Conversation, Layout, Mix, Peer, Replies, Verb, WholePayload, step
from peer.neighborhood import View


class Place(NamedTuple):
    """Which message of a run; what is said to all neighbors is one message, whoever heard it."""

    round: int
    phase: int
    sender: Peer
    to: Peer
    """Empty: to all neighbors."""
    kind: str
    part: int


Listener: TypeAlias = Callable[[Place, Tensor], object]
"""Hears a message once for every curious node that was told it, and must not change it."""


class Curious:
    """An honest algorithm, and what it hears."""

    def __init__(self, algorithm: Algorithm, among: Collection[Peer], listener: Listener) -> None:
        """`among`: the curious nodes, whose own messages are not told."""
        self._algorithm, self._among, self._listener = algorithm, among, listener

    @property
    def state(self) -> object:
        return self._algorithm.state

    def round(self, t: int, view: View) -> Conversation:
        talk, phase = self._algorithm.round(t, view), 0
        verb = step(talk)
        while verb is not None:
            reply = yield self._listening(t, phase, verb)
            if isinstance(reply, Replies):
                to = self._algorithm.me if isinstance(verb, Ask) else ""
                for peer, payload in reply.items():
                    self._tell(Place(t, phase, peer, to, "answer" if to else "say", 0), payload)
            verb, phase = step(talk, reply), phase + 1

    def _listening(self, t: int, phase: int, verb: Verb) -> Verb:
        """The verb, whose neighbors are listened to while it is answered or mixed."""
        match verb:
            case Ask():

                def answer(peer: Peer, question: Tensor) -> Tensor:
                    self._tell(Place(t, phase, peer, "", "question", 0), question)
                    reply: Tensor = verb.answer(peer, question)
                    return reply

                return replace(verb, answer=answer)
            case Mix():
                return replace(verb, rule=self._mixing(t, phase, verb))
        return verb

    def _mixing(self, t: int, phase: int, verb: Mix[Tensor]) -> Callable[..., Tensor]:
        """The verb's own rule, which the driver calls vector by vector."""
        part = -1

        def rule(
            weight: Mapping[Peer, float], vectors: Mapping[Peer, Tensor], me: Peer, mix: MixSection
        ) -> Tensor:
            nonlocal part
            part += 1
            for peer in sorted(set(vectors) - {me}):
                self._tell(Place(t, phase, peer, "", "mix", part), vectors[peer])
            return rule_of(verb, mix, me)(weight, vectors)

        return rule

    def _tell(self, place: Place, payload: WholePayload[Tensor]) -> None:
        if place.sender in self._among:
            return
        parts = payload if isinstance(payload, tuple) else (payload,)
        for k, vector in enumerate(parts):
            self._listener(place._replace(part=place.part + k), vector)


def participants(
    plan: Plan,
    gates: Callable[[Peer], Gradients],
    curious: Collection[Peer],
    listener: Listener,
    *,
    layout: Layout,
    start: Tensor,
) -> dict[Peer, lockstep.Rounds]:
    """Every node's algorithm with a gate of its own, all from the same start [d]; those of
    `curious` listen.

    Raises:
        Unfit: what is said is no weighted sum of releases.
    """
    check_linear(plan)
    options, utility = plan.options, None
    if isinstance(options, ShapleyConfig):
        options, utility = options.model_copy(update={"null_players": "paper"}), EqualWorth()
    algorithms: dict[Peer, lockstep.Rounds] = {}
    for me in plan.neighborhoods:
        resources = Resources(
            me=me, layout=layout, start=start, gradients=gates(me), utility=utility
        )
        algorithm = plan.algorithm(options, resources)
        algorithms[me] = Curious(algorithm, curious, listener) if me in curious else algorithm
    return algorithms


class EqualWorth:
    """A validation set on which all models are worth the same, so that ROSS and PDSL weigh by W."""

    def around(self, x: Tensor, moves: Tensor, kind: Kind) -> Callable[[Tensor], Sequence[float]]:
        return lambda shares: [0.0] * len(shares)

    def gradient(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def now(self) -> float:
        return 0.0


def notes(plan: Plan) -> tuple[str, ...]:
    """What is otherwise than in a run."""
    if not isinstance(plan.options, ShapleyConfig):
        return ()
    return (
        f"{plan.run.algorithm.name} weighs neighbors by W here, as if all were worth the same: "
        "these made-up records have no validation set. Answers are heard whole either way",
    )


def check_linear(plan: Plan) -> None:
    """Raises Unfit: what is said is no weighted sum of releases."""
    name, options = plan.run.algorithm.name, plan.options
    if plan.run.mix.rule != "mean":
        raise Unfit(
            "What curious nodes learn is worked out for averages by W; --set mix.rule=mean shows "
            "it for this graph."
        )
    if isinstance(options, ShapleyConfig) and options.mix_by == "trimmed_mean":
        raise Unfit(
            "What curious nodes learn is worked out for averages by W; --set algorithm.mix_by=w "
            "shows it for this graph."
        )
    if isinstance(options, AdamConfig) or plan.algorithm.NEEDS - {Capability.VALIDATION}:
        raise Unfit(
            f"What curious nodes learn of {name} is not worked out: what it sends are no weighted "
            "sums of gradients; --set algorithm.name=d-psgd shows it for this graph."
        )
