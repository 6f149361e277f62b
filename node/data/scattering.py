"""Scattering coefficients of images: fixed features, so that a linear model on them learns what
takes pixels a deep one, and with less noise.

Bruna, Mallat, "Invariant scattering convolution networks", IEEE TPAMI 2013, with Morlet wavelets of
J = 2 scales and L = 8 angles. As features for private learning: Tramèr, Boneh, "Differentially
private learning needs better features (or much more data)", ICLR 2021, arXiv 2011.11660, whose
group normalization without learned constants is here, too: it looks at one image only.

    S x = (x ∗ φ, |x ∗ ψ_λ| ∗ φ, ||x ∗ ψ_λ| ∗ ψ_μ| ∗ φ)    μ coarser than λ; at every 2^J-th pixel

An image of c × h × w becomes 81c × h/4 × w/4. Nothing is learned or drawn here, and no image has an
influence on another one's coefficients: they cost no privacy.
"""

from __future__ import annotations

import hashlib
import sys
from functools import lru_cache
from itertools import product
from math import cos, pi, sin

import torch
from torch import Tensor
from torch.nn import functional

from peer.errors import ConfigurationError

SCALES, ANGLES = 2, 8
STRIDE = 2**SCALES
"""Pixels of an image between two coefficients, each way."""
CHANNELS = 1 + SCALES * ANGLES + ANGLES**2 * SCALES * (SCALES - 1) // 2
"""Coefficients of a place, for each channel of the image."""
GROUPS = 27
"""Of the normalization."""
MOST = 100_000
"""Images whose coefficients are remembered: 1.6 GB of 28 × 28 pixels."""
AT_ONCE = 32
"""Images that are transformed together: some 100 MB."""
MANY = 10_000
"""Images that take so long (some 20 s of a core at 28 × 28) that it is said."""


def scattering(images: Tensor) -> Tensor:
    """Normalized coefficients [n, 81c, h/4, w/4] of images [n, c, h, w].

    Raises:
        ConfigurationError: height or width is no multiple of four, or below eight.
    """
    n, channels, height, width = images.shape
    if height % STRIDE or width % STRIDE or min(height, width) < 2 * STRIDE:
        raise ConfigurationError(
            f'task.transform = "scattering" needs images whose sides are multiples of {STRIDE}, '
            f"and at least {2 * STRIDE}, not {height}×{width}; set task.image_size."
        )
    if n >= MANY:
        print(
            f"Computing scattering coefficients of {n:,} images once (28×28: 150 s for 70,000).",
            file=sys.stderr,
        )
    places = height // STRIDE, width // STRIDE
    whole = images.new_empty(n, channels * CHANNELS, *places)
    for start in range(0, n, AT_ONCE):
        some = _coefficients(images[start : start + AT_ONCE]).flatten(1, 2)
        whole[start : start + AT_ONCE] = functional.group_norm(some, GROUPS)
    return whole


def remembered(images: Tensor) -> Tensor:
    """As `scattering`, of public images: each is transformed once in a process, whose sweep divides
    the same ones in every cell. Up to MOST of them are kept.

    Raises:
        ConfigurationError: as `scattering`.
    """
    digests = [hashlib.sha256(image.numpy().tobytes()).digest() for image in images]
    unknown = {digest: k for k, digest in enumerate(digests) if digest not in _known}
    if len(_known) + len(unknown) > MOST:
        return scattering(images)
    if unknown:
        _known.update(zip(unknown, scattering(images[[*unknown.values()]]), strict=True))
    return torch.stack([_known[digest] for digest in digests])


_known: dict[bytes, Tensor] = {}
"""SHA-256 of an image -> its coefficients."""


