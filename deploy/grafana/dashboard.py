"""Writes peerpoise.json, the Grafana dashboard, from the table of its panels; with --check, fails
if it is another.

Two panels side by side. Panels of reinforcement are in a row of their own, folded up, as most runs
have none; they show figures that are declared. `make docs` runs this.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from node.algorithms.fgrpo import Fgrpo
from node.algorithms.sapo import Sapo

PAGE = Path(__file__).with_name("peerpoise.json")
SOURCE = {"type": "prometheus", "uid": "prometheus"}
"""As in datasource.yaml."""
WIDTH, HEIGHT = 12, 8
"""Of a panel, in Grafana's grid of 24 columns."""
Row: TypeAlias = tuple[str, str, str, str]
"""Title, unit, legend and expression of a panel."""
PANELS: tuple[Row, ...] = (
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
FIGURES = {each.name: each for each in (*Fgrpo.DIAGNOSTICS, *Sapo.DIAGNOSTICS)}
"""What algorithms by reinforcement declare."""
EXACT = 'peerpoise_task_metric{metric=~"exact_match.*"}'


def figure(title: str, unit: str, *names: str) -> Row:
    """The panel of figures of an algorithm; of a neighbor, or of the node itself.

    Raises:
        KeyError: one is not declared.
    """
    per_neighbor = FIGURES[names[0]].per_neighbor
    legend = "{{instance}} of {{peer}}" if per_neighbor else "{{instance}}"
    legend += ", {{name}}" if names[1:] else ""
    chosen = "|".join(FIGURES[name].name for name in names)
    return title, unit, legend, f'peerpoise_diagnostic{{name=~"{chosen}"}}'


REINFORCEMENT: tuple[Row, ...] = (
    ("Test questions answered right", "percentunit", "{{instance}}, {{metric}}", EXACT),
    figure("Own answers that are right", "percentunit", "rollouts_exact"),
    figure("Reward of own answers", "short", "reward"),
    figure("Entropy, and KL from the reference", "short", "entropy", "kl"),
    figure("Tokens of an answer", "short", "completion_length"),
    figure(
        "Groups that all earn alike, and answers that are cut off",
        "percentunit",
        "frac_reward_zero_std",
        "completions_clipped_ratio",
    ),
    figure("Tokens clipped", "percentunit", "clip_ratio_low", "clip_ratio_high"),
    figure("Tokens clipped of what is shared", "percentunit", "clip_ratio"),
    figure("Tokens by CPU-second", "short", "generated_per_second", "trained_per_second"),
    figure("Log-probabilities, generator and trainer apart", "short", "mismatch"),
    figure("Weight of a neighbor's update", "percentunit", "weight"),
    figure("Gain of a neighbor, or z of its audits", "short", "gain"),
    figure("Neighbors convicted", "short", "convicted"),
    figure("Gradient before it is clipped", "short", "grad_norm"),
)
"""See PANELS."""


def dashboard() -> dict[str, Any]:
    count = len(PANELS)
    top = (count + 1) // 2 * HEIGHT
    reinforcement = {
        "id": count + 1,
        "type": "row",
        "title": "Reinforcement",
        "collapsed": True,
        "gridPos": {"x": 0, "y": top, "w": 2 * WIDTH, "h": 1},
        "panels": panels(REINFORCEMENT, count + 2, top + 1),
    }
    return {
        "uid": "peerpoise",
        "title": "peerpoise",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "panels": [*panels(PANELS, 1, 0), reinforcement],
    }


def panels(rows: Sequence[Row], number: int, top: int) -> list[dict[str, Any]]:
    """Two side by side, from this id and height on."""
    return [
        panel(number + k, k % 2 * WIDTH, top + k // 2 * HEIGHT, *row) for k, row in enumerate(rows)
    ]


def panel(
    number: int, x: int, y: int, title: str, unit: str, legend: str, expression: str
) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
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
