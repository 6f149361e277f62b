"""The same cells on a Ray cluster of this machine: make ray-test. Ray is 240 MB, so it is not in
the dev extra.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kit.sweeps import TINY
from node.experiments.sweep import loop
from node.experiments.sweep.folder import Folder
from node.experiments.sweep.grid import load
from node.experiments.sweep.raycluster import RayCluster
from peer.errors import ConfigurationError

wanted = pytest.mark.skipif(
    not os.environ.get("RAY_TEST"),
    reason="Ray is 240 MB and not in the dev extra: make ray-test installs and tests it",
)


@wanted
@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_gives_the_figures_of_this_process(tiny, tmp_path, swept):
    broken = (
        "[sweep.settings.broken]\nmethods = ['xavg']\ntask = { data = 'file', path = 'none.npz' }\n"
    )
    tiny.write_text(TINY + broken)
    sweep = load(tiny).only(["ring", "broken"])
    folder = Folder(tmp_path / "out")
    with folder.claimed(sweep):
        outcome = loop.run(sweep, folder, RayCluster("local", 2), quiet=True)
    assert (outcome.finished, len(outcome.failed)) == (8, 2)
    assert all("none.npz" in said for said in outcome.failed.values())
    here = Folder(swept[1])
    for key, record in Folder(tmp_path / "out").records.items():
        for name in ("metrics", "bytes", "distance", "weights"):
            assert record["figures"][name] == here.records[key]["figures"][name]


@wanted
@pytest.mark.filterwarnings("ignore")
def test_the_command(tiny, tmp_path):
    command = [
        sys.executable,
        "-P",
        "-m",
        "peerpoise",
        "sweep",
        str(tiny),
        "--only",
        "ring/xavg",
        "--jobs",
        "2",
    ]
    done = subprocess.run(
        [*command, "--ray", "local", "--out", str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "4 cells finished, 0 left" in done.stdout


def test_without_ray_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'peerpoise\[ray\]'"):
        RayCluster("local", 1)
