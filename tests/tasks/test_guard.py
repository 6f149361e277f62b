"""Mistakes in the code of an own task: one sentence that names the file and the line, and never a
bug of ours.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from node import data as datasets
from node import tasks
from node.config import ExperimentConfig, RunConfig
from node.experiments import in_process
from node.experiments.resolve import resolve
from node.figures import Metric
from node.task import Stopped
from node.tasks.guard import Guarded, guard
from peer.errors import (
    BudgetSpent,
    ConfigurationError,
    DataError,
    LedgerError,
    PeerpoiseError,
    Refused,
    StorageError,
    TaskError,
    TemporaryFailure,
)
from peer.message import Layout

TASK = """\
import sys
import numpy as np
import peerpoise
import torch
from torch.nn import functional
from peer.errors import DataError
from peer.message import Layout

# at the top


class Task:
    layout = Layout((("w", (3, 4)), ("b", (3,))))

    def __init__(self, rows):
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(1500, 4, generator=generator)[rows]
        self.y = self.x.argmax(1) % 3
        self.calls = 0

    @property
    def num_examples(self):
        return len(self.x)

    def initial_parameters(self, seed):
        return torch.zeros(15)

    def batch(self, rows):
        self.calls += 1
        return self.x[rows], self.y[rows]

    def loss(self, parameters, example):
        x, y = example
        return functional.cross_entropy(parameters["w"] @ x + parameters["b"], y)

    def mean_loss(self, parameters, batch):
        x, y = batch
        return functional.cross_entropy(x @ parameters["w"].T + parameters["b"], y)

    def evaluate(self, x, yield_point=lambda: None):
        return {"accuracy": 0.5}


def make_task(run, data):
    return Task(torch.from_numpy(data))
"""


LOSS = 'return functional.cross_entropy(parameters["w"] @ x + parameters["b"], y)'


def settings(**sections: dict[str, Any]) -> ExperimentConfig:
    values: dict[str, Any] = {
        "train": {"rounds": 3, "evaluate_every": 1},
        "algorithm": {"name": "d-psgd", "lr": 0.1},
        "privacy": {"mode": "strict", "sigma": 2.0, "delta": 1e-3, "rate": 0.02, "batch": 10},
        "experiment": {"nodes": 2, "partition": "iid"},
        "task": {"name": "mine:make_task"},
    }
    return ExperimentConfig(**{**values, **sections})


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Simulates the task with one piece of its code replaced."""
    monkeypatch.syspath_prepend(tmp_path)

    def simulate(old: str, new: str, **sections: dict[str, Any]) -> Any:
        assert TASK.count(old) == 1
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        (tmp_path / "mine.py").write_text(TASK.replace(old, new), encoding="utf-8")
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        return in_process.simulate(settings(**sections), tmp_path / "run")

    return simulate


