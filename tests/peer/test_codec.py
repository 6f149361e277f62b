"""What arrives is checked: whatever the bytes, the outcome is a message within its limits or
`Malformed`.
"""

from __future__ import annotations

import random
import resource
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.fuzz import mutated
from peer import codec, message
from peer.errors import Malformed
from peer.message import MAX_NOTE
from peer.v1 import peer_pb2 as pb

MESSAGES = (
    pb.Header,
    pb.Trailer,
    pb.Verdict,
    pb.SignedHead,
    pb.Hello,
    pb.Welcome,
    pb.Beat,
    pb.Leave,
    pb.Announcement,
    pb.Peers,
)
ID = "a" * 52
HEAD = pb.SignedHead(sequence=9, digest=bytes(32))


def header(**changes: Any) -> pb.Header:
    fields: dict[str, Any] = {
        "protocol": 1,
        "run": "r1",
        "sender": ID,
        "receiver": "b" * 52,
        "role": pb.ROLE_MIX,
        "kind": "state",
        "layout": bytes(32),
        "parts": 1,
        "dtype": pb.DTYPE_FLOAT32,
        "bytes": 400,
    }
    return pb.Header(**(fields | changes))


def hello(**changes: Any) -> pb.Hello:
    fields: dict[str, Any] = {
        "run": "r1",
        "sender": ID,
        "receiver": "b" * 52,
        "nonce": bytes(32),
        "round": -1,
    }
    return pb.Hello(**(fields | changes))


def rule(message: Message) -> None:
    """Serialises past `encode`, as a hostile peer would, and decodes."""
    codec.decode(type(message), message.SerializeToString())


def test_messages_survive_the_way_there_and_back() -> None:
    for sent in (
        header(heard=[ID], note=b"n" * MAX_NOTE),
        hello(),
        pb.Verdict(code=pb.CODE_OK),
        pb.Trailer(bytes=400),
    ):
        assert codec.decode(type(sent), codec.encode(sent)) == sent


@pytest.mark.parametrize(
    "bad",
    [
        header(run=""),
        header(run="x" * 65),
        header(sender="a b"),
        header(receiver="../../etc"),
        header(sender="\x1b[2J"),
        header(kind="k\n"),
        header(round=1 << 31),
        header(phase=1 << 16),
        header(role=0),
        header(role=99),
        header(dtype=9),
        header(dtype=0),
        header(parts=0),
        header(parts=65),
        header(layout=bytes(31)),
        header(layout=bytes(33)),
        header(bytes=(1 << 40) + 1),
        header(heard=[ID] * 1025),
        header(heard=["?"]),
        header(note=bytes(MAX_NOTE + 1)),
        hello(nonce=bytes(31)),
        hello(nonce=b""),
        hello(round=-2),
        hello(round=1 << 31),
        hello(digests={"layout": bytes(1)}),
        hello(digests={"a b": bytes(32)}),
        hello(digests={f"d{i}": bytes(32) for i in range(codec.MAX_DIGESTS + 1)}),
        hello(version="v" * 513),
        hello(head=pb.SignedHead(sequence=1, digest=b"short")),
        pb.Welcome(spki=bytes(257)),
        pb.Welcome(signature=bytes(81)),
        pb.Welcome(detail="\x1b[31m"),
        pb.Welcome(remembered=pb.SignedHead(digest=b"short")),
        pb.Beat(run="r1", sender=ID, live=["\n"]),
        pb.Beat(run="r1", sender=ID, waiting_for=[ID] * 1025),
        pb.Leave(run="r1", sender=""),
    ],
    ids=str,
)
def test_a_field_outside_its_limits_is_malformed(bad: Message) -> None:
    with pytest.raises(Malformed):
        rule(bad)
    with pytest.raises(Malformed):
        codec.encode(bad)


def test_the_handshake_of_an_earlier_protocol_can_be_read_to_be_refused() -> None:
    """Protocol 2 had the layout's digest, bytes, at field 8, where no field is today: read as one
    of another type it would be malformed, and its sender would never hear of another protocol."""
    earlier = hello(protocol=2).SerializeToString() + bytes([8 << 3 | 2, 32]) + bytes(32)
    assert codec.decode(pb.Hello, earlier).protocol == 2


