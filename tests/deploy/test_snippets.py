"""The settings that the documents show are settings that there are. (docs/own-task.md is run:
tests/tasks.)
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from node.config import ExperimentConfig, NodeConfig, load, write
from node.experiments.provisioning import OWN
from node.experiments.sweep import grid

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = [
    (page.name, text)
    for page in PAGES
    for text in re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
]
COMMANDS = re.compile(r"(?:deploy/examples|docs/results)/[\w-]+\.toml")


@pytest.mark.parametrize(
    ("page", "text"), SNIPPETS, ids=[f"{page}-{i}" for i, (page, _) in enumerate(SNIPPETS)]
)
def test_settings_in_documents_are_in_order(tmp_path: Path, page: str, text: str) -> None:
    file, sections = tmp_path / "snippet.toml", set(tomllib.loads(text))
    file.write_text(text, encoding="utf-8")
    if "sweep" in sections:
        assert grid.load(file, []).rows
    elif sections <= set(ExperimentConfig.model_fields):
        load(
            ExperimentConfig,
            [file],
            [] if "privacy" in sections else ["privacy.mode=none"],
            environ={},
        )
    else:
        write(NodeConfig(name="a", identity=OWN), tmp_path / "node.toml")
        load(NodeConfig, [tmp_path / "node.toml", file], environ={})


def test_there_are_such_snippets() -> None:
    assert {
        "own-task.md",
        "language-models.md",
        "sweeps.md",
        "discovery.md",
        "deployment.md",
    } <= dict(SNIPPETS).keys()


def test_the_files_that_commands_name_are_there() -> None:
    named = {name for page in PAGES for name in COMMANDS.findall(page.read_text(encoding="utf-8"))}
    assert len(named) > 5
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
