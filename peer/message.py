"""The vocabulary of a round: three verbs, their replies, and the layout of payloads.

An algorithm is a conversation: a generator that yields `Say`, `Ask` or `Mix` and receives what it
heard. The verbs follow MPI's neighborhood collectives. This module is pure: no network, no clock,
no torch; tensors are opaque to it (`T`), only the layout that describes them is understood.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from math import inf, prod
from typing import Any, Generic, TypeAlias, TypeVar, overload

T = TypeVar("T")
M = TypeVar("M")
Peer: TypeAlias = str
"""A node's name in the roster. Peers are always visited in sorted order, so sums have one order
everywhere.
"""


class DType(IntEnum):
    """Element types on the wire; numbers as in peer.proto."""

    FLOAT32 = 1
    BFLOAT16 = 2
    FLOAT16 = 3

    @property
    def itemsize(self) -> int:
        return 4 if self is DType.FLOAT32 else 2


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and shapes of the tensors that lie one after another in a flat vector.

    Both ends derive it from their own model and compare digests: a peer chooses no shapes.
    """

    fields: tuple[tuple[str, tuple[int, ...]], ...]
    dtype: DType = DType.FLOAT32

    @property
    def size(self) -> int:
        """Number of elements."""
        return sum(prod(shape) for _, shape in self.fields)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def digest(self) -> bytes:
        """SHA-256 over names, shapes and element type (32 bytes)."""
        text = "\n".join(f"{name}\0{','.join(map(str, shape))}" for name, shape in self.fields)
        return hashlib.sha256(f"{int(self.dtype)}\n{text}".encode()).digest()

    def slices(self) -> Iterator[tuple[str, tuple[int, ...], slice]]:
        """(name, shape, place in the flat vector) of every tensor."""
        start = 0
        for name, shape in self.fields:
            stop = start + prod(shape)
            yield name, shape, slice(start, stop)
            start = stop


@dataclass(frozen=True, slots=True)
class IncrementalPayload(Generic[T]):
    """A flat vector that is filled from the front while its beginning is being sent already."""

    flat: T
    steps: Iterator[int]
    """Each step fills some more elements, in the compute thread, and says how many; in the end all
    of them.
    """


WholePayload: TypeAlias = T | tuple[T, ...]
"""One flat vector, or a tuple of them, each of the verb's layout."""
Payload: TypeAlias = WholePayload[T] | IncrementalPayload[T]
"""Whole, or still being filled."""


MAX_NOTE = 4 << 10
"""Bytes of a note."""


@dataclass(frozen=True, slots=True)
class Say(Generic[T]):
    """The same to every neighbor. Sends back `Replies`: what each neighbor said.

    Raises:
        ValueError: the note is too long.
    """

    kind: str
    tensors: Payload[T]
    layout: Layout | None = None
    """None: the model's layout."""
    note: bytes = b""
    """Bytes that travel with the message, at most MAX_NOTE; neighbors find them in
    `Replies.notes`."""

    def __post_init__(self) -> None:
        _check_note(self.note)


@dataclass(frozen=True, slots=True)
class Ask(Generic[T]):
    """A question to every neighbor, each of whom computes its `answer`. Sends back `Replies`: the
    answers to mine.

    `answer(peer, question)` runs in the compute thread, at most once per neighbor and round, until
    the round ends. It may raise `Withheld`: the neighbor then hears that there is no answer and
    goes on without waiting.

    Raises:
        ValueError: the note is too long.
    """

    kind: str
    tensors: Payload[T]
    answer: Callable[[Peer, T], T]
    layout: Layout | None = None
    answer_layout: Layout | None = None
    """None: the question's layout."""
    note: bytes = b""
    """Bytes that travel with the question; see `Say`."""

    def __post_init__(self) -> None:
        _check_note(self.note)


