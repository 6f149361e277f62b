"""A digest of what every example and every algorithm of the table computes: a change of the house
must not change one.

    python tests/conformance/bits.py > before.txt
    python tests/conformance/bits.py | diff before.txt -    # after the change

On one machine and one version of torch only: others may round otherwise.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # a program: pytest's `pythonpath` does not reach it

from kit.toys import VARIANTS, cluster, lossy, results  # noqa: E402
from node.rounds import lockstep  # noqa: E402

SHORT = {"train.rounds": 3, "train.evaluate_every": 1, "privacy.insecure_seed": 7}
TOO_LARGE = {"deca-paper", "deca-smollm2", "fgrpo-smollm2", "scattering"}


def example(path: Path) -> str:
    """params_digest of three rounds of it, or why there is none."""
    options = [word for key, value in SHORT.items() for word in ("--set", f"{key}={value}")]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-P", "-m", "peerpoise", "simulate", str(path), *options]
        command += ["--json", "--folder", f"{folder}/run"]
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    return json.loads(done.stdout)["params_digest"] if done.returncode == 0 else done.stderr.strip()


def conformance(variant: tuple[str, dict[str, object]]) -> str:
    """SHA-256 of the nodes' parameters after six rounds in which messages are lost."""
    nodes, neighborhoods = cluster(variant, "ring")
    lockstep.run(nodes, neighborhoods, 6, lossy=lossy(4))
    return hashlib.sha256(results(nodes).numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    for path in sorted((ROOT / "deploy" / "examples").glob("*.toml")):
        if path.stem not in TOO_LARGE:
            print(f"{path.stem:24}{example(path)}", flush=True)
    for number, variant in enumerate(VARIANTS):
        print(f"{number:3} {variant[0]:20}{conformance(variant)}", flush=True)
