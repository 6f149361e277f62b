"""The projection onto what agrees with all others, against a solver for the primal and an oracle
that tries all.
"""

from itertools import chain, combinations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from node.maths import projection
from node.maths.projection import project


def case(seed, k=4, d=9, dtype=torch.float64):
    """g and k others; correlated, so that one, several or none are in the way."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(d, generator=generator, dtype=torch.float64)
    vectors = [
        torch.randn(d, generator=generator, dtype=torch.float64) * 10.0 ** (n % 3)
        + (seed % 5 - 2) * common
        for n in range(k + 1)
    ]
    return vectors[0].to(dtype), {f"n{n}": vector.to(dtype) for n, vector in enumerate(vectors[1:])}


def oracle(g, others):
    """All 2^k choices of active constraints, as equalities; the KKT conditions say which one it
    is.
    """
    g, rows = g.double().numpy(), [row.double().numpy() for row in others.values()]
    scale = max(np.abs([g, *rows]).max() ** 2, 1e-300)
    for chosen in chain.from_iterable(combinations(rows, n) for n in range(len(rows) + 1)):
        active = np.array(chosen).reshape(len(chosen), len(g))
        u = -np.linalg.lstsq(active.T, g, rcond=None)[0] if len(active) else np.zeros(0)
        nearest = g + active.T @ u
        if (u >= -1e-9).all() and all(row @ nearest >= -1e-9 * scale for row in rows):
            return nearest
    raise AssertionError("no choice fulfils the KKT conditions")


@pytest.mark.parametrize("k", [1, 2, 4, 7])
def test_it_is_the_nearest_of_all_that_agree(k):
    seen = set()
    for seed in range(60):
        g, others = case(seed, k)
        result = project(g, others)
        np.testing.assert_allclose(
            result.vector, oracle(g, others), rtol=0, atol=1e-8 * float(g.norm())
        )
        seen.add(sum(u > 0 for u in result.multiplier.values()))
    assert {0, 1} <= seen
    assert max(seen) >= min(k, 3), "power: cases with several active constraints at once"


@pytest.mark.parametrize("seed", range(12))
def test_a_solver_of_the_primal_finds_nothing_nearer(seed):
    g, others = case(seed)
    g = g / g.norm()
    rows = np.stack([row.numpy() / float(row.norm()) for row in others.values()])
    solved = minimize(
        lambda z: 0.5 * ((z - g.numpy()) ** 2).sum(),
        g.numpy(),
        jac=lambda z: z - g.numpy(),
        constraints={"type": "ineq", "fun": lambda z: rows @ z, "jac": lambda z: rows},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    np.testing.assert_allclose(project(g, others).vector, solved.x, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "slack"), [(torch.float64, 1e-9), (torch.float32, 1e-6)])
def test_the_result_agrees_with_all_and_is_no_longer_than_before(dtype, slack):
    for seed in range(200):
        g, others = case(seed, k=1 + seed % 8, d=40, dtype=dtype)
        projected = project(g, others).vector
        assert projected.dtype == dtype
        size = float(g.norm())
        assert float(projected.norm()) <= size * (1 + slack)
        assert all(
            float(row.double() @ projected.double()) >= -slack * size * float(row.norm())
            for row in others.values()
        )


def test_what_already_agrees_is_left_alone_bit_for_bit():
    g = torch.randn(50, generator=torch.Generator().manual_seed(1))
    others = {"a": g + 0.1, "b": 3 * g}
    result = project(g, others)
    assert torch.equal(result.vector, g)
    assert result.vector.data_ptr() != g.data_ptr(), "a copy: the caller may change it"
    assert set(result.multiplier.values()) == {0.0}
    assert torch.equal(project(g, {}).vector, g)


def test_an_inactive_constraint_changes_nothing():
    changed = 0
    for seed in range(60):
        g, others = case(seed)
        whole = project(g, others)
        active = {j: row for j, row in others.items() if whole.multiplier[j] > 0}
        torch.testing.assert_close(
            project(g, active).vector, whole.vector, rtol=0, atol=1e-10 * float(g.norm())
        )
        changed += len(active) < len(others)
    assert changed > 20, "power: there were inactive ones"


def test_the_multipliers_make_the_result_and_the_cosines_are_told():
    for seed in range(20):
        g, others = case(seed)
        result = project(g, others)
        made = g + sum(
            result.multiplier[j] * g.norm() / row.norm() * row for j, row in others.items()
        )
        torch.testing.assert_close(result.vector, made, rtol=0, atol=1e-10 * float(g.norm()))
        for j, row in others.items():
            assert result.cosine[j] == pytest.approx(
                float(g @ row / g.norm() / row.norm()), abs=1e-12
            )


@pytest.mark.parametrize("scale", [1e-8, 1e6])
def test_how_long_a_neighbors_gradient_is_does_not_matter(scale):
    for seed in range(20):
        g, others = case(seed)
        scaled = {j: row * scale for j, row in others.items()}
        torch.testing.assert_close(
            project(g, scaled).vector, project(g, others).vector, rtol=0, atol=1e-9
        )


E = torch.eye(4)
NAN, INF = float("nan"), float("inf")
DEGENERATE = {
    "zero": (E[0], [torch.zeros(4)], E[0]),
    "zero of one's own": (torch.zeros(4), [E[0], -E[0]], torch.zeros(4)),
    "opposite to one's own": (E[0], [-E[0]], torch.zeros(4)),
    "opposite to each other": (E[0] + E[1], [E[0], -E[0]], E[1]),
    "parallel": (E[0] - E[1], [E[1], E[1], 2 * E[1]], E[0]),
    "nearly opposite to each other": (E[0] + E[1], [E[0], -E[0] + 1e-7 * E[2]], E[1]),
    "all directions": (E[0], [*E, *-E], torch.zeros(4)),
    "more than parameters": (
        E[0] - E[1],
        [E[1] + a * E[2] + b * E[3] for a in (-1, 0, 1) for b in (-1, 0, 1)],
        E[0],
    ),
    "not a number": (E[0], [torch.full((4,), NAN), -E[0] + E[1]], (E[0] + E[1]) / 2),
    "infinite": (E[0], [torch.full((4,), INF), -E[0] + E[1]], (E[0] + E[1]) / 2),
    "hardly there": (E[0] - E[1], [1e-38 * E[1], 1e-42 * E[0]], E[0] - E[1]),
    "very long": (E[0] - E[1], [3e38 * E[1]], E[0] - E[1]),
    "orthogonal": (E[0], [E[1]], E[0]),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_gradients(name):
    g, others, expected = DEGENERATE[name]
    result = project(g, {f"n{k:02}": row for k, row in enumerate(others)})
    torch.testing.assert_close(result.vector, expected, rtol=0, atol=1e-6)
    assert all(np.isfinite([*result.multiplier.values(), *result.cosine.values()]))


def test_random_degenerate_gradients_stay_finite_and_shorter():
    """Few directions, signs, zeros and lengths from 1e-30 to 1e30, drawn with repetition."""
    chance = np.random.default_rng(5)
    for _ in range(300):
        base = torch.from_numpy(chance.normal(size=(2, 6))).float()
        drawn = chance.integers(-1, 2, size=(9, 2)) * 10.0 ** chance.integers(-30, 30, size=(9, 1))
        vectors = [torch.from_numpy(row).float() @ base for row in drawn]
        projected = project(vectors[0], {f"n{k}": row for k, row in enumerate(vectors[1:])}).vector
        assert torch.isfinite(projected).all()
        assert float(projected.double().norm()) <= float(vectors[0].double().norm()) * (1 + 1e-5)


def test_a_solver_that_does_not_end_leaves_the_vector(monkeypatch):
    def endless(a, b, maxiter):
        raise RuntimeError("Maximum number of iterations reached.")

    monkeypatch.setattr(projection, "nnls", endless)
    assert torch.equal(project(E[0], {"a": -E[0]}).vector, E[0])


def at_offset(x, offset):
    return torch.empty(len(x) + offset, dtype=x.dtype)[offset:].copy_(x)


def test_its_bits_do_not_depend_on_where_the_vectors_lie():
    g, others = case(8, k=6, d=70_001, dtype=torch.float32)
    g = -g
    expected = project(g, others)
    assert sum(u > 0 for u in expected.multiplier.values()) > 1
    for offset in range(1, 17):
        result = project(
            at_offset(g, offset), {j: at_offset(row, offset + 3) for j, row in others.items()}
        )
        assert torch.equal(result.vector, expected.vector)
        assert result == type(result)(
            vector=result.vector, multiplier=expected.multiplier, cosine=expected.cosine
        )