CALLS = "self.calls += 1"
MAKE = "    return Task("
RAISED = {
    "import of nothing": (
        "# at the top",
        "import a_package_i_forgot",
        "import raised ModuleNotFoundError",
    ),
    "name at the top": ("# at the top", "SIZE = LENGTH", "import raised NameError"),
    "exit at the top": (
        "# at the top",
        "sys.exit('no license')",
        "import raised SystemExit: no license",
    ),
    "import from": ("# at the top", "from torch import nothing", "import raised ImportError"),
    "assertion at the top": (
        "# at the top",
        "assert torch.cuda.device_count() > 99",
        "import raised AssertionError",
    ),
    "make": (
        "    return Task(",
        "    raise KeyError('ward_7')\n    return Task(",
        "make_task raised KeyError: 'ward_7'",
    ),
    "make, arguments": ("(run, data)", "(run)", "make_task raised TypeError"),
    "make, exit": (MAKE, f"    sys.exit(3)\n{MAKE}", "make_task raised SystemExit: 3"),
    "make, drive": (
        "    return Task(",
        "    open('/nowhere/a.npz')\n    return Task(",
        "make_task raised FileNotFoundError",
    ),
    "init": ("self.calls = 0", "self.n = len(self.labels)", "make_task raised AttributeError"),
    "layout of a number": (
        'Layout((("w", (3, 4)), ("b", (3,))))',
        "Layout(1, 2, 3)",
        "import raised TypeError",
    ),
    "examples, attribute": (
        "return len(self.x)",
        "return len(self.rows)",
        "examples raised AttributeError",
    ),
    "examples, division": (
        "return len(self.x)",
        "return 1 // 0",
        "examples raised ZeroDivisionError",
    ),
    "initial_parameters": (
        "return torch.zeros(15)",
        "return torch.load('start.pt')",
        "initial_parameters raised FileNotFoundError",
    ),
    "start, seed": (
        "def initial_parameters(self, seed)",
        "def initial_parameters(self)",
        "initial_parameters raised TypeError",
    ),
    "batch, attribute": ("self.y[rows]", "self.labels[rows]", "batch raised AttributeError"),
    "batch, index": (
        "self.x[rows], self.y",
        "self.x[rows + 9999], self.y",
        "batch raised IndexError",
    ),
    "batch, later": (
        "self.calls += 1",
        "self.calls += 1; 1 / max(0, 4 - self.calls)",
        "batch raised ZeroDivisionError",
    ),
    "batch, exit": (CALLS, "sys.exit('no more')", "batch raised SystemExit: no more"),
    "batch, deep": (CALLS, "(f := lambda: f())()", "batch raised RecursionError"),
    "loss, shape": ("@ x + parameters", "@ x[:3] + parameters", "loss raised RuntimeError"),
    "loss, name": ('parameters["w"] @', 'parameters["weight"] @', "loss raised KeyError: 'weight'"),
    "loss, stop": (
        "        x, y = example",
        "        next(iter([]))\n        x, y = example",
        "loss raised StopIteration",
    ),
    "mean_loss": ("x @ parameters", "x @ x + parameters", "mean_loss raised RuntimeError"),
    "evaluate": (
        'return {"accuracy": 0.5}',
        "return {'accuracy': self.test}",
        "evaluate raised AttributeError",
    ),
    "evaluate, sentence of many lines": (
        'return {"',
        'raise ValueError("one\\ntwo")\n        return {"',
        "ValueError: one",
    ),
    "group": (
        "self.calls += 1",
        "raise ExceptionGroup('many', [ValueError('a')])",
        "batch raised ExceptionGroup: many",
    ),
    "own kind": (
        CALLS,
        "raise type('Gone', (BaseException,), {})('away')",
        "batch raised Gone: away",
    ),
}


@pytest.mark.parametrize("mistake", RAISED)
def test_what_the_code_raises_is_one_sentence_with_its_line(
    play: Callable[..., Any], mistake: str
) -> None:
    old, new, sentence = RAISED[mistake]
    mode: dict[str, Any] = {"privacy": {"mode": "none"}} if mistake == "mean_loss" else {}
    with pytest.raises(TaskError) as caught:
        play(old, new, **mode)
    [number] = [
        i
        for i, line in enumerate(TASK.replace(old, new).splitlines(), 1)
        if new.splitlines()[0] in line
    ]
    text = str(caught.value)
    assert text.startswith("task.name = 'mine:make_task': ")
    assert sentence in text
    assert caught.value.exit_code == 78
    assert "\n" not in text
    if (
        "arguments" not in mistake and mistake != "start, seed"
    ):  # the call itself failed, and that is ours
        place = re.search(r" \(mine\.py, line (\d+)\)\.$", text)
        assert place, text
        assert number <= int(place[1]) <= number + 1


