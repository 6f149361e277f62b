"""Step sizes that fall."""

from __future__ import annotations

from math import cos, pi

import pytest

from node.maths.schedule import Schedule, WarmupDecay, rate, step_size
from peer.errors import ConfigurationError


@pytest.mark.parametrize(
    ("decay", "share"), [("linear", lambda s: 1 - s), ("cosine", lambda s: (1 + cos(pi * s)) / 2)]
)
def test_a_step_falls_to_0_at_the_end_of_the_run(decay: str, share: object) -> None:
    assert callable(share)
    c = Schedule(lr=2.0, decay=decay, lr_decay=0.5, decay_every=4).on_run(10)  # type: ignore[arg-type]
    for t in range(11):
        assert step_size(t, c) == pytest.approx(2.0 * 0.5 ** (t // 4) * share(t / 10))
    assert step_size(10, c) == 0


def test_without_decay_it_is_constant() -> None:
    c = Schedule(lr=0.3).on_run(10)
    assert c.decay_until is None
    assert {step_size(t, c) for t in range(20)} == {0.3}


def test_it_warms_up_first() -> None:
    c = WarmupDecay(lr=1.0, warmup=4, decay="linear").on_run(14)
    assert [rate(t, c) for t in (0, 3, 4, 9)] == pytest.approx([0.2, 0.8, 1.0, 0.5])


def test_rounds_that_would_learn_nothing_are_refused() -> None:
    """They would release, and spend ε, all the same."""
    with pytest.raises(ConfigurationError, match=r"decay_until = 2 is before .* others of its 8"):
        Schedule(decay="linear", decay_until=2).on_run(8)
    assert Schedule(decay="linear", decay_until=8).on_run(8).decay_until == 8
