"""What a daemon in the middle of a run answers on its status socket."""

from __future__ import annotations

from node.observability import status

DOCUMENT: status.Status = {
    "node": "n0",
    "run": "abcdefghijklmnopqrstuvwxyz",
    "algorithm": "dpdl",
    "state": "running",
    "round": 6,
    "rounds": 100,
    "phase": {"kind": "model", "since_s": 0.25},
    "waiting_for": [
        {"peer": "n2", "since_s": 0.25, "until_s": 9.75, "why": "its answer to our model"}
    ],
    "neighbors": [
        {
            "name": "n1",
            "state": "up",
            "address": "10.0.0.1:7443",
            "found_by": "mdns",
            "round": 6,
            "rtt_ms": 0.4,
            "last_error": None,
        },
        {
            "name": "n2",
            "state": "connecting",
            "address": None,
            "found_by": None,
            "round": None,
            "rtt_ms": None,
            "last_error": "connection refused",
        },
    ],
    "epsilon": {
        "run": {"total": 2.5, "link": 1.25},
        "lifetime": 4.5,
        "lifetime_delta": 1e-5,
        "batches": "independent",
        "guaranteed": True,
        "limit": None,
        "reached": False,
        "mode": "strict",
        "adjacency": "add/remove one example",
        "delta": 1e-3,
        "accountant": "RDP",
    },
    "task_metrics": [{"name": "accuracy", "unit": "ratio", "value": 0.875}],
    "diagnostics": {"step": 3, "weight": {"n1": 0.25}},
    "loop": "uvloop",
    "insecure": [],
    "metrics": "127.0.0.1:9999",
    "warnings": [],
    "uptime_s": 12.0,
    "pid": 4711,
    "version": "0.1.0",
}