METRIC = "class Task:\n    metrics = (peerpoise.Metric("
GIVEN = {
    "nothing": ("return Task(torch", "Task(torch", "made something without layout"),
    "the class": ("return Task(torch.from_numpy(data))", "return Task", "made the class Task"),
    "a dictionary as layout": ('Layout((("w", (3, 4)), ("b", (3,))))', '{"w": (3, 4)}', "layout is no Layout"),
    "a name twice": ('("b", (3,))))', '("w", (3,))))', "layout is no Layout"),
    "a number as shape": ('("b", (3,))))', '("b", 3)))', "layout is no Layout"),
    "a negative size": ('("b", (3,))))', '("b", (-3,))))', "layout is no Layout"),
    "a method for examples": ("    @property\n", "", "examples is no number"),
    "examples that are no number": ("return len(self.x)", "return '479'", "examples is no number"),
    "no tuple": ("return self.x[rows], self.y[rows]", "return self.x[rows]", "batch gives no tuple"),
    "arrays": ("return self.x[rows], self", "return self.x[rows].numpy(), self", "batch gives no tuple"),
    "a float for a loss": (LOSS, f"{LOSS}.item()", "loss gives something of type float; a tensor"),
    "many losses": (LOSS, 'return parameters["w"] @ x + parameters["b"]', "loss gives a tensor of shape (3,); one"),
    "no metrics": ('return {"accuracy": 0.5}', "return None", "evaluate gives None; names with a number each"),
    "a bare number": ('return {"accuracy": 0.5}', "return 0.5", "evaluate gives something of type float"),
    "percent": ('"accuracy": 0.5', '"accuracy": 86.33', "'accuracy' outside of 0 … 1; return a share"),
    "a share below zero": ('"accuracy": 0.5', '"accuracy": -0.1', "'accuracy' outside of 0 … 1"),
    "infinite accuracy": ('"accuracy": 0.5', '"accuracy": np.inf', "'accuracy' outside of 0 … 1"),
    "nested": ('"accuracy": 0.5', '"loss": {"a": 0.5}', "something of type dict as 'loss'; one number"),
    "a list": ('"accuracy": 0.5', '"loss": [[1, 2]]', "something of type list as 'loss'; one number"),
    "an array": ('"accuracy": 0.5', '"loss": np.eye(2)', "ndarray of shape (2, 2) as 'loss'; one number"),
    "a nested loss": (LOSS, f"return torch.nested.nested_tensor([{LOSS[7:]}[None]])", "loss gives a nested tensor"),
    "a nested tensor": ('"accuracy": 0.5', '"loss": torch.nested.nested_tensor([torch.ones(3)])', "nested tensor as 'loss'"),
    "a tensor": ('"accuracy": 0.5', '"f1": torch.ones(3)', "Tensor of shape (3,) as 'f1'; one number"),
    "text": ('"accuracy": 0.5', '"loss": "0.5"', "something of type str as 'loss'; one number"),
    "no value": ('"accuracy": 0.5', '"f1": None', "None as 'f1'; one number"),
    "a complex number": ('"accuracy": 0.5', '"f1": 1j', "something of type complex as 'f1'"),
    "a name that is not declared": ('"accuracy": 0.5', '"recall": 0.5', "gives 'recall', which is none of accuracy, f1"),
    "declarations that are none": ("class Task:", "class Task:\n    metrics = ('accuracy',)\n", "metrics is no tuple of"),
    "a name for tables only": ("class Task:", f"{METRIC}'Top 5'),)\n", "metrics has the name 'Top 5'; small letters"),
    "a unit nobody knows": ("class Task:", f"{METRIC}'f1', unit='%'),)\n", "metrics has the unit '%' of f1"),
    "a title of two lines": ("class Task:", f"{METRIC}'f1', title='a\\nb'),)\n", "can't be printed in f1"),
    "a figure twice": ("class Task:", f"{METRIC}'f1'), peerpoise.Metric('f1'))\n", "metrics has a name twice"),
    "a type of integers": ("class Task:", "class Task:\n    dtype = torch.int32\n", "a type of floats is expected"),
    "groups of unknown names": ("class Task:", "class Task:\n    layer_groups = (('v',),)\n", "no tuple of tuples of the layout"),
    "a number as name": ('"accuracy": 0.5', "7: 0.5", "names a metric by something of type int"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("mistake", GIVEN)
def test_what_is_no_tasks_is_one_sentence(play: Callable[..., Any], mistake: str) -> None:
    old, new, sentence = GIVEN[mistake]
    with pytest.raises(ConfigurationError, match=re.escape(sentence)) as caught:
        play(old, new)
    assert str(caught.value).startswith("task.name = 'mine:make_task'")


BLAMED = {
    "a list": (
        "return torch.zeros(15)",
        "return [0.0] * 15",
        "initial_parameters(seed) gives something of type list",
    ),
    "an array": (
        "return torch.zeros(15)",
        "return np.zeros(15)",
        "initial_parameters(seed) gives something of type ndarray",
    ),
    "sparse": (
        "return torch.zeros(15)",
        "return torch.zeros(15).to_sparse()",
        "initial_parameters(seed) gives torch.float32 [15]",
    ),
    "an empty layout": (
        'Layout((("w", (3, 4)), ("b", (3,))))',
        "Layout(())",
        "layout has no parameters",
    ),
    "an empty field": (
        '("b", (3,))))',
        '("b", (0,))))',
        "The parameter 'b' in the task's layout has no elements",
    ),
}


@pytest.mark.parametrize("mistake", BLAMED)
def test_what_is_checked_before_daemons_start_blames_what_is_wrong(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, sentence = BLAMED[mistake]
    code = TASK.replace(old, new).replace("return {", "x.norm(); return {")
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskError, match=re.escape(sentence)):
        resolve(settings(task={"name": "mine.py:make_task"})).checked()


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("np.float32(0.25)", 0.25), ("np.float64(0.25)", 0.25), ("np.int64(2)", 2.0), ("np.array(3)", 3.0),
        ("np.array([4.0])", 4.0), ("torch.tensor(1.5)", 1.5), ("torch.tensor([[1.5]])", 1.5), ("12", 12.0),
        ("torch.tensor(2, dtype=torch.bfloat16)", 2.0), ("True", 1.0), ("np.bool_(False)", 0.0),
        ("torch.tensor(1.0, requires_grad=True)", 1.0), ("np.nan", None), ("float('inf')", None),
        ("__import__('fractions').Fraction(1, 4)", 0.25), ("__import__('decimal').Decimal('0.5')", 0.5),
    ],
)  # fmt: skip
def test_every_kind_of_number_is_a_metric(
    play: Callable[..., Any], written: str, number: float | None
) -> None:
    summary = play('"accuracy": 0.5', f'"loss": {written}')
    assert summary.task_metrics["loss"].per_node == {"n0": number, "n1": number}


