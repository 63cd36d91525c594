"""The paper's decoder (arXiv 2305.18601): StyleGAN2's synthesis network (arXiv 1912.04958, figure 7b: output skips)
on a feature map instead of a constant, without noise inputs.

Features f (B, C_d, H_d, W_d) -> images (B, 3, H, W) in about [-1, 1]. The style is an MLP of avgpool(f).
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from brics_cli.autoencoder.modulated import ModulatedConv, StyleMlp, activate
from brics_cli.config import StyleDecoderConfig


class StyleDecoder(nn.Module):
    """One convolution at the input's resolution, then per stage: upsample, two convolutions, and an RGB image that
    adds to those of the stages before it.
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
