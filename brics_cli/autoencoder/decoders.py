"""Decoders: features (B, C_d, H_d, W_d) -> images (B, 3, H, W) in about [-1, 1]. A line in `build` registers each."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from brics_cli.autoencoder.layers import (
    NORMS,
    ModulatedConv,
    Stage,
    StyleMlp,
    activate,
    blocks_per_stage,
    upsample_nearest,
)
from brics_cli.config import ResNetDecoderConfig, StyleDecoderConfig


class ResNetDecoder(nn.Module):
    """One stage of residual blocks per width, nearest upsampling in between, pixel shuffle at the end."""

    def __init__(self, config: ResNetDecoderConfig) -> None:
        super().__init__()
        widths = config.widths
        self.unpatch = config.unpatch
        blocks = blocks_per_stage(config.num_blocks, len(widths))
        self.stages = nn.ModuleList(
            Stage(width, num_blocks=num, norm=config.norm, attention=config.attention and i == 0)
            for i, (width, num) in enumerate(zip(widths, blocks, strict=True))
        )
        self.ups = nn.ModuleList(nn.Conv2d(coarse, fine, 3, padding=1) for coarse, fine in pairwise(widths))
        self.norm = NORMS[config.norm](widths[-1])
        self.head = nn.Conv2d(widths[-1], 3 * config.unpatch**2, 3, padding=1)
        self.upsampling = config.upsampling
        self.shortcut = nn.Conv2d(widths[0], 3 * self.upsampling**2, 1) if config.shortcut else None

    def forward(self, features: Tensor) -> Tensor:
        h = features
        for i, stage in enumerate(self.stages):
            h = stage(self.ups[i - 1](upsample_nearest(h)) if i else h)
        images = F.pixel_shuffle(self.head(F.silu(self.norm(h))), self.unpatch)  # (B, 3, H, W)
        return images if self.shortcut is None else images + F.pixel_shuffle(self.shortcut(features), self.upsampling)


class StyleDecoder(nn.Module):
    """The paper's (arXiv 2305.18601): StyleGAN2's synthesis network (arXiv 1912.04958, figure 7b: output skips) on a
    feature map instead of a constant, without noise inputs. The style is an MLP of avgpool(f).

    One convolution at the input's resolution, then per stage: upsample, two convolutions, and an RGB image that adds
    to those of the stages before it.
    """

    def __init__(self, config: StyleDecoderConfig) -> None:
        super().__init__()
        widths, style_dim = config.widths, config.style_dim
        self.style = StyleMlp(widths[0], style_dim=style_dim, num_layers=config.style_layers)
        self.first = ModulatedConv(widths[0], widths[0], 3, style_dim=style_dim)
        self.ups = nn.ModuleList(ModulatedConv(a, b, 3, style_dim=style_dim) for a, b in pairwise(widths))
        self.convs = nn.ModuleList(ModulatedConv(width, width, 3, style_dim=style_dim) for width in widths[1:])
        rgb = [ModulatedConv(width, 3, 1, style_dim=style_dim, demodulate=False) for width in widths]
        self.to_rgb = nn.ModuleList(rgb[:-1])
        self.head = rgb[-1]  # by the name of the ResNet decoder's last layer, against which a GAN's weight is measured

    def forward(self, features: Tensor) -> Tensor:
        style = self.style(features.mean((2, 3)))  # (B, S)
        x = activate(self.first(features, style))
        coarsest, *finer = [*self.to_rgb, self.head]
        images = coarsest(x, style)
        for up, conv, to_rgb in zip(self.ups, self.convs, finer, strict=True):
            x = activate(up(upsample_bilinear(x), style))
            x = activate(conv(x, style))
            images = upsample_bilinear(images) + to_rgb(x, style)
        return images


def upsample_bilinear(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W): StyleGAN2's filter [1, 3, 3, 1], replicating the border."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
