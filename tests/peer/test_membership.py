"""Membership: slow is not dead, and a lost edge is lost at both ends. Time is an argument; nothing
sleeps.
"""

from __future__ import annotations

from typing import Any

from peer.membership import MISSED_BEATS, PATIENCE, Heartbeat, Membership, Presence

DEADLINE = 10.0


def together(*peers: str) -> Membership:
    it = Membership.of("me", peers, DEADLINE)
    for peer in peers:
        it.agree(peer, live_from=0, incarnation=1, round=0, now=0.0)
    return it


def heartbeat(it: Membership, peer: str, now: float, **changes: Any) -> None:
    standing: dict[str, Any] = {
        "incarnation": 1,
        "order": it.neighbors[peer]._order + 1,
        "round": 0,
        "phase": 0,
        "progress": 0,
        "waiting_for": frozenset(),
        "idle": 0.0,
        "names_me": True,
    }
    it.heartbeat(peer, Heartbeat(**{**standing, **changes}), now)


def test_an_edge_is_used_from_the_agreed_round_on():
    it = Membership.of("me", "a", DEADLINE)
    it.agree("a", live_from=3, incarnation=1, round=1, now=0.0)
    assert it.live(2) == frozenset()
    assert it.live(3) == {"a"}


def test_who_shows_nothing_for_a_deadline_is_overdue():
    it = together("a")
    heartbeat(it, "a", now=9.0)
    assert not it.overdue("a", 9.9)
    assert it.overdue("a", 10.1)


def test_slow_is_not_dead():
    it = together("a")
    for second in range(100):
        heartbeat(it, "a", now=float(second), progress=second)
    assert not it.overdue("a", 105.0)
    it.moved("a", 109.0)
    assert not it.overdue("a", 118.0)


def test_waiting_for_somebody_who_makes_progress_is_an_excuse_without_limit():
    it = together("a")
    for second in range(1, 1000):
        heartbeat(it, "a", now=float(second), waiting_for=frozenset("b"), idle=1.0)
    assert not it.overdue("a", 1000.0)


def test_a_circle_of_nodes_that_wait_for_each_other_is_broken():
    """Each hears of the other's idleness only; nobody made progress since 0, so all ages grow and
    the excuse ends.
    """
    views = {me: Membership.of(me, [other], DEADLINE) for me, other in ("ab", "bc", "ca")}
    for me, other in ("ab", "bc", "ca"):
        views[me].agree(other, live_from=0, incarnation=1, round=0, now=0.0)
        views[me].start_waiting(other, 0.0)
    now = 0.0
    while not any(views[me].overdue(other, now) for me, other in ("ab", "bc", "ca")):
        now += 1.0
        for me, other in ("ab", "bc", "ca"):
            next_one = {"a": "b", "b": "c", "c": "a"}[other]
            idle = views[other].idle(next_one, now)
            heartbeat(views[me], other, now=now, waiting_for=frozenset(next_one), idle=idle)
        assert now < 1000
    assert PATIENCE * DEADLINE < now <= (PATIENCE + 1) * DEADLINE + 1


def test_waiting_for_me_is_no_excuse():
    it = together("a")
    for second in range(1, 11):
        heartbeat(it, "a", now=float(second), waiting_for=frozenset({"me"}))
    assert it.overdue("a", 10.1)


def test_what_was_before_the_wait_does_not_count():
    it = together("a")
    it.start_waiting("a", 50.0)
    assert not it.overdue("a", 59.0)


def test_an_end_that_no_longer_names_me_is_believed_after_two_beats():
    it = together("a")
    for missed in range(MISSED_BEATS):
        assert it.live(0) == {"a"}, missed
        heartbeat(it, "a", now=1.0 + missed, names_me=False)
    assert it.live(0) == frozenset()


def test_beats_that_were_overtaken_do_no_harm():
    it = together("a")
    heartbeat(it, "a", now=1.0, order=5)
    for stale in (2, 3, 4, 5):
        heartbeat(it, "a", now=2.0, order=stale, names_me=False, round=99)
    assert it.live(0) == {"a"}
    assert it.neighbors["a"].round == 0


def test_beats_made_before_the_edge_was_agreed_on_say_nothing_of_it():
    """They could not name me yet; seen to cost the edge again when several came late."""
    it = Membership.of("me", "a", DEADLINE)
    it.agree("a", live_from=0, incarnation=1, round=0, order=9, now=0.0)
    for late in (6, 7, 8):
        heartbeat(it, "a", now=1.0, order=late, names_me=False)
    assert it.live(0) == {"a"}


def test_a_new_process_ends_the_old_edge_and_old_beats_are_ignored():
    it = together("a")
    heartbeat(it, "a", now=1.0, incarnation=2)
    assert it.neighbors["a"].presence is Presence.LOST
    it.agree("a", live_from=7, incarnation=2, round=5, now=2.0)
    heartbeat(it, "a", now=3.0, incarnation=1, names_me=False, round=99)
    assert it.neighbors["a"].round == 5
    assert it.live(7) == {"a"}


def test_a_goodbye_is_not_a_loss_and_a_late_one_of_an_old_process_is_ignored():
    it = together("a", "b")
    it.leave("a", incarnation=1, finished=True)
    it.lose("a", "late")
    assert it.neighbors["a"].presence is Presence.FINISHED
    it.agree("b", live_from=4, incarnation=2, round=1, now=0.0)
    it.leave("b", incarnation=1, finished=False)
    assert it.live(4) == {"b"}


def test_who_was_lost_and_does_nothing_is_not_taken_back_until_it_moves():
    it = together("a")
    heartbeat(it, "a", now=1.0, progress=5)
    it.lose("a", "stuck", idle=True)
    heartbeat(it, "a", now=2.0, progress=5)
    assert it.kept_off("a", 1, 2.0) == "Nothing has moved at the caller since the edge was lost."
    assert not it.kept_off("a", 2, 2.0), "another process of it"
    heartbeat(it, "a", now=3.0, progress=6)
    assert not it.kept_off("a", 1, 3.0)


def test_who_is_barred_is_not_taken_back_before_its_time_be_it_another_process():
    it = together("a")
    it.lose("a", "too slow")
    it.bar("a", until=12.0)
    heartbeat(it, "a", now=3.0, incarnation=2)
    assert (
        it.kept_off("a", 2, 4.0)
        == "The caller held this node up too often; it is taken back in 8 s."
    )
    assert not it.kept_off("a", 2, 12.0)
