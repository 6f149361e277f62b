"""Families of questions of reasoning-gym (Stojanovski et al., arXiv 2505.24760), asked in a process
of its own.

The library imports for seconds, and several of its scorers run an answer as code. So it is loaded
in a child process that makes questions from (family, seed) and does nothing else: no answer of a
policy ever reaches it. Families have one canonical answer each, small numbers, as small models have
to learn them, and no answer that is right for a tenth of all questions (as 1 is for gcd).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from importlib.util import find_spec

from node.data.child import Child, ChildError
from node.data.families import Family, Item, seeded
from peer.errors import ConfigurationError, DataError

PREFIX = "gym:"
ALLOWED: Mapping[str, Mapping[str, object]] = {
    "base_conversion": {"min_base": 2, "max_base": 10, "min_value": 0, "max_value": 100},
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    "fraction_simplification": {"max_value": 20, "max_factor": 10, "styles": ["plain"]},
    "lcm": {"min_numbers": 2, "max_numbers": 2, "min_value": 1, "max_value": 20},
    "products": {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2},
    "spell_backward": {"min_word_len": 3, "max_word_len": 5},
}
"""Name -> configuration. Each was read line by line: its answer is one short text, and what it asks
depends on the seed only."""
SECONDS = 60.0
"""For a question, the first one's import included."""
MEMORY = 4 << 30
"""Bytes of address space of the child."""
PROGRAM = f"""
import contextlib, json, resource, sys
for limit, most in ((resource.RLIMIT_AS, {MEMORY}), (resource.RLIMIT_CORE, 0)):
    with contextlib.suppress(ValueError, OSError):  # a lower one is set, or the system has none
        resource.setrlimit(limit, (most, most))
import reasoning_gym
for line in sys.stdin:
    asked = json.loads(line)
    name, seed, config = asked["name"], asked["seed"], asked["config"]
    made = reasoning_gym.create_dataset(name, size=1, seed=seed, **config)[0]
    print(json.dumps([str(made["question"]), str(made["answer"])]), flush=True)
"""


def family(name: str) -> Family:
    """The family "gym:NAME".

    Raises:
        ConfigurationError: it is not allowed, or reasoning-gym is not installed.
    """
    own = name.removeprefix(PREFIX)
    if own not in ALLOWED:
        raise ConfigurationError(
            f"The family {own!r} of reasoning-gym is none of {', '.join(sorted(ALLOWED))}: others "
            "were not checked, or have more than one right answer."
        )
    if not installed():
        raise ConfigurationError(
            f"The family {name!r} needs reasoning-gym: pip install 'peerpoise[rl]'."
        )

    def make(draw: random.Random) -> Item:
        return _ask(own, draw.getrandbits(31))

    return seeded(name, make)


def installed() -> bool:
    return find_spec("reasoning_gym") is not None


def _ask(name: str, seed: int) -> Item:
    """Raises DataError: the child fails, or takes too long."""
    asked = {"name": name, "seed": seed, "config": dict(ALLOWED[name])}
    try:
        question, answer = child.ask(asked, SECONDS)
    except ChildError as error:
        if error.start:
            raise DataError(
                f"The process for reasoning-gym can't be started ({error.start}); free memory, or "
                "allow more processes."
            ) from None
        raise DataError(
            f"reasoning-gym makes no question of the family {name}; reinstall it."
        ) from None
    return Item(question, answer)


child = Child("-c", PROGRAM)
"""The one of this process."""
