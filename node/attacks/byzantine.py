"""The seam of message attacks: between an honest algorithm and its driver, outgoing vectors are
falsified.

The unit of an attack is one flat vector of an outgoing message: an answer to j (the
cross-gradient), a question (the own model), or one vector that `Mix` or `Say` carries to all
("state"); `words` chooses among them. Behind it the algorithm runs honestly: it mixes its own true
vectors, as an attacker that wants to stay near the others would.

The first vector of a Mix is taken for the parameters x. What is falsified there is, by default, the
STEP since the last mixing, x̃ − x, as in attacks on gradients: −x itself would be noticed by
anybody. All other vectors (gradients, momentum) are steps already. `of = "value"` falsifies x
itself.

What an attacker knows: what it heard itself, round by round: the answers to its questions, and what
each neighbor put into the mixing of the round BEFORE (in this round it speaks before it hears).
Nothing of other attackers.

Deviations
    * `Mix` and `Say` carry the same to all neighbors: an attacker that says different things to
      different neighbors (equivocation) can't be made of this wrapper. Answers differ by neighbor
      anyway, and so may lies in them.
    * The honest answer is always made (and debited) first, also by a free rider, which would save
      itself the work; so what an attacker says of its privacy is never too little. A withheld
      answer stays withheld.
    * What was heard is not in the checkpoint: an attacker that starts again knows nothing in its
      first round.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from node.algorithms import Algorithm
from node.attacks.claims import ClaimConfig
from node.config import MixSection
from node.maths.adam import upcast
from node.maths.commitment import Commitment, update_digest
from node.maths.mixing import materialize
from node.maths.robust import Vectors, rule_of
from node.randomness import public_generator
from peer.message import (
    Ask,
    Conversation,
    Mix,
    Payload,
    Peer,
    Replies,
    Say,
    Verb,
    WholePayload,
    step,
)
from peer.neighborhood import View

Kind: TypeAlias = Literal["answer", "question", "state"]
Place: TypeAlias = tuple[int, Kind, int]
"""(number of the verb in its round, kind, index of the vector)."""


class MessageAttackConfig(ClaimConfig):
    """What all message attacks have in common."""

    words: tuple[Kind, ...] = ("answer", "state")
    """What is falsified: answers to neighbors, questions (hurts only the attacker), state (what is
    mixed or sent to all).
    """
    of: Literal["step", "value"] = "step"
    """Parameters in a Mix: falsify their step since the last mixing, or their value."""
    strength: float = Field(default=1.0, ge=0)
    """truth + strength·(lie − truth) is sent: 0 is the truth, bit for bit; more than 1 overshoots
    the lie.
    """
    since: int = Field(default=0, ge=0)
    """The first round in which it lies."""
    vectors: tuple[int, ...] | None = None
    """Which vectors of a message are falsified, counted from 0; None: all. Of fgrpo, 0 is the
    update and 1 the model before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutgoingVector:
    """One vector about to be said."""

    kind: Kind
    parameters: bool
    """These are the parameters x (or their step)."""
    truth: Tensor
    """What an honest node says [d]."""
    heard: Mapping[Peer, Tensor]
    """What others said in this place the last time they were heard, in the same form as `truth`;
    sorted by peer.
    """
    question: Tensor | None
    """answer: the model that was asked about."""
    weight: Mapping[Peer, float]
    """The attacker's own row of W."""
    me: Peer
    draw: Callable[[], torch.Generator]
    """A public generator of this saying's own."""


class MessageAttack(ABC):
    """A message attack. It has no memory of its own; `OutgoingVector` has what was heard."""

    Config: ClassVar[type[BaseModel]]
    listens: bool
    """Does it use `OutgoingVector.heard`? Remembering costs a copy of all that is heard."""
    config: MessageAttackConfig

    def __init__(self, config: MessageAttackConfig) -> None:
        self.config = config

    @abstractmethod
    def lie(self, vector: OutgoingVector) -> Tensor:
        """The vector to send instead of `vector.truth`, which is left as it is."""


