"""JSON in types."""

from __future__ import annotations

from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]
"""An object of JSON or TOML whose values are looked up, as deep as they go. One that is only passed
on or written is a `Mapping[str, object]`.
"""
