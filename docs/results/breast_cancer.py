"""python docs/results/breast_cancer.py OUT.csv

The Wisconsin Diagnostic Breast Cancer table (Street, Wolberg, Mangasarian 1993), which comes with
scikit-learn: 569 tumors, thirty measurements each.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from sklearn.datasets import load_breast_cancer

table = load_breast_cancer()
out = Path(sys.argv[1])
out.parent.mkdir(parents=True, exist_ok=True)
with out.open("w", encoding="utf-8", newline="") as file:
    writer = csv.writer(file)
    writer.writerow([*(name.replace(" ", "_") for name in table.feature_names), "diagnosis"])
    for row, label in zip(table.data, table.target, strict=True):
        writer.writerow([*row, table.target_names[label]])