def test_rounding_above_one_is_an_accuracy_of_one(play: Callable[..., Any]) -> None:
    assert play('"accuracy": 0.5', '"accuracy": 1.0000001').task_metrics["accuracy"].mean == 1.0


def test_evaluate_may_take_parameters_alone(play: Callable[..., Any]) -> None:
    short = play("(self, x, yield_point=lambda: None)", "(self, x)")
    assert short.task_metrics["accuracy"].mean == 0.5
    keyword = play("(self, x, yield_point=lambda: None)", "(self, x, *, digits=3)")
    assert keyword.task_metrics["accuracy"].mean == 0.5


def test_a_list_is_a_batch_and_one_element_a_number(play: Callable[..., Any]) -> None:
    assert play("return self.x[rows], self.y[rows]", "return [self.x[rows], self.y[rows]]").complete
    assert play(LOSS, f"{LOSS}.unsqueeze(0)").complete


OUR_KINDS = (
    PeerpoiseError,
    DataError,
    StorageError,
    LedgerError,
    BudgetSpent,
    TemporaryFailure,
    Refused,
    TaskError,
)


@pytest.mark.parametrize("kind", OUR_KINDS)
def test_a_task_that_raises_errors_of_our_kinds_made_a_mistake_like_any_other(
    kind: type[PeerpoiseError],
) -> None:
    class Raising(Mine):
        def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
            raise kind("private 42")

    with pytest.raises(
        TaskError, match=r"batch raised \w+: private 42 \(test_guard.py, line \d+\)\.$"
    ) as caught:
        Guarded(Raising(), "mine:Mine").batch(torch.arange(3))
    assert "42" not in caught.value.brief.partition(" (")[0]


def test_sentences_that_our_code_raised_pass() -> None:
    class Reading(Mine):
        def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
            return tuple(datasets.rows(Path("/nowhere/rows.npy"), 3))

    with pytest.raises(DataError, match=r"^There is no data file /nowhere/rows.npy;"):
        Guarded(Reading(), "mine:Mine").batch(torch.arange(3))


class Mute(Exception):
    """It can't say what it is."""

    def __str__(self) -> str:
        raise ValueError("no words")


class Wordless(Exception):
    def __str__(self) -> str:
        return None  # type: ignore[return-value]


class Endless(BaseException):
    def __str__(self) -> str:
        return str(self)


