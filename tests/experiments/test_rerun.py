"""`make rerun`: a kept cell that comes out again is told from one that does not."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit import ROOT

MAIN: Callable[..., int] = runpy.run_path(str(ROOT / "docs" / "rerun.py"))["main"]


@pytest.mark.parametrize("off", [False, True], ids=["as kept", "off by a fifth"])
def test_a_cell_that_is_off_is_told(
    swept: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], off: bool
) -> None:
    _, made = swept
    file = next(it for it in sorted((made / "cells").glob("*.json")) if "xavg" in it.read_text())
    kept = tmp_path / "tiny" / "cells" / file.name
    kept.parent.mkdir(parents=True)
    shutil.copy(file, kept)
    if off:
        record = json.loads(kept.read_text())
        accuracy = record["figures"]["metrics"]["accuracy"]
        accuracy.update({name: [it + 0.2 for it in values] for name, values in accuracy.items()})
        kept.write_text(json.dumps(record))
    assert MAIN(tmp_path, 1) == off
    assert ("OFF" in capsys.readouterr().out) == off
