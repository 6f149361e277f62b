"""Literal tables: what a name of the configuration stands for, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from peer.errors import ConfigurationError


def check_entry(table: Mapping[str, str], name: str, what: str) -> None:
    """Raises ConfigurationError: the table has no such name. `what` says of what."""
    if name not in table:
        choice = ", ".join(sorted(table))
        raise ConfigurationError(f"Unknown {what} {name!r}; choose one of {choice}.")


def load_entry(table: Mapping[str, str], name: str, what: str) -> Any:
    """The object of a name in a table of "module:attribute".

    Raises:
        ConfigurationError: as `check_entry`.
    """
    check_entry(table, name, what)
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)
