"""What points to a document points to one that is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
POINTERS = re.compile(r"\bdocs/[\w/-]+\.(?:md|json)\b")


def test_every_document_that_is_named_exists() -> None:
    folders = ("", "peer/**/", "node/**/", "proto/**/", "deploy/**/", "docs/**/", "tests/**/")
    files = {path for folder in folders for path in ROOT.glob(f"{folder}*") if path.is_file()}
    texts = {
        str(path.relative_to(ROOT)): path.read_bytes().decode(errors="ignore") for path in files
    }
    named = {(name, found) for name, text in texts.items() for found in POINTERS.findall(text)}
    assert {found for _, found in named} >= {"docs/configuration.md", "docs/exit-codes.md"}
    assert [(name, found) for name, found in sorted(named) if not (ROOT / found).exists()] == []
