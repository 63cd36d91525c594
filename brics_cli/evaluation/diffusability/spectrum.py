"""Spectra of codes and images by the 2D DCT, in zigzag order (Skorokhodov et al., arXiv 2502.14831, figure 2).

Latents that are hard to diffuse hold more energy at high frequencies than images of their size do. N images, codes
(N, C, h, w), K = h * w frequencies.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn

from brics_cli.evaluation.jackknife import jackknife
from brics_cli.evaluation.moments import Array

NUM_GROUPS = 20
"""Of codes, for every jackknife over them."""


def zigzag(height: int, width: int) -> list[tuple[int, int]]:
    """The frequencies (u, v) of height x width coefficients from low to high, as JPEG orders them."""
    places = [(u, v) for u in range(height) for v in range(width)]
    return sorted(places, key=lambda place: (sum(place), place[0] if sum(place) % 2 else place[1]))


def energies(maps: NDArray[np.floating]) -> Array:
    """The energy (N, K) of maps (N, C, h, w) at each frequency, summed over channels, in zigzag order."""
    coefficients = dctn(maps.astype(np.float64), axes=(2, 3), norm="ortho")
    rows, columns = zip(*zigzag(*maps.shape[2:]), strict=True)
    return np.asarray(np.square(coefficients[:, :, rows, columns]).sum(axis=1))


class Spectra:
    """Energies of codes beside those of images at the codes' size, added batch by batch."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self._sums = np.zeros((NUM_GROUPS, 2, height * width))
        self._num = 0

    def add(self, x: NDArray[np.float32], images: NDArray[np.uint8]) -> None:
        """Add normalised codes (N, C, h, w) and their images (N, H, W, 3), which are averaged to h x w."""
        height, width = images.shape[1] // self.height, images.shape[2] // self.width
        blocks = images.reshape(len(images), self.height, height, self.width, width, 3)
        small = blocks.mean(axis=(2, 4)).transpose(0, 3, 1, 2)  # (N, 3, h, w)
        groups = np.arange(self._num, self._num + len(x)) % NUM_GROUPS
        np.add.at(self._sums, groups, np.stack([energies(x), energies(small)], axis=1))
        self._num += len(x)

    @cached_property
    def shares(self) -> Array:
        """(2, K - 1): of codes and of images, each frequency's share of the energy but for the mean's (DC)."""
        return _shares(self._sums.sum(axis=0))

    def slope(self, side: int) -> tuple[float, float]:
        """The exponent of energy against frequency of the codes (0) or images (1), by least squares in logarithms, and
        its standard error. 0 is white noise; photographs have about -2 in 2D."""
        u, v = np.array(zigzag(self.height, self.width))[1:].T
        log_frequency = np.log(np.hypot(u / self.height, v / self.width))

        def estimate(sums: Array) -> float:
            log_share = np.log(_shares(sums)[side].clip(min=1e-12))
            return float(np.polyfit(log_frequency, log_share, 1)[0])

        return jackknife(self._sums, estimate)

    def excess(self) -> tuple[float, float]:
        """How much more of the codes' energy than of the images' is in the upper half of the frequencies, dB, and its
        standard error."""

        def estimate(sums: Array) -> float:
            shares = _shares(sums)
            codes, images = shares[:, shares.shape[1] // 2 :].sum(axis=1).clip(min=1e-12)
            return 10 * math.log10(codes / images)

        return jackknife(self._sums, estimate)

    def curves(self) -> dict[str, Any]:
        """What the figure shows: shares from low to high frequency."""
        return {"codes": self.shares[0].tolist(), "images": self.shares[1].tolist()}


def _shares(sums: Array) -> Array:
    without_mean = sums[:, 1:]
    return np.asarray(without_mean / without_mean.sum(axis=1, keepdims=True).clip(min=1e-300))
