"""`peerpoise export --out FOLDER`: a language model as transformers reads it, with what was learned
in it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="pip install 'peerpoise[llm]' brings transformers")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from kit.command import Call
from kit.model_folders import write_model
from node.config import RunConfig, load, write
from node.experiments import run_folder
from node.llm import models
from node.records.checkpoint import load_model
from node.task import views
from node.tasks import causal_lm, sealed

EXPERIMENT = """\
[algorithm]
name = "{algorithm}"
lr = 0.01
[task]
name = "causal-lm"
model = "{model}"
data = "file"
path = "{text}"
[task.text]
length = 16
dtype = "{dtype}"
lora_rank = {rank}
[train]
rounds = 3
[privacy]
mode = "none"
batch = 4
[topology]
kind = "star"
[experiment]
nodes = 3
"""


def trained(
    peerpoise: Call, folder: Path, algorithm: str, rank: int = 0, dtype: str = "float32"
) -> Path:
    """A run folder of three peers on a tiny Llama."""
    text = folder / "text.jsonl"
    text.write_text(
        "\n".join(
            f'{{"text": "{row}"}}' for row in ["the film was good", "a bad film", "the was a"] * 10
        )
    )
    about = {
        "algorithm": algorithm,
        "model": write_model(folder / "model"),
        "text": text,
        "rank": rank,
        "dtype": dtype,
    }
    (folder / "run.toml").write_text(EXPERIMENT.format(**about))
    result = peerpoise("simulate", folder / "run.toml", "--folder", folder / "run")
    assert result.code == 0, result.err
    return folder / "run"


@pytest.mark.parametrize(
    ("algorithm", "rank", "dtype"),
    [("deca", 0, "float32"), ("deca", 0, "bfloat16"), ("dec-lora", 2, "float32")],
)
def test_it_gives_the_logits_of_the_task_s_own_forward(
    peerpoise: Call, tmp_path: Path, algorithm: str, rank: int, dtype: str
) -> None:
    """The average, and a node's; neither is the model that was trained from."""
    run = trained(peerpoise, tmp_path, algorithm, rank, dtype)
    ids = torch.randint(3, 9, (2, 12), generator=torch.Generator().manual_seed(0))
    seen = [
        AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=dtype)(input_ids=ids).logits
    ]
    for k, words in enumerate((["--average"], ["--node", "n1"])):
        out = tmp_path / f"exported{k}"
        assert peerpoise("export", run, *words, "--out", out).code == 0
        model = AutoModelForCausalLM.from_pretrained(out)
        assert str(model.dtype) == f"torch.{dtype}"
        with torch.inference_mode():
            found = model(input_ids=ids).logits
        file = run / "nodes" / "n1" / "model.safetensors" if k else run / "model.safetensors"
        layout, x = load_model(file)
        task = run_folder._task(run, file, layout)
        with torch.inference_mode():
            expected = task._forward(views(layout, x), ids).logits  # type: ignore[attr-defined]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        assert not any(torch.allclose(found, other, atol=1e-4, rtol=1e-3) for other in seen)
        seen.append(found)
        assert AutoTokenizer.from_pretrained(out)("the film").input_ids == [6, 5]
        assert not [name for name in model.state_dict() if "lora" in name]


def test_the_texts_may_be_gone_or_others_but_the_model_must_be_the_same(
    peerpoise: Call, tmp_path: Path
) -> None:
    run, text = trained(peerpoise, tmp_path, "deca"), tmp_path / "text.jsonl"
    write(sealed(load(RunConfig, [run / "run.toml"])), run / "run.toml")
    text.write_text('{"text": "others"}')
    assert peerpoise("export", run, "--out", tmp_path / "exported").code == 0
    text.unlink()
    assert peerpoise("export", run, "--out", tmp_path / "exported").code == 0
    wider = LlamaConfig(
        vocab_size=16,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
    )
    for config, says in (
        (None, "is not the one the run was made with"),
        (wider, "has other tensors than"),
    ):
        write_model(tmp_path / "model", config)
        for cached in (models.identity, causal_lm._shared):  # a command is a process of its own
            cached.cache_clear()
        result = peerpoise("export", run, "--out", tmp_path / "other")
        assert result.code == 66
        assert says in result.err
        assert not (tmp_path / "other").exists()


def test_any_other_model_is_no_folder(peerpoise: Call, experiment: Path, tmp_path: Path) -> None:
    settings = ["privacy.mode=none", "privacy.epsilon="]
    words = [word for it in settings for word in ("--set", it)]
    assert peerpoise("simulate", experiment, *words, "--folder", tmp_path / "run").code == 0
    result = peerpoise("export", tmp_path / "run", "--out", tmp_path / "exported")
    assert result.code == 78
    assert result.err.splitlines() == [
        f"peerpoise: {tmp_path / 'exported'} does not end in .safetensors or .onnx; "
        "only a language model is written as a folder."
    ]
    assert not (tmp_path / "exported").exists()


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A real disk, where this user may mount one, of which next to nothing is left."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip(
            "this user may not mount a disk: run pytest as root, in a container with CAP_SYS_ADMIN"
        )
    (disk / "filler").write_bytes(bytes(56 * 1024))
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_and_a_file_in_the_way_are_a_sentence(
    peerpoise: Call, tmp_path: Path, full: Path
) -> None:
    run = trained(peerpoise, tmp_path, "deca")
    (tmp_path / "file").write_text("mine")
    for out in (full / "model", tmp_path / "file", tmp_path / "file" / "model"):
        result = peerpoise("export", run, "--out", out)
        lines = result.err.splitlines()
        assert (result.code, len(lines)) == (73, 1), result.err
        assert "can't be written" in lines[0] or "can't be made" in lines[0]
    assert (tmp_path / "file").read_text() == "mine"
