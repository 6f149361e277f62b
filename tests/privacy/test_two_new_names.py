"""Two daemons that begin at once, under two new names, on the same rows: one of them is refused."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from node.config import BudgetSection, DataSection, RunConfig
from node.learning.known_data import KnownData
from node.privacy.ledger import Ledger
from node.tasks import make
from peer.errors import ConfigurationError

TASK = {"data": "own", "label": "ill", "classes": 2, "features": {"age": [50, 20]}}
NAMES = ("ward", "wrad")
ATTEMPTS = 8


def test_of_two_that_begin_at_once_one_is_admitted(tmp_path: Path) -> None:
    """Each would find nothing of the other's before it notes its own rows."""
    privacy = {"sigma": 2.0, "rate": 0.25, "batch": 10}
    run = RunConfig.model_validate({"privacy": privacy, "task": TASK})
    table = tmp_path / "ward.csv"
    lines = [f"{20 + k},{k % 2}" for k in range(40)]
    table.write_text("\n".join(["age,ill", *lines]), encoding="utf-8")
    task = make(run, DataSection(name="ward", path=table))

    for attempt in range(ATTEMPTS):
        folder, start = tmp_path / str(attempt), threading.Barrier(len(NAMES))

        def begin(name: str, folder: Path = folder, start: threading.Barrier = start) -> str:
            """What refuses it; empty: nothing."""
            budget = BudgetSection(epsilon=8.0, ledger_dir=folder)
            known = KnownData(run=run, data=DataSection(name=name, path=table), budget=budget)
            start.wait()
            try:
                known.admit(task)
            except ConfigurationError as error:
                return str(error)
            return ""

        with Ledger.open(folder, "ward"), Ledger.open(folder, "wrad"):
            with ThreadPoolExecutor(len(NAMES)) as pool:
                refusals = sorted(pool.map(begin, NAMES))
        assert refusals[0] == "", "one of them is the first"
        assert "by which another daemon is about to learn from them" in refusals[1]
