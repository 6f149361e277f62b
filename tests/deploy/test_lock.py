"""The lock files fit pyproject.toml, hold a hash for everything, and name no index; the bill of
materials is whole.
"""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
IMAGE = [*PROJECT["project"]["dependencies"], *EXTRAS["demo"], *PROJECT["build-system"]["requires"]]
DEV = [
    *IMAGE,
    *(it for name in ("dev", "tables", "images", "report", "llm") for it in EXTRAS[name]),
]
TORCH = "torch"
CLEAN: dict[str, Any] = {"name": "a", "version": "1", "vulns": []}
SKIPPED: dict[str, Any] = {"name": "b", "skip_reason": "not found"}
HOLED: dict[str, Any] = {
    "name": "c",
    "version": "1",
    "vulns": [{"id": "CVE-1", "fix_versions": ["2", "3"]}],
}


def locked(name: str) -> dict[str, tuple[str, list[str]]]:
    """name -> (version, hashes), torch's from the comment."""
    found: dict[str, tuple[str, list[str]]] = {}
    text = (ROOT / "deploy" / name).read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if match := re.match(r"(?:# (?=torch==))?([a-z0-9-]+)==(\S+)", line):
            found[match[1]] = (match[2], re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line))
    return found


@pytest.mark.parametrize(
    ("name", "wanted"), [("requirements.lock", IMAGE), ("requirements-dev.lock", DEV)]
)
def test_all_that_is_asked_for_is_locked_within_its_bounds(name: str, wanted: list[str]) -> None:
    """After a change of dependencies: make lock."""
    versions = {package: version for package, (version, _) in locked(name).items()}
    for requirement in map(Requirement, wanted):
        if requirement.name != "peerpoise":
            version = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement} is locked to {version}"


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_every_line_has_hashes_and_no_address(name: str) -> None:
    text = (ROOT / "deploy" / name).read_text(encoding="utf-8")
    assert not re.search(r"://|--index|--find-links|file:| @ ", text)
    assert [package for package, (_, hashes) in locked(name).items() if not hashes] == [TORCH]


def test_the_image_is_a_part_of_what_is_tested() -> None:
    image, dev = locked("requirements.lock"), locked("requirements-dev.lock")
    assert {package: dev.get(package) for package in image} == image
    assert not {"pytest", "ruff", "mypy"} & image.keys()


def test_makefile_and_image_read_torchs_version() -> None:
    version = locked("requirements.lock")[TORCH][0]
    told = subprocess.run(
        [
            "make",
            "-n",
            "-s",
            "-B",
            "VENV=/nowhere",
            "LOCKED=1",
            "TORCH_INDEX=",
            "/nowhere/torch.installed",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"pip install -q '{TORCH}=={version}'" in told.stdout
    command = re.findall(
        r"RUN (sed .*) > torch.txt", (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    )
    done = subprocess.run(
        command[0], shell=True, cwd=ROOT / "deploy", capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{TORCH}=={version}\n"


@pytest.mark.parametrize(
    ("found", "code", "says"),
    [
        ([], 2, "Nothing was audited"),
        ([SKIPPED], 2, "Nothing was audited"),
        ([CLEAN], 0, "No vulnerability of the 1 locked packages is known."),
        ([CLEAN, SKIPPED], 2, "Not audited, as the database does not know them: b."),
        ([CLEAN, HOLED], 1, "c 1: CVE-1, fixed in 2, 3"),
        ([SKIPPED, HOLED], 1, "c 1: CVE-1"),
    ],
)
def test_what_was_not_audited_is_not_sound(
    found: list[dict[str, Any]], code: int, says: str
) -> None:
    """pip-audit itself ends with 0 where it could ask nobody."""
    done = runpy.run_path(str(ROOT / "deploy" / "audit.py"))["judged"](found)
    assert (done[0], says in "\n".join(done[1])) == (code, True)


def test_the_bill_of_materials_is_whole() -> None:
    program = [sys.executable, str(ROOT / "deploy" / "sbom.py")]
    texts = [
        subprocess.run(
            program, env={"SOURCE_DATE_EPOCH": "0"}, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert texts[0] == texts[1]
    found = json.loads(texts[0])
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    parts = {it["bom-ref"]: it for it in [found["metadata"]["component"], *found["components"]]}
    assert {"torch", "grpcio", "cryptography", "numpy"} <= {it["name"] for it in parts.values()}
    assert all(
        it["version"] and it["purl"].startswith(f"pkg:pypi/{it['name']}@") for it in parts.values()
    )
    assert {it["ref"] for it in found["dependencies"]} == parts.keys()
    assert {ref for it in found["dependencies"] for ref in it["dependsOn"]} <= parts.keys()
