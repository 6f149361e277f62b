"""Asks pip-audit for known vulnerabilities of what is locked, torch included (`make audit`).

Exit code 0: all was audited and nothing is known. 1: something is known. 2: not all could be
audited, as without a network.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

LOCK = Path(__file__).parent / "requirements-dev.lock"
UNREACHABLE = (
    "Nothing was audited: the database of vulnerabilities can't be reached; try again with a "
    "network."
)


def main(pip_audit: str) -> int:
    pins = re.findall(
        r"^(?:# (?=torch==))?([a-z0-9-]+==\S+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE
    )
    with TemporaryDirectory() as folder:
        wanted, report = Path(folder) / "wanted.txt", Path(folder) / "report.json"
        wanted.write_text("\n".join(pins), encoding="utf-8")
        options = f"--disable-pip --no-deps -r {wanted} -f json -o {report}"
        subprocess.run([pip_audit, *options.split()], capture_output=True, check=False)
        dependencies = []
        if report.exists():
            dependencies = json.loads(report.read_text(encoding="utf-8"))["dependencies"]
    code, lines = judged(dependencies)
    print("\n".join(lines))
    return code


def judged(dependencies: Sequence[Mapping[str, Any]]) -> tuple[int, list[str]]:
    """Exit code and lines for pip-audit's findings. A package it skipped may be vulnerable."""
    skipped = [it["name"] for it in dependencies if "skip_reason" in it]
    if len(skipped) == len(dependencies):
        return 2, [UNREACHABLE]
    known = [
        f"{package['name']} {package['version']}: {hole['id']}, "
        f"fixed in {', '.join(hole['fix_versions']) or 'no version'}"
        for package in dependencies
        for hole in package.get("vulns", ())
    ]
    if skipped:
        known.append(f"Not audited, as the database does not know them: {', '.join(skipped)}.")
    if not known:
        return 0, [f"No vulnerability of the {len(dependencies)} locked packages is known."]
    return (1 if len(known) > bool(skipped) else 2), known


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
