"""Scattering coefficients: another implementation's figures, a plain loop, and what makes them cost
no privacy.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kit.clusters import experiment
from node.data import scattering as module
from node.data.scattering import scattering
from node.experiments.in_process import simulate
from peer.errors import ConfigurationError

KYMATIO = [0.03938, 0.05777, 0.13133, 0.03722, 0.00605, 0.00728, 0.00398]


def wave(side: int) -> Tensor:
    """[1, 1, side, side]."""
    y, x = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    return (torch.sin(0.7 * x + 0.3 * y) * torch.cos(0.2 * x * y))[None, None]


def test_the_figures_of_kymatio() -> None:
    """Of its version 0.3.0, `Scattering2D(J=2, shape=(16, 16), L=8)`, at one place."""
    found = module._coefficients(wave(16))[0, 0, [0, 1, 4, 9, 20, 44, 80], 1, 2]
    torch.testing.assert_close(found, torch.tensor(KYMATIO), atol=2e-5, rtol=0)


def test_a_plain_loop_in_space() -> None:
    """x ∗ φ, |x ∗ ψ| ∗ φ and ||x ∗ ψ| ∗ ψ| ∗ φ on a torus, pixel by pixel; where the fast one samples in
    between, it is as far off as what folds over.
    """
    x = torch.nn.functional.pad(wave(8), (4, 4, 4, 4), mode="reflect")[0, 0].to(torch.complex64)
    low, bands = module._filters(16, 16)
    fine, coarse = bands[0][3], bands[1][5]
    first = around(x, fine).abs()
    second = around(first, coarse).abs()
    found = module._coefficients(wave(8))[0, 0]
    for channel, field, tolerance in (
        (0, x, 1e-5),
        (1 + 3, first, 1e-5),
        (17 + 8 * 3 + 5, second, 1e-3),
    ):
        expected = around(field, low).real[4:-4:4, 4:-4:4]
        torch.testing.assert_close(found[channel], expected, atol=tolerance, rtol=0)


def around(x: Tensor, spectrum: Tensor) -> Tensor:
    """The convolution with a filter on a torus, a sum for each pixel."""
    kernel = torch.fft.ifft2(spectrum.to(torch.complex64))
    height, width = x.shape
    total = torch.zeros_like(x, dtype=torch.complex64)
    for i in range(height):
        for j in range(width):
            total += kernel[i, j] * torch.roll(x, (i, j), (0, 1))
    return total


def test_an_image_has_the_same_coefficients_among_any_others() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2 * module.AT_ONCE + 3, 3, 8, 12, generator=generator)
    every = scattering(images)
    assert every.shape == (len(images), 3 * 81, 2, 3)
    for n in (0, module.AT_ONCE, len(images) - 1):
        torch.testing.assert_close(every[n], scattering(images[n : n + 1])[0], atol=1e-5, rtol=0)
    assert scattering(images[:0]).shape == (0, 3 * 81, 2, 3)


@pytest.mark.parametrize("shape", [(1, 1, 10, 8), (1, 1, 4, 8)])
def test_sides_that_do_not_fit_are_a_sentence(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"multiples of 4.*set task\.image_size\.$"):
        scattering(torch.zeros(shape))


def test_digits_are_learned_from_them(tmp_path: Path) -> None:
    task = {"data": "digits", "model": "softmax", "transform": "scattering"}
    summary = simulate(experiment(nodes=2, rounds=3, task=task), tmp_path)
    assert summary.params_digest


def test_what_is_remembered_has_the_same_bits_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    images[6] = images[0]
    monkeypatch.setattr(module, "_known", {})
    for rows in ([3, 1], [6, 0, 3, 5], list(range(7))):
        assert torch.equal(module.remembered(images[rows]), scattering(images)[rows])
    assert len(module._known) == 6
    monkeypatch.setattr(module, "MOST", 6)
    assert torch.equal(module.remembered(images + 1), scattering(images + 1))
    assert len(module._known) == 6, "no more are kept"


def test_what_takes_long_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "MANY", 3)
    scattering(torch.zeros(2, 1, 8, 8))
    assert not capsys.readouterr().err
    scattering(torch.zeros(3, 1, 8, 8))
    assert "coefficients of 3 images" in capsys.readouterr().err
