"""`python -m kit.loaded`: what this process has imported."""

from __future__ import annotations

import sys

print(*sorted(sys.modules), sep="\n")
