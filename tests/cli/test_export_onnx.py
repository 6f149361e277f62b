"""`peerpoise export --format onnx`: other programs get what torch gives."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import peerpoise as public
from kit import wards
from kit.command import Call
from node.config import TaskSection
from node.learning import onnx_file, use
from node.models import MODELS, build
from node.records.exported import ModelInfo
from peer.errors import ConfigurationError, StorageError

EXTRA = "pip install 'peerpoise[onnx]'"
needs_onnx = pytest.mark.skipif(not (find_spec("onnx") and find_spec("onnxscript")), reason=EXTRA)
TABLE = """
[task]
data = "file"
path = "a.csv"
label = "died"
labels = ["no", "yes"]
model = "mlp"
hidden = 8
[task.features]
age = [60, 15]
ward = { kind = "category", values = ["emergency", "medical", "surgical"] }
[algorithm]
name = "d-psgd"
lr = 0.5
[train]
rounds = 5
[privacy]
sigma = 2.0
rate = 0.2
batch = 20
[experiment]
nodes = 2
"""


@pytest.fixture
def run(tmp_path: Path, peerpoise: Call, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    wards.write(tmp_path, 120)
    (tmp_path / "table.toml").write_text(TABLE, encoding="utf-8")
    assert peerpoise("simulate", "table.toml", "--folder", "run").code == 0
    return tmp_path / "run"


def model_of(task: TaskSection, shape: tuple[int, int, int]) -> use.Model:
    torch.manual_seed(0)
    about = {"version": "1", "run": "r", "run_id": "1", "nodes": 2, "algorithm": "d-psgd"}
    info = ModelInfo(**about, rounds=1, task=task, input_shape=shape, privacy="None.")  # type: ignore[arg-type]
    return use.Model(info, build(task, shape))


@pytest.mark.extras
@needs_onnx
@pytest.mark.parametrize("option", [(), ("--format", "onnx")])
def test_a_table_is_scored_the_same(run: Path, peerpoise: Call, option: tuple[str, ...]) -> None:
    import onnx

    file = "ward.onnx" if not option else "ward.bin"
    ended = peerpoise("export", run, "--out", file, *option)
    assert (ended.code, ended.err) == (0, "")
    assert peerpoise("export", run, "--out", "plain.safetensors").code == 0
    model = public.load("plain.safetensors")
    x = torch.randn(11, 4)
    expected = model.predict(x).values
    assert torch.allclose(torch.from_numpy(by_onnx(Path(file), x)), expected, atol=1e-6)
    about = {each.key: each.value for each in onnx.load(file).metadata_props}
    assert ModelInfo.model_validate_json(about["peerpoise"]) == model.info
    assert about["run_id"] == model.info.run_id
    assert "ε_total ≤ " in about["privacy"]
    assert json.loads(about["labels"]) == ["no", "yes"]
    assert json.loads(about["features"])["ward"]["values"] == ["emergency", "medical", "surgical"]
    assert Path("ward.md").exists(), "the card"


def by_onnx(file: Path, x: torch.Tensor) -> Any:
    """What onnxruntime computes where it is installed, else the reference evaluator."""
    if find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        outputs: Any = session.run(None, {"x": x.numpy()})
        return outputs[0]
    from onnx.reference import ReferenceEvaluator

    (output,) = ReferenceEvaluator(file).run(None, {"x": x.numpy()})
    return output


@pytest.mark.extras
@needs_onnx
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_can_be_exported(tmp_path: Path, name: str) -> None:
    shape = (3, 32, 32) if name in ("cnn-cifar", "resnet8") else (1, 28, 28)
    model = model_of(TaskSection(model=name), shape)
    onnx_file.write(model, tmp_path / "m.onnx")
    x = torch.rand(3, *shape)
    given = torch.from_numpy(by_onnx(tmp_path / "m.onnx", x))
    assert torch.allclose(given, model.predict(x).values, atol=1e-5)


@pytest.mark.extras
@needs_onnx
def test_a_regression_gives_numbers_in_their_unit(tmp_path: Path) -> None:
    columns = {"a": [0, 1], "b": [0, 1]}
    task = TaskSection.model_validate(
        {"name": "regression", "model": "mlp", "target": [200.0, 50.0], "features": columns}
    )
    model = model_of(task, (1, 1, 2))
    onnx_file.write(model, tmp_path / "m.onnx")
    x = torch.randn(5, 2)
    given = torch.from_numpy(by_onnx(tmp_path / "m.onnx", x))
    assert given.shape == (5,)
    assert torch.allclose(given, model.predict(x).values, rtol=1e-5)


@pytest.mark.extras
@needs_onnx
def test_a_file_that_computes_something_else_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(TaskSection(model="softmax"), (1, 28, 28))
    compare = onnx_file._compare

    def other(served: torch.nn.Module, written: bytes, shape: tuple[int, ...]) -> None:
        with torch.no_grad():
            next(served.parameters()).mul_(1.01)
        compare(served, written, shape)

    monkeypatch.setattr(onnx_file, "_compare", other)
    with pytest.raises(ConfigurationError, match="something else as ONNX than in torch"):
        onnx_file.write(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_it_says_what_to_install(
    run: Path, peerpoise: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    ended = peerpoise("export", run, "--out", "ward.onnx")
    assert ended.code == ConfigurationError.exit_code
    assert EXTRA in ended.err
    assert not Path("ward.onnx").exists()
    assert not Path("ward.md").exists()


def test_what_lies_beside_an_export_is_not_overwritten(run: Path, peerpoise: Call) -> None:
    Path("ward.md").write_text("# My notes\n", encoding="utf-8")
    ended = peerpoise("export", run, "--out", "ward.safetensors")
    assert ended.code == StorageError.exit_code
    assert "ward.md exists and is no model card" in ended.err
    assert Path("ward.md").read_text(encoding="utf-8") == "# My notes\n"
    assert not Path("ward.safetensors").exists()
    for _ in range(2):
        assert peerpoise("export", run, "--out", "other.safetensors").code == 0
    assert "| privacy |" in Path("other.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["causal-lm", "mine:make_task"])
def test_what_no_graph_of_ours_computes_is_a_sentence(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = {"version": "1", "run": "r", "run_id": "1", "nodes": 2, "algorithm": "d-psgd"}
    info = ModelInfo(**about, rounds=1, task=TaskSection(name=name), privacy="None.")  # type: ignore[arg-type]
    layout = public.Layout((("a", (1,)),))
    with pytest.raises(ConfigurationError, match=r"exported to a folder, .* your own module"):
        use.of(info, layout, torch.zeros(1), Path("run/model.safetensors"))
