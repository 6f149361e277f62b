"""The status socket: one document per question, for this user only, and dead sockets go away."""

import asyncio
import copy
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import uvloop
from rich.console import Console

from kit.status_document import DOCUMENT
from node.observability import status
from peer.errors import StorageError, TemporaryFailure


@pytest.fixture
def short():
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="pp", dir="/tmp") as name:
        yield Path(name)


async def ask(path: Path) -> status.Status:
    return await asyncio.to_thread(status.query, path, 5)


async def test_every_question_gets_the_document_of_its_moment(short):
    count = iter(range(100))
    with status.serve(short / "a.sock", lambda: {**DOCUMENT, "round": next(count)}):
        assert await ask(short / "a.sock") == {**DOCUMENT, "round": 0}
        assert (await ask(short / "a.sock"))["round"] == 1
        together = await asyncio.gather(*(ask(short / "a.sock") for _ in range(20)))
        assert sorted(document["round"] for document in together) == list(range(2, 22))
    assert not (short / "a.sock").exists()


def test_on_uvloop(short):
    async def main() -> status.Status:
        with status.serve(short / "a.sock", lambda: DOCUMENT):
            return await ask(short / "a.sock")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == DOCUMENT
    assert not (short / "a.sock").exists()


async def test_what_is_not_finite_is_null_and_a_large_document_arrives_whole(short):
    many = [status.Neighbor(**{**DOCUMENT["neighbors"][0], "name": f"n{k}"}) for k in range(900)]
    big = status.Status(**{**DOCUMENT, "neighbors": many, "uptime_s": float("nan")})
    with status.serve(short / "a.sock", lambda: big):
        found = await ask(short / "a.sock")
    assert len(found["neighbors"]) == 900
    assert found["uptime_s"] is None


async def test_a_client_that_never_reads_holds_nobody_up(short):
    with status.serve(short / "a.sock", lambda: DOCUMENT):
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(short / "a.sock"))
            assert (await ask(short / "a.sock"))["node"] == "n0"


async def test_only_this_user_can_ask(short):
    mask = os.umask(0)
    try:
        with status.serve(short / "a.sock", lambda: DOCUMENT):
            assert stat.S_IMODE((short / "a.sock").stat().st_mode) == 0o600
    finally:
        os.umask(mask)


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere the folder's mode guards the first moment"
)
def test_there_is_no_moment_in_which_others_can_ask(short, monkeypatch):
    """Without the chmod after bind the file is 0600 all the same: it is born so."""
    monkeypatch.setattr(Path, "chmod", lambda *_: None)
    mask = os.umask(0)
    try:
        with status._bind(short / "a.sock"):
            assert stat.S_IMODE((short / "a.sock").stat().st_mode) == 0o600
    finally:
        os.umask(mask)


