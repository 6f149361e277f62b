"""What is kept of a sweep: OUT/sweep.json (what was asked for), and a file per finished cell.

    OUT/sweep.json               the file's values, with environment and --set
    OUT/cells/KEY.json       a finished cell's record (`node.experiments.sweep.trial`), or absent
    OUT/under-way/               folders of cells that run now
    OUT/failures.json            label -> the sentence it failed with, of the last call
    OUT/costs.json               row -> measured seconds of a cell (--measure)

A cell's key is the digest of its full configuration and of the code its figures depend on. One
writer at a time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from node.config import ExperimentConfig
from node.encoding import Json
from node.experiments.sweep import code
from node.experiments.sweep.grid import Row, Sweep, Trial, digest, read
from peer import files
from peer.errors import ConfigurationError, DataError, StorageError, TemporaryFailure

Record = Json


class Folder:
    """A sweep's results, read once and kept in memory."""

    def __init__(self, path: Path, *, any_code: bool = False) -> None:
        """any_code: cells that other versions of the code finished count as finished."""
        self.path, self.any_code = path, any_code
        self.records: dict[str, Record] = {}
        """key -> record."""
        self._of: dict[str, Record] = {}
        """digest of a configuration, as this version reads it -> the record that is shown for
        it.
        """
        self.unread = 0
        """Records that this version can't read."""
        for file in sorted((path / "cells").glob("*.json")):
            self._admit(file.stem, _json(file))
        self.failures: dict[str, str] = _json(path / "failures.json", {})
        self.costs: dict[str, float] = _json(path / "costs.json", {})

    def _admit(self, key: str, record: Record) -> None:
        try:
            configuration = ExperimentConfig(**record["configuration"]).model_dump(mode="json")
        except (ValidationError, KeyError, TypeError):
            self.unread += 1
            return
        self.records[key] = record
        known, now = digest(configuration), code.of(configuration)
        if known not in self._of or record["code"] == now:
            self._of[known] = record

    def finished(self, trial: Trial) -> Record | None:
        """The cell's record, if it is finished."""
        record = self._of.get(trial.digest)
        current = record is not None and record["code"] == code.of(trial.configuration)
        return record if self.any_code or current else None

    def keep(self, trial: Trial, record: Record) -> None:
        """Raises StorageError: the disk refuses."""
        files.ensure_dir(self.path / "cells", public=True)
        key = key_of(trial)
        files.atomic_write(self.path / "cells" / f"{key}.json", _bytes(record), public=True)
        self._admit(key, record)

    def fail(self, failures: Mapping[str, str]) -> None:
        self.failures = dict(failures)
        files.atomic_write(self.path / "failures.json", _bytes(self.failures), public=True)

    def price(self, row: Row, seconds: float) -> None:
        """Keeps what a cell of this row was measured to take."""
        self.costs[f"{row.setting}/{row.method}"] = seconds
        files.atomic_write(self.path / "costs.json", _bytes(self.costs), public=True)

    def check(self, sweep: Sweep) -> None:
        """Is the folder free for this sweep, or its own?

        Raises:
            ConfigurationError: it belongs to another.
            StorageError: it holds something else.
        """
        known = self.path / "sweep.json"
        if known.exists():
            other, quick = _json(known), sweep.source["quick"]
            if (theirs := other["sweep"]["name"]) != sweep.name:
                raise ConfigurationError(
                    f"{self.path} holds the sweep {theirs!r}, not {sweep.name!r}; choose "
                    "another --out."
                )
            if other["quick"] != quick:
                which = ("a full sweep", "a --quick one")
                raise ConfigurationError(
                    f"{self.path} holds {which[not quick]}, this is {which[quick]}; choose "
                    "another --out."
                )
        elif self.path.is_dir() and any(it.name != "lock" for it in self.path.iterdir()):
            raise StorageError(
                f"{self.path} is not empty and holds no sweep; choose another --out."
            )

    @contextmanager
    def claimed(self, sweep: Sweep) -> Iterator[None]:
        """The folder is this sweep's, and nobody else writes to it meanwhile.

        Raises:
            TemporaryFailure: another process does.
            ConfigurationError, StorageError: as `check`; or it can't be made.
        """
        self.check(sweep)
        files.ensure_dir(self.path, public=True)
        try:
            lock = files.keep(self.path / "lock", os.O_WRONLY)
        except OSError as error:
            raise files.storage_error(self.path / "lock", error) from None
        with os.fdopen(lock, "wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise TemporaryFailure(
                    f"Another sweep is at work in {self.path}; wait for it, or choose another "
                    "--out."
                ) from None
            files.atomic_write(self.path / "sweep.json", _bytes(sweep.source), public=True)
            yield


def key_of(trial: Trial) -> str:
    """Of what a simulation reads of the configuration, and of the code."""
    of_both = f"{trial.digest} {code.of(trial.configuration)}"
    return hashlib.sha256(of_both.encode()).hexdigest()[:24]


def sweep_of(path: Path) -> Sweep:
    """The sweep whose results lie in a folder.

    Raises:
        DataError: none do.
    """
    if not (path / "sweep.json").exists():
        if any(path.glob("nodes/*/node.toml")):
            raise DataError(
                f"{path} holds a run that did not end, so there is nothing to report yet; its "
                f"nodes go on with peerpoise run --config {path}/nodes/NAME/node.toml."
            )
        raise DataError(f"{path} holds no sweep and no run; name a folder that one of them wrote.")
    return read(_json(path / "sweep.json"), path / "sweep.json")


def _json(file: Path, missing: object = None) -> Any:
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        return missing
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} can't be read: {error}; remove it, and what it held is made again."
        ) from None


def _bytes(value: object) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"
