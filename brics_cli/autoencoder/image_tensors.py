"""Between uint8 images and the image tensors of the networks; one rounding rule for the whole of brics."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_tensor(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1] on `device`, channels last in memory."""
    pixels = torch.from_numpy(np.ascontiguousarray(images))
    if torch.device(device).type == "cuda":
        pixels = pixels.pin_memory()
    return pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8, rounded and clamped as a PNG of it would be."""
    pixels = ((images.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
