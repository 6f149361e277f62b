"""What holds for every test: it leaves nothing behind, programs of ours are forked, and hypothesis
sets no deadline for an example (what holds on a quiet machine holds on a slow or busy one).
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from kit import LONG, ROOT, forkserver

settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

MAY_STAY = {
    ".hypothesis": "hypothesis keeps its examples there",
    ".pytest_cache": "pytest's own",
    ".mypy_cache": "a lint beside the tests",
    ".ruff_cache": "a lint beside the tests",
    "__pycache__": "Python's own",
    "build": "make's",
    "runs": "other commands of whoever works here",
}
"""Names in the repository's folder that may appear during a test, and why."""

_of_asyncio = vars(asyncio.tasks)
TASKS: Iterable[asyncio.Task[object]] = _of_asyncio.get(
    "_all_tasks", _of_asyncio.get("_scheduled_tasks", ())
)
"""Of all loops; asyncio itself tells those of one, and has another name for them since 3.12."""


BEGUN = time.monotonic()
FIRST = pytest.StashKey[bool]()
"""Of the cases of a test: is it the first one?"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--hurry",
        type=float,
        metavar="SECONDS",
        help="after so many seconds only the first case of a test is run; others are skipped",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    hurry = item.config.getoption("hurry")
    if hurry is not None and time.monotonic() - BEGUN > hurry and not item.stash[FIRST]:
        pytest.skip(f"LEFT OUT: {hurry:g} s are over on this slow machine, and another case is run")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The short form leaves out what has the mark `long`. What is slow begins first, so that no
    process has to wait for it at the end.
    """
    left_out = [item for item in items if item.get_closest_marker("long") and not LONG]
    config.hook.pytest_deselected(items=left_out)
    items[:] = sorted(
        (item for item in items if item not in set(left_out)),
        key=lambda item: item.get_closest_marker("slow") is None,
    )
    tests = set[str]()
    for item in items:
        test = item.nodeid.partition("[")[0]
        item.stash[FIRST] = test not in tests
        tests.add(test)


def pytest_collection_finish() -> None:
    """What modules hold stays as long as the process: no collection has to look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def forked_programs() -> Iterator[None]:
    with forkserver.replace_popen():
        yield


@pytest.fixture
def real_starts() -> Iterator[None]:
    """Processes of this test start as a user's do."""
    with forkserver.real_starts():
        yield


@pytest.fixture
def cluster(tmp_path: Path) -> Any:
    """`async with cluster(nodes=3, …) as c`: see `kit.clusters.clustered`."""
    from kit.clusters import clustered  # needs torch, which not every Python has

    return partial(clustered, tmp_path / "cluster")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.get_closest_marker("virtual_time") is None:
        return {"real": asyncio.new_event_loop}
    from kit import clock  # needs torch

    return {"virtual": clock.Loop}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """No task of asyncio outlives its test: pytest-asyncio would cancel it without a word."""
    result = yield
    left = [task for task in TASKS if _is_ours(task)]
    assert not left, f"tasks left behind: {left}"
    return result


def _is_ours(task: asyncio.Task[object]) -> bool:
    """Still running, and started by code of this repository: what grpc and asyncio begin by
    themselves (a call, the end of a generator that was dropped) they end by themselves.
    """
    code = getattr(task.get_coro(), "cr_code", None)
    file = code.co_filename if code is not None else ""
    ours = file.startswith(f"{ROOT}/") and "site-packages" not in file
    return not task.done() and ours


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """What is there before a test, of whatever scope its fixtures are, may be there after it."""
    item.stash[BEFORE] = _present()
    return (yield)


@pytest.fixture(autouse=True)
def mesh_threads() -> Iterator[None]:
    """Those of meshes end with their test."""
    yield
    if clock := sys.modules.get("kit.clock"):
        clock.end_computing()


@pytest.fixture(autouse=True)
def children() -> Iterator[None]:
    """Those that make questions end with the test that asked them."""
    yield
    if child := sys.modules.get("node.data.child"):
        child.end_all()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """No thread that Python would wait for, no compute thread, no process of a test, and no name that
    it made in the repository's folder outlives it and its fixtures.
    """
    result = yield
    before = item.stash[BEFORE]
    if _present() - before:
        gc.collect()  # the threads of a pool (transformers has some) end with it
        _join_pools()
    left = sorted(_present() - before)
    assert not left, f"left behind: {left}"
    return result


def _join_pools() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(1.0)


BEFORE = pytest.StashKey[set[str]]()


def _present() -> set[str]:
    threads = {
        f"thread {thread.name}"
        for thread in threading.enumerate()
        if not thread.daemon or thread.name == "compute"
    }
    names = {path.name for path in ROOT.iterdir()} - MAY_STAY.keys()
    files = {f"file {name}" for name in names if not name.startswith(".coverage")}
    return threads | files | {f"process {name}" for name in forkserver.children()}
