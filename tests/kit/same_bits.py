"""Experiments whose bits depend on nothing but their settings, whatever carries the messages."""

from __future__ import annotations

from typing import Any

SETTINGS: dict[str, dict[str, Any]] = {
    "strict": {"privacy": {"insecure_seed": 7}},
    "paper": {"privacy": {"mode": "paper", "insecure_seed": 7}},
    "d-psgd": {"algorithm": {"name": "d-psgd"}, "privacy": {"mode": "none", "sigma": None}},
    "ross": {
        "algorithm": {"name": "ross", "value": "neg_loss"},
        "privacy": {"mode": "none", "sigma": None},
    },
    "pdsl": {"algorithm": {"name": "pdsl"}, "privacy": {"insecure_seed": 7}},
}
