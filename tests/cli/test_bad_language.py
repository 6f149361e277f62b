"""Bad input to language models and to algorithms that train block by block: one sentence and its
exit code.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="pip install 'peerpoise[llm]' brings transformers")

from transformers import AutoModelForCausalLM, BertConfig, LlamaConfig, T5Config

from kit.command import Call, Result
from kit.model_folders import write_model
from node.algorithms import find
from node.config import ExperimentConfig, PrivacySection, RunConfig, load
from node.learning import requirements
from node.llm import models
from node.tasks import causal_lm, make

EXPERIMENT = """\
[algorithm]
name = "deca"
steps = 2
layers_per_block = 1
[task]
name = "causal-lm"
model = "{model}"
data = "file"
path = "{text}"
[task.text]
length = 16
[train]
rounds = 2
evaluate_every = 0
[privacy]
mode = "none"
[start]
timeout_s = 0.5
[experiment]
nodes = 3
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    lines = [
        f'{{"text": "{row}"}}'
        for row in ["the film was good", "a bad film", "the film was a film"] * 5
    ]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    return tmp_path / "text.jsonl"


@pytest.fixture
def tiny(tmp_path: Path, model: Path, text: Path) -> Path:
    """DECA on a tiny Llama."""
    (tmp_path / "tiny.toml").write_text(EXPERIMENT.format(model=model, text=text))
    return tmp_path / "tiny.toml"


def refused(result: Result, code: int, *says: str) -> None:
    """One sentence that says so, below what is said of mode none."""
    lines = [line for line in result.err.splitlines() if "warning: Mode none" not in line]
    assert (result.code, len(lines)) == (code, 1), result.err
    assert lines[0].startswith("peerpoise: ")
    assert "Traceback" not in result.out
    for it in says:
        assert it in lines[0]


def played(peerpoise: Call, tiny: Path, *settings: str) -> Result:
    words = [word for it in settings for word in ("--set", it)]
    return peerpoise("simulate", tiny, *words, "--folder", tiny.parent / "run")


def packed(peerpoise: Call, tiny: Path, *words: str) -> Path:
    """The first of three hosts."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in "abc"]
        ports = [probe.getsockname()[1] for probe in probes]
    hosts = [
        word
        for name, port in zip("abc", ports, strict=True)
        for word in ("--host", f"{name}=127.0.0.1:{port}")
    ]
    result = peerpoise("pack", tiny, *hosts, *words, "--out", tiny.parent / "packed")
    assert result.code == 0, result.err
    return tiny.parent / "packed" / "a"


# ------------------------------------------------------------------------------------------- models


def no_layers(folder: Path) -> None:
    write_model(
        folder,
        LlamaConfig(vocab_size=16, hidden_size=16, num_hidden_layers=0, num_attention_heads=2),
    )


def no_pad(folder: Path) -> None:
    write_model(folder, eos_token="<end>")


def no_order(folder: Path) -> None:
    write_model(
        folder,
        BertConfig(vocab_size=16, hidden_size=16, num_hidden_layers=2, num_attention_heads=2),
    )


def no_decoder(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(T5Config().to_dict()))


@pytest.mark.parametrize(
    ("spoil", "code", "says"),
    [
        (no_layers, 78, "No layers are recognized in LlamaForCausalLM"),
        (no_pad, 78, "has no pad token; set pad_token"),
        (no_order, 78, "is not causal"),
        (no_decoder, 66, "There is no language model"),
    ],
)
def test_a_model_that_cant_be_trained(
    peerpoise: Call, tiny: Path, model: Path, spoil: Callable[[Path], None], code: int, says: str
) -> None:
    spoil(model)
    refused(played(peerpoise, tiny), code, says)
    refused(peerpoise("config", "check", tiny), code, says)


@pytest.mark.parametrize(
    ("settings", "code", "says"),
    [
        (["task.text.length=65"], 78, "task.text.length = 65, but"),
        (
            [f"task.text.digest={64 * 'a'}"],
            78,
            "another version of peerpoise wrote it; write run.toml again",
        ),
        (["algorithm.name=dec-lora"], 78, "unknown key"),
        (["algorithm.layers_per_block=0"], 78, "algorithm.layers_per_block: "),
        (["algorithm.order=upwards"], 78, "algorithm.order: "),
        (["algorithm.bma=signal"], 78, "algorithm.bma: "),
        (["algorithm.wire=bfloat16"], 78, "algorithm.wire: "),
        (
            ["privacy.mode=paper", "privacy.sigma=1"],
            78,
            'privacy.mode = "paper" is not defined for deca',
        ),
    ],
)
def test_a_run_that_cant_be(
    peerpoise: Call, tiny: Path, settings: list[str], code: int, says: str
) -> None:
    refused(played(peerpoise, tiny, *settings), code, says)


def test_adapters_are_averaged_only_where_there_are_some(
    peerpoise: Call, tiny: Path, tmp_path: Path
) -> None:
    bare = tiny.read_text(encoding="utf-8").replace(
        '"deca"\nsteps = 2\nlayers_per_block = 1', '"dec-lora"'
    )
    tiny.write_text(bare, encoding="utf-8")
    says = "dec-lora averages adapters; set task.text.lora_rank"
    refused(played(peerpoise, tiny), 78, says)
    refused(peerpoise("config", "check", tiny), 78, says)
    assert peerpoise("config", "check", tiny, "--set", "task.text.lora_rank=2").code == 0


def flat(run: RunConfig, data: Any) -> Any:
    """A task of one's own that names no layers."""
    task = make(
        run.model_copy(update={"task": run.task.model_copy(update={"name": "classification"})}),
        data,
    )
    del task.layer_groups
    return task


