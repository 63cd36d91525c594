"""Decoder: features (B, C_d, H_d, W_d) -> images (B, 3, H, W) in about [-1, 1]."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from brics_cli.autoencoder.layers import Stage, group_norm, upsample_nearest
from brics_cli.config import ResNetDecoderConfig


class Decoder(nn.Module):
    """One stage of residual blocks per width, nearest upsampling in between, pixel shuffle at the end."""

    def __init__(self, config: ResNetDecoderConfig) -> None:
        super().__init__()
        widths = config.widths
        self.unpatch = config.unpatch
        self.stages = nn.ModuleList(
            Stage(width, num_blocks=config.num_blocks, attention=config.attention and i == 0)
            for i, width in enumerate(widths)
        )
        self.ups = nn.ModuleList(nn.Conv2d(coarse, fine, 3, padding=1) for coarse, fine in pairwise(widths))
        self.norm = group_norm(widths[-1])
        self.head = nn.Conv2d(widths[-1], 3 * config.unpatch**2, 3, padding=1)
        self.upsampling = config.upsampling
        self.shortcut = nn.Conv2d(widths[0], 3 * self.upsampling**2, 1) if config.shortcut else None

    def forward(self, features: Tensor) -> Tensor:
        h = features
        for i, stage in enumerate(self.stages):
            h = stage(self.ups[i - 1](upsample_nearest(h)) if i else h)
        images = F.pixel_shuffle(self.head(F.silu(self.norm(h))), self.unpatch)  # (B, 3, H, W)
        return images if self.shortcut is None else images + F.pixel_shuffle(self.shortcut(features), self.upsampling)
