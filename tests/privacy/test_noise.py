"""Equation (2) of DPDL: noise of std σC on the sum, on a grid, from keys nobody knows."""

from __future__ import annotations

import copy
import math
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from node.privacy import noise
from node.randomness import BLOCK, Keys, Stream, public_generator
from peer.errors import ConfigurationError

SECRET = b"canary-canary-canary-canary-cana"


def stream(round: int = 0, seed: int = 1) -> Stream:
    return Keys.insecure(seed, "a").stream("noise", round, "b")


def pure(d: int, sigma: float, clip: float, seed: int = 1) -> np.ndarray:
    """Released noise alone, before the division, in units of σC."""
    compositions = noise.noised(torch.zeros(d, dtype=torch.float64), sigma, clip, stream(seed=seed))
    return compositions * noise.grid(sigma, clip) / (sigma * clip)


def looks_gaussian(z: np.ndarray) -> bool:
    """The detector: one million samples against N(0, 1)."""
    return bool(stats.kstest(z, "norm").pvalue > 0.01)


def test_noise_is_normal_on_a_million_samples_and_the_test_has_power() -> None:
    z = pure(1_000_000, sigma=2.0, clip=0.5)
    assert looks_gaussian(z)
    assert not looks_gaussian(z * 1.01)
    assert not looks_gaussian(z / 2)
    assert not looks_gaussian(z * 0)
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 5e-3
    assert (
        abs(np.corrcoef(z[: BLOCK // 2], z[BLOCK // 2 : BLOCK])[0, 1]) < 0.05
    )  # the two halves of Box–Muller


def test_uniform_is_uniform() -> None:
    u = stream().uniform(1_000_000)
    assert stats.kstest(u, "uniform").pvalue > 0.01
    assert 0.0 <= u.min()
    assert u.max() < 1.0


@pytest.mark.parametrize("n", [0, 1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_any_length(n: int) -> None:
    z = stream().normal(n)
    assert z.shape == (n,)
    assert np.isfinite(z).all()
    assert len(np.unique(z)) == n


def test_sums_are_multiples_of_the_grid_whatever_the_input() -> None:
    total = torch.randn(5000, dtype=torch.float64)
    sigma, clip, divisor = 1.3, 0.7, 48
    compositions = noise.noised(total, sigma, clip, stream())
    assert compositions.dtype == np.int64
    released = noise.release(total, sigma, clip, divisor, stream())
    step = noise.grid(sigma, clip)
    np.testing.assert_allclose(released.double().numpy(), compositions * step / divisor, rtol=1e-6)
    without = noise.noised(torch.zeros_like(total), sigma, clip, stream())
    np.testing.assert_array_equal(
        compositions - without, np.rint(total.numpy() / step)
    )  # same noise: only the rounded sum differs


def test_released_values_do_not_tell_neighboring_inputs_apart_by_their_low_bits() -> None:
    """With plain floating-point noise the low bits of a release depend on the input; on the grid
    they can't.
    """
    a, b = (
        torch.zeros(10_000, dtype=torch.float64),
        torch.full((10_000,), 0.1234567, dtype=torch.float64),
    )
    step = noise.grid(1.0, 1.0)
    for total in (a, b):
        values = noise.noised(total, 1.0, 1.0, stream()) * step
        assert (values % step == 0).all()
    floating = b.numpy() + stream().normal(10_000)
    assert not (floating % step == 0).all()


def test_rounding_moves_neighboring_sums_by_no_more_than_the_accounted_sensitivity() -> None:
    generator = torch.Generator().manual_seed(0)
    sigma, clip, d = 3.0, 1.0, 2000
    step = noise.grid(sigma, clip)
    for _ in range(50):
        total = torch.randn(d, generator=generator, dtype=torch.float64)
        record = torch.randn(d, generator=generator, dtype=torch.float64)
        neighboring = total + record / record.norm() * clip
        moved = np.rint(total.numpy() / step) - np.rint(neighboring.numpy() / step)
        assert np.linalg.norm(moved) * step <= sigma * clip / noise.effective(sigma, d)


@given(st.floats(0.05, 50), st.integers(1, 10**7))
def test_nominal_and_effective_are_inverse_and_never_flatter(sigma: float, d: int) -> None:
    assert noise.effective(sigma, d) < sigma
    if math.sqrt(d) * sigma / noise.STEPS < 0.9:
        assert noise.effective(noise.nominal(sigma, d), d) == pytest.approx(sigma, rel=1e-9)


def test_impossible_noise_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="choose a larger"):
        noise.nominal(100.0, 10**9)
    for sigma in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="positive"):
            noise.noised(torch.zeros(2, dtype=torch.float64), sigma, 1.0, stream())


def test_absurdly_small_noise_does_not_wrap_around() -> None:
    assert (
        noise.noised(
            torch.tensor([1e9, -1e9], dtype=torch.float64), 1e-12, 1e-3, stream()
        ).tolist()[0]
        > 0
    )


def test_global_seeds_touch_nothing() -> None:
    def draw() -> np.ndarray:
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        return Keys.fresh().stream("noise", 0, "b").normal(16)

    assert not np.allclose(draw(), draw())


def test_every_process_has_its_own_noise() -> None:
    code = (
        "from node.randomness import Keys; "
        "print(Keys.fresh().stream('noise', 0, 'b').normal(4).tolist())"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        for _ in range(2)
    )
    assert first.stdout != second.stdout


def test_streams_differ_in_every_part_of_their_name_and_repeat_with_an_insecure_seed() -> None:
    names = [
        ("noise", 0, "b"),
        ("batch", 0, "b"),
        ("noise", 1, "b"),
        ("noise", 0, "c"),
        ("noise", 1, "0b"),
    ]
    draws = {tuple(Keys.insecure(1, "a").stream(*name).uniform(4)) for name in names}
    draws |= {tuple(Keys.insecure(2, "a").stream("noise", 0, "b").uniform(4))}
    draws |= {tuple(Keys.insecure(1, "b").stream("noise", 0, "b").uniform(4))}
    assert len(draws) == 7
    assert tuple(stream().uniform(4)) in draws


def test_a_stream_is_handed_out_once() -> None:
    keys = Keys.fresh()
    keys.stream("noise", 3, "b")
    keys.stream("noise", 3, "c")
    for round in (3, 2):
        with pytest.raises(RuntimeError, match="used before"):
            keys.stream("noise", round, "b")


@pytest.mark.parametrize("secret", [Keys(SECRET), Keys(SECRET).stream("noise", 0, "b")])
def test_keys_and_streams_are_not_shown_copied_or_stored(secret: object) -> None:
    assert "canary" not in repr(secret) + str(secret)
    assert not hasattr(secret, "__dict__")
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leak(secret)


def test_public_generators_repeat() -> None:
    draws = [
        torch.rand(2, generator=public_generator(0, "a", r, "batch")).tolist() for r in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]
