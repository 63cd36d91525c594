"""Encoder: images (B, 3, H, W) in [-1, 1] -> unbounded (B, C, H/f, W/f). The bottleneck bounds it."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from brics_cli.autoencoder.layers import NORMS, Stage, blocks_per_stage
from brics_cli.config import EncoderConfig


class Encoder(nn.Module):
    """Space-to-depth stem, one stage of residual blocks per width, strided convolutions in between."""

    def __init__(self, config: EncoderConfig, *, out_channels: int) -> None:
        super().__init__()
        widths = config.widths
        self.patch = config.patch
        self.stem = nn.Conv2d(3 * config.patch**2, widths[0], 3, padding=1)
        last = len(widths) - 1
        blocks = blocks_per_stage(config.num_blocks, len(widths))
        self.stages = nn.ModuleList(
            Stage(width, num_blocks=num, norm=config.norm, attention=config.attention and i == last)
            for i, (width, num) in enumerate(zip(widths, blocks, strict=True))
        )
        self.downs = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairwise(widths))
        self.norm = NORMS[config.norm](widths[-1])
        self.head = nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        self.downsampling = config.patch * 2**last
        self.shortcut = nn.Conv2d(3 * self.downsampling**2, out_channels, 1) if config.shortcut else None

    def forward(self, images: Tensor) -> Tensor:
        h = self.stem(F.pixel_unshuffle(images, self.patch))  # (B, widths[0], H/patch, W/patch)
        for i, stage in enumerate(self.stages):
            h = stage(self.downs[i - 1](h) if i else h)
        out = self.head(F.silu(self.norm(h)))  # (B, C, H/f, W/f)
        return out if self.shortcut is None else out + self.shortcut(F.pixel_unshuffle(images, self.downsampling))
