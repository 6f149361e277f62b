"""Documents, files, metrics and settings that the documents name exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from node.config import ExperimentConfig, NodeConfig
from node.observability.metrics import Metrics

ROOT = Path(__file__).parents[2]
POINTERS = re.compile(r"\bdocs/[\w/-]+\.(?:md|json)\b")
FILES = re.compile(
    r"(?<![\w/])(?:node|peer|tests|deploy|docs|proto)/[\w./-]*\w\.(?:py|toml|md|proto)\b"
)
METRICS = re.compile(r"\bpeerpoise_[a-z_]+\b")
SETTINGS = re.compile(r"`([a-z]+(?:\.[a-z_]+)+)`")
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "docs/results/README.md"]


def texts() -> dict[str, str]:
    return {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}


def test_every_document_that_is_named_exists() -> None:
    folders = ("", "peer/**/", "node/**/", "proto/**/", "deploy/**/", "docs/**/", "tests/**/")
    files = {path for folder in folders for path in ROOT.glob(f"{folder}*") if path.is_file()}
    texts = {
        str(path.relative_to(ROOT)): path.read_bytes().decode(errors="ignore") for path in files
    }
    named = {(name, target) for name, text in texts.items() for target in POINTERS.findall(text)}
    assert {target for _, target in named} >= {"docs/configuration.md", "docs/exit-codes.md"}
    assert [(name, target) for name, target in named if not (ROOT / target).exists()] == []


def test_every_file_that_a_document_names_exists() -> None:
    named = {(page, file) for page, text in texts().items() for file in FILES.findall(text)}
    assert len(named) > 50
    assert [(page, file) for page, file in sorted(named) if not (ROOT / file).exists()] == []


def file_map() -> str:
    """ARCHITECTURE's."""
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    return page[page.index("## Files") : page.index("Walls (import-linter")].split("```")[1]


def mapped_folders() -> Iterator[str]:
    """Every folder of the map, from the root. A line that goes on belongs to the folder above."""
    root = parent = ""
    for line in file_map().splitlines():
        names = re.findall(r"(?<!\S)([\w-]+)/(?=[\s:;])", f"{line} ")
        indent = len(line) - len(line.lstrip())
        if indent == 0 and names:
            root = parent = names.pop(0)
            yield root
        elif indent == 2:
            parent = root
        yield from (f"{parent}/{name}" for name in names)
        if indent == 2 and names:
            parent = f"{root}/{names[0]}"


def test_the_map_of_files_names_every_folder_with_code_and_no_other() -> None:
    named = set(mapped_folders())
    assert [folder for folder in sorted(named) if not (ROOT / folder).is_dir()] == []
    modules = [path for root in ("peer", "node", "tests") for path in ROOT.glob(f"{root}/**/*.py")]
    folders = {str(path.parent.relative_to(ROOT)) for path in modules}
    assert len(folders) > 40
    assert folders - named == set()


def test_the_map_of_files_names_every_module_of_the_small_folders() -> None:
    named = set(re.findall(r"\w+", file_map()))
    modules = [*ROOT.glob("peer/**/*.py"), *ROOT.glob("node/*.py"), *ROOT.glob("node/rounds/*.py")]
    missing = {path.stem for path in modules if "v1" not in path.parts} - named - {"__init__"}
    assert missing == set()


def test_every_metric_that_a_document_names_exists() -> None:
    registry = Metrics(version="", torch="", python="").registry
    known = {sample for family in registry.collect() for sample in names(family.name, family.type)}
    named = {(page, name) for page, text in texts().items() for name in METRICS.findall(text)}
    assert len(named) > 10
    assert [(page, name) for page, name in sorted(named) if name not in known] == []


def names(family: str, kind: str) -> Iterator[str]:
    """What a metric's samples are called."""
    yield family + {"counter": "_total", "info": "_info"}.get(kind, "")
    if kind == "histogram":
        yield from (f"{family}_bucket", f"{family}_count", f"{family}_sum")


def settings(model: type[BaseModel]) -> Iterator[str]:
    """The keys of a configuration file, with dots."""
    for name, field in model.model_fields.items():
        yield name
        kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from (f"{name}.{key}" for key in settings(kind))


@pytest.mark.parametrize("page", [page.relative_to(ROOT) for page in PAGES], ids=str)
def test_every_setting_that_a_document_names_exists(page: Path) -> None:
    known = {*settings(ExperimentConfig), *settings(NodeConfig)}
    sections = {key.partition(".")[0] for key in known if "." in key} - {"algorithm", "attack"}
    named = set(SETTINGS.findall((ROOT / page).read_text(encoding="utf-8")))
    wrong = {key for key in named if key.partition(".")[0] in sections and key not in known}
    files = {"run.toml", "peers.json", "node.toml", "start.safetensors"}
    assert wrong - files - {"run.task"} == set()
