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
UNREACHABLE = "Nothing was audited: the database of vulnerabilities can't be reached; try again with a network."


def main(pip_audit: str) -> int:
    pins = re.findall(
        r"^(?:# (?=torch==))?([a-z0-9-]+==\S+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE
    )
    with TemporaryDirectory() as folder:
        wanted, report = Path(folder) / "wanted.txt", Path(folder) / "report.json"
        wanted.write_text("\n".join(pins), encoding="utf-8")
        command = [
            pip_audit,
            "--disable-pip",
            "--no-deps",
            "-r",
            str(wanted),
            "-f",
            "json",
            "-o",
            str(report),
        ]
        subprocess.run(command, capture_output=True, check=False)
        found = (
            json.loads(report.read_text(encoding="utf-8"))["dependencies"]
            if report.exists()
            else []
        )
    code, lines = judged(found)
    print("\n".join(lines))
    return code


def judged(dependencies: Sequence[Mapping[str, Any]]) -> tuple[int, list[str]]:
    """Exit code, and what is to be said of pip-audit's findings. What it skipped is not known to be
    sound.
    """
    skipped = [it["name"] for it in dependencies if "skip_reason" in it]
    if len(skipped) == len(dependencies):
        return 2, [UNREACHABLE]
    known = [
        f"{it['name']} {it['version']}: {hole['id']}, fixed in {', '.join(hole['fix_versions']) or 'no version'}"
        for it in dependencies
        for hole in it.get("vulns", ())
    ]
    if skipped:
        known.append(f"Not audited, as the database does not know them: {', '.join(skipped)}.")
    if not known:
        return 0, [f"No vulnerability of the {len(dependencies)} locked packages is known."]
    return (1 if len(known) > bool(skipped) else 2), known


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
