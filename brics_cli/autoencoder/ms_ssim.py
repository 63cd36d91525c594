"""SSIM, and MS-SSIM as a loss and as a metric (Wang, Simoncelli and Bovik, "Multiscale structural similarity",
Asilomar 2003).

The contrast and structure of every scale and the luminance of the last, each to the power of its weight, per channel;
the mean over channels. Between scales the image is averaged over 2 x 2 pixels. Differentiable; B images (B, 3, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the scales, from the finest to the coarsest: the paper's calibration."""
WINDOW, SIGMA = 11, 1.5


def ms_ssim(
    a: Tensor, b: Tensor, *, value_range: float, weights: Sequence[float] = WEIGHTS, least: float = 0.0
) -> Tensor:
    """MS-SSIM (B,) of images (B, 3, H, W) whose values are `value_range` apart at most; valid windows only.

    `weights`: one per scale, each half as large as the one before it, which must hold the 11 x 11 window. `least`:
    what negative contrast and structure count as; above 0 gradients stay finite.
    """
    product = a.new_ones(a.shape[:2])  # (B, 3)
    for scale, weight in enumerate(weights):
        if scale:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        luminance, contrast = _ssim_parts(a, b, value_range)  # (B, 3, H', W') each
        last = scale == len(weights) - 1
        score = (luminance * contrast if last else contrast).mean(dim=(2, 3))
        product = product * score.clamp(min=least) ** weight
    return product.mean(dim=1)


def ssim(a: Tensor, b: Tensor, *, value_range: float) -> Tensor:
    """SSIM (B,) of images (B, 3, H, W) whose values are `value_range` apart at most; valid windows only, mean over
    channels (Wang et al., "Image quality assessment", TIP 2004). At least 11 px."""
    luminance, contrast = _ssim_parts(a, b, value_range)
    return (luminance * contrast).mean(dim=(1, 2, 3))


def weights_that_fit(height: int, width: int) -> list[float]:
    """The weights of the scales that hold a window, made to sum to 1. Raises ValueError below 11 px."""
    fitting = [weight for scale, weight in enumerate(WEIGHTS) if min(height, width) // 2**scale >= WINDOW]
    if not fitting:
        raise ValueError(f"MS-SSIM needs images of at least {WINDOW} px, these are {(height, width)}")
    return [weight / sum(fitting) for weight in fitting]


def _ssim_parts(a: Tensor, b: Tensor, value_range: float) -> tuple[Tensor, Tensor]:
    """The luminance term and the contrast-structure term of SSIM at every valid window, (B, 3, H - 10, W - 10)."""
    c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
    offsets = torch.arange(WINDOW, device=a.device, dtype=a.dtype) - WINDOW // 2
    kernel = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    kernel = kernel / kernel.sum()
    mean_a, mean_b = filtered(a, kernel), filtered(b, kernel)
    var_a = filtered(a * a, kernel) - mean_a**2
    var_b = filtered(b * b, kernel) - mean_b**2
    covariance = filtered(a * b, kernel) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance, (2 * covariance + c2) / (var_a + var_b + c2)


def filtered(images: Tensor, kernel: Tensor) -> Tensor:
    """Correlate each channel of (B, 3, H, W) with `kernel` (K,) along both axes, no padding."""
    if images.is_cuda:  # channels last these would be cuDNN's, in TF32: squares less squares need all of float32
        images = images.contiguous()
    channels, size = images.shape[1], len(kernel)
    rows = kernel.view(1, 1, size, 1).expand(channels, 1, size, 1)
    columns = kernel.view(1, 1, 1, size).expand(channels, 1, 1, size)
    return F.conv2d(F.conv2d(images, rows, groups=channels), columns, groups=channels)
