"""What hostile members are tried on: the conformance tests' meshes, and the cluster tests' daemons."""

import sys
from pathlib import Path

for kit in ("conformance", "cluster", "wire"):
    sys.path.append(str(Path(__file__).parents[1] / kit))
