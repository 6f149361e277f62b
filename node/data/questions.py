"""Questions with one right answer, of several families, for policies that are rewarded.

Columns `question`, `answer` and `family`; labels are the families, so that a run can give each peer
its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from node.config.task import OWN_PREFIX
from node.data import gym, own_families
from node.data.families import FAMILIES, HELD_OUT, Family, Item
from node.data.texts import Texts, strings
from peer.errors import ConfigurationError

TRAIN, TEST = 800, 150
"""Most questions of a family; it may have fewer."""
TRIED = 20_000
"""Questions that are looked at for such as were not there yet."""
TRIED_OWN = 2_000
"""The same of families of somebody's own, which are asked in another process."""


def read_questions(families: Sequence[str]) -> tuple[Texts, Texts]:
    """(train, test): none is in both.

    Raises:
        ConfigurationError: there is no such family.
    """
    return _texts(families, TRAIN, held_out=False), _texts(families, TEST, held_out=True)


def find(name: str) -> Family:
    """The family of a name out of this node's own configuration: it may be code that is run.

    Raises:
        ConfigurationError: there is no family of this name, or what makes it is missing.
        TaskError: it is somebody's own, and its code is wrong.
    """
    if name.startswith(gym.PREFIX):
        return gym.family(name)
    if name.startswith(OWN_PREFIX):
        return own_families.family(name)
    if name not in FAMILIES:
        raise ConfigurationError(
            f"Unknown family {name!r} of questions; choose one of {', '.join(sorted(FAMILIES))}, "
            "gym:NAME of reasoning-gym, or your own as own:package.module or own:FILE.py."
        )
    return FAMILIES[name]


def items(families: Sequence[str], seeds: Sequence[int]) -> list[Item]:
    """For each place the item of its family and seed. Raises as `find`."""
    made: dict[int, Item] = {}
    for name in sorted(set(families)):
        places = [place for place, family in enumerate(families) if family == name]
        samples = find(name).samples([seeds[place] for place in places])
        made.update(zip(places, samples, strict=True))
    return [made[place] for place in range(len(families))]


def texts(items: Sequence[Item], families: Sequence[str]) -> Texts:
    """Items as rows; `families` names that of each."""
    known = sorted(set(families))
    return Texts(
        torch.tensor([known.index(name) for name in families], dtype=torch.int64),
        {
            "question": strings([item.prompt for item in items]),
            "answer": strings([item.answer for item in items]),
            "family": strings(list(families)),
        },
    )


def _texts(families: Sequence[str], most: int, *, held_out: bool) -> Texts:
    made = {name: _distinct(find(name), most, held_out) for name in sorted(set(families))}
    return texts(
        [item for each in made.values() for item in each],
        [name for name, each in made.items() for _ in each],
    )


def _distinct(family: Family, most: int, held_out: bool) -> list[Item]:
    """The first different ones; no more is asked than they take.

    Raises:
        ConfigurationError: there are none.
    """
    tried = TRIED_OWN if family.name.startswith(OWN_PREFIX) else TRIED
    seeds = range(round(tried / (HELD_OUT if held_out else 1 - HELD_OUT)))
    distinct: dict[Item, None] = {}
    for item in family.items(seeds, held_out=held_out):
        distinct[item] = None
        if len(distinct) == most:
            break
    if not distinct:
        raise ConfigurationError(
            f"The family {family.name!r} has so few different questions that none is left to "
            f"{'test' if held_out else 'learn'} by, as a fifth of them is for testing only; let it "
            "make a hundred or more."
        )
    return list(distinct)
