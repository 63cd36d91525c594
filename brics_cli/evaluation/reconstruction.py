"""PSNR and SSIM of pairs of uint8 images, one value per image.

N images, (N, H, W, 3) RGB. Every convention is one that others get wrong: PSNR is averaged over images, not taken
of the data set's MSE; SSIM is scikit-image's with the window of Wang et al. 2004 (11 x 11, sigma 1.5, range 255).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from brics_cli.errors import UsageError

SSIM_WINDOW = 11
IDENTICAL_DB = 100.0


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """10 log10(255² / MSE) in dB of each pair of (N, H, W, 3); infinite where two images are identical.

    Raises ValueError when the arrays are not uint8 of one shape.
    """
    _check(a, b)
    difference = a.astype(np.float64) - b.astype(np.float64)
    mse = np.square(difference).mean(axis=(1, 2, 3))  # (N,)
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(255.0**2 / mse))


def capped_psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """`psnr`, at most 100 dB, so that a mean over images stays finite where two of them are identical."""
    return np.minimum(psnr(a, b), IDENTICAL_DB)


def ssim(a: NDArray[np.uint8], b: NDArray[np.uint8], *, pool: ThreadPoolExecutor | None = None) -> NDArray[np.float64]:
    """SSIM in [-1, 1] of each pair of (N, H, W, 3), mean over channels; 1 where two images are identical.

    Raises ValueError when the arrays are not uint8 of one shape, UsageError for images smaller than the window.
    """
    _check(a, b)
    if min(a.shape[1:3]) < SSIM_WINDOW:
        raise UsageError(f"SSIM needs images of at least {SSIM_WINDOW} px, these are {a.shape[2]} x {a.shape[1]}")
    return np.array(list((pool.map if pool else map)(_ssim_of_pair, a, b)), dtype=np.float64)


def _ssim_of_pair(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(
        structural_similarity(  # type: ignore[no-untyped-call]
            a, b, channel_axis=-1, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )


def _check(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> None:
    if a.dtype != np.uint8 or b.dtype != np.uint8 or a.ndim != 4 or a.shape != b.shape:
        raise ValueError(f"expected two uint8 arrays (N, H, W, 3), got {a.dtype} {a.shape} and {b.dtype} {b.shape}")
