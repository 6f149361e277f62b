"""Equation (1) of DPDL: min{1, C/‖g‖} per example, against Opacus, the golden vectors and a stupid
oracle.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule
from torch import Tensor, nn

from kit.small_task import Small, gate, make_small
from node.data import Examples
from node.device import CPU
from node.maths import backends, chunks, clipping
from node.maths.backends import probe
from node.maths.blocks import partition_blocks
from node.maths.clipping import clipped_sum, mean_gradient
from node.maths.materialized import clip_and_sum
from node.maths.per_example import looped
from node.maths.purity import refuse_batchnorm
from node.maths.synthetic import SyntheticTask, random_parameters
from node.privacy.block_objective import BlockObjective
from node.privacy.gate import DPGate
from node.privacy.ledger import Ledger
from node.task import flat
from node.tasks.classification import Classification
from peer.errors import ConfigurationError

GOLDEN = json.loads((Path(__file__).parents[1] / "paper" / "equations.json").read_text())
BACKENDS = ["ghost", "vmap", "loop"]
NOT_FINITE = st.sampled_from([float("nan"), float("inf"), -float("inf")])


@pytest.mark.parametrize(
    ("kind", "backend"),
    [*itertools.product(["softmax", "mlp"], BACKENDS), ("cnn", "vmap"), ("cnn", "loop")],
)
def test_eq1_same_clipped_sum_as_opacus(kind: str, backend: chunks.Backend) -> None:
    task = make_small(kind)
    rows = torch.arange(task.num_examples)
    wrapped = GradSampleModule(task.module, loss_reduction="sum").train()
    nn.functional.cross_entropy(
        wrapped(task.x.clone().requires_grad_()), task.y, reduction="sum"
    ).backward()
    samples = {
        name: getattr(dict(task.module.named_parameters())[name], "grad_sample")  # noqa: B009
        for name, _ in task.layout.fields
    }
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in samples.values()]).norm(dim=0)
    clip = float(norms.median())  # half are clipped, half are not
    oracle = flat(
        task.layout,
        {
            n: torch.einsum("n,n...->...", (clip / norms).clamp(max=1), g)
            for n, g in samples.items()
        },
    )
    wrapped.remove_hooks()
    ours = clipped_sum(task, task.initial_parameters(0), rows, clip, chunk=16, backend=backend)
    assert float((ours - oracle).norm() / oracle.norm()) < 1e-5
    assert (
        float(
            (clipped_sum(task, task.initial_parameters(0), rows, 1e9) - oracle).norm()
            / oracle.norm()
        )
        > 0.05
    )


@pytest.mark.parametrize("name", ["clip_mean", "clip_mean_nonfinite"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_eq1_eq2_golden(name: str, bad: float) -> None:
    golden = GOLDEN[name]
    g = torch.tensor([[bad if v is None else v for v in row] for row in golden["per_example"]])
    total = clip_and_sum({"g": g}, golden["C"])[0]["g"] + torch.tensor(
        golden["z_on_sum"], dtype=torch.float64
    )
    torch.testing.assert_close(
        total / golden["B"],
        torch.tensor(golden["result"], dtype=torch.float64),
        atol=1e-7,
        rtol=1e-6,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_ragged_last_chunk_and_yielding(backend: chunks.Backend) -> None:
    task = make_small("mlp", n=37)
    rows, yields = torch.arange(37), []
    whole = clipped_sum(task, task.initial_parameters(0), rows, 0.5, chunk=37, backend=backend)
    parts = clipped_sum(
        task,
        task.initial_parameters(0),
        rows,
        0.5,
        chunk=16,
        backend=backend,
        yield_point=lambda: yields.append(1),
    )
    assert len(yields) == 3
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("own", [False, True])
def test_an_answer_takes_the_same_work_whatever_its_secret_batch(
    monkeypatch: pytest.MonkeyPatch, backend: chunks.Backend, own: bool
) -> None:
    """As many chunks, as many calls of the loss and as many examples fetched, also of an own task,
    which is asked for one example at a time; and the same bits. Without `least` the work tells the
    size."""
    task = make_small("mlp", n=50)
    if not own:
        task.indexes = True
    batch = task.batch
    seen: dict[str, int] = {}

    def count(what: str, much: int) -> None:
        seen[what] = seen.get(what, 0) + much

    def counted(*arguments: Any) -> Any:
        gradients = looped(*arguments)

        def gradient(model: Any, examples: Any, rows: Any) -> Any:
            count("looped", len(rows))
            return gradients(model, examples, rows)

        return gradient

    monkeypatch.setattr(clipping, "looped", counted)

    def fetched(rows: Tensor) -> tuple[Tensor, ...]:
        count("fetched", len(rows))
        return batch(rows)

    ask = clipping._despite_errors

    def asked(*arguments: Any) -> Any:
        count("asked", 1)
        return ask(*arguments)

    monkeypatch.setattr(task, "batch", fetched)
    monkeypatch.setattr(clipping, "_despite_errors", asked)

    def work(n: int, least: int) -> tuple[dict[str, int], Tensor]:
        seen.clear()
        options = {
            "chunk": 16,
            "least": least,
            "backend": backend,
            "yield_point": lambda: count("yields", 1),
        }
        total = clipped_sum(task, task.initial_parameters(0), torch.arange(n), 0.5, **options)  # type: ignore[arg-type]
        return dict(seen), total

    sizes = (0, 1, 15, 16, 17, 32, 40)
    done = [work(n, least=40) for n in sizes]
    if backend == "loop":  # a last chunk is asked in two parts
        for each, _ in done:
            each["asked"] = each["yields"]
    assert all(each == done[0][0] for each, _ in done)
    assert done[0][0] | {"fetched": 0, "looped": 0} == {
        "asked": 3,
        "yields": 3,
        "fetched": 0,
        "looped": 0,
    }
    alone = [work(n, least=0) for n in sizes]
    assert all(total.equal(same) for (_, total), (_, same) in zip(done, alone, strict=True))
    assert len({each.get("yields", 0) for each, _ in alone}) == 4, "power"
    assert work(49, least=40)[0]["yields"] == 4


@pytest.mark.parametrize(
    ("d", "chunk"), [(1, 128), (650, 128), (28_938, 64), (50_890, 64), (215_000, 16), (10**9, 16)]
)
def test_larger_models_have_smaller_chunks(d: int, chunk: int) -> None:
    assert chunks.chunk_for(d) == chunk
    assert chunks.chunk_for(d, backend="ghost") == chunks.GHOST_CHUNK, "it holds no gradients"


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_examples_give_zeros(task: Small, backend: chunks.Backend) -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert (
        clipped_sum(task, task.initial_parameters(0), none, 1.0, backend=backend).tolist()
        == [0.0] * task.layout.size
    )
    assert (
        mean_gradient(task, task.initial_parameters(0), none).tolist() == [0.0] * task.layout.size
    )


def test_mean_gradient_is_the_mean_of_unclipped_ones() -> None:
    task = make_small("cnn")
    rows = torch.arange(20)
    one_by_one = clipped_sum(task, task.initial_parameters(0), rows, 1e9) / 20
    torch.testing.assert_close(
        mean_gradient(task, task.initial_parameters(0), rows).double(),
        one_by_one,
        atol=1e-6,
        rtol=1e-5,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e6, 1e15, 1e30, 3e38]),
    bad=st.none() | NOT_FINITE,
)
def test_contribution_is_bounded_for_any_model(
    backend: chunks.Backend, seed: int, scale: float, bad: float | None
) -> None:
    task = SMALL[seed % 2]
    x = torch.randn(task.layout.size, generator=torch.Generator().manual_seed(seed)) * scale
    if bad is not None:
        x[seed % len(x)] = bad
    for row in range(2):
        contribution = clipped_sum(task, x, torch.tensor([row]), 0.7, backend=backend)
        assert contribution.isfinite().all()
        assert float(contribution.norm()) <= 0.7 * (1 + clipping.SLACK)


@pytest.mark.parametrize("backend", BACKENDS)
def test_contribution_to_a_difference_is_bounded_for_any_two_models(
    backend: chunks.Backend,
) -> None:
    """1000 pairs: of every size, with and without what is not finite, close to each other and far
    apart.
    """
    chance, clipped = random.Random(1), 0
    for seed in range(1000):
        task = SMALL[seed % 2]
        models = []
        for which in range(2):
            x = torch.randn(
                task.layout.size, generator=torch.Generator().manual_seed(2 * seed + which)
            )
            x *= chance.choice([0.0, 1e-30, 1.0, 1e3, 1e9, 1e15, 1e30, 3e38])
            if chance.random() < 0.3:
                x[chance.randrange(len(x))] = chance.choice(
                    [float("nan"), float("inf"), -float("inf")]
                )
            models.append(x)
        if chance.random() < 0.2:
            models[1] = models[0] * (1 + 1e-6)
        row = torch.tensor([seed % 3 % 2])
        contribution = clipped_sum(task, models[0], row, 0.7, before=models[1], backend=backend)
        assert contribution.isfinite().all()
        assert float(contribution.norm()) <= 0.7 * (1 + clipping.SLACK)
        clipped += float(contribution.norm()) > 0.69
    assert clipped > 100, "power: the bound is reached"


@pytest.mark.parametrize(("kind", "backend"), [("cnn", "vmap"), ("cnn", "loop"), ("mlp", "ghost")])
def test_a_difference_is_that_of_each_examples_gradients(
    kind: str, backend: chunks.Backend
) -> None:
    task = make_small(kind)
    before = task.initial_parameters(0)
    x, rows = before * 1.5, torch.arange(task.num_examples)
    actual = clipped_sum(task, x, rows, 1e9, before=before, chunk=16, backend=backend) / len(rows)
    expected = mean_gradient(task, x, rows) - mean_gradient(task, before, rows)
    torch.testing.assert_close(actual.float(), expected, atol=1e-6, rtol=1e-5)
    assert not clipped_sum(task, x, rows, 1.0, before=x, backend=backend).any()


@pytest.mark.parametrize("backend", ["ghost", "vmap"])
def test_the_differences_along_a_path_add_up_to_a_clipped_gradient(
    backend: chunks.Backend,
) -> None:
    """Those of plain gradients, each clipped, would miss for good what the first gradient lost by
    clipping.
    """
    task = make_small("mlp")
    rows, path = (
        torch.arange(task.num_examples),
        [task.initial_parameters(0) * (1 + k / 50) for k in range(51)],
    )
    norms = [
        float(clipped_sum(task, path[0], rows[k : k + 1], 1e9).norm())
        for k in range(task.num_examples)
    ]
    clip = sorted(norms)[5]
    total = clipped_sum(task, path[0], rows, clip, backend=backend)
    for before, x in itertools.pairwise(path):
        total += clipped_sum(task, x, rows, clip, before=before, backend=backend)
    expected = clipped_sum(task, path[-1], rows, clip)
    assert float((total - expected).norm()) < 1e-4 * float(expected.norm())


SMALL = [make_small("softmax", n=2), make_small("mlp", n=2)]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    m=st.sampled_from([1, 127, 128, 129, 5000, 100_000]),
    power=st.integers(-12, 18),
)
def test_clipped_norm_is_exactly_bounded_for_long_gradients(seed: int, m: int, power: int) -> None:
    g = torch.randn(3, m, generator=torch.Generator().manual_seed(seed)).abs_() * 10.0**power
    for row in g:
        assert float(clip_and_sum({"g": row[None]}, 1.0)[0]["g"].norm()) <= 1 + clipping.SLACK


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("difference", [False, True])
def test_one_bad_example_spoils_nothing(
    task: Small, difference: bool, backend: chunks.Backend
) -> None:
    task.x[3, 2] = float("nan")
    rows = torch.arange(task.num_examples)
    x = task.initial_parameters(0)
    before = x * 2 if difference else None
    with_bad = clipped_sum(task, x, rows, 1.0, before=before, backend=backend)
    without = clipped_sum(task, x, rows[rows != 3], 1.0, before=before, backend=backend)
    torch.testing.assert_close(with_bad, without, atol=1e-6, rtol=1e-6)


def test_a_gradient_that_is_nan_in_part_counts_for_nothing() -> None:
    """Its norm is not a number, which is no reason to leave the rest of it unclipped."""
    odd = {"a": torch.tensor([[float("nan")], [3.0]]), "b": torch.tensor([[1e6], [4.0]])}
    total, usable = clip_and_sum(odd, 1.0)
    assert usable.tolist() == [False, True]
    assert [float(total[name]) for name in "ab"] == pytest.approx([0.6, 0.8])


def test_probe_trusts_only_what_agrees_with_the_loop(task: Small) -> None:
    assert probe(task) == "ghost"
    assert probe(make_small("mlp")) == "ghost"
    assert probe(make_small("cnn")) == "vmap"

    class Doubled(Small):
        """Its factors are those of half its loss."""

        def mean_loss(self, parameters, batch):
            return 2 * super().mean_loss(parameters, batch)

    task = Doubled(task.module, 1e-3 * task.x, task.y)  # not clipped, else both would be the same
    assert probe(task) == "vmap"

    class Branching(Small):
        factors: Any = None

        def mean_loss(self, parameters, batch):
            loss = super().mean_loss(parameters, batch)
            return loss if loss.item() > 0 else -loss

    class Random(Small):
        def mean_loss(self, parameters, batch):
            return super().mean_loss(parameters, batch) * torch.rand(())

    for kind in (Branching, Random):
        other = kind(task.module, task.x, task.y)
        assert probe(other) == "loop"


@pytest.mark.parametrize(("kinks", "most"), [(1, True), (2, True), (3, False)])
@pytest.mark.parametrize("backend", ["ghost", "vmap"])
def test_probe_asks_most_examples(task: Small, kinks: int, most: bool, backend: str) -> None:
    """The gradient at a kink is a convention: two ways of computing it may take different sides."""

    known = SyntheticTask(task, backends.PROBED).batch(torch.arange(kinks))[0]

    def at_kink(x: torch.Tensor) -> torch.Tensor:
        return (x.unsqueeze(-2) == known).all(-1).any(-1)

    class Kinked(Small):
        def loss(self, parameters, example):
            side = at_kink(example[0]) & torch._C._functorch.is_functorch_wrapped_tensor(example[0])
            return super().loss(parameters, example) + 1e-1 * side * parameters["1.weight"].sum()

        def factors(self):
            whole: Any = super().factors()

            def found(parameters, batch):
                side = 1 - 2 * at_kink(batch[0]).float().unsqueeze(1)
                plain = whole(parameters, batch)
                return {name: (delta * side, a) for name, (delta, a) in plain.items()}

            return found if backend == "ghost" else None

    kinked = Kinked(task.module, task.x, task.y)
    assert probe(kinked) == (backend if most else "loop")


def test_batch_norm_is_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigurationError, match=r"layer '1' is a BatchNorm2d.*use GroupNorm"):
        refuse_batchnorm(
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False))
        )
    refuse_batchnorm(nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2)))


def moved_by_one_record(difference: bool, backend: chunks.Backend) -> float:
    """The most that removing one record moves the clipped sum (C = 1), over models made to magnify
    rounding: weights of 1e9, and biases that cancel the logits of one record up to rounding, so
    that a last bit decides its class."""
    generator = torch.Generator().manual_seed(0)
    data = Examples(torch.rand(129, 1, 8, 8, generator=generator), torch.arange(129) % 10)
    task = Classification(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data, None)
    rows, worst = torch.arange(129), 0.0
    for _ in range(40):
        weights = 1e9 * torch.randn(10, 64, generator=generator)
        bias = -(weights.double() @ data.x[128].flatten().double()).float()
        x = flat(
            task.layout,
            dict(zip((name for name, _ in task.layout.fields), (weights, bias), strict=True)),
        )
        before = torch.zeros_like(x) if difference else None
        full, less = (
            clipped_sum(task, x, kept, 1.0, before=before, chunk=128, backend=backend)
            for kept in (rows, rows[1:])
        )
        worst = max(worst, float((full - less).norm()))
    return worst


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("difference", [False, True])
def test_one_record_moves_the_sum_by_at_most_c_whatever_model_a_neighbor_sends(
    difference: bool, backend: chunks.Backend
) -> None:
    assert moved_by_one_record(difference, backend) <= 1 + clipping.SLACK


@pytest.mark.parametrize("backend", ["ghost", "vmap"])
@pytest.mark.parametrize("difference", [False, True])
def test_without_filled_chunks_such_a_model_breaks_the_bound(
    monkeypatch: pytest.MonkeyPatch, difference: bool, backend: chunks.Backend
) -> None:
    """The power check: a ragged last chunk rounds differently."""
    monkeypatch.setattr(clipping, "pad_to_chunk", lambda rows, chunk: rows)
    assert moved_by_one_record(difference, backend) > 1.1


def test_a_model_whose_gradients_depend_on_their_place_is_given_to_another_backend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Placed(Small):
        """Its factors have another last bit at the end of a chunk."""

        def factors(self):
            whole: Any = super().factors()

            def found(parameters, batch):
                place = 1 + 1e-7 * (
                    torch.arange(len(batch[1])) == len(batch[1]) - 1
                ).float().unsqueeze(1)
                plain = whole(parameters, batch)
                return {name: (delta * place, a) for name, (delta, a) in plain.items()}

            return found

    task = make_small("mlp")
    placed = Placed(task.module, task.x, task.y)
    assert backends.probe(placed) == "vmap"
    monkeypatch.setattr(backends, "_is_batch_invariant", lambda *_: False)
    assert backends.probe(task) == "loop"
    for backend in ("ghost", "vmap"):
        with pytest.raises(ConfigurationError, match='use "auto"'):
            backends.pick(backend, task)
    assert backends.pick("loop", task) == "loop"


def hostile(task: Small, seed: int) -> torch.Tensor:
    """Weights whose sums nearly cancel, a thousand million times as large: a last bit becomes a
    class.
    """
    x, generator = random_parameters(task.layout, seed), torch.Generator().manual_seed(seed)
    sign = torch.where(torch.rand(len(x), generator=generator) < 0.5, -1.0, 1.0)
    return x.abs() * sign * 10.0 ** (seed % 10)


@pytest.mark.parametrize("inputs", [3, 16, 64])
@pytest.mark.parametrize("hidden", [1, 2, 5, 6, 7, 8, 11, 16, 17, 24])
def test_what_the_probe_trusts_keeps_its_bits_at_hostile_models(inputs: int, hidden: int) -> None:
    """Narrow layers have kernels of their own. A start at zeros, or dead units, would have hidden
    it.
    """
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(inputs, hidden),
        torch.nn.ReLU(),
        torch.nn.Linear(hidden, 10),
    )
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    task = Small(module, torch.randn(300, inputs), torch.randint(0, 10, (300,)))
    backend = backends.probe(task)
    rows = torch.arange(chunks.chunk_length(None, task.layout.size, CPU, backend))
    if backend != "loop":
        assert all(
            backends._is_permutation_equivariant(task, hostile(task, seed), rows, backend)
            for seed in range(60)
        )


def test_the_choice_is_not_a_record_s() -> None:
    """Power: where examples are absurd, private ones would choose differently."""
    task = make_small("mlp")
    absurd = Small(task.module, torch.full_like(task.x, 1e35), task.y)
    assert backends.probe(absurd) == backends.probe(task) == "ghost"
    assert backends.probe(Small(task.module, task.x[:1], task.y[:1])) == "ghost"


def test_a_block_is_tried_by_itself(tmp_path: Path) -> None:
    """The others' backends say nothing of it."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(64, 5),
        torch.nn.ReLU(),
        torch.nn.Linear(5, 24),
        torch.nn.ReLU(),
        torch.nn.Linear(24, 10),
    )
    task = Small(module, torch.randn(40, 64), torch.randint(0, 10, (40,)))
    blocks = partition_blocks(
        task.layout, [["1.weight", "1.bias"], ["3.weight", "3.bias"], ["5.weight", "5.bias"]], 1
    )
    with Ledger.open(tmp_path / "ledger", "data") as ledger:
        strict = gate(task, ledger, config_backend="auto", full_gradient=False)
        assert isinstance(strict, DPGate)
        for block in blocks:
            strict.within(task.initial_parameters(0), block)
    for block in blocks:
        made_up = BlockObjective(task, random_parameters(task.layout, 0), block)
        backend = strict._backends[block.span.start]
        assert backend == backends.probe(made_up)
        rows = torch.arange(chunks.chunk_length(None, block.size, CPU, backend))
        if backend != "loop":
            for seed in range(20):
                x = hostile(task, seed)
                assert backends._is_permutation_equivariant(
                    BlockObjective(task, x, block), x[block.span], rows % 40, backend
                )