@dataclass(frozen=True, slots=True)
class _Moment:
    """When a message is sent, and among whom."""

    t: int
    phase: int
    """Number of the verb in its round."""
    view: View


class ByzantineAlgorithm(Algorithm):
    """An `Algorithm` in all but its messages."""

    def __init__(self, algorithm: Algorithm, attack: MessageAttack, seed: int) -> None:
        self.config, self.me, self.gradients = algorithm.config, algorithm.me, algorithm.gradients
        self._algorithm, self._attack, self._seed = algorithm, attack, seed
        self._heard: dict[Place, dict[Peer, Tensor]] = {}
        self._span: slice | None = None
        """Which of the parameters are mixed; None: there was no round yet."""
        self._mixed = torch.empty(0)
        """What the last Mix of them gave; before it, as they were."""
        self._committed: tuple[str, str] = ("", "")
        """Digests of the last commitment: the honest algorithm's, and that which was sent."""

    @property
    def state(self) -> Any:
        return self._algorithm.state

    @state.setter
    def state(self, state: Any) -> None:
        self._algorithm.state = state

    @property
    def checkpointable(self) -> bool:
        return self._algorithm.checkpointable

    @property
    def parameters(self) -> Tensor:
        return self._algorithm.parameters

    def span(self, t: int) -> slice:
        return self._algorithm.span(t)

    def diagnostics(self) -> Mapping[str, float | Mapping[Peer, float]]:
        return self._algorithm.diagnostics()

    def round(self, t: int, view: View) -> Conversation:
        since = self._since(t)
        talk, phase = self._algorithm.round(t, view), 0
        verb = step(talk)
        while verb is not None:
            reply = yield self._falsified(_Moment(t, phase, view), verb, since)
            if isinstance(verb, Mix):
                self._mixed = _parts(reply)[0].clone()
            elif self._attack.listens:
                self._listen(phase, "answer" if isinstance(verb, Ask) else "state", reply)
            verb, phase = step(talk, reply), phase + 1

    def _since(self, t: int) -> Tensor:
        """What is mixed in round t, as it was mixed last; of another block than before nothing was
        heard.
        """
        span = self._algorithm.span(t)
        if span != self._span:
            self._span, self._mixed = span, upcast(self._algorithm.parameters[span])
            self._heard.clear()
        return self._mixed

    def _falsified(self, now: _Moment, verb: Verb, since: Tensor) -> Verb:
        """The verb with lies in it."""
        if now.t < self._attack.config.since:
            return verb
        match verb:
            case Ask():
                question = self._lies(now, "question", verb.tensors)
                return replace(verb, tensors=question, answer=self._answer(now, verb))
            case Say():
                lies = self._lies(now, "state", verb.tensors)
                return replace(verb, tensors=lies, note=self._note(verb.note, lies))
            case Mix():
                truth = materialize(verb.tensors)
                steps = self._attack.config.of == "step" and _alike(_parts(truth)[0], since)
                origin = since if steps else None
                lies = self._lies(now, "state", truth, origin, mixed=True)
                rule = self._rule(now.phase, verb, _parts(truth), origin)
                return replace(verb, tensors=lies, rule=rule)

    def _note(self, note: bytes, lies: Any) -> bytes:
        """A commitment to what is sent; other notes as they are."""
        try:
            truth = Commitment.decode(note)
        except ValueError:
            return note
        config, (honest, sent) = self._attack.config, self._committed
        lie = replace(
            truth,
            update=update_digest(_parts(lies)[0]),
            reward=config.claimed(truth.reward, truth.round - config.since),
            previous=sent if truth.previous == honest else truth.previous,
        )
        self._committed = (truth.digest, lie.digest)
        return lie.encode()

    def _lies(
        self,
        now: _Moment,
        kind: Kind,
        tensors: Payload[Tensor],
        origin: Tensor | None = None,
        *,
        mixed: bool = False,
    ) -> Payload[Tensor]:
        """A payload with each of its vectors a lie, in the same form. The first is counted from
        `origin`.
        """
        config = self._attack.config
        if kind not in config.words:
            return tensors
        truth = materialize(tensors)
        lies = [
            part
            if config.vectors is not None and k not in config.vectors
            else self._lie(
                now,
                kind,
                k,
                part,
                self._heard.get((now.phase, kind, k), {}),
                None if k else origin,
                parameters=k == 0 and (mixed or kind == "question"),
            )
            for k, part in enumerate(_parts(truth))
        ]
        return tuple(lies) if isinstance(truth, tuple) else lies[0]

    def _answer(self, now: _Moment, verb: Ask[Tensor]) -> Callable[[Peer, Tensor], Tensor]:
        # what was heard in the round before, whoever answers first in this one
        heard = self._heard.get((now.phase, "answer", 0), {})

        def answer(to: Peer, question: Tensor) -> Tensor:
            if self._attack.listens:
                self._heard.setdefault((now.phase, "question", 0), {})[to] = question.clone()
            truth = verb.answer(to, question)
            if "answer" not in self._attack.config.words:
                return truth
            return self._lie(now, "answer", 0, truth, heard, question=question, to=to)

        return answer

    def _lie(
        self,
        now: _Moment,
        kind: Kind,
        place: int,
        truth: Tensor,
        heard: Mapping[Peer, Tensor],
        origin: Tensor | None = None,
        *,
        parameters: bool = False,
        question: Tensor | None = None,
        to: Peer = "",
    ) -> Tensor:
        """One vector, counted from `origin` while it is lied about."""
        strength = self._attack.config.strength
        if strength == 0:
            return truth
        vector = OutgoingVector(
            kind=kind,
            parameters=parameters,
            truth=truth if origin is None else truth - origin,
            heard=dict(sorted(heard.items())),
            question=question,
            weight=now.view.neighborhood.weight,
            me=self.me,
            draw=lambda: public_generator(
                self._seed, self.me, now.t, f"lie {now.phase} {kind} {place} {to}"
            ),
        )
        lie = self._attack.lie(vector)
        return truth.lerp((lie if origin is None else origin + lie).to(truth.dtype), strength)

    def _listen(self, phase: int, kind: Kind, heard: Replies[WholePayload[Tensor]]) -> None:
        for k in range(max((len(_parts(payload)) for payload in heard.values()), default=0)):
            self._heard[phase, kind, k] = {
                peer: _parts(payload)[k].clone() for peer, payload in heard.items()
            }

    def _rule(
        self, phase: int, verb: Mix[Tensor], truth: tuple[Tensor, ...], origin: Tensor | None
    ) -> Callable[..., Tensor]:
        """The verb's own rule with the truth in the attacker's own place; the driver calls it
        vector by vector.
        """
        places = iter(range(len(truth)))

        def rule(
            weight: Mapping[Peer, float], vectors: Vectors, me: Peer, mix: MixSection
        ) -> Tensor:
            k = next(places)
            if self._attack.listens:
                zero = None if k else origin
                others = {peer: vectors[peer] for peer in weight if peer != me}
                heard = {
                    peer: x.clone() if zero is None else x - zero for peer, x in others.items()
                }
                self._heard[phase, "state", k] = heard
            return rule_of(verb, mix, me)(weight, {**vectors, me: truth[k].to(vectors[me].dtype)})

        return rule


def _alike(sent: Tensor, x: Tensor) -> bool:
    """These are parameters; DECA's changes, which are steps already, are narrower."""
    return (sent.shape, sent.dtype) == (x.shape, x.dtype)


def _parts(payload: WholePayload[Tensor]) -> tuple[Tensor, ...]:
    return payload if isinstance(payload, tuple) else (payload,)