def test_a_task_that_names_no_layers(
    peerpoise: Call, experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    settings = [
        "algorithm.name=deca",
        "task.name=test_bad_language:flat",
        "privacy.mode=none",
        "privacy.epsilon=",
    ]
    words = [word for it in settings for word in ("--set", it)]
    refused(
        peerpoise("config", "check", experiment, *words),
        78,
        "The task names no layers (layer_groups)",
    )
    run = ["simulate", experiment, *words, "--folder", experiment.parent / "run"]
    refused(peerpoise(*run), 78, "The task names no layers (layer_groups)")


def test_rounds_need_not_be_whole_visits(peerpoise: Call, tiny: Path) -> None:
    result = played(peerpoise, tiny, "train.rounds=3")
    assert result.code == 0, result.err
    assert "visit" not in result.err


# -------------------------------------------------------------------------------------------- texts


def no_rows(text: Path) -> None:
    text.write_text("", encoding="utf-8")


def one_row(text: Path) -> None:
    text.write_text('{"text": "a film"}\n', encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "says"), [(no_rows, "has no rows"), (one_row, "none to test on; name task.text.test")]
)
def test_a_file_with_too_few_rows(
    peerpoise: Call, tiny: Path, text: Path, spoil: Callable[[Path], None], says: str
) -> None:
    spoil(text)
    refused(played(peerpoise, tiny), 66, "text.jsonl", says)
    refused(peerpoise("config", "check", tiny), 66, "text.jsonl", says)


def test_more_nodes_than_rows(peerpoise: Call, tiny: Path) -> None:
    refused(played(peerpoise, tiny, "experiment.nodes=13"), 78, "are more than the 12 examples")


@pytest.mark.parametrize("name", ["test.jsonl", "test.txt", "tests"])
def test_a_test_set_without_rows(peerpoise: Call, tiny: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).write_text("\n")
    says = "holds no text" if name == "tests" else "has no rows"
    refused(played(peerpoise, tiny, f"task.text.test={tmp_path / name}"), 66, name, says)


