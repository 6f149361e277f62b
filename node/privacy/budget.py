"""What the lifetime limit of the data leaves to a run."""

from __future__ import annotations

from node.privacy.accountant import (
    OTHER_UNIT,
    Mechanism,
    epsilon_pld,
    remaining_compositions,
    units,
)
from node.privacy.ledger import Ledger
from peer.errors import BudgetSpent, ConfigurationError


def compositions_left(
    ledger: Ledger,
    mechanism: Mechanism,
    *,
    run: str,
    rounds: int,
    limit: float | None,
    delta: float,
) -> int | None:
    """Compositions that the data's lifetime limit leaves to this run; None: no limit.

    Raises:
        ConfigurationError: the ledger's releases protect another unit than this run.
        BudgetSpent: none, and the run has made no release yet. (One that has goes on mixing.)
    """
    if limit is None:
        return None
    rows, most = ledger.rows(), mechanism.compositions(rounds)
    if not units(rows) <= {mechanism.unit}:
        raise ConfigurationError(
            f"{OTHER_UNIT} Take task.unit as in the earlier runs, or set budget.epsilon = "
            '"unlimited".'
        )
    left = remaining_compositions(rows, mechanism, limit, delta, most=most)
    if most and not left and not ledger.rows(run):
        spent = epsilon_pld(rows, delta)
        raise BudgetSpent(
            f"These data have spent ε_total = {spent:.3g} of the {limit:g} that "
            f"budget.epsilon allows (δ = {delta:g}), which leaves no release to this "
            "run; peerpoise budget says what spent it."
        )
    return left