@dataclass(frozen=True, slots=True)
class Mix(Generic[T]):
    """The average over the closed neighborhood, weighted by W unless another rule is asked for.
    Sends back the mixed tensors, shaped like `tensors`.

    Raises:
        ValueError: the weights are none, or go with another rule than the mean.

    Collected (default): whole, checked messages, folded in sorted order. Streaming: frames are
    added in sorted order into one accumulator as they arrive; for blocks. Other rules than the mean
    need whole messages, and so does who doesn't wait for all: they are collected all the same.
    """

    kind: str
    tensors: Payload[T]
    rule: str | Callable[..., T] = "mean"
    """mean: by W, or as the run's `[mix]` says. Another name of node.maths.robust: so, whatever the
    run says. A function like those there is for attackers, who look at what they mix."""
    streaming: bool = False
    layout: Layout | None = None
    weights: Mapping[Peer, float] | None = None
    """The mean by these instead of W, whatever the run says: finite and not negative, over the
    closed neighborhood (others are ignored), in proportion among those who were heard; the own
    vector stays where they are all zero."""

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        if not all(0 <= weight < inf for weight in self.weights.values()):
            raise ValueError("The weights of a Mix are finite and not negative.")
        if isinstance(self.rule, str) and self.rule != "mean":
            raise ValueError(f"A Mix by weights is a mean; it can't follow the rule {self.rule}.")


Verb: TypeAlias = Say[Any] | Ask[Any] | Mix[Any]
Answered: TypeAlias = Generator[Verb, Any, M]
"""A part of a conversation that ends in what was heard; used as `x = yield from …`."""
Conversation: TypeAlias = Answered[None]
"""A round of an algorithm."""


class Withheld(Exception):
    """Raised by an answer that is not given: the budget is spent, or the ledger can't record the
    debit.
    """


class Replies(dict[Peer, T]):
    """What was heard, by neighbor in sorted order."""

    def __init__(
        self,
        heard: Iterable[tuple[Peer, T]] = (),
        missing: Iterable[Peer] = (),
        notes: Mapping[Peer, bytes] | None = None,
    ) -> None:
        super().__init__(sorted(heard, key=lambda item: item[0]))
        self.missing = frozenset(missing)
        """Neighbors who were not heard."""
        self.notes = dict(notes or {})
        """The notes on what neighbors said or asked, of those who wrote one."""


def _check_note(note: bytes) -> None:
    if len(note) > MAX_NOTE:
        raise ValueError(f"A note has {len(note)} bytes; {MAX_NOTE} travel with a message at most.")


@overload
def say(
    kind: str, tensors: tuple[T, ...], layout: Layout | None = ..., note: bytes = ...
) -> Answered[Replies[tuple[T, ...]]]: ...


@overload
def say(
    kind: str, tensors: T | IncrementalPayload[T], layout: Layout | None = ..., note: bytes = ...
) -> Answered[Replies[T]]: ...


def say(
    kind: str, tensors: Any, layout: Layout | None = None, note: bytes = b""
) -> Answered[Replies[Any]]:
    """`heard = yield from say("state", x)`: a `Say`, with the type of what it sends back."""
    heard: Replies[Any] = yield Say(kind, tensors, layout, note)
    return heard


def ask(
    kind: str,
    tensors: T,
    answer: Callable[[Peer, T], T],
    layout: Layout | None = None,
    answer_layout: Layout | None = None,
    note: bytes = b"",
) -> Answered[Replies[T]]:
    """`answers = yield from ask("model", x, answer)`: an `Ask`, with the type of what it sends
    back.
    """
    answers: Replies[T] = yield Ask(kind, tensors, answer, layout, answer_layout, note)
    return answers


@overload
def mix(
    kind: str,
    tensors: IncrementalPayload[T],
    rule: str | Callable[..., object] = ...,
    *,
    streaming: bool = ...,
    layout: Layout | None = ...,
    weights: Mapping[Peer, float] | None = ...,
) -> Answered[T]: ...


@overload
def mix(
    kind: str,
    tensors: M,
    rule: str | Callable[..., object] = ...,
    *,
    streaming: bool = ...,
    layout: Layout | None = ...,
    weights: Mapping[Peer, float] | None = ...,
) -> Answered[M]: ...


def mix(
    kind: str,
    tensors: object,
    rule: str | Callable[..., object] = "mean",
    *,
    streaming: bool = False,
    layout: Layout | None = None,
    weights: Mapping[Peer, float] | None = None,
) -> Answered[object]:
    """`x, v = yield from mix("state", (x, v))`: a `Mix`, with the type of what it sends back."""
    return (yield Mix(kind, tensors, rule, streaming, layout, weights))


def step(conversation: Conversation, reply: object = None) -> Verb | None:
    """The next verb of a conversation that hears `reply` (None where it has said nothing yet); None
    when it is over.
    """
    try:
        return conversation.send(reply)
    except StopIteration:
        return None
