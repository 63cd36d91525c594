"""Spectrum matching (Ning et al., arXiv 2603.14645): codes whose spectrum falls as the images' does.

Encoding spectrum matching: the divergence of the codes' power spectrum from the images' at the codes' size, flattened.
Decoding spectrum matching: one mask of frequencies on codes and images, and the loss of that reconstruction. The idea
is the paper's, from its abstract; which divergence, transform and masks is ours: Kullback-Leibler, 2D DCT, low-pass.
Codes (B, C, h, w), images (B, 3, f h, f w).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from brics_cli.config.terms import SpectrumConfig

FLOOR = 1e-4
"""Energy that every frequency has at least, so that one without any has a logarithm."""


def matching(config: SpectrumConfig, codes: Tensor, images: Tensor) -> Tensor:
    """The weighted divergence, nats, mean over images: of the share of energy at each frequency but the mean's."""
    small = F.avg_pool2d(images.float(), images.shape[2] // codes.shape[2])  # (B, 3, h, w)
    target = _log_energy(small) * config.flatten
    target, ours = target.log_softmax(dim=1), _log_energy(codes.float()).log_softmax(dim=1)  # (B, h w - 1)
    return config.weight * (target.exp() * (target - ours)).sum(dim=1).mean()


def mask(config: SpectrumConfig, draw: Callable[[], float]) -> Callable[[Tensor, int], Tensor]:
    """A low-pass of the share of frequencies that `draw`, uniform in [0, 1), chooses: of codes and images the same."""
    band = config.least_band + (1 - config.least_band) * draw()

    def apply(maps: Tensor, f: int) -> Tensor:
        rows, columns = (_low_pass(side, f * max(1, round(band * side / f)), maps) for side in maps.shape[2:])
        return rows @ maps.float() @ columns

    return apply


def _log_energy(maps: Tensor) -> Tensor:
    """The logarithm of the energy (B, h w - 1) of maps (B, C, h, w) at each frequency of the 2D DCT but the mean's."""
    rows, columns = (dct(side, like=maps) for side in maps.shape[2:])
    energy = (rows @ maps @ columns.T).square().sum(dim=1)  # (B, h, w)
    return (energy.flatten(1)[:, 1:] + FLOOR).log()


def _low_pass(side: int, num_kept: int, like: Tensor) -> Tensor:
    """The symmetric matrix (side, side) that keeps the `num_kept` lowest frequencies of `side` values."""
    basis = dct(side, like=like)[:num_kept]
    return basis.T @ basis


def dct(side: int, *, like: Tensor) -> Tensor:
    """The orthonormal DCT-II (side, side): frequencies x positions, float32 on the device of `like`."""
    positions = (torch.arange(side, device=like.device, dtype=torch.float32) + 0.5) * (math.pi / side)
    rows = torch.cos(torch.arange(side, device=like.device, dtype=torch.float32)[:, None] * positions)
    rows = rows * math.sqrt(2 / side)
    rows[0] /= math.sqrt(2)
    return rows
