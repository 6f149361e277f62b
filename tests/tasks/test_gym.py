"""Families of reasoning-gym, made in a process of their own."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from math import lcm

import pytest

from kit.hostile_answers import HOSTILE
from node.data import gym
from node.data.families import is_right, score
from node.data.questions import find, read_questions
from peer.errors import ConfigurationError, DataError

WITHOUT = pytest.mark.skipif(not gym.installed(), reason="pip install 'peerpoise[rl]'")


def needs_gym(test):
    return pytest.mark.extras(WITHOUT(test))


every = pytest.mark.parametrize("name", [f"{gym.PREFIX}{name}" for name in gym.ALLOWED])


RULES = {
    "gym:chain_sum": lambda q: str(added(*q.removesuffix(" =").split(": ")[1].split())),
    "gym:lcm": lambda q: str(lcm(*map(int, q.split(": ")[1].split(", ")))),
    "gym:spell_backward": lambda q: q.split(": ")[-1][::-1],
}


def added(a: str, sign: str, b: str) -> int:
    return int(a) + (int(b) if sign == "+" else -int(b))


@pytest.mark.parametrize("name", ["gym:countdown", "gym:binary_matrix", "gym:", "gym:../x"])
def test_a_family_outside_of_the_list_is_one_sentence(name):
    """Several of them run an answer as code."""
    with pytest.raises(ConfigurationError, match="is none of base_conversion, chain_sum"):
        find(name)


@pytest.mark.skipif(gym.installed(), reason="it is installed")
@every
def test_without_the_library_it_says_how_to_get_it(name):
    with pytest.raises(ConfigurationError, match=r"pip install 'peerpoise\[rl\]'"):
        find(name)


@needs_gym
@every
def test_a_question_is_a_function_of_family_and_seed(name):
    family = find(name)
    items = [family.sample(seed) for seed in range(40)]
    assert items == [find(name).sample(seed) for seed in range(40)]
    assert len({item.prompt for item in items}) > 25
    for item in items:
        assert is_right(item, f" {item.answer}\n")
        assert 0 < len(item.answer) <= 12


@needs_gym
@every
def test_one_answer_for_all_questions_is_seldom_right(name):
    count = 100 if name == "gym:spell_backward" else 1000  # it reads a whole text for a word
    answers = Counter(item.answer for item in find(name).samples(range(count)))
    assert answers.most_common(1)[0][1] < 0.1 * count


@needs_gym
@every
def test_hostile_text_is_wrong(name):
    item = find(name).sample(3)
    for text in HOSTILE.values():
        assert not is_right(item, text)
        assert score(item, text) <= 0.5


@needs_gym
@pytest.mark.parametrize("name", RULES)
def test_answers_are_right(name):
    for seed in range(100):
        item = find(name).sample(seed)
        assert item.answer == RULES[name](item.prompt)


@needs_gym
def test_they_are_data_like_our_own():
    train, test = read_questions(["gym:chain_sum", "sort"])
    assert "reasoning_gym" not in sys.modules, "the child imports it, and nobody else"
    assert {*train.columns["family"]} == {"gym:chain_sum", "sort"}
    assert not {*train.columns["question"]} & {*test.columns["question"]}


@needs_gym
def test_a_child_that_dies_is_one_sentence_and_another_one_is_started():
    family = find("gym:chain_sum")
    before = family.sample(1)
    pid = gym.child.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(DataError, match="makes no question of the family chain_sum"):
        family.sample(1)
    assert family.sample(1) == before
