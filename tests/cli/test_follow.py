"""`up` over its processes: what is shown of them, how they are stopped, which exit code remains.

The processes are small programs: a daemon that ignores SIGTERM or dies on command is none of the
real one's habits.
"""

from __future__ import annotations

import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from node.config import MetricsSection, NodeConfig, write
from node.experiments import local_cluster
from node.experiments.local_cluster import DaemonProcess, after, follow
from node.experiments.provisioning import OWN
from node.figures import ACCURACY, document
from node.observability.output import silence
from node.observability.terminal import Progress, Screen
from node.process import stopping_signals
from peer.errors import StorageError

QUIET = "import sys; sys.exit(0)"
DEAF = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.stdin.read()
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)
"""
POLITE = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
sys.stdin.read()
os.kill(os.getppid(), signal.SIGINT)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_cluster, "TICK_S", 0.02)
    monkeypatch.setattr(local_cluster, "GRACE_S", 0.2)


def daemon(
    folder: Path, name: str, program: str, metrics: str = "", stdin: int = subprocess.DEVNULL
) -> DaemonProcess:
    home = folder / name
    home.mkdir()
    write(
        NodeConfig(name=name, identity=OWN, metrics=MetricsSection(listen=metrics)),
        home / "node.toml",
    )
    with (home / "daemon.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=stdin,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    return DaemonProcess(name, home, process, [folder / f"{name}.sock"])


class Starting(Screen):
    """A program that reads its standard input goes on once `follow` looks at it: no signal comes
    before its handlers are there."""

    def __init__(self, daemons: list[DaemonProcess]) -> None:
        super().__init__(4, quiet=True, adjacency="")
        self.daemons = daemons

    def show(self, nodes: Mapping[str, Progress]) -> None:
        super().show(nodes)
        for each in self.daemons:
            assert each.process.stdin
            each.process.stdin.close()


def run(folder: Path, programs: dict[str, str]) -> tuple[int, list[DaemonProcess]]:
    daemons = [
        daemon(folder, name, program, stdin=subprocess.PIPE) for name, program in programs.items()
    ]
    with Starting(daemons) as screen:
        return follow(daemons, folder, screen), daemons


def fails(code: int) -> str:
    return f"import sys; print('working'); print('peerpoise: it is all wrong.'); sys.exit({code})"


@pytest.mark.parametrize(
    ("programs", "code"),
    [
        ([QUIET, QUIET], 0),
        ([QUIET, fails(78)], 78),
        ([fails(78), fails(78)], 78),
        ([fails(69), fails(78)], 1),
        ([QUIET, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"], 1),
    ],
)
def test_the_exit_code_is_the_daemons(tmp_path: Path, programs: list[str], code: int) -> None:
    assert run(tmp_path, {f"n{i}": program for i, program in enumerate(programs)})[0] == code


def test_a_dead_daemon_is_shown_with_its_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, {"n0": QUIET, "n1": fails(78)})
    said = capsys.readouterr()
    assert "n1 ended with exit code 78: peerpoise: it is all wrong." in said.err
    assert "n0 ended" not in said.err
    assert said.out == ""


def test_a_signal_stops_all_in_order(tmp_path: Path) -> None:
    code, daemons = run(tmp_path, {"n0": POLITE, "n1": "import time; time.sleep(60)"})
    assert code == 130
    assert [each.process.returncode for each in daemons] == [0, -15]


def test_who_does_not_stop_is_killed(tmp_path: Path) -> None:
    code, [deaf] = run(tmp_path, {"n0": DEAF})
    assert code == 143
    assert deaf.process.returncode == -9
    assert deaf.seen.state.startswith("was killed by SIGKILL")


def test_under_nohup_a_closed_terminal_is_nothing(tmp_path: Path) -> None:
    program = POLITE.replace("SIGTERM, lambda", "SIGINT, lambda").replace(
        "signal.SIGINT)", "signal.SIGHUP)"
    )
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which it may be for the tests, too
    try:
        code, _ = run(tmp_path, {"n0": program.replace("time.sleep(60)", "")})
        assert code == 0
        assert signal.SIGHUP not in stopping_signals()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert signal.SIGHUP in stopping_signals()
        again(tmp_path, program)
    finally:
        signal.signal(signal.SIGHUP, before)


def again(tmp_path: Path, program: str) -> None:
    """Where nothing ignores it, a closed terminal ends it."""
    (tmp_path / "again").mkdir()
    assert (
        run(tmp_path / "again", {"n0": program.replace("time.sleep(60)", "time.sleep(1)")})[0]
        == 129
    )


def test_the_journal_is_read_line_by_line(tmp_path: Path) -> None:
    found = daemon(tmp_path, "n0", QUIET)
    assert found.process.wait() == 0
    lines = [
        {"event": "round", "round": 0},
        {"event": "figures", "metrics": document([ACCURACY]), "diagnostics": []},
        {"event": "test", "metrics": {"accuracy": 0.5}},
        {"event": "epsilon", "total": 1.5},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    journal = tmp_path / "n0" / "journal.jsonl"
    journal.write_text(text + '{"event": "round", "rou')
    seen = found.look()
    assert (seen.round, seen.tested, seen.epsilon) == (1, "accuracy 50.0%", 1.5)
    assert seen.state == "finished"
    journal.write_text(text + '{"event": "round", "round": 1}\n')
    assert found.look().round == 2


def test_other_events_change_nothing() -> None:
    seen = Progress(round=3, tested="accuracy 25.0%")
    assert after(seen, {"event": "test", "metrics": {}}) == seen
    told = after(seen, {"event": "test", "metrics": {"perplexity": 12.5, "loss": 2.0}})
    assert told.tested == "perplexity 12.5"
    assert after(seen, {"event": "peer", "round": 7, "state": "down"}) == seen


class Metrics(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert self.path == "/metrics"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"peerpoise_rounds_total 3\n")

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Metrics) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_nothing_is_asked_of_a_proxy(
    tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take requests and answer none."""
    with socket.create_server(("127.0.0.1", 0)) as hole:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{hole.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        found = daemon(tmp_path, "n0", QUIET, endpoint)
        found.scrape()
        found.process.wait()
        hole.setblocking(False)
        with pytest.raises(BlockingIOError):
            hole.accept()
    assert found.metrics == "peerpoise_rounds_total 3\n"


def test_a_disk_that_refuses_metrics_is_a_sentence(tmp_path: Path) -> None:
    found = daemon(tmp_path, "n0", QUIET)
    found.metrics = "peerpoise_rounds_total 3\n"
    (tmp_path / "metrics-n0.txt").mkdir()
    with (
        Screen(1, quiet=True, adjacency="") as screen,
        pytest.raises(StorageError, match=r"metrics-n0.txt can't be written: "),
    ):
        follow([found], tmp_path, screen)


def test_output_that_fills_a_disk_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        open("/dev/full", "w", encoding="utf-8") as full,
        Screen(1, quiet=False, adjacency="") as screen,
    ):
        screen.console.file = full
        found = daemon(tmp_path, "n0", "import time; time.sleep(60)")
        with pytest.raises(StorageError, match="The output can't be written: No space left"):
            follow([found], tmp_path, screen)
        silence(full)
    assert found.process.returncode == -15


def test_no_daemon_outlives_an_exception(tmp_path: Path) -> None:
    daemons = [
        daemon(tmp_path, "n0", DEAF.replace("os.kill", "0 and os.kill")),
        daemon(tmp_path, "n1", "input()"),
    ]
    with pytest.raises(KeyError), local_cluster._ending(daemons):
        raise KeyError
    assert all(each.process.poll() is not None for each in daemons)


def test_metrics_are_kept(tmp_path: Path, endpoint: str) -> None:
    found = daemon(tmp_path, "n0", QUIET, endpoint)
    found.scrape()
    assert found.metrics == "peerpoise_rounds_total 3\n"
    found.process.wait()
    with Screen(1, quiet=True, adjacency="") as screen:
        follow([found], tmp_path, screen)
    assert (tmp_path / "metrics-n0.txt").read_text() == found.metrics


def test_reserved_ports_are_free_for_daemons_only() -> None:
    with local_cluster._reserved(4) as ports:
        assert len(set(ports)) == 4
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", ports[0]))
            listener.listen()
            socket.create_connection(("127.0.0.1", ports[0]), timeout=5).close()
