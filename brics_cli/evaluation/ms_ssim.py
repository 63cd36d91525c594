"""MS-SSIM of pairs of uint8 images, one value per image (Wang, Simoncelli and Bovik 2003).

The contrast and structure of five scales and the luminance of the last, each to the power of its weight, per channel;
the mean over channels. Between scales the image is averaged over 2 x 2 pixels. N images, (N, H, W, 3) RGB.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from brics_cli.errors import UsageError

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Table 1 of the paper's calibration, from the finest scale to the coarsest."""
WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
MIN_SIDE = (WINDOW - 1) * 2 ** (len(WEIGHTS) - 1) + 1
"""Below this the window does not fit into the coarsest scale."""


def ms_ssim(a: NDArray[np.uint8], b: NDArray[np.uint8], *, device: torch.device | str = "cpu") -> NDArray[np.float64]:
    """MS-SSIM in [0, 1] of each pair of (N, H, W, 3); 1 where two images are identical.

    Negative contrast and structure count as zero. Raises ValueError when the arrays are not uint8 of one shape,
    UsageError for images smaller than 161 px.
    """
    if a.dtype != np.uint8 or b.dtype != np.uint8 or a.ndim != 4 or a.shape != b.shape:
        raise ValueError(f"expected two uint8 arrays (N, H, W, 3), got {a.dtype} {a.shape} and {b.dtype} {b.shape}")
    if min(a.shape[1:3]) < MIN_SIDE:
        raise UsageError(f"MS-SSIM needs images of at least {MIN_SIDE} px, these are {a.shape[2]} x {a.shape[1]}")
    device = torch.device(device)
    if device.type == "mps":  # no float64 there
        device = torch.device("cpu")
    with torch.inference_mode():
        x, y = (torch.from_numpy(side).to(device).permute(0, 3, 1, 2).double() for side in (a, b))  # (N, 3, H, W)
        product = torch.ones(x.shape[:2], dtype=torch.float64, device=device)  # (N, 3)
        for scale, weight in enumerate(WEIGHTS):
            if scale:
                x, y = _halved(x), _halved(y)
            luminance, contrast_structure = _terms(x, y)
            last = scale == len(WEIGHTS) - 1
            value = (luminance * contrast_structure if last else contrast_structure).mean(dim=(2, 3))  # (N, 3)
            product = product * value.clamp(min=0) ** weight
        return np.asarray(product.mean(dim=1).cpu().numpy())


def _terms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast times structure, at every position where the window fits."""
    mean_x, mean_y = _filtered(x), _filtered(y)
    variance_x = _filtered(x * x) - mean_x * mean_x
    variance_y = _filtered(y * y) - mean_y * mean_y
    covariance = _filtered(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x * mean_x + mean_y * mean_y + C1)
    return luminance, (2 * covariance + C2) / (variance_x + variance_y + C2)


def _filtered(images: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 3, H - 10, W - 10), by a Gaussian window that sums to one."""
    offsets = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * SIGMA**2))
    window = (window / window.sum()).expand(images.shape[1], 1, 1, WINDOW)
    rows = F.conv2d(images, window, groups=images.shape[1])
    return F.conv2d(rows, window.transpose(2, 3), groups=images.shape[1])


def _halved(images: Tensor) -> Tensor:
    """Means over 2 x 2 pixels; an odd last row or column is left out."""
    return F.avg_pool2d(images, 2)