@pytest.mark.parametrize("kind", [Mute, Wordless, Endless])
def test_an_error_without_words_is_named_by_its_kind(kind: type[BaseException]) -> None:
    class Raising(Mine):
        def loss(self, parameters: Any, example: Any) -> Tensor:
            raise kind

    with pytest.raises(
        TaskError,
        match=rf"loss raised {kind.__name__}: {kind.__name__} \(test_guard.py, line \d+\)\.$",
    ):
        Guarded(Raising(), "mine:Mine").loss({}, ())


def test_a_later_failure_of_evaluate_costs_the_metrics_only(
    play: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = 'self.tests = getattr(self, "tests", 0) + 1; return {"accuracy": 1 / (self.tests < 3), "loss": 1}'
    summary = play('return {"accuracy": 0.5}', broken)
    assert (summary.complete, summary.task_metrics) == (True, {})
    sentence = "warning: task.name = 'mine:make_task': evaluate raised ZeroDivisionError: division by zero (mine.py, line 41)."
    assert sentence in capsys.readouterr().err
    journal = (tmp_path / "run" / "nodes" / "n0" / "journal.jsonl").read_text(encoding="utf-8")
    assert journal.count("evaluate raised ZeroDivisionError (mine.py, line 41).") == 2
    assert "division by zero" not in journal, "an exception's own words may quote data"
    assert journal.count('"test"') == 1


SWITCHED = {
    "gradient mode": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "default dtype": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    "deterministic algorithms": (
        lambda: torch.use_deterministic_algorithms(True),
        torch.are_deterministic_algorithms_enabled,
    ),
}


@pytest.fixture
def as_before() -> Iterator[None]:
    """The switches of torch, put back after the test."""
    yield
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("method", ["initial_parameters", "evaluate", "to", "example", "validate"])
@pytest.mark.parametrize("switch", SWITCHED)
def test_a_method_that_changes_a_switch_of_torch(method: str, switch: str) -> None:
    change, shown = SWITCHED[switch]
    results: dict[str, Any] = {"initial_parameters": torch.zeros(2), "evaluate": {}}

    def switching(self: Mine, *_: Any) -> Any:
        change()
        return results.get(method)

    task, before = Guarded(type("Switching", (Mine,), {method: switching})(), "mine:Mine"), shown()
    arguments: dict[str, tuple[Any, ...]] = {
        "initial_parameters": (0,),
        "evaluate": (torch.zeros(2),),
        "to": ("cpu",),
        "example": (),
    }
    with pytest.raises(
        TaskError, match=rf"'mine:Mine' changes torch's .*{switch} for the whole process"
    ):
        getattr(task, method)(*arguments.get(method, ({}, "accuracy")))
    assert shown() == before


@pytest.mark.usefixtures("as_before")
def test_a_method_that_raises_leaves_no_switch_changed() -> None:
    class Switching(Mine):
        def initial_parameters(self, seed: int) -> Tensor:
            torch.set_grad_enabled(False)
            raise OSError("gone")

    with pytest.raises(TaskError, match="initial_parameters raised OSError: gone"):
        Guarded(Switching(), "mine:Mine").initial_parameters(0)
    assert torch.is_grad_enabled()


def test_evaluate_and_start_share_no_memory_with_the_model() -> None:
    class Normalizing(Mine):
        own = torch.ones(2)
        metrics = (Metric("norm"),)

        def initial_parameters(self, seed: int) -> Tensor:
            return self.own

        def evaluate(
            self, x: Tensor, yield_point: Callable[[], None] = lambda: None
        ) -> dict[str, float]:
            x.div_(2)
            return {"norm": float(x.norm())}

    task = Guarded(Normalizing(), "mine:Mine")
    x = task.initial_parameters(0)
    assert task.evaluate(x) == {"norm": pytest.approx(0.5**0.5)}
    assert x.equal(torch.ones(2))
    x.zero_()
    assert task.initial_parameters(0).equal(torch.ones(2))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_neighbors_are_answered_with_gradients_while_a_task_evaluates(
    mode: Callable[[], Any],
) -> None:
    class Breathing(Mine):
        def evaluate(self, x: Tensor, yield_point: Callable[[], None]) -> dict[str, float]:
            with mode():
                yield_point()
            return {}

    gradients: list[Tensor] = []

    def answer() -> None:
        x = torch.ones(2, requires_grad=True)
        gradients.extend(torch.autograd.grad(x.sum(), [x]))

    Guarded(Breathing(), "mine:Mine").evaluate(torch.zeros(2), answer)
    assert gradients[0].equal(torch.ones(2))


class Mine:
    """A task with all that is optional."""

    layout = Layout((("w", (2,)),))
    num_examples, micro_batch, adapted, layer_groups = 3, 2, True, (("w",),)

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def factors(self) -> Callable[..., Any]:
        def every(parameters: Any, batch: Any) -> Any:
            raise ValueError("not factored")

        return every

    def to(self, device: torch.device) -> None:
        self.device = device

    def initial_parameters(self, seed: int) -> Tensor:
        return torch.zeros(2)

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        return (torch.ones(len(rows), 2),)

    def loss(self, parameters: Any, example: Any) -> Tensor:
        return (parameters["w"] * example[0]).sum()

    def mean_loss(self, parameters: Any, batch: Any) -> Tensor:
        raise KeyboardInterrupt

    def evaluate(self, x: Tensor, yield_point: Callable[[], None]) -> dict[str, float]:
        yield_point()
        return {}

    def validate(self, parameters: Any, kind: str) -> Tensor:
        raise OSError("gone")


def test_what_a_task_has_is_read_once_and_what_it_lacks_has_its_default() -> None:
    task = Guarded(Mine(), "mine:Mine")
    assert (task.num_examples, task.micro_batch, task.adapted, task.layer_groups) == (
        3,
        2,
        True,
        (("w",),),
    )
    assert (task.inputs, task.dtype, task.indexes) == ({}, torch.float32, False)
    task.to(torch.device("meta"))
    assert task.device == torch.device("meta")


def test_an_optional_member_that_raises_is_a_mistake_not_an_absence() -> None:
    broken = property(lambda self: self.nowhere)
    with pytest.raises(
        TaskError,
        match=r"inputs raised AttributeError: 'Broken' object has no attribute 'nowhere' \(",
    ):
        Guarded(type("Broken", (Mine,), {"inputs": broken})(), "mine:Mine")


def test_what_a_method_gives_is_guarded_too() -> None:
    task = Guarded(Mine(), "mine:Mine")
    factors = task.factors()
    assert factors is not None
    with pytest.raises(
        TaskError, match=r"factors raised ValueError: not factored \(test_guard.py, line \d+\)"
    ):
        factors({}, ())
    with pytest.raises(
        TaskError, match=r"validate raised OSError: gone \(test_guard.py, line \d+\)"
    ):
        task.validate({}, "accuracy")


def test_an_interrupt_ends_the_program_but_no_compute_thread() -> None:
    task, seen = Guarded(Mine(), "mine:Mine"), list[BaseException]()
    with pytest.raises(KeyboardInterrupt):
        task.mean_loss({}, ())

    def compute() -> None:
        try:
            task.mean_loss({}, ())
        except BaseException as error:
            seen.append(error)

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    assert [type(error) for error in seen] == [TaskError]


def test_a_daemon_that_stops_is_no_mistake() -> None:
    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        Guarded(Mine(), "mine:Mine").evaluate(torch.zeros(2), stop)


def test_it_works_under_vmap() -> None:
    task = Guarded(Mine(), "mine:Mine")
    gradients = torch.func.vmap(torch.func.grad(task.loss), in_dims=(None, 0))
    each = gradients({"w": torch.ones(2)}, task.batch(torch.arange(3)))
    assert each["w"].equal(torch.ones(3, 2))


def test_a_syntax_error_names_its_own_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slip.py").write_text("x = 1\n\ndef make(run, data:\n    pass\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    run = RunConfig.model_validate({"privacy": {"mode": "none"}, "task": {"name": "slip.py:make"}})
    with pytest.raises(TaskError, match=r"import raised SyntaxError: .* \(slip.py, line 3\)\.$"):
        tasks.make(run, np.arange(3))


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), None, "meta", "cuda:1"])
def test_a_device_may_be_a_name_or_none(device: Any) -> None:
    task = Mine()
    task.device = device
    assert Guarded(task, "mine:Mine").device == torch.device(device or "cpu")


