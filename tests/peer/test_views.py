"""Whose neighbor a node is, round by round."""

import pytest

from peer.errors import ConfigurationError
from peer.neighborhood import Neighborhood, View, Views


def neighborhood(*neighbors: str) -> Neighborhood:
    return Neighborhood(me="a", weight=dict.fromkeys(("a", *neighbors), 0.5), nodes=3)


def test_a_view_counts_from_its_round_on() -> None:
    first, later = View(neighborhood("b", "c"), 1, 5), View(neighborhood("b"), 2, 7)
    views = Views(first)
    views.adopt(later)
    assert [views.at(t) for t in (0, 6)] == [first, first], "the first counts from the start"
    assert [views.at(t) for t in (7, 8)] == [later, later]


def test_the_newest_of_several_that_count_is_taken() -> None:
    views = Views(View(neighborhood("b")))
    views.adopt(View(neighborhood("b"), 2, 0))
    views.adopt(View(neighborhood(), 3, 0))
    assert views.at(0).version == 3


@pytest.mark.parametrize("neighbors", [("b", "c"), ("c",)])
def test_neighbors_for_whom_the_noise_was_not_calibrated_are_refused(
    neighbors: tuple[str, ...],
) -> None:
    views = Views(View(neighborhood("b")))
    with pytest.raises(ConfigurationError, match=r"the neighbor c; .* calibrated for the 1 it"):
        views.adopt(View(neighborhood(*neighbors), 2, 3))
    assert views.at(3).version == 1
