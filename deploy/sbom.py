"""Prints a bill of materials (CycloneDX 1.6, JSON) of this environment: peerpoise and all that it
needs (`make sbom`).

Needs nothing but Python. SOURCE_DATE_EPOCH, where it is set, is the time in it: two of one
environment are equal then.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import uuid
from importlib.metadata import Distribution, distributions
from typing import Any

PROJECT = "peerpoise"


def main() -> None:
    json.dump(document(), sys.stdout, indent=1, ensure_ascii=True)
    print()


def document() -> dict[str, Any]:
    """Raises SystemExit: peerpoise is not installed here."""
    installed = {_normalized(it.metadata["Name"]): it for it in distributions()}
    if PROJECT not in installed:
        raise SystemExit(
            "peerpoise is not installed in this environment: pip install -e . and try again."
        )
    needs: dict[str, list[str]] = {}
    waiting = [PROJECT]
    while waiting:
        name = waiting.pop()
        if name not in needs:
            needs[name] = sorted(_needed(installed[name]) & installed.keys() - {name})
            waiting += needs[name]
    components = [
        _component(name, installed[name], "library") for name in sorted(needs) if name != PROJECT
    ]
    purl = {name: _purl(name, installed[name]) for name in needs}
    edges = [
        {"ref": purl[name], "dependsOn": [purl[it] for it in needs[name]]} for name in sorted(needs)
    ]
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)),
            "component": _component(PROJECT, installed[PROJECT], "application"),
        },
        "components": components,
        "dependencies": edges,
    }
    return {
        **bom,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(bom))}",
    }


def _needed(of: Distribution) -> set[str]:
    """Names of what a package asks for; of the project itself also what its extras ask for."""
    ours = _normalized(of.metadata["Name"]) == PROJECT
    wanted = [it for it in of.requires or () if ours or "extra ==" not in it]
    return {_normalized(re.split(r"[^\w.-]", it, maxsplit=1)[0]) for it in wanted}


def _component(name: str, of: Distribution, kind: str) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": kind,
        "bom-ref": _purl(name, of),
        "name": name,
        "version": of.version,
    }
    if "License-Expression" in of.metadata:
        component["licenses"] = [{"expression": of.metadata["License-Expression"]}]
    return {**component, "purl": _purl(name, of)}


def _purl(name: str, of: Distribution) -> str:
    return f"pkg:pypi/{name}@{of.version.replace('+', '%2B')}"


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
