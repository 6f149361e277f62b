"""`peerpoise doctor`: is this machine fit to run a node? (A node's files: `doctor_node`.)

Every finding is ok (✓), a warning (!) or a fault (✗) that would stop a daemon, with what to do
about it. Nothing is changed, and nothing heavy is imported but torch itself, which is looked at.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from packaging.requirements import Requirement

from node.process import available_memory, mib
from peer.errors import ConfigurationError, first_line

if TYPE_CHECKING:
    from rich.table import Table

Level = Literal["ok", "warning", "fault"]
MARKS: Mapping[Level, str] = {"ok": "✓", "warning": "!", "fault": "✗"}

OUR_NAMES = ("node", "peer")
"""Import names of ours that other packages on PyPI use too."""
OLDEST_PYTHON = (3, 11)
FEW_FILES, FILES = 128, 1024
"""Open files: a daemon has some forty, and six per neighbor."""
LEAST_MEMORY = 600 << 20
"""A daemon with a small model takes about 460 MiB, torch included."""
CPU_WHEELS = "pip install --index-url https://download.pytorch.org/whl/cpu torch"


@dataclass(frozen=True, slots=True)
class Finding:
    what: str
    level: Level
    text: str
    do: str = ""
    """What to do about it."""


def ok(what: str, text: str) -> Finding:
    return Finding(what, "ok", text)


def warning(what: str, text: str, do: str) -> Finding:
    return Finding(what, "warning", text, do)


def fault(what: str, text: str, do: str) -> Finding:
    return Finding(what, "fault", text, do)


def examine() -> Iterator[Finding]:
    """All findings of this machine, one after another."""
    for check in CHECKS:
        yield from check()


def clashes() -> dict[str, list[str]]:
    """Import name -> other installed distributions that bring it, too."""
    owners = packages_distributions()
    others_of = {name: sorted(set(owners.get(name, ())) - {"peerpoise"}) for name in OUR_NAMES}
    return {name: others for name, others in others_of.items() if others}


def refuse_clashes() -> None:
    """Asked before daemons start.

    Raises:
        ConfigurationError: another package is installed over ours.
    """
    for finding in _packages():
        if finding.level == "fault":
            raise ConfigurationError(f"{finding.text}; {finding.do}")


def _python() -> Iterator[Finding]:
    text = f"{platform.python_version()} on {platform.platform(terse=True)}, {sys.prefix}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        yield fault("python", text, "install Python 3.11 or newer")
    elif sys.prefix == sys.base_prefix:
        yield warning(
            "python", f"{text}: no virtual environment", "make one: python3 -m venv .venv"
        )
    else:
        yield ok("python", text)


def _packages() -> Iterator[Finding]:
    clashing = clashes()
    for name, others in clashing.items():
        text = (
            f"the package {', '.join(others)} brings the import name {name!r} too, which "
            "peerpoise uses"
        )
        again = (
            f"pip uninstall {' '.join(others)} && pip install --force-reinstall --no-deps peerpoise"
        )
        yield fault("packages", text, f"give peerpoise an environment of its own, or: {again}")
    if not clashing:
        yield ok(
            "packages",
            f"nobody else brings {' or '.join(OUR_NAMES)}; peerpoise {_version('peerpoise')}",
        )


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield fault("torch", f"torch can't be imported: {first_line(error)}", CPU_WHEELS)
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    text = f"{torch.__version__}, {build} build, {torch.get_num_threads()} threads"
    requirements = map(Requirement, requires("peerpoise") or ())
    wanted = next((it for it in requirements if it.name == "torch"), Requirement("torch"))
    if fits(wanted, torch.__version__):
        yield ok("torch", text)
    else:
        yield fault("torch", f"{text}; peerpoise needs {wanted}", f"pip install '{wanted}'")
    yield from _gpu(torch)


def _gpu(torch: Any) -> Iterator[Finding]:
    driver = _driver()
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield ok("gpu", f"{', '.join(names)}; driver {driver or 'unknown'}")
    elif torch.backends.mps.is_available():
        yield ok("gpu", "mps")
    elif driver and torch.version.cuda is None:
        yield warning(
            "gpu",
            f"driver {driver}, but this torch is the CPU build",
            "pip install torch, the CUDA build",
        )
    elif driver:
        yield warning(
            "gpu",
            f"driver {driver}, but torch sees no device",
            "is the driver as new as torch's CUDA?",
        )
    elif torch.version.cuda:
        yield warning(
            "gpu", "none, though torch is the CUDA build", f"gigabytes smaller: {CPU_WHEELS}"
        )
    else:
        yield ok("gpu", "none")


def _driver() -> str:
    """Version of the NVIDIA kernel driver; empty: there is none."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return ""
    return next((word for word in text.split() if word[:1].isdigit() and "." in word), "unknown")


