"""Writes peerpoise.json, the Grafana dashboard, from the table of its panels; with --check, fails
if it is another.

Two panels a row. `make docs` runs this.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("peerpoise.json")
SOURCE = {"type": "prometheus", "uid": "prometheus"}
"""As in datasource.yaml."""
WIDTH, HEIGHT = 12, 8
"""Of a panel, in Grafana's grid of 24 columns."""
PANELS = (
    # title, unit, legend, expression
    ("Round", "short", "{{instance}}", "peerpoise_round + 1"),
    (
        "Metrics of the task on the public test set",
        "short",
        "{{instance}}, {{metric}}",
        "peerpoise_task_metric",
    ),
    (
        "Diagnostics of the algorithm, by neighbor",
        "short",
        "{{instance}}, {{name}} {{peer}}",
        "peerpoise_diagnostic",
    ),
    ("Rounds a minute", "short", "{{instance}}", "60 * rate(peerpoise_rounds_total[1m])"),
    ("Consensus distance", "short", "{{instance}}", "peerpoise_consensus_distance"),
    (
        "ε of the run, of all releases together",
        "short",
        "{{instance}}, mode {{mode}}",
        'peerpoise_privacy_epsilon_spent{scope="total"}',
    ),
    (
        "Gradients released a minute",
        "short",
        "{{instance}} to {{recipient}}",
        "60 * rate(peerpoise_releases_total[1m])",
    ),
    (
        "Seconds of a phase, 95 of 100",
        "s",
        "{{kind}}",
        "histogram_quantile(0.95, sum by (kind, le) (rate(peerpoise_phase_seconds_bucket[1m])))",
    ),
    (
        "Share of time waited for a neighbor",
        "percentunit",
        "{{instance}} for {{peer}}",
        "rate(peerpoise_wait_seconds_sum[1m])",
    ),
    ("Neighbors in session", "short", "{{instance}}", "sum by (instance) (peerpoise_peer_up)"),
    ("Round trip of a heartbeat", "s", "{{instance}} to {{peer}}", "peerpoise_peer_rtt_seconds"),
    (
        "Payload sent",
        "Bps",
        "{{instance}}",
        'sum by (instance) (rate(peerpoise_wire_bytes_total{direction="sent"}[1m]))',
    ),
    (
        "The event loop wakes late, 99 of 100",
        "s",
        "{{instance}}",
        "histogram_quantile(0.99, sum by (instance, le) "
        "(rate(peerpoise_event_loop_lag_seconds_bucket[1m])))",
    ),
    ("Memory", "bytes", "{{instance}}", 'process_resident_memory_bytes{job="peerpoise"}'),
    (
        "CPU cores in use",
        "short",
        "{{instance}}",
        'rate(process_cpu_seconds_total{job="peerpoise"}[1m])',
    ),
)


def dashboard() -> dict[str, Any]:
    return {
        "uid": "peerpoise",
        "title": "peerpoise",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "panels": [panel(place, *row) for place, row in enumerate(PANELS)],
    }


def panel(place: int, title: str, unit: str, legend: str, expression: str) -> dict[str, Any]:
    return {
        "id": place + 1,
        "type": "timeseries",
        "title": title,
        "datasource": SOURCE,
        "gridPos": {"x": place % 2 * WIDTH, "y": place // 2 * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": [
            {"refId": "A", "datasource": SOURCE, "expr": expression, "legendFormat": legend}
        ],
    }


def main() -> int:
    text = json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"
    if "--check" not in sys.argv:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE} is not what this file makes; run make docs.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