def _coefficients(x: Tensor) -> Tensor:
    """[n, c, 81, h/4, w/4] of images [n, c, h, w], which are mirrored at their edges."""
    x = functional.pad(x, (STRIDE,) * 4, mode="reflect")
    low, bands = _filters(x.shape[-2], x.shape[-1])
    spectrum = torch.fft.fft2(x)
    zeroth = [_averages(spectrum.unsqueeze(2), low, 0)]
    first, second = [], []
    for j, band in enumerate(bands):
        moduli = _moduli(spectrum, band, j)
        first.append(_averages(moduli, low, j))
        for k, coarser in enumerate(bands[j + 1 :], j + 1):
            of_moduli = _moduli(moduli, coarser, k - j).flatten(2, 3)
            second.append(_averages(of_moduli, low, k))
    return torch.cat([*zeroth, *first, *second], 2)[..., 1:-1, 1:-1]


def _moduli(spectrum: Tensor, band: Tensor, halvings: int) -> Tensor:
    """The spectrum of |x ∗ ψ| for each ψ of a band, at every 2^halvings-th pixel: [..., h, w] ->
    [..., L, h', w'].
    """
    sampled = _sampled(spectrum.unsqueeze(-3) * band, halvings)
    moduli: Tensor = torch.fft.fft2(torch.fft.ifft2(sampled).abs())
    return moduli


def _averages(spectrum: Tensor, low: Tensor, halvings: int) -> Tensor:
    """x ∗ φ at every fourth pixel of the image, of an x that is sampled already."""
    height, width = (side >> halvings for side in low.shape)
    near = [
        torch.arange(-side // 2, side - side // 2) % whole
        for side, whole in zip((height, width), low.shape, strict=True)
    ]
    kept = torch.fft.ifftshift(low[near[0]][:, near[1]])
    averages: Tensor = torch.fft.ifft2(_sampled(spectrum * kept, SCALES - halvings)).real
    return averages


def _sampled(spectrum: Tensor, halvings: int) -> Tensor:
    """Of x, the spectrum of every 2^halvings-th pixel of it: folded."""
    *before, height, width = spectrum.shape
    step = 2**halvings
    folded = spectrum.reshape(*before, step, height // step, step, width // step)
    return folded.mean((-4, -2))


@lru_cache(maxsize=4)
def _filters(height: int, width: int) -> tuple[Tensor, list[Tensor]]:
    """Spectra of φ [h, w], and of each scale's ψ [L, h, w]."""
    low = _spectrum(_gabor(height, width, 0.8 * 2 ** (SCALES - 1), 0.0, 0.0, 1.0))
    angles = [(ANGLES // 2 - 1 - k) * pi / ANGLES for k in range(ANGLES)]
    bands = [
        torch.stack([_morlet(height, width, scale, angle) for angle in angles])
        for scale in range(SCALES)
    ]
    return low, bands


def _morlet(height: int, width: int, scale: int, angle: float) -> Tensor:
    """The spectrum of a wavelet: real, and 0 at frequency 0."""
    spread, frequency, slant = 0.8 * 2**scale, 3 / 4 * pi / 2**scale, 4 / ANGLES
    wave = _gabor(height, width, spread, angle, frequency, slant)
    envelope = _gabor(height, width, spread, angle, 0.0, slant)
    return _spectrum(wave - wave.sum() / envelope.sum() * envelope)


def _gabor(
    height: int, width: int, spread: float, angle: float, frequency: float, slant: float
) -> Tensor:
    """A Gaussian of this spread, 1/slant as wide across as along its wave, on a torus [h, w]."""
    total = torch.zeros(height, width, dtype=torch.complex128)
    for turns in product(range(-2, 3), repeat=2):
        sides = [
            torch.arange(side) + turn * side
            for side, turn in zip((height, width), turns, strict=True)
        ]
        x, y = torch.meshgrid(*sides, indexing="ij")  # angles from the vertical, as in Kymatio
        along, across = x * cos(angle) + y * sin(angle), y * cos(angle) - x * sin(angle)
        spreading = -(along**2 + (slant * across) ** 2) / (2 * spread**2)
        total += torch.complex(spreading, frequency * along).exp()
    return total * slant / (2 * pi * spread**2)


def _spectrum(filtered: Tensor) -> Tensor:
    """Real, as all filters are symmetric."""
    spectrum: Tensor = torch.fft.fft2(filtered).real.float()
    return spectrum