def test_the_folder_is_this_users_alone(short, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    assert status.folder() == short / "peerpoise"
    assert stat.S_IMODE(status.folder().stat().st_mode) == 0o700
    (short / "peerpoise").chmod(0o755)
    with pytest.raises(StorageError, match="mode 0700"):
        status.folder()
    (short / "peerpoise").rmdir()
    (short / "other").mkdir(mode=0o700)
    (short / "peerpoise").symlink_to(short / "other")
    with pytest.raises(StorageError, match="mode 0700"):
        status.folder()


def test_the_folder_without_a_runtime_directory(short, monkeypatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    assert status.folder() == short / f"peerpoise-{os.getuid()}"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/" + "long/" * 30)
    assert status.folder() == short / f"peerpoise-{os.getuid()}"


def test_long_temporary_folders_are_passed_over(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 150)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert status.folder() == Path(f"/tmp/peerpoise-{os.getuid()}")
    path = status.place("abcdefghijkl", "n0")
    assert len(os.fsencode(path)) <= status.PATH_LIMIT
    assert list(long.iterdir()) == []


def test_without_any_temporary_folder_there_is_a_short_one(monkeypatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    assert status.folder() == Path(f"/tmp/peerpoise-{os.getuid()}")


@pytest.mark.parametrize("node", ["n0", "a" * 300, "../evil", "über uns", "a/b"])
async def test_any_name_has_a_socket_that_works(short, node):
    path = status.place("abcdefghijkl", node, short)
    assert path.parent == short
    assert path.name.startswith("abcdefgh-")
    assert len(os.fsencode(path)) <= status.PATH_LIMIT
    with status.serve(path, lambda: DOCUMENT):
        assert (await ask(path))["node"] == "n0"
    assert path != status.place("abcdefghijkl", node + "x", short)


async def test_a_second_daemon_is_refused_and_the_first_goes_on(short):
    with status.serve(short / "a.sock", lambda: DOCUMENT):
        with pytest.raises(TemporaryFailure, match="runs already"):
            with status.serve(short / "a.sock", lambda: DOCUMENT):
                pass
        assert (await ask(short / "a.sock"))["node"] == "n0"


def left_behind(path: Path) -> None:
    """A socket file whose daemon died."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


async def test_a_dead_daemons_socket_is_taken_over(short):
    left_behind(short / "a.sock")
    with status.serve(short / "a.sock", lambda: DOCUMENT):
        assert (await ask(short / "a.sock"))["node"] == "n0"


async def test_find_names_the_living_and_removes_the_dead(short):
    left_behind(short / "b.sock")
    with (
        status.serve(short / "c.sock", lambda: DOCUMENT),
        status.serve(short / "a.sock", lambda: DOCUMENT),
    ):
        assert await asyncio.to_thread(status.find, short) == [short / "a.sock", short / "c.sock"]
    assert not (short / "b.sock").exists()
    assert status.find(short) == []


def test_find_never_takes_a_daemon_that_is_starting_for_dead(short):
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            status.find(short)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for k in range(300):
            with status._bind(short / f"{k}.sock"):
                assert (short / f"{k}.sock").exists()
            (short / f"{k}.sock").unlink(missing_ok=True)
    finally:
        done.set()
        thread.join()


def test_nobody_there_is_one_sentence(short):
    with pytest.raises(TemporaryFailure, match="No daemon answers"):
        status.query(short / "none.sock")
    left_behind(short / "a.sock")
    with pytest.raises(TemporaryFailure, match="No daemon answers"):
        status.query(short / "a.sock")
    with pytest.raises(TemporaryFailure, match="No daemon answers"):
        status.query(short / ("a" * 200))
    with pytest.raises(StorageError, match="can't be made"):
        status._bind(short / "nowhere" / "a.sock")


@pytest.mark.parametrize("said", [b"", b"hello", b"[1]", b'{"node": '])
def test_what_answers_something_else_is_one_sentence(short, said):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short / "a.sock"))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(TemporaryFailure, match="no daemon of this version"):
            status.query(short / "a.sock", 5)
        thread.join()


def test_a_stopped_daemon_is_given_up_in_time(short):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short / "a.sock"))
        listener.listen()
        with pytest.raises(TemporaryFailure, match=r"within 0\.05 s"):
            status.query(short / "a.sock", 0.05)


async def test_a_bug_in_the_snapshot_ends_the_answer_and_not_the_daemon(short):
    found: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: found.append(repr(context["exception"]))
    )

    def broken() -> status.Status:
        raise LookupError("oh")

    with status.serve(short / "a.sock", broken):
        for _ in range(2):
            with pytest.raises(
                TemporaryFailure, match="no daemon of this version, or is just ending"
            ):
                await ask(short / "a.sock")
    assert found == ["LookupError('oh')"] * 2


def printed(document: status.Status) -> str:
    console = Console(width=300, record=True, file=open(os.devnull, "w", encoding="utf-8"))
    with console.file:
        console.print(status.render(document))
    return console.export_text()


def test_what_people_see():
    text = printed(DOCUMENT)
    assert "n0: running, round 7 of 100, phase model for 0.2 s (dpdl, run abcdefgh)" in text
    assert "waits for n2 since 0.2 s, for 9.8 s more: its answer to our model" in text
    said = (
        "mode strict, add/remove one example, δ = 0.001, independent batches, RDP, against "
        "any coalition of other nodes"
    )
    assert f"ε_total 2.5 in this run ({said})" in text
    other = "another one than the run's: these figures can't be compared"
    assert f"4.5 in the life of these data, limit none (δ = 1e-05, {other})" in text
    same = copy.deepcopy(DOCUMENT)
    assert same["epsilon"] is not None
    same["epsilon"]["lifetime_delta"] = same["epsilon"]["delta"]
    assert "limit none (δ = 0.001)" in printed(same)
    assert "not a guarantee" in text.split("ε_link")[1]
    assert "test accuracy 87.5%" in text
    assert "loop uvloop" in text
    assert "connection refused" in text
    assert "INSECURE" not in text


def test_what_people_see_when_something_is_wrong():
    assert DOCUMENT["epsilon"] is not None
    reached = status.Epsilon(**{**DOCUMENT["epsilon"], "reached": True})
    text = printed({**DOCUMENT, "epsilon": reached})
    assert "n0: running, budget reached: still mixing, no releases, round 7 of 100" in text
    nominal = status.Epsilon(**{**DOCUMENT["epsilon"], "mode": "paper"})
    text = printed(
        {
            **DOCUMENT,
            "insecure": ["transport"],
            "warnings": ["The ledger is behind."],
            "epsilon": nominal,
        }
    )
    for words in ("INSECURE: transport", "The ledger is behind.", "NOT a guarantee"):
        assert words in text
    assert "coalition" not in text
    void = printed({**DOCUMENT, "insecure": ["seed"]})
    assert "VOID" in void
    assert "coalition" not in void
    uncovered = printed({**DOCUMENT, "insecure": ["validation"]})
    for figure in ("ε_total", "ε_link"):
        assert (
            "the validation set is private and not covered"
            in uncovered.split(figure)[1].split("\n")[0]
        )
    empty = printed(
        {
            **DOCUMENT,
            "phase": None,
            "waiting_for": [],
            "neighbors": [],
            "epsilon": None,
            "task_metrics": [{"name": "perplexity", "unit": "", "value": 12.34}],
            "metrics": None,
        }
    )
    assert "no privacy (mode none)" in empty
    assert "test perplexity 12.34" in empty


def test_a_node_that_starts_says_what_is_known_of_its_epsilon():
    assert DOCUMENT["epsilon"] is not None
    none = status.RunEpsilon(total=None, link=None)
    unread = status.Epsilon(**{**DOCUMENT["epsilon"], "run": none, "lifetime": None, "limit": 4.0})
    text = printed({**DOCUMENT, "state": "starting", "epsilon": unread})
    assert "ε: nothing is released while this node starts (mode strict, add/remove one" in text
    assert "once the ledger is read, limit 4 by PLD, whose ε is smaller (δ = 1e-05" in text
    assert "ε_total" not in text
    assert "ε_total infinite in this run" in printed({**DOCUMENT, "epsilon": unread})


def test_asking_needs_no_torch_and_the_document_is_json(short):
    code = (
        "import sys; from node.observability import status; assert 'torch' not in "
        "sys.modules and 'grpc' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert json.loads(json.dumps(DOCUMENT)) == DOCUMENT
    assert DOCUMENT.keys() == status.Status.__annotations__.keys()


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("address", "[fd00::1]:7443"),
        ("last_error", "n1 refuses: [/red][bold]"),
        ("last_error", "n1 refuses: [link=https://example.org]here[/link]"),
    ],
)
def test_what_peers_say_is_no_markup(field: str, text: str) -> None:
    neighbor: Any = {**DOCUMENT["neighbors"][0], field: text}
    assert text in printed(status.Status(**{**DOCUMENT, "neighbors": [neighbor]}))
