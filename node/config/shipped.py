"""Files that come with peerpoise beside its code: examples, pages, and what a host's own service
and monitoring need. Beside an installed package they lie in peerpoise_share, in a checkout where
they are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from peer.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
TEMPLATES = "deploy/templates"
"""A folder for each kind of start."""
PATTERNS = (
    "deploy/examples/*.toml",
    "docs/*.md",
    "docs/*.json",
    "deploy/systemd/*.service",
    "deploy/prometheus/*.yml",
    "deploy/grafana/*.json",
)
"""What is shown, in this order; pyproject.toml says what goes into a wheel."""


def templates() -> Mapping[str, Path]:
    """Kind -> its folder."""
    return {path.name: path for path in sorted((_root() / TEMPLATES).iterdir()) if path.is_dir()}


def _root() -> Path:
    installed = ROOT / "peerpoise_share"
    return installed if installed.is_dir() else ROOT


@cache
def files() -> Mapping[str, Path]:
    """Name, without folders -> path."""
    paths = (path for pattern in PATTERNS for path in sorted(_root().glob(pattern)))
    return {path.name: path for path in paths if not path.stem.endswith("_test")}


def find(name: str) -> Path:
    """The file of this name; its ending may be left out.

    Raises:
        ConfigurationError: there is none.
    """
    known = files()
    for path in (known.get(name), *(known[each] for each in known if Path(each).stem == name)):
        if path is not None:
            return path
    raise ConfigurationError(
        f"Nothing that comes with peerpoise is called {name!r}; peerpoise show lists what there is."
    )


def example(file: Path) -> Path:
    """The file itself, or the example that is meant by its bare name, such as quickstart."""
    if file.suffix or file.name != str(file) or file.exists():
        return file
    return files().get(f"{file}.toml", file)
