"""`peerpoise doctor`: what would keep a daemon from running is found before it runs, and nothing is
changed.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from kit.command import Call, examine
from node.cli import doctor
from node.privacy.accountant import Mechanism
from node.privacy.ledger import Ledger


def test_a_machine(peerpoise: Call) -> None:
    code, found = examine(peerpoise)
    assert code == 0
    assert found.keys() == {
        "python",
        "packages",
        "torch",
        "gpu",
        "event loop",
        "open files",
        "clock",
        "memory",
    }
    assert sys.version.split()[0] in found["python"][0]["text"]


def test_for_people(peerpoise: Call) -> None:
    said = peerpoise("doctor").out
    assert "✓  torch" in said
    assert "✗" not in said


@pytest.fixture
def clash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's package that brings `node`."""
    about = tmp_path / "site" / "nodeworks-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: nodeworks\nVersion: 1.0\n")
    (about / "top_level.txt").write_text("node\n")
    monkeypatch.syspath_prepend(tmp_path / "site")


@pytest.mark.usefixtures("clash")
def test_a_clashing_package(peerpoise: Call, experiment: Path, tmp_path: Path) -> None:
    code, found = examine(peerpoise)
    [finding] = found["packages"]
    assert (code, finding["level"]) == (1, "fault")
    assert "nodeworks" in finding["text"]
    assert "pip uninstall nodeworks" in finding["do"]
    for command in (
        ["up", experiment, "--folder", tmp_path / "run"],
        ["run", "--config", experiment],
    ):
        result = peerpoise(*command)
        assert (result.code, "nodeworks" in result.err, result.err.count("\n")) == (78, True, 1)
    assert not (tmp_path / "run").exists()


def test_too_few_open_files(peerpoise: Call) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
    try:
        code, found = examine(peerpoise)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (code, found["open files"][0]["level"]) == (1, "fault")


@pytest.mark.parametrize(
    ("installed", "fits"),
    [("2.11.0", True), ("2.13.1+cpu", True), ("2.14.0", False), ("2.9", False), ("3.0", False)],
)
def test_the_version_of_torch(installed: str, fits: bool) -> None:
    assert doctor.fits(Requirement("torch<2.14,>=2.11"), installed) is fits


# -- a node's files


@pytest.fixture
def ports() -> list[int]:
    """Three ports; nobody listens there."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    found = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return found


@pytest.fixture
def home(peerpoise: Call, experiment: Path, tmp_path: Path, ports: list[int]) -> Path:
    """A host's folder as packed, with a ledger that has been used."""
    hosts = [
        word
        for name, port in zip("abc", ports, strict=True)
        for word in ("--host", f"{name}=127.0.0.1:{port}")
    ]
    assert peerpoise("pack", experiment, *hosts, "--out", tmp_path / "packed").code == 0
    home = tmp_path / "packed" / "a"
    with Ledger.open(home / "ledger", "digits") as ledger:
        ledger.debit("earlier", 0, "b", Mechanism(sigma=2.5, rate=0.25))
    return home


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_healthy_node(peerpoise: Call, home: Path, ports: list[int]) -> None:
    before = contents(home)
    with socket.create_server(("127.0.0.1", ports[1])):
        code, found = examine(peerpoise, "--config", home / "node.toml")
    assert code == 0
    levels = {what: [it["level"] for it in them] for what, them in found.items()}
    assert levels.pop("neighbor") == ["ok", "warning"], "b listens, c does not"
    assert {level for them in levels.values() for level in them} == {"ok"}
    expected = {
        "configuration",
        "certificate",
        "listen.address",
        "metrics.listen",
        "ledger",
        "run folder",
        "device",
        "roster",
    }
    assert expected | {"device", "data", "memory needed"} <= levels.keys()
    assert "1 debits" in found["ledger"][0]["text"]
    assert contents(home) == before


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(home: Path) -> None:
        text = (home / name).read_text()
        assert old in text
        (home / name).write_text(text.replace(old, new))

    return edit


def forget_first_row(home: Path) -> None:
    (home / "ledger" / "digits.sqlite").unlink()


def copy_neighbor(home: Path) -> None:
    for name in ("node.key", "node.pem"):
        (home / name).write_bytes((home.parent / "b" / name).read_bytes())


def show_key(home: Path) -> None:
    with (home / "node.toml").open("a") as file:
        file.write('\n[generator]\nurl = "https://host/v1"\nkey = "server.key"\n')
    (home / "server.key").write_text("key")
    (home / "server.key").chmod(0o644)