@pytest.mark.parametrize(
    "device", [0, "", "gpu", "cpu:x", "\ud800", ["cpu"], torch.zeros(1), np.dtype("f4")], ids=ascii
)
def test_a_device_that_is_none(device: Any) -> None:
    task = Mine()
    task.device = device
    with pytest.raises(TaskError, match="'mine:Mine': device is"):
        Guarded(task, "mine:Mine")


def test_a_task_without_a_device_stays_on_the_cpu() -> None:
    task = Mine()
    del task.device
    assert Guarded(task, "mine:Mine").device == torch.device("cpu")


COLUMNS = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse rows": lambda: torch.eye(3).to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3), torch.zeros(1)]),
    "jagged": lambda: torch.nested.nested_tensor(
        [torch.zeros(2), torch.zeros(3)], layout=torch.jagged
    ),
    "quantized": lambda: torch.quantize_per_tensor(torch.zeros(3, 2), 0.1, 0, torch.qint8),
}


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
@pytest.mark.filterwarnings("ignore")
def test_a_batch_of_tensors_that_are_not_dense(column: Callable[[], Tensor]) -> None:
    task = type("Sparse", (Mine,), {"batch": lambda self, rows: (column(), torch.zeros(3))})()
    with pytest.raises(
        TaskError, match="batch gives a sparse, nested or quantized tensor; make it dense"
    ):
        Guarded(task, "mine:Mine").batch(torch.arange(3))


