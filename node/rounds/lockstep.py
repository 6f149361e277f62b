"""The plain driver: N conversations in lockstep in one process, no clock, no threads; a debugger
works.

It knows the same rules as the daemon's driver (`node.rounds.driver`) and folds with the same
functions in the same order (`node.maths.mixing`), so a run without losses gives the same bits here,
over memory and over gRPC.

What the wire would refuse, because it is not finite or too large, is lost here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from node.config import MixSection
from node.hooks import no_op
from node.maths.mixing import agreed, materialize, mixed, mixing_row
from node.maths.robust import MEAN, rule_of
from node.rounds.bounds import RMS_ONLY, Bounds
from node.rounds.buffers import Size
from peer.errors import Malformed
from peer.message import (
    Ask,
    Conversation,
    Layout,
    Mix,
    Peer,
    Replies,
    Say,
    Verb,
    WholePayload,
    Withheld,
    step,
)
from peer.neighborhood import Neighborhood, View, Views
from peer.session.interfaces import Role

Edges: TypeAlias = AbstractSet[tuple[Peer, Peer]]
"""Directed edges (sender, receiver)."""
Neighborhoods: TypeAlias = Mapping[Peer, Neighborhood]
Contacts: TypeAlias = Mapping[Peer, frozenset[Peer]]
"""Node -> whom it heard in a phase."""
Lossy: TypeAlias = Callable[[int, int, Peer, Peer], bool]
"""(round, phase, sender, receiver) -> is the sender's message to the receiver lost in that phase?
Of an Ask the answer is lost, not the question: the sender has released it all the same."""


class Rounds(Protocol):
    """What an `Algorithm` is to this driver."""

    def round(self, t: int, view: View) -> Conversation: ...


def run(
    algorithms: Mapping[Peer, Rounds],
    neighborhoods: Neighborhoods,
    rounds: int,
    *,
    first: int = 0,
    mix: MixSection = MEAN,
    bounds: Bounds = RMS_ONLY,
    lossy: Lossy | None = None,
    after_phase: Callable[[int, int, str, Mapping[Peer, int]], None] = no_op,
    after_round: Callable[[int], None] = no_op,
) -> None:
    """Runs the rounds first … rounds − 1; the algorithms hold the result.

    Nodes of `neighborhoods` that have no algorithm are down: their neighbors never hear them.

    Args:
        rounds: T, rounds of the whole run.
        mix: how a Mix averages.
        bounds: how large what a node says may be.
        after_phase: called with t, the phase's number and kind, and the payload bytes each node
            sent in it.
        after_round: called with t when all nodes have finished round t.
    """
    views = {i: Views(View(neighborhood)) for i, neighborhood in neighborhoods.items()}
    heard = arrived(algorithms, neighborhoods)
    for t in range(first, rounds):
        talks = {i: algorithms[i].round(t, views[i].at(t)) for i in sorted(algorithms)}
        heard = _round(t, talks, neighborhoods, heard, mix, bounds, lossy, after_phase)
        after_round(t)


def _round(
    t: int,
    talks: Mapping[Peer, Conversation],
    neighborhoods: Neighborhoods,
    heard: Contacts,
    mix: MixSection,
    bounds: Bounds,
    lossy: Lossy | None,
    after_phase: Callable[[int, int, str, Mapping[Peer, int]], None],
) -> Contacts:
    verbs = {i: step(talk) for i, talk in talks.items()}
    phase = 0
    while speaking := {i: verb for i, verb in verbs.items() if verb is not None}:
        assert len(speaking) == len(verbs), (
            f"round {t}, phase {phase}: only {sorted(speaking)} still speak"
        )
        lost = _lost(t, phase, neighborhoods, lossy)
        sent = dict.fromkeys(speaking, 0)
        replies, heard = _exchange(speaking, neighborhoods, lost, heard, sent, mix, bounds)
        after_phase(t, phase, next(iter(speaking.values())).kind, sent)
        verbs = {i: step(talk, _handed(speaking[i], replies.pop(i))) for i, talk in talks.items()}
        phase += 1
    return heard


def exchange(
    verbs: Mapping[Peer, Verb],
    neighborhoods: Neighborhoods,
    lost: Edges = frozenset(),
    heard: Contacts | None = None,
    sent: dict[Peer, int] | None = None,
    mix: MixSection = MEAN,
    bounds: Bounds = RMS_ONLY,
) -> dict[Peer, Any]:
    """One phase: what every node hears for what all of them say.

    Args:
        verbs: what each node says; all of one type, kind and layout. A neighbor that is not in it
            is down.
        lost: (sender, receiver): what the sender says to the receiver does not arrive.
        heard: whom each node heard in the phase before (for the agreement on edges of a Mix); None:
            all that are up.
        sent: node -> bytes; what each sends to neighbors that are up is added.
        mix: how a Mix averages.
        bounds: how large what a node says may be.

    Returns:
        `Replies` for Say and Ask; for Mix the mixed tensors, one flat vector or a tuple of them.
    """
    replies, _ = _exchange(verbs, neighborhoods, lost, heard, sent, mix, bounds)
    return {i: _handed(verbs[i], reply) for i, reply in replies.items()}


def _exchange(
    verbs: Mapping[Peer, Verb],
    neighborhoods: Neighborhoods,
    lost: Edges,
    heard: Contacts | None,
    sent: dict[Peer, int] | None,
    mix: MixSection,
    bounds: Bounds,
) -> tuple[dict[Peer, Any], Contacts]:
    """What every node hears, and from whom; all who hear a Say hear one copy of it (`_handed`)."""
    assert len({_form(verb) for verb in verbs.values()}) <= 1, (
        f"nodes disagree on what is said: {verbs}"
    )
    payloads = {i: _payload(verbs[i]) for i in sorted(verbs)}
    answers = {i: _answers(i, verbs, payloads[i], neighborhoods[i]) for i in payloads}
    contacts = arrived(
        verbs, neighborhoods, {*lost, *_refused(verbs, payloads, answers, neighborhoods, bounds)}
    )
    before = arrived(verbs, neighborhoods) if heard is None else heard
    replies = {
        i: _reply(i, verbs, payloads, answers[i], neighborhoods[i], contacts, before, mix)
        for i in payloads
    }
    for i, verb in verbs.items() if sent is not None else ():
        assert sent is not None
        sent[i] += _nbytes(payloads[i], verb.layout) * len(arrived(verbs, neighborhoods)[i])
        if isinstance(verb, Ask):
            for j, answer in replies[i].items():
                sent[j] += _nbytes(answer, verb.answer_layout or verb.layout)
    return replies, contacts


def _payload(verb: Verb) -> WholePayload[Tensor]:
    """All of what it says. Of a Say a copy, whatever becomes of the original."""
    whole = materialize(verb.tensors)
    return _copy(whole) if isinstance(verb, Say) else whole


def _refused(
    verbs: Mapping[Peer, Verb],
    payloads: Mapping[Peer, WholePayload[Tensor]],
    answers: Mapping[Peer, Mapping[Peer, WholePayload[Tensor] | None]],
    neighborhoods: Neighborhoods,
    bounds: Bounds,
) -> Edges:
    """Messages beyond the bounds. Questions are not checked: the answering gate must tolerate any
    input."""
    broken = {
        j for j in payloads if not isinstance(verbs[j], Ask) and not _usable(payloads[j], bounds)
    }
    unusable = {(j, i) for j in broken for i in neighborhoods[j].neighbors}
    wrong = {
        (j, i)
        for i, each in answers.items()
        for j, it in each.items()
        if not _usable(it, bounds, Role.ANSWER)
    }
    return unusable | wrong


def _usable(payload: WholePayload[Tensor] | None, bounds: Bounds, role: Role | None = None) -> bool:
    parts = payload if isinstance(payload, tuple) else () if payload is None else (payload,)
    size = Size(bounds.norm(sum(part.numel() for part in parts), role))
    try:
        for part in parts:
            size.add(part)
    except Malformed:
        return False
    return True


def _nbytes(payload: WholePayload[Tensor], layout: Layout | None) -> int:
    """Bytes of a payload on the wire."""
    size = 4 if layout is None else layout.nbytes // layout.size
    return size * sum(
        int(part.numel()) for part in (payload if isinstance(payload, tuple) else (payload,))
    )


def arrived(
    up: AbstractSet[Peer] | Mapping[Peer, object],
    neighborhoods: Neighborhoods,
    lost: Edges = frozenset(),
) -> Contacts:
    """Whom each node that is up hears when `lost` is lost; an answer that is withheld is heard
    too.
    """
    return {
        i: frozenset(j for j in neighborhoods[i].neighbors if j in up and (j, i) not in lost)
        for i in sorted(up)
    }


def _reply(
    i: Peer,
    verbs: Mapping[Peer, Verb],
    payloads: Mapping[Peer, Any],
    answers: Mapping[Peer, WholePayload[Tensor] | None],
    neighborhood: Neighborhood,
    contacts: Contacts,
    before: Contacts,
    mix: MixSection,
) -> Any:
    verb = verbs[i]
    if isinstance(verb, Mix):
        keep = agreed(i, before[i], {j: before[j] for j in contacts[i]})
        weight = mixing_row(neighborhood, keep, verb.weights)
        return mixed(weight, {j: payloads[j] for j in weight}, rule_of(verb, mix, i))
    if isinstance(verb, Say):
        there = {j: payloads[j] for j in contacts[i]}
    else:
        there = {j: it for j, it in answers.items() if it is not None and j in contacts[i]}
    asked_by = contacts[i] if isinstance(verb, Say) else answers.keys()
    missing = frozenset(neighborhood.neighbors) - there.keys()
    return Replies(there.items(), missing, _notes(verbs, asked_by))


def _handed(verb: Verb, reply: Any) -> Any:
    """A reply into which its receiver may write. Made as it is handed over, so that of large models
    there is a copy for each sender and for one receiver, not for each edge."""
    if not isinstance(verb, Say):
        return reply
    copies = {j: _copy(payload) for j, payload in reply.items()}
    return Replies(copies.items(), reply.missing, reply.notes)


def _notes(verbs: Mapping[Peer, Verb], peers: Iterable[Peer]) -> dict[Peer, bytes]:
    """What these wrote on their messages."""
    spoken = {j: verbs[j] for j in sorted(peers)}
    return {j: verb.note for j, verb in spoken.items() if not isinstance(verb, Mix) and verb.note}


def _answers(
    i: Peer, verbs: Mapping[Peer, Verb], question: WholePayload[Tensor], neighborhood: Neighborhood
) -> dict[Peer, WholePayload[Tensor] | None]:
    """What each neighbor that is up answers to i's question; None: it is withheld. None at all
    where nobody asks.
    """
    if not isinstance(verbs[i], Ask):
        return {}
    return {j: _answer(verbs[j], i, question) for j in neighborhood.neighbors if j in verbs}


def _answer(verb: Verb, asker: Peer, question: WholePayload[Tensor]) -> WholePayload[Tensor] | None:
    assert isinstance(verb, Ask)
    try:
        return _copy(verb.answer(asker, _copy(question)))
    except Withheld:
        return None


def _copy(payload: WholePayload[Tensor]) -> WholePayload[Tensor]:
    """What travels is a copy, never a reference."""
    return (
        payload.clone() if isinstance(payload, Tensor) else tuple(part.clone() for part in payload)
    )


def _form(verb: Verb) -> tuple[object, ...]:
    streaming = isinstance(verb, Mix) and verb.streaming
    return type(verb), verb.kind, verb.layout, getattr(verb, "answer_layout", None), streaming


def _lost(t: int, phase: int, neighborhoods: Neighborhoods, lossy: Lossy | None) -> Edges:
    if lossy is None:
        return frozenset()
    return {
        (j, i)
        for i in sorted(neighborhoods)
        for j in neighborhoods[i].neighbors
        if lossy(t, phase, j, i)
    }
