"""PSNR, SSIM, MS-SSIM and LPIPS of pairs of uint8 images, one value per image.

N images, (N, H, W, 3) RGB. Every convention is one that others get wrong: PSNR is averaged over images, not taken
of the data set's MSE; SSIM is scikit-image's with the window of Wang et al. 2004 (11 x 11, sigma 1.5, range 255).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torch import Tensor

from brics_cli.autoencoder import ms_ssim as of_tensors
from brics_cli.evaluation.family import PairFamily, on_device
from brics_cli.evaluation.psnr import IDENTICAL_DB, check, psnr
from brics_cli.runtime.device import widest_float

if TYPE_CHECKING:
    from brics_cli.networks.perceptual import LpipsFeatures  # lpips takes seconds to import

SSIM_WINDOW = 11
MS_SSIM_SIDE = (of_tensors.WINDOW - 1) * 2 ** (len(of_tensors.WEIGHTS) - 1) + 1
"""Below this the window does not fit into the coarsest scale."""


def ssim(a: NDArray[np.uint8], b: NDArray[np.uint8], *, pool: ThreadPoolExecutor | None = None) -> NDArray[np.float64]:
    """SSIM in [-1, 1] of each pair of (N, H, W, 3), mean over channels; 1 where two images are identical.

    Raises ValueError when the arrays are not uint8 of one shape, UsageError for images smaller than the window.
    """
    check(a, b, title="SSIM", smallest=SSIM_WINDOW)
    of_pair = partial(
        structural_similarity,
        channel_axis=-1,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return np.array(list((pool.map if pool else map)(of_pair, a, b)), dtype=np.float64)


def ms_ssim(a: NDArray[np.uint8], b: NDArray[np.uint8], *, device: torch.device | str = "cpu") -> NDArray[np.float64]:
    """MS-SSIM in [0, 1] of each pair of (N, H, W, 3), five scales; 1 where two images are identical.

    Negative contrast and structure count as zero. Raises ValueError when the arrays are not uint8 of one shape,
    UsageError for images smaller than 161 px.
    """
    check(a, b, title="MS-SSIM", smallest=MS_SSIM_SIDE)
    with torch.inference_mode():
        x, y = (on_device(side, device).permute(0, 3, 1, 2) for side in (a, b))  # (N, 3, H, W)
        return np.asarray(of_tensors.ms_ssim(x, y, value_range=255).cpu().numpy())


def scores_on_device(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """PSNR in dB, at most 100, and SSIM of each pair of uint8 images (N, H, W, 3), computed where they are, (N,) each:
    within 1e-4 of `capped_psnr` and `ssim`, which take 15 ms an image on a CPU (256 px), where this takes longer."""
    difference = a.int() - b.int()
    mse = difference.square().sum(dim=(1, 2, 3)).to(widest_float(a.device)) / a[0].numel()  # of whole numbers: exact
    psnr = (10 * (255.0**2 / mse).log10()).clamp(max=IDENTICAL_DB)
    x, y = (side.permute(0, 3, 1, 2).float() for side in (a, b))  # (N, 3, H, W)
    return psnr, of_tensors.ssim(x, y, value_range=255)


class Psnr(PairFamily):
    def values(self, real: NDArray[np.uint8], fake: NDArray[np.uint8]) -> NDArray[np.float64]:
        return psnr(real, fake)


class Ssim(PairFamily):
    def values(self, real: NDArray[np.uint8], fake: NDArray[np.uint8]) -> NDArray[np.float64]:
        return ssim(real, fake, pool=self.context.pool)


class MsSsim(PairFamily):
    def values(self, real: NDArray[np.uint8], fake: NDArray[np.uint8]) -> NDArray[np.float64]:
        return ms_ssim(real, fake, device=self.context.device)


class Lpips(PairFamily):
    def values(self, real: NDArray[np.uint8], fake: NDArray[np.uint8]) -> NDArray[np.float64]:
        return cast("LpipsFeatures", self.network).distance(real, fake)
