"""Tables of three wards, as three offices would write them: columns in another order, other
separators and decimal marks, empty cells, and a category that one of them lacks.

    python tests/kit/wards.py FOLDER    # a.csv, a-test.csv, … to try docs/tables.md with
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

COLUMNS = ("age", "creatinine", "sex", "ward", "admitted", "died")
MEDICAL, ANY = ("emergency", "medical"), ("emergency", "medical", "surgical")


@dataclass(frozen=True)
class Office:
    """How one host writes its table."""

    columns: Sequence[str]
    wards: Sequence[str] = ANY
    separator: str = ","
    decimal: str = "."


OFFICES = {
    "a": Office(COLUMNS),
    "b": Office(
        ("died", "ward", "sex", "age", "admitted", "creatinine"), separator=";", decimal=","
    ),
    "c": Office(("sex", "died", "creatinine", "admitted", "ward", "age"), wards=MEDICAL),
}


def patients(rng: np.random.Generator, n: int, wards: Sequence[str]) -> list[dict[str, str]]:
    """Creatinine in µmol/L; who is old, has much of it and came by emergency dies more often."""
    rows = []
    for _ in range(n):
        age, creatinine = rng.normal(60, 15), rng.lognormal(4.5, 0.4)
        ward, sex, month = rng.choice(wards), rng.choice(("f", "m")), rng.integers(1, 13)
        risk = (age - 60) / 12 + (creatinine - 95) / 40 + 1.2 * (ward == "emergency") - 1.2
        died = rng.random() < 1 / (1 + np.exp(-risk))
        rows.append({
            "age": f"{age:.0f}",
            "creatinine": f"{creatinine:.1f}" if rng.random() > 0.08 else "",
            "sex": sex,
            "ward": ward,
            "admitted": f"2024-{month:02}-{rng.integers(1, 29):02}",
            "died": "yes" if died else "no",
        })  # fmt: skip
    return rows


def visits(rng: np.random.Generator, n: int, wards: Sequence[str]) -> list[dict[str, str]]:
    """As `patients`, n rows of one to three visits each, with the column `patient_id`."""
    rows, number = patients(rng, n, wards), 0
    for row in rows:
        row["patient_id"] = f"MRN-{number}"
        number += int(rng.random() < 0.5)
    return rows


def write(folder: Path, n: int = 600, seed: int = 1) -> None:
    """NAME.csv and NAME-test.csv of every office."""
    for k, (name, office) in enumerate(OFFICES.items()):
        rng = np.random.default_rng((seed, k))
        for file, count in ((f"{name}.csv", n), (f"{name}-test.csv", n // 2)):
            save(folder / file, patients(rng, count, office.wards), office)


def save(
    path: Path,
    rows: Sequence[dict[str, str]],
    office: Office,
    change: Callable[[str, str], str] = lambda column, cell: cell,
) -> None:
    """`change`: (column, cell) -> what is written instead."""
    lines = [office.separator.join(office.columns)]
    for row in rows:
        cells = [change(name, row[name]).replace(".", office.decimal) for name in office.columns]
        lines.append(office.separator.join(cells))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write(target)
