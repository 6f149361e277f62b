"""Runs of causal-lm."""

from __future__ import annotations

from typing import Any

from node.config import RunConfig


def language_run(
    *, privacy: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **task: Any
) -> RunConfig:
    task = {
        "name": "causal-lm",
        "model": "bytes",
        "data": "fortunes",
        **task,
        "text": {"length": 32, **(text or {})},
    }
    return RunConfig(privacy=privacy or {"mode": "none"}, task=task)  # type: ignore[arg-type]
