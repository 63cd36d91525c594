"""LPIPS of pairs of uint8 images, one value per image (Zhang et al., arXiv 1801.03924)."""

from __future__ import annotations

import lpips
import numpy as np
import torch
from numpy.typing import NDArray

from brics_cli.errors import UsageError
from brics_cli.networks.perceptual import LPIPS_MIN_SIDE


def lpips_distance(
    model: lpips.LPIPS, a: NDArray[np.uint8], b: NDArray[np.uint8], *, device: torch.device | str = "cpu"
) -> NDArray[np.float64]:
    """LPIPS (N,) of each pair of (N, H, W, 3), at least 0, by a model of `networks.load_lpips`.

    Pixels go in as x / 127.5 - 1: LPIPS wants [-1, 1] and says nothing when it gets [0, 1]. Raises UsageError for
    images that are too small for the backbone.
    """
    smallest = LPIPS_MIN_SIDE[model.pnet_type]
    if min(a.shape[1:3]) < smallest:
        raise UsageError(
            f"LPIPS ({model.pnet_type}) needs images of at least {smallest} px, these are {a.shape[2]} x {a.shape[1]}"
        )
    with torch.inference_mode():
        distances = model(_to_tensor(a, device), _to_tensor(b, device))  # (N, 1, 1, 1)
    return np.asarray(distances.flatten().double().cpu().numpy())


def _to_tensor(images: NDArray[np.uint8], device: torch.device | str) -> torch.Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