def _loop() -> Iterator[Finding]:
    try:
        import uvloop
    except ImportError:
        yield warning("event loop", "asyncio; uvloop is not installed", "pip install uvloop")
    else:
        yield ok("event loop", f"{uvloop.__name__} {_version('uvloop')}")


def _open_files() -> Iterator[Finding]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text, most = f"{soft} may be open", min(hard, FILES) if hard > 0 else FILES
    do = f"ulimit -n {most}, or LimitNOFILE={most} in the systemd unit"
    if soft == resource.RLIM_INFINITY or soft >= FILES:
        yield ok("open files", text)
    else:
        yield (warning if soft >= FEW_FILES else fault)("open files", text, do)


def _clock() -> Iterator[Finding]:
    """The wall clock is used for certificates and log lines only; rounds go by the monotonic
    one.
    """
    installed = Path(__file__).stat().st_mtime
    if time.time() < installed - 86400:
        text = (
            f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC is before peerpoise was "
            "installed"
        )
        yield fault(
            "clock",
            text,
            "set the clock (timedatectl set-ntp true), or certificates count as not yet valid",
        )
    else:
        yield ok("clock", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))


def _memory() -> Iterator[Finding]:
    free = available_memory()
    if free is None:
        yield ok("memory", "unknown on this system")
    elif free < LEAST_MEMORY:
        yield warning(
            "memory",
            f"{mib(free)} available",
            f"a daemon takes {mib(LEAST_MEMORY)} with a small model",
        )
    else:
        yield ok("memory", f"{mib(free)} available")


CHECKS: Sequence[Callable[[], Iterator[Finding]]] = (
    _python, _packages, _torch, _loop, _open_files, _clock, _memory,
)  # fmt: skip


def fits(requirement: Requirement, installed: str) -> bool:
    """Is an installed version, a pre-release too, one that is required?"""
    return requirement.specifier.contains(installed, prereleases=True)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def document(findings: Sequence[Finding]) -> dict[str, object]:
    """For programs."""
    fit = all(it.level != "fault" for it in findings)
    return {
        "ok": fit,
        "verdict": verdict(findings),
        "findings": [asdict(finding) for finding in findings],
    }


def show(findings: Sequence[Finding]) -> Table:
    """For people."""
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "warning": "yellow", "fault": "bold red"}
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        do = f"\n→ {finding.do}" if finding.do else ""
        table.add_row(
            Text(MARKS[finding.level], styles[finding.level]), finding.what, Text(finding.text + do)
        )
    table.caption = verdict(findings)
    table.caption_justify = "left"
    return table


def verdict(findings: Sequence[Finding]) -> str:
    """All findings in one line."""
    levels = [finding.level for finding in findings]
    faults, warnings = levels.count("fault"), levels.count("warning")
    if faults:
        return f"A daemon would NOT start: {faults} × ✗."
    if warnings:
        return f"A daemon would start; {warnings} × ! to look at."
    return "A daemon would start."