@pytest.mark.parametrize("method", ["initial_parameters", "batch", "loss", "mean_loss", "evaluate"])
@pytest.mark.parametrize("value", [None, 3, torch.zeros(3)], ids=str)
def test_what_is_no_method_is_missing(method: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"made something without {method}: no Task"):
        guard(type("Unfinished", (Mine,), {method: value})(), "mine:Mine")


@pytest.mark.parametrize("method", ["to", "example", "validate", "factors"])
@pytest.mark.parametrize("value", [None, 3, (torch.zeros(3),)], ids=str)
def test_an_optional_method_that_is_no_function_is_absent(method: str, value: Any) -> None:
    task = Guarded(type("Permissive", (Mine,), {method: value})(), "mine:Mine")
    task.to(torch.device("meta"))
    assert {
        "to": task.device == torch.device("cpu"),
        "example": task.example() is None,
        "validate": task.validation is None,
        "factors": task.factors() is None,
    }[method]


LAYOUTS = {
    "a float": Layout((("w", (2.0,)),)),  # type: ignore[arg-type]
    "a tensor": Layout((("w", (torch.tensor(2),)),)),  # type: ignore[arg-type]
    "half a character": Layout((("\ud800", (2,)),)),
    "torch's type": Layout((("w", (2,)),), torch.float32),  # type: ignore[arg-type]
    "no fields": Layout(5),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_that_can_be_no_vector(layout: Layout) -> None:
    with pytest.raises(ConfigurationError, match="layout is no Layout"):
        guard(type("Shapeless", (Mine,), {"layout": layout})(), "mine:Mine")


@pytest.mark.parametrize(
    "value", [0.5, None, np.float32(0.5), torch.zeros(3), {"accuracy": 0.5}], ids=str
)
def test_what_validate_gives_is_one_number(value: Any) -> None:
    task = Guarded(type("Validating", (Mine,), {"validate": lambda self, *_: value})(), "mine:Mine")
    with pytest.raises(TaskError, match="'mine:Mine': validate gives"):
        task.validate({}, "accuracy")


def test_a_tensor_of_one_element_is_a_value() -> None:
    task = Guarded(
        type("Validating", (Mine,), {"validate": lambda self, *_: torch.ones(1)})(), "mine:Mine"
    )
    assert task.validate({}, "accuracy").equal(torch.tensor(1.0))


@pytest.mark.parametrize(
    "number",
    [-1, 2.0, "2", Mock(), torch.tensor(2)],
    ids=["below 0", "float", "text", "any", "tensor"],
)
def test_a_limit_that_is_no_number_of_examples(number: Any) -> None:
    with pytest.raises(TaskError, match="'mine:Mine': micro_batch is no number of examples"):
        Guarded(type("Limited", (Mine,), {"micro_batch": number})(), "mine:Mine")


@pytest.mark.parametrize("number", [None, 0, 7, np.int64(7)], ids=str)
def test_a_limit_is_a_number_or_none(number: Any) -> None:
    assert (
        Guarded(type("Limited", (Mine,), {"micro_batch": number})(), "mine:Mine").micro_batch
        == number
    )
