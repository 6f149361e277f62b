"""What a caller wants to hear of while gradients are computed; nothing, unless it says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from peer.message import Peer


def no_op(*_: object) -> None:
    """The hook of a caller who wants to hear nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Called in the compute thread. They may raise, which ends the release."""

    yield_point: Callable[[], None] = no_op
    """Between chunks of examples: whatever is more urgent may be computed here."""
    warn: Callable[[str], None] = no_op
    """A sentence that concerns the user."""
    on_release: Callable[[int, Peer], None] = no_op
    """(round, recipient), once the debit is on disk."""
    on_withheld: Callable[[int, Peer, str], None] = no_op
    """(round, recipient, why): nothing is released to them in this round."""
    on_unusable: Callable[[int, Tensor], None] = no_op
    """(round, row numbers int64 [k]): gradients that are not finite, whatever the model. Private:
    for the data's owner alone."""


NO_HOOKS = Hooks()