def test_a_node_without_rows(peerpoise: Call, tiny: Path) -> None:
    home = packed(peerpoise, tiny)
    np.save(home / "rows.npy", np.array([], dtype=np.int64))
    refused(peerpoise("run", "--config", home / "node.toml"), 66, "rows.npy names no rows")


def test_a_node_with_an_empty_file_of_its_own(peerpoise: Call, tiny: Path) -> None:
    data = [word for name in "abc" for word in ("--data", f"{name}=ward:data.jsonl")]
    home = packed(peerpoise, tiny, "--set", "task.data=own", "--set", "task.path=", *data)
    (home / "data.jsonl").write_text("")
    refused(peerpoise("run", "--config", home / "node.toml"), 66, "data.jsonl has no rows")


# ------------------------------------------------------------------------------ what does not agree


def test_peers_with_different_models(
    peerpoise: Call, tiny: Path, model: Path, tmp_path: Path
) -> None:
    """The other host's folder of the same name holds another model of the same shape. The right one
    is let in.
    """
    home, right = packed(peerpoise, tiny), tmp_path / "right"
    shutil.copytree(model, right)
    untyped: Any = AutoModelForCausalLM
    untyped.from_config(untyped.from_pretrained(model).config).save_pretrained(model)
    for code, says in ((66, "is not the one the run was made with"), (69, "b: ")):
        for cached in (models.identity, causal_lm._shared):  # a daemon is a process of its own
            cached.cache_clear()
        refused(peerpoise("run", "--quiet", "--config", home / "node.toml"), code, says)
        shutil.copytree(right, model, dirs_exist_ok=True)


# ------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(("each", "missing"), [(1, 0), (1, 1), (3, 0)])
def test_a_block_larger_than_memory(
    peerpoise: Call, tiny: Path, monkeypatch: pytest.MonkeyPatch, each: int, missing: int
) -> None:
    """Just enough for a block of one layer of 2,208 parameters (θ, m, v, gradient, one sum of
    neighbors), or a byte less."""
    layer = 4 * 16 * 16 + 3 * 16 * 24 + 2 * 16
    monkeypatch.setattr(requirements, "available_memory", lambda: 5 * 4 * layer - missing)
    result = played(peerpoise, tiny, f"algorithm.layers_per_block={each}")
    if (each, missing) == (1, 0):
        assert result.code == 0, result.err
    else:
        refused(result, 78, f"algorithm.layers_per_block = {each} makes blocks that take")


@pytest.mark.parametrize(
    ("algorithm", "held"), [("deca", 2 + 20 / 3), ("dsgd-adam", 4 * (28 + 3 + 6 * 2))]
)
def test_what_a_host_is_said_to_need(tiny: Path, algorithm: str, held: float) -> None:
    """M + 10M/B of a model in bfloat16 with B = 3 blocks, whatever the degree; without privacy no
    chunk of gradients. With it a chunk of the block's."""
    run = load(ExperimentConfig, [tiny], ["task.text.dtype=bfloat16"], environ={})
    task, kind = make(run, np.arange(4)), find(algorithm)
    options, d = (
        kind.Config(**({"layers_per_block": 1} if algorithm == "deca" else {})),
        task.layout.size,
    )
    strict = PrivacySection(mode="strict", sigma=1.0, chunk=16)
    runs = (run, run.model_copy(update={"privacy": strict}))
    need = [requirements.memory_needed(options, it, task, 2) - requirements.BASE for it in runs]
    assert need[0] == pytest.approx(held * d)
    assert need[1] - need[0] == 4 * 3 * (16 * d / 3 if algorithm == "deca" else 15 * d)


def test_a_check_of_a_host_knows_blocks_too_large(
    peerpoise: Call, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = packed(peerpoise, tiny)
    assert peerpoise("config", "check", home / "node.toml").code == 0
    monkeypatch.setattr(requirements, "available_memory", lambda: 1000)
    result = peerpoise("config", "check", home / "node.toml")
    assert result.code == 78
    assert "memory needed: algorithm.layers_per_block = 1" in result.err
