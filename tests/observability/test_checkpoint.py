"""Checkpoints: what goes in comes out, a crash at any point leaves a whole one, and no random state
is ever inside.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from safetensors.torch import save as serialized

from node.records import checkpoint
from peer.errors import DataError, StorageError
from peer.failpoint import VARIABLE
from peer.message import Layout


@dataclass(slots=True)
class State:
    x: torch.Tensor
    v: torch.Tensor
    t: int = 0
    other: Any = None


def state(t: int = 0, **other: Any) -> State:
    generator = torch.Generator().manual_seed(t)
    return State(
        torch.randn(17, generator=generator),
        torch.randn(3, 4, generator=generator),
        t,
        other or None,
    )


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, tuple):
        return type(b) is tuple and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


tensors = st.tuples(
    st.sampled_from(sorted(checkpoint.DTYPES, key=str)),
    st.lists(st.integers(0, 3), max_size=3),
).map(
    lambda made: (
        torch.ones(made[1]).cumsum(0).to(made[0]) if made[1] else torch.tensor(1).to(made[0])
    )
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | tensors,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(), inner, max_size=3)
    ),
)


def kept(folder: Path, warn: Callable[[str], None] = print) -> checkpoint.Checkpoint[State]:
    found = checkpoint.latest(folder, State, warn)
    assert found is not None
    return found


@given(other=values)
def test_whatever_a_state_holds_comes_back(tmp_path_factory, other):
    folder = tmp_path_factory.mktemp("any")
    checkpoint.save(folder, 5, State(torch.ones(2), torch.zeros(2), 5, other), {"run": "abc"})
    found = kept(folder)
    assert (found.round, found.extra, found.state.t) == (5, {"run": "abc"}, 5)
    assert same(found.state.other, other)


def test_tensors_that_share_memory_come_back_apart(tmp_path):
    x = torch.arange(6.0)
    checkpoint.save(tmp_path, 0, State(x, x[2:], 0, x.view(2, 3).T))
    found = kept(tmp_path).state
    assert same((found.x, found.v, found.other), (x, x[2:], x.view(2, 3).T))
    found.x.zero_()
    assert found.v.sum() == 14


THINGS = [
    torch.Generator(),
    object(),
    [1],
    {1: 2},
    b"bytes",
    {"a": ({},), "b": set()},
    torch.ones(2, dtype=torch.complex64),
]


@pytest.mark.parametrize("thing", THINGS)
def test_what_has_no_place_in_a_checkpoint_is_a_bug(tmp_path, thing):
    with pytest.raises(TypeError, match="a checkpoint can't hold"):
        checkpoint.save(tmp_path, 0, state(thing=thing))
    assert not list(tmp_path.iterdir())


def test_the_last_two_are_kept(tmp_path):
    assert checkpoint.latest(tmp_path, State) is None
    for t in (8, 9, 10, 11):
        checkpoint.save(tmp_path, t, state(t))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-10.safetensors",
        "checkpoint-11.safetensors",
    ]
    assert kept(tmp_path).round == 11


def damaged(path: Path, how: str) -> None:
    whole = path.read_bytes()
    match how:
        case "cut":
            path.write_bytes(whole[:-5])
        case "empty":
            path.write_bytes(b"")
        case "bit in a tensor":
            path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
        case "bit in the metadata":
            path.write_bytes(whole.replace(rb"\"round\": 2", rb"\"round\": 3"))
        case "other fields":
            checkpoint.save(path.parent, 2, Layout(()))


HOWS = ["cut", "empty", "bit in a tensor", "bit in the metadata", "other fields"]


@pytest.mark.parametrize("how", HOWS)
def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(tmp_path, how):
    for t in (1, 2):
        checkpoint.save(tmp_path, t, state(t))
    before = (tmp_path / "checkpoint-2.safetensors").read_bytes()
    damaged(tmp_path / "checkpoint-2.safetensors", how)
    assert (tmp_path / "checkpoint-2.safetensors").read_bytes() != before
    warnings: list[str] = []
    found = kept(tmp_path, warnings.append)
    assert found.round == 1
    assert same(found.state.x, state(1).x)
    assert len(warnings) == 1
    said = "of another version or algorithm" if how == "other fields" else "damaged"
    assert f"checkpoint-2.safetensors is {said} (" in warnings[0]


def test_both_damaged_is_none_and_two_sentences(tmp_path):
    for t in (1, 2):
        checkpoint.save(tmp_path, t, state(t))
        damaged(tmp_path / f"checkpoint-{t}.safetensors", "cut")
    warnings: list[str] = []
    assert checkpoint.latest(tmp_path, State, warnings.append) is None
    assert len(warnings) == 2


def test_every_flipped_byte_is_noticed(tmp_path):
    checkpoint.save(tmp_path, 1, state(1))
    path = tmp_path / "checkpoint-1.safetensors"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        found = checkpoint.latest(tmp_path, State)
        assert found is None or (
            same(found.state.x, state(1).x) and same(found.state.v, state(1).v)
        )


CHILD = """
import sys, torch
from pathlib import Path
from node.records import checkpoint
from peer import failpoint
from tests.observability.test_checkpoint import state
failpoint.arm()
checkpoint.save(Path(sys.argv[1]), 2, state(2))
"""


@pytest.mark.parametrize(
    ("point", "survives"), [("before_checkpoint_rename", 1), ("after_checkpoint_rename", 2)]
)
def test_a_kill_around_the_rename_leaves_a_whole_checkpoint(tmp_path, point, survives):
    checkpoint.save(tmp_path, 1, state(1))
    root = Path(__file__).parents[2]
    code = f"import sys; sys.path.insert(0, {str(root)!r}); {CHILD.strip().replace(chr(10), '; ')}"
    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, VARIABLE: f"{point}=kill"},
        check=False,
    )
    assert child.returncode == -9
    warnings: list[str] = []
    found = kept(tmp_path, warnings.append)
    assert (found.round, warnings) == (survives, [])
    assert same(found.state.x, state(survives).x)


def test_a_full_disk_is_one_sentence_and_keeps_the_old(tmp_path, small_files):
    checkpoint.save(tmp_path, 1, state(1))
    with small_files(100), pytest.raises(StorageError, match="File too large; free space"):
        checkpoint.save(tmp_path, 2, state(2))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1.safetensors"]
    checkpoint.save(tmp_path, 2, state(2))
    assert kept(tmp_path).round == 2


def test_no_state_of_any_generator_is_in_a_checkpoint(tmp_path):
    """The names that generators' states have, and the bytes of torch's, in a file made amid used
    generators.
    """
    torch.randn(3)
    random_state = torch.random.get_rng_state().numpy().tobytes()
    path = checkpoint.save(tmp_path, 1, state(1, moments=(torch.ones(3),)), {"run": "abc"})
    content = path.read_bytes()
    assert random_state[8:200] not in content
    for word in (b"rng", b"generator", b"noise", b"pickle", b"seed"):
        assert word not in content.lower()
    source = Path(checkpoint.__file__).read_text(encoding="utf-8")
    assert not re.findall(
        r"get_rng_state|import pickle|import random|(?<!safetensors\.)torch\.(?:save|load)", source
    )


LAYOUT = Layout((("b.weight", (2, 3)), ("a.bias", (2,))))


def test_a_model_comes_back_and_others_can_read_it(tmp_path):
    x = torch.arange(8.0)
    checkpoint.save_model(tmp_path / "model.safetensors", LAYOUT, x)
    layout, found = checkpoint.load_model(tmp_path / "model.safetensors")
    assert layout == LAYOUT
    assert torch.equal(found, x)
    named = load_file(tmp_path / "model.safetensors")
    assert torch.equal(named["b.weight"], x[:6].view(2, 3))
    assert torch.equal(named["a.bias"], x[6:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_the_file_that_safetensors_writes(tmp_path, dtype):
    """To the byte, though it is written from where x lies; b takes two pieces."""
    layout = Layout((("b", (checkpoint.PIECE + 1,)), ("a", (2, 3)), ("scalar", ()), ("c", (0,))))
    x = torch.randn(layout.size).to(dtype)
    checkpoint.save_model(tmp_path / "model.safetensors", layout, x)
    parts = {"b": x[:-7], "a": x[-7:-1].view(2, 3), "scalar": x[-1], "c": x[:0]}
    copies = {name: part.float().clone() for name, part in parts.items()}
    assert (tmp_path / "model.safetensors").read_bytes() == serialized(
        copies, {"layout": '["b", "a", "scalar", "c"]'}
    )


SAVING = """
import sys, torch
from pathlib import Path
from safetensors.torch import save
from node.records import checkpoint, summary
from node.algorithms.deca import State
from peer.message import Layout

