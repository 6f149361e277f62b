"""Cells on a Ray cluster: one task of one core each; Ray decides where and when. The extra [ray].

peerpoise has to be installed on the cluster's machines, with the data sets. Ray's own statistics
are switched off. (Ray pickles what it sends between its own processes; nothing that a peer said
comes near it.)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from node.encoding import Json
from node.experiments.sweep.worker import failure
from node.experiments.sweep.workers import TrialUpdate
from peer.errors import ConfigurationError, TemporaryFailure, first_line

LOCAL = "local"


class RayCluster:
    def __init__(self, address: str, jobs: int) -> None:
        """`address`: local (this machine alone, with `jobs` cores, until the sweep ends), auto, or
        host:port.

        Raises:
            ConfigurationError: Ray is not installed.
            TemporaryFailure: there is no such cluster.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            ray: Any = import_module("ray")
        except ImportError:
            raise ConfigurationError(
                "--ray needs Ray, which is missing: pip install 'peerpoise[ray]'."
            ) from None
        self._ray = ray
        options: dict[str, object] = (
            {"num_cpus": jobs, "include_dashboard": False} if address == LOCAL else {}
        )
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error", **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise TemporaryFailure(
                f"No Ray cluster answers at {address} ({first_line(error)}); use --ray local "
                "for one of this machine."
            ) from None
        self._run = ray.remote(num_cpus=1)(_run)
        self._keys: dict[object, str] = {}

    @property
    def slots(self) -> int:
        """All that are ready at once: Ray has the queue."""
        return 1 << 30

    def start(self, key: str, configuration: Mapping[str, object]) -> None:
        self._keys[self._run.remote(key, dict(configuration))] = key

    def wait(self) -> TrialUpdate:
        [ready], _ = self._ray.wait(list(self._keys), num_returns=1)
        key = self._keys.pop(ready)
        try:
            return TrialUpdate(key=key, **self._ray.get(ready))
        except self._ray.exceptions.RayError as error:
            return TrialUpdate(key=key, error=f"Ray lost this cell: {first_line(error)}.")

    def close(self) -> None:
        self._ray.shutdown()


def _run(key: str, configuration: Json) -> Json:
    """In a process of Ray's, which runs many cells and imports torch once."""
    from node.experiments.sweep.trial import run_trial

    try:
        return {"record": run_trial(configuration)}
    except Exception as error:
        return failure(error)
