"""The command `peerpoise`, also `python -m peerpoise`.

Other packages on PyPI use the import names `node` and `peer`, too. Where one of them would be
imported instead of ours, this says so in one sentence.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

EXIT_CONFIGURATION = 78
"""As in `peer.errors`, which may be what is hidden."""


def main() -> None:
    for name in ("node", "peer"):
        found = find_spec(name)
        place = Path(found.origin).parent if found and found.origin else None
        if place is None or place.parent != Path(__file__).parent:
            said = (
                f"The package {name!r} is found in {place or 'no folder'}, which is not peerpoise's"
            )
            do = "give peerpoise a virtual environment of its own, and check PYTHONPATH"
            print(f"peerpoise: {said}; {do}.", file=sys.stderr)
            sys.exit(EXIT_CONFIGURATION)
    from node.cli.app import main as command

    command()


if __name__ == "__main__":
    main()
