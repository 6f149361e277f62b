"""The command `peerpoise`, and what a task author imports: `from peerpoise import Layout`.

These names are the public interface of this package (docs/own-task.md); everything in `node` and
`peer` may move. They are imported when they are first used, so that the command starts without
torch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from node.config import DataSection, RunConfig, TaskSection
    from node.data import public_sets
    from node.data.scattering import scattering
    from node.data.whitening import Whitening
    from node.figures import Metric
    from node.learning.use import load
    from node.task import OwnTask, flat, layout_of, views
    from node.tasks.module import module_task
    from peer.errors import ConfigurationError, DataError, PeerpoiseError, TaskError
    from peer.message import DType, Layout

__version__ = "0.1.0"
__all__ = [
    "ConfigurationError",
    "DType",
    "DataError",
    "DataSection",
    "Layout",
    "Metric",
    "OwnTask",
    "PeerpoiseError",
    "RunConfig",
    "TaskError",
    "TaskSection",
    "Whitening",
    "flat",
    "layout_of",
    "load",
    "module_task",
    "public_sets",
    "scattering",
    "views",
]

EXPORTS: Mapping[str, tuple[str, ...]] = {
    "node.config": ("DataSection", "RunConfig", "TaskSection"),
    "node.data": ("public_sets",),
    "node.data.scattering": ("scattering",),
    "node.data.whitening": ("Whitening",),
    "node.figures": ("Metric",),
    "node.learning.use": ("load",),
    "node.task": ("OwnTask", "flat", "layout_of", "views"),
    "node.tasks.module": ("module_task",),
    "peer.errors": ("ConfigurationError", "DataError", "PeerpoiseError", "TaskError"),
    "peer.message": ("DType", "Layout"),
}
"""Module -> what of it is public: the imports above, once more for `__getattr__`."""

EXIT_CONFIGURATION = 78
"""As in `peer.errors`, which may be the module that is shadowed."""


def __getattr__(name: str) -> Any:
    for module, names in EXPORTS.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def shadowed() -> str | None:
    """A sentence if another distribution's `node` or `peer` would be imported instead of ours."""
    for name in ("node", "peer"):
        spec = find_spec(name)
        folder = Path(spec.origin).parent if spec and spec.origin else None
        if folder is None or folder.parent != Path(__file__).parent:
            return (
                f"The package {name!r} is found in {folder or 'no folder'}, which is not "
                "peerpoise's; "
                "give peerpoise a virtual environment of its own, and check PYTHONPATH."
            )
    return None


def main() -> None:
    if sentence := shadowed():
        print(f"peerpoise: {sentence}", file=sys.stderr)
        sys.exit(EXIT_CONFIGURATION)
    from node.cli.main import main as command

    command()


if __name__ == "__main__":
    main()
