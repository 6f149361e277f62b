"""`up --data n0=PATH --data n1=PATH`: own files of several sites, tried on one machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from node.config import DataSection, ExperimentConfig
from node.experiments.hosts import pairs
from peer.errors import ConfigurationError, DataError
from peer.message import Peer

COUNTED_NOWHERE = (
    "No data set's lifetime budget counts this trial: keep its models and figures on this machine."
)


def nodes_with_files(
    config: ExperimentConfig, data: Sequence[str], tests: Sequence[str]
) -> tuple[ExperimentConfig, Mapping[Peer, DataSection]]:
    """The experiment with as many nodes as files, if its own file does not say how many; and each
    node's `[data]`.

    Args:
        data: "node=path"; none: {} is returned, and public data are divided.
        tests: "node:path" of a node's private test set.

    Raises:
        ConfigurationError: a node without a file, a file without a node, or data that are not own.
        DataError: there is no such file.
    """
    files, test_of = pairs("--data", data), pairs("--test", tests, separator=":")
    if not files and not test_of:
        return config, {}
    if config.task.data != "own":
        raise ConfigurationError(
            f'--data and --test need task.data = "own"; the file says {config.task.data!r}.'
        )
    if "nodes" not in config.experiment.model_fields_set:
        experiment = config.experiment.model_copy(update={"nodes": len(files)})
        config = config.model_copy(update={"experiment": experiment})
    names = config.experiment.names
    for option, named in (("--data", files), ("--test", test_of)):
        if unknown := sorted({*named} - {*names}):
            raise ConfigurationError(
                f"{option} names {unknown[0]}, but the nodes are {', '.join(names)}."
            )
    if missing := [name for name in names if name not in files]:
        raise ConfigurationError(
            f"--data {missing[0]}=PATH is missing: each of the {len(names)} nodes "
            "(experiment.nodes) needs a file of its own."
        )
    return config, {
        name: DataSection(
            name=name,
            path=_existing("--data", name, files[name]),
            test=_existing("--test", name, test_of[name]) if name in test_of else None,
            test_public=False,
        )
        for name in names
    }


def _existing(option: str, name: str, path: str) -> Path:
    place = Path(path).expanduser().absolute()
    if not place.exists():
        raise DataError(f"{option}: there is no file or folder {path} for {name}.")
    return place
