from __future__ import annotations

from collections.abc import Iterator

import pytest

from kit.small_task import Small, make_small
from node.privacy.ledger import Ledger


@pytest.fixture
def task() -> Small:
    return make_small()


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger.in_memory() as made:
        yield made