def kib(field):
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0])

torch.set_num_threads(1)
folder, n = Path(sys.argv[1]), 1 << 25
for size in (n >> 10, n):  # the first round loads what is loaded late
    it = State(x=torch.ones(size, dtype=torch.bfloat16), theta=torch.ones(size // 8), m=torch.ones(size // 8))
    layout, held = Layout((("w", (size,)),)), kib("VmRSS")
    for work in (
        lambda: summary.digest(it.x),
        lambda: summary.norm(it.x),
        lambda: checkpoint.save(folder, 0, it),
        lambda: checkpoint.save_model(folder / "model.safetensors", layout, it.x),
        lambda: save({"x": it.x}),
    ):
        work()
        print((kib("VmHWM") - held) / (2 * n / 1024))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells peaks")
def test_saving_takes_no_copy_of_the_model(tmp_path):
    """In units of a model in bfloat16, 64 MiB. Power: the last one is safetensors' own way, in
    bytes.

    A copy would be 1 or more; the pieces and what the allocator keeps of them are about 0.2.
    """
    command = [sys.executable, "-c", SAVING, str(tmp_path)]
    child = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    *ours, theirs = map(float, child.stdout.split()[5:])
    assert max(ours) < 0.3
    assert theirs > 0.9


def test_a_file_that_is_no_model_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="no model"):
        checkpoint.load_model(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("hello, this is no model")
    with pytest.raises(DataError, match="no model of peerpoise"):
        checkpoint.load_model(tmp_path / "text.safetensors")
    path = checkpoint.save(tmp_path, 1, state(1))
    with pytest.raises(DataError, match="no model of peerpoise"):
        checkpoint.load_model(path)
