"""Writes the lock files beside this one: what image and CI install, each with its version and
hashes (`make lock`).

    requirements.lock       the image: dependencies, the extra demo, and what builds the wheel
    requirements-dev.lock   that and the extra dev

pip resolves them for the Python that runs this; then it is asked, for every other Python and
processor, which files of the same versions it would take. Torch and what only its CUDA build needs
are left out: builds for CPU and GPU come from different indexes and have different hashes. Its
version is in a comment, which Makefile and Dockerfile read. No address of an index is written down:
pip has its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

HERE = Path(__file__).parent
PYTHONS = ("3.11", "3.12", "3.13")
PROCESSORS = ("x86_64", "aarch64")
TAGS = (
    *(f"manylinux_2_{minor}" for minor in (28, 27, 26, 24, 17)),
    *("manylinux2014", "manylinux_2_12", "manylinux2010", "manylinux_2_5", "manylinux1"),
)
"""Linux with glibc 2.28 (2018) or newer."""
EDITABLE = ("editables>=0.5",)
"""What hatchling needs for pip install -e."""
UNLOCKED = ("torch", "triton", "nvidia-", "cuda-")

Files: TypeAlias = dict[str, tuple[str, str]]
"""name -> (version, SHA-256 in hex) of the file that pip would take."""


def main() -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    image = [
        *project["project"]["dependencies"],
        *extras["demo"],
        *project["build-system"]["requires"],
    ]
    dev = [*image, *_flat("dev", extras), *EDITABLE]
    versions = {name: version for name, (version, _) in taken(dev).items()}
    hashes = {name: set[str]() for name in versions if not name.startswith(UNLOCKED)}
    for python, processor in (
        (python, processor) for python in PYTHONS for processor in PROCESSORS
    ):
        print(f"Python {python}, {processor}: {len(hashes)} packages", file=sys.stderr)
        tags = [word for tag in TAGS for word in ("--platform", f"{tag}_{processor}")]
        options = ["--no-deps", "--python-version", python, "--target", "nowhere", *tags]
        for name, (_, digest) in taken(
            [f"{name}=={versions[name]}" for name in hashes], options
        ).items():
            hashes[name].add(digest)
    write(HERE / "requirements-dev.lock", versions, hashes)
    bounds = [f"{name}=={version}" for name, version in versions.items() if name in hashes]
    write(
        HERE / "requirements.lock",
        versions,
        {name: hashes[name] for name in taken(image, [], bounds) if name in hashes},
    )


def _flat(extra: str, extras: Mapping[str, Sequence[str]]) -> list[str]:
    """An extra's requirements, with those of the extras that it names."""
    requirements: list[str] = []
    for requirement in extras[extra]:
        if not requirement.startswith("peerpoise["):
            requirements.append(requirement)
            continue
        for name in requirement[len("peerpoise[") : -1].split(","):
            requirements += _flat(name, extras)
    return requirements


def taken(
    requirements: Sequence[str], options: Sequence[str] = (), bounds: Sequence[str] = ()
) -> Files:
    """Which files pip would install for the requirements; `bounds` constrain versions."""
    with TemporaryDirectory() as folder:
        wanted, within, report = (
            Path(folder) / name for name in ("wanted.txt", "within.txt", "report.json")
        )
        wanted.write_text("\n".join(requirements), encoding="utf-8")
        within.write_text("\n".join(bounds), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--report", str(report), *options]
        command += ["-r", str(wanted), "-c", str(within)]
        subprocess.run(command, check=True)
        installed = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {
        each["metadata"]["name"].lower().replace("_", "-").replace(".", "-"): (
            each["metadata"]["version"].partition("+")[0],
            each["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for each in installed
    }


def write(file: Path, versions: Mapping[str, str], hashes: Mapping[str, set[str]]) -> None:
    lines = [
        "# Written by make lock from pyproject.toml; "
        "pip install --no-deps --require-hashes -r FILE",
        f"# torch=={versions['torch']} comes first, from the index of your build, "
        "and has no hash here.",
    ]
    for name in sorted(hashes):
        lines += [
            f"{name}=={versions[name]} \\",
            *(f"    --hash=sha256:{it} \\" for it in sorted(hashes[name])),
        ]
        lines[-1] = lines[-1].removesuffix(" \\")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