def no_server(home: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (home / "node.toml").open("a") as file:
        file.write(f'\n[generator]\nurl = "http://127.0.0.1:{port}/v1"\n')


def no_folder(home: Path) -> None:
    (home / "state").write_text("a file")


@pytest.mark.parametrize(
    ("what", "part", "spoil"),
    [
        ("configuration", "unknown key", replace("node.toml", "[compute]", "[compute]\ngpus = 3")),
        ("configuration", "run.toml", lambda home: (home / "run.toml").unlink()),
        ("certificate", "chmod 600", lambda home: (home / "node.key").chmod(0o644)),
        ("generator", "chmod 600", show_key),
        ("generator", "can't be reached (", no_server),
        ("certificate", "node.pem", lambda home: (home / "node.pem").unlink()),
        ("listen.address", "not an address", replace("node.toml", "0.0.0.0:", "nowhere ")),
        ("listen.address", "listened on", replace("node.toml", '"0.0.0.0:', '"203.0.113.7:')),
        ("ledger", "head", forget_first_row),
        ("run folder", "can't be written", no_folder),
        ("device", "cuda:99", replace("node.toml", 'device = "auto"', 'device = "cuda:99"')),
        ("roster", "not signed", replace("roster.json", "127.0.0.1", "127.0.0.9")),
        ("roster", "'z' is not in", replace("node.toml", 'name = "a"', 'name = "z"')),
        ("roster", "another key", copy_neighbor),
        ("data", "no data file", lambda home: (home / "rows.npy").unlink()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_a_node(
    peerpoise: Call, home: Path, what: str, part: str, spoil: Callable[[Path], None]
) -> None:
    spoil(home)
    code, found = examine(peerpoise, "--config", home / "node.toml")
    faults = [it for them in found.values() for it in them if it["level"] == "fault"]
    assert code == 1
    assert [(it["what"], part in it["text"]) for it in faults] == [(what, True)], faults


def test_a_taken_port(peerpoise: Call, home: Path, ports: list[int]) -> None:
    with socket.create_server(("0.0.0.0", ports[0])):
        code, found = examine(peerpoise, "--config", home / "node.toml")
    assert (code, found["listen.address"][0]["level"]) == (1, "fault")


def test_a_ledger_in_use_is_no_fault(peerpoise: Call, home: Path) -> None:
    with Ledger.open(home / "ledger", "digits"):
        code, found = examine(peerpoise, "--config", home / "node.toml")
    assert (code, found["ledger"][0]["level"]) == (0, "warning")


def test_no_ledger_is_made(peerpoise: Call, home: Path) -> None:
    for path in (home / "ledger").iterdir():
        path.unlink()
    (home / "ledger").rmdir()
    _, found = examine(peerpoise, "--config", home / "node.toml")
    assert found["ledger"][0]["level"] == "ok"
    assert not (home / "ledger").exists()


def test_more_memory_than_there_is(peerpoise: Call, home: Path) -> None:
    edit = replace("run.toml", 'model = "softmax"\nhidden = 64', 'model = "mlp"\nhidden = 3000000')
    edit(home)
    code, found = examine(peerpoise, "--config", home / "node.toml")
    assert (code, found["memory needed"][0]["level"]) == (0, "warning")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_an_unreadable_folder(peerpoise: Call, home: Path) -> None:
    (home / "ledger").chmod(0)
    code, found = examine(peerpoise, "--config", home / "node.toml")
    (home / "ledger").chmod(0o700)
    assert (code, found["ledger"][0]["level"]) == (1, "fault")


@pytest.fixture
def with_own_data(
    peerpoise: Call, experiment: Path, tmp_path: Path, ports: list[int]
) -> Callable[..., Path]:
    """Packs a host whose data are this file or folder, with settings of the run."""

    def packed(path: Path, *settings: str) -> Path:
        words = [
            word
            for name, port in zip("ab", ports, strict=False)
            for word in ("--host", f"{name}=127.0.0.1:{port}")
        ]
        words += [word for name in "ab" for word in ("--data", f"{name}=mine:{path}")]
        words += [word for it in ("task.data=own", *settings) for word in ("--set", it)]
        assert peerpoise("pack", experiment, *words, "--out", tmp_path / "packed").code == 0
        return tmp_path / "packed" / "a" / "node.toml"

    return packed


def test_files_that_are_not_used_are_counted(
    peerpoise: Call, tmp_path: Path, with_own_data: Callable[..., Path]
) -> None:
    pictures = tmp_path / "pets"
    for label, value in (("cat", 10), ("dog", 200)):
        (pictures / label).mkdir(parents=True)
        Image.new("L", (8, 8), value).save(pictures / label / "a.png")
        (pictures / label / "b.heic").write_bytes(b"?")
    file = with_own_data(
        pictures, 'task.labels=["cat", "dog"]', "task.classes=2", "task.image_size=8"
    )
    code, found = examine(peerpoise, "--config", file)
    assert code == 0
    assert [(it["level"], "2 .heic" in it["text"]) for it in found["data"]] == [
        ("warning", True),
        ("ok", False),
    ]


def test_a_class_without_images_is_remarked(
    peerpoise: Call, tmp_path: Path, with_own_data: Callable[..., Path]
) -> None:
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "pets" / "cat" / "a.png")
    file = with_own_data(
        tmp_path / "pets", 'task.labels=["cat", "dog"]', "task.classes=2", "task.image_size=8"
    )
    code, found = examine(peerpoise, "--config", file)
    assert code == 0
    assert [(it["level"], "no images of 'dog'" in it["text"]) for it in found["data"]] == [
        ("warning", True),
        ("ok", False),
    ]


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.full((20, 8, 8), 255.0), "divide by 255"),
        (np.zeros((20, 8, 8, 3)), "np.moveaxis(x, -1, 1)"),
    ],
)
def test_values_and_axes_that_can_not_be_right(
    peerpoise: Call, tmp_path: Path, with_own_data: Callable[..., Path], x: np.ndarray, says: str
) -> None:
    np.savez(tmp_path / "mine.npz", x=x, y=np.arange(20) % 10)
    code, found = examine(peerpoise, "--config", with_own_data(tmp_path / "mine.npz"))
    assert (code, found["data"][0]["level"]) == (1, "fault")
    assert says in found["data"][0]["text"]
