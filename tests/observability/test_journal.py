"""The journal: whole lines, a header at each start, and no field that is not on the list."""

import json
import resource
import threading

import pytest

from node.records import journal
from node.records.journal import EVENTS, Journal, read
from peer.errors import StorageError

HEADER = journal.header({"algorithm": {"name": "dpdl"}}, node="n0", run="abc", seed=3, threads=1)

GOLDEN = """
backend: backend reason slow
budget: accountant adjacency against delta lifetime limit mode round share
certificate: expires
checkpoint: path round seconds
contradiction: path peer phase round told_by
counted: compositions lifetime lifetime_delta run
data: digest
end: complete epsilon exit_code metrics params_digest reason round signal wall_seconds
epsilon: accountant adjacency against batches delta lifetime lifetime_delta link mode round total
figures: diagnostics metrics
header: configuration cores machine node platform python run seed threads torch version
known: delta epsilon name
listening: address neighbors
lost_edge: peer phase reason round
outlier: kind peer round times
partial_mix: peer phase round
peer: peer reason round state
phase: bytes_sent kind phase round seconds
refused: code peer round
rejected: code peer round
release: recipient round
resume: checkpoint reason round skipped
roster: round version
round: consensus_distance diagnostics round seconds
state: reason state
test: metrics round
waited: peer round seconds
waiting: peer reason round since_s until_s
warning: text
withheld: reason recipient round
"""


def test_golden_list_of_events_and_fields():
    """A new field is a decision about privacy: change this list only after asking what it tells
    about private data.
    """
    found = sorted(
        f"{event}: {' '.join(sorted(fields - {'event', 'time'}))}"
        for event, fields in EVENTS.items()
    )
    assert found == GOLDEN.split("\n")[1:-1]


@pytest.mark.parametrize(
    "private", ["batch_size", "examples", "n_i", "train_loss", "histogram", "gradient", "labels"]
)
def test_private_fields_have_no_place_in_any_event(tmp_path, private):
    written = Journal(tmp_path / "journal.jsonl", HEADER)
    for event in EVENTS:
        with pytest.raises(ValueError, match=private):
            written.write(event, **{private: 1})
    with pytest.raises(ValueError, match="no field"):
        written.write("gossip", round=1)
    assert len(read(written.path)) == 1
    written.close()


def test_a_header_then_events_in_order(tmp_path):
    written = Journal(tmp_path / "journal.jsonl", HEADER)
    written.write("round", round=0, seconds=0.5, diagnostics={"weight": {"n1": 0.25}})
    written.write("test", round=0, metrics={"accuracy": 0.5, "loss": float("nan")})
    first, second, third = read(written.path)
    assert first["event"] == "header"
    assert first["configuration"] == {"algorithm": {"name": "dpdl"}}
    assert {"version", "seed", "machine", "platform", "threads", "torch", "time"} <= first.keys()
    assert second["diagnostics"] == {"weight": {"n1": 0.25}}
    assert third["metrics"]["loss"] is None
    written.close()


def test_a_line_is_on_disk_when_write_returns(tmp_path):
    written = Journal(tmp_path / "journal.jsonl", HEADER)
    written.write("roster", round=1, version=2)
    assert read(written.path)[-1]["version"] == 2
    written.close()


def test_a_torn_line_is_tolerated_and_cut_off_at_the_next_start(tmp_path):
    path = tmp_path / "journal.jsonl"
    written = Journal(path, HEADER)
    written.write("roster", round=1, version=2)
    written.close()
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for length in range(start, len(whole)):
        path.write_bytes(whole[:length])
        assert [entry["event"] for entry in read(path)] == ["header"]
        Journal(path, HEADER).close()
        assert [entry["event"] for entry in read(path)] == ["header", "header"]


def test_a_damaged_line_in_the_middle_is_one_sentence(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"event": "header"}\n{"event": \n{"event": "end"}\n')
    with pytest.raises(StorageError, match="damaged"):
        read(path)
    with pytest.raises(StorageError, match="can't be read"):
        read(tmp_path / "none.jsonl")


def test_many_threads_write_whole_lines(tmp_path):
    written = Journal(tmp_path / "journal.jsonl", HEADER)

    def work(k: int) -> None:
        for r in range(100):
            written.write("withheld", round=r, recipient=str(k), reason="x" * 200)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written.close()
    entries = read(written.path)[1:]
    assert len(entries) == 400
    assert [e["round"] for e in entries if e["recipient"] == "2"] == list(range(100))


def test_a_disk_that_is_full_leaves_whole_lines(tmp_path):
    """RLIMIT_FSIZE makes the kernel write a part of a line and then refuse, as a full disk does."""
    written = Journal(tmp_path / "journal.jsonl", HEADER)
    before = written.path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40, hard))
    try:
        with pytest.raises(StorageError, match="can't be written"):
            written.write("warning", text="y" * 500)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert written.path.read_bytes() == before
    written.write("warning", text="space is back")
    assert read(written.path)[-1]["text"] == "space is back"
    written.close()


def test_lines_are_json_for_any_reader(tmp_path):
    written = Journal(tmp_path / "journal.jsonl", HEADER)
    written.write("test", round=0, metrics={"accuracy": float("inf"), "loss": -0.0})
    written.close()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for line in written.path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
