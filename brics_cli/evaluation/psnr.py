"""PSNR of pairs of uint8 images, (N, H, W, 3) RGB: averaged over images, not taken of the data set's MSE. No torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from brics_cli.errors import UsageError

IDENTICAL_DB = 100.0
BLOCK_VALUES = 1 << 22
"""Of images at a time that are compared in float64, at most: a photograph would take gigabytes."""


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """10 log10(255² / MSE) in dB of each pair of (N, H, W, 3); infinite where two images are identical.

    Raises ValueError when the arrays are not uint8 of one shape.
    """
    check(a, b)
    squares = np.zeros(len(a))
    num_rows = max(1, BLOCK_VALUES // max(a[:, :1].size, 1))
    for first in range(0, a.shape[1], num_rows):  # of whole numbers, so that no sum depends on the blocks
        block = slice(first, first + num_rows)
        squares += np.square(a[:, block].astype(np.float64) - b[:, block]).sum(axis=(1, 2, 3))
    mse = squares / a[0].size if len(a) else squares  # (N,)
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(255.0**2 / mse))


def capped_psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """`psnr`, at most 100 dB, so that a mean over images stays finite where two of them are identical."""
    return np.minimum(psnr(a, b), IDENTICAL_DB)


def check(a: NDArray[np.uint8], b: NDArray[np.uint8], *, title: str = "", smallest: int = 1) -> None:
    """Raise ValueError when the arrays are not uint8 images of one shape, UsageError when they are too small."""
    if a.dtype != np.uint8 or b.dtype != np.uint8 or a.ndim != 4 or a.shape != b.shape:
        raise ValueError(f"expected two uint8 arrays (N, H, W, 3), got {a.dtype} {a.shape} and {b.dtype} {b.shape}")
    if min(a.shape[1:3]) < smallest:
        raise UsageError(f"{title} needs images of at least {smallest} px, these are {a.shape[2]} x {a.shape[1]}")
