"""Questions made from seeds."""

from __future__ import annotations

import time
from collections import Counter
from itertools import islice

import pytest

from kit.hostile_answers import HOSTILE
from node.data.families import FAMILIES, HELD_OUT, Item, is_right, score
from node.data.questions import find
from peer.errors import ConfigurationError

every = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@every
def test_an_item_is_a_function_of_family_and_seed(family):
    items = [family.sample(seed) for seed in range(50)]
    assert items == [find(family.name).sample(seed) for seed in range(50)]
    assert len({item.prompt for item in items}) > 40


@every
def test_no_question_is_for_training_and_for_testing(family):
    train, test = (
        {
            item.prompt
            for item in islice(family.items(range(seed, seed + 9000), held_out=held_out), 500)
        }
        for seed, held_out in ((0, False), (10_000, True))
    )
    assert not train & test
    items = [family.sample(seed) for seed in range(4000)]
    share = sum(item.held_out for item in items) / len(items)
    assert share == pytest.approx(HELD_OUT, abs=0.05)


@every
def test_one_answer_for_all_questions_scores_little(family):
    """Else a policy learns that answer, and nothing of the question."""
    answers = Counter(family.sample(seed).answer for seed in range(3000))
    assert answers.most_common(1)[0][1] / 3000 < 0.1


@every
def test_right_is_one_and_wrong_is_less_than_half(family):
    for seed in range(200):
        item = family.sample(seed)
        assert score(item, f" {item.answer}\n") == 1.0
        for wrong in ("", "1", item.answer + "0", item.answer[:-1], "0123456789", "True"):
            if not is_right(item, wrong):
                assert 0 <= score(item, wrong) <= 0.5


def test_answers_are_right():
    rules = {
        "reverse": lambda q: q[4:-1][::-1],
        "sort": lambda q: "".join(sorted(q[5:-1])),
        "largest": lambda q: str(max(map(int, q[4:-1].split()))),
        "add-seven": lambda q: str(int(q[4:-1]) + 7),
        "add": lambda q: str(sum(map(int, q[4:-1].split("+")))),
        "subtract": lambda q: str(int(q[4:-1].split("-")[0]) - int(q[4:-1].split("-")[1])),
    }
    for name, rule in rules.items():
        for seed in range(300):
            item = find(name).sample(seed)
            assert item.answer == rule(item.prompt)


def test_an_unknown_family_is_a_sentence():
    with pytest.raises(ConfigurationError, match="choose one of add, add-seven"):
        find("poetry")


@pytest.mark.parametrize(
    ("right", "answer", "exact", "numeric"),
    [
        ("7", " 7\n", True, True),
        ("7", "7.0", False, True),
        ("7", "+7", False, True),
        ("-0.5", "-.5", False, False),
        ("7", "seven", False, False),
        ("7", "7 apples", False, False),
        ("1e3", "1000", False, False),
        ("nan", "nan", True, True),
        ("7", "", False, False),
    ],
)
def test_numbers_may_be_written_in_more_than_one_way(right, answer, exact, numeric):
    item = Item("?", right)
    assert is_right(item, answer) == exact
    assert is_right(item, answer, "numeric") == numeric


@pytest.mark.parametrize("match", ["exact", "numeric"])
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@every
def test_hostile_text_is_wrong_at_once(family, text, match, tmp_path, monkeypatch):
    """Nothing of it is run, and it takes no time."""
    monkeypatch.chdir(tmp_path)
    item = family.sample(3)
    before = time.process_time()
    assert not is_right(item, text, match)
    assert score(item, text, match) <= 0.5
    assert time.process_time() - before < 0.1
    assert not list(tmp_path.iterdir())