def test_a_message_above_the_cap_is_malformed_before_it_is_parsed() -> None:
    with pytest.raises(Malformed, match="too long"):
        codec.decode(pb.Beat, bytes(codec.MAX_CONTROL + 1))
    largest = header(heard=["x" * 64] * codec.MAX_PEERS)
    assert codec.decode(pb.Header, codec.encode(largest)) == largest


def test_bytes_that_are_no_text_are_malformed() -> None:
    with pytest.raises(Malformed):
        codec.decode(pb.Leave, b"\x0a\x02\xff\xfe")


def test_every_field_of_every_message_has_a_rule() -> None:
    fields = {field.name for cls in MESSAGES for field in cls.DESCRIPTOR.fields}
    assert fields == set(codec.RULES)


@given(st.integers(0, 5 * codec.FRAME))
@settings(max_examples=200, deadline=None)
def test_frames_cover_the_payload_once_and_in_order(total: int) -> None:
    place = 0
    for offset, length in codec.frames(total):
        assert offset == place
        assert 0 < length <= codec.FRAME
        place += length
    assert place == total
    assert codec.FRAME % 64 == 0
    assert 2 * codec.FRAME <= codec.MAX_MESSAGE


def test_a_frame_of_another_length_is_malformed() -> None:
    assert bytes(codec.frame(b"abc", 3)) == b"abc"
    for wrong in (b"", b"ab", b"abcd"):
        with pytest.raises(Malformed):
            codec.frame(wrong, 3)


def test_each_code_has_a_sentence_and_an_unknown_one_reads_as_no_reason() -> None:
    sentences = [codec.sentence(code) for code in pb.Code.values()]
    assert all(s.endswith(".") and s[0].isupper() for s in sentences)
    assert len(set(sentences)) == len(sentences)
    assert codec.sentence(10_000) == codec.sentence(pb.CODE_UNSPECIFIED)


def test_a_newer_peers_code_and_fields_can_be_read() -> None:
    code: Any = 77
    newer = (
        pb.Verdict(code=code, detail="x").SerializeToString() + b"\xa2\x06\x03abc"
    )  # field 100, unknown here
    assert codec.decode(pb.Verdict, newer).code == 77


def test_element_types_have_the_same_numbers_everywhere() -> None:
    assert {f"DTYPE_{t.name}": int(t) for t in message.DType} | {"DTYPE_UNSPECIFIED": 0} == dict(
        pb.DType.items()
    )


@given(st.text(max_size=2000))
def test_any_text_can_be_made_fit_for_a_detail(text: str) -> None:
    rule(pb.Verdict(detail=codec.printable(text)))


@given(st.sampled_from(MESSAGES), st.binary(max_size=400))
@settings(max_examples=500, deadline=None)
def test_any_bytes_give_a_message_or_malformed(cls: type[Message], data: bytes) -> None:
    try:
        assert codec.encode(codec.decode(cls, data)) is not None
    except Malformed:
        pass


def test_a_hundred_thousand_fuzzed_messages_raise_only_malformed_and_memory_stays_flat() -> None:
    rng = random.Random(7)
    valid = {cls: [codec.encode(header(heard=[ID] * 3))] for cls in MESSAGES}
    valid[pb.Hello] = [codec.encode(hello(head=HEAD, digests={"layout": bytes(32)}, version="1"))]
    valid[pb.Beat] = [
        codec.encode(pb.Beat(run="r", sender=ID, live=[ID], waiting_for=[ID], idle_ms=1 << 20))
    ]
    valid[pb.Welcome] = [
        codec.encode(
            pb.Welcome(code=pb.CODE_OK, spki=bytes(91), signature=bytes(72), detail="x" * 99)
        )
    ]
    outcomes = {"message": 0, "malformed": 0}

    def fuzz(times: int) -> None:
        for i in range(times):
            cls = MESSAGES[i % len(MESSAGES)]
            data = mutated(valid[cls], rng)
            try:
                codec.decode(cls, data)
                codec.frame(data, rng.choice((len(data), rng.randrange(1 << 20))))
                outcomes["message"] += 1
            except Malformed:
                outcomes["malformed"] += 1

    fuzz(5_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fuzz(95_000)
    assert min(outcomes.values()) > 500, "the fuzz must reach both outcomes"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024  # KiB
