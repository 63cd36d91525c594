"""From what a bottleneck retrieves to the decoder's input: 1x1 MLPs, the same under every bottleneck."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from brics_cli.autoencoder.layers import ModulatedConv, activate
from brics_cli.config import AutoencoderConfig, GroupedFeatureConfig


def build_features(
    model: AutoencoderConfig, *, in_channels: int, num_groups: int = 1, tiled: bool = False
) -> nn.Module:
    """The MLP that `model.features` names, from (B, in_channels, ...) to (B, C_d, H_d, W_d).

    `tiled`: its input is at H_d x W_d already; otherwise at h x w, and a pixel shuffle enlarges what comes out.
    """
    config = model.features
    shuffle = 1 if tiled else config.upscale
    out_channels = model.decoder.widths[0] * shuffle**2
    if isinstance(config, GroupedFeatureConfig):
        widths = [in_channels, *[num_groups * config.hidden_dim] * (config.num_layers - 1), out_channels]
        return GroupedFeatureMlp(widths, num_groups=num_groups, shuffle=shuffle)
    return FeatureMlp(in_channels=in_channels, hidden_dim=config.hidden_dim, out_channels=out_channels, shuffle=shuffle)


class FeatureMlp(nn.Module):
    """Two layers, then a pixel shuffle by `shuffle`."""

    def __init__(self, *, in_channels: int, hidden_dim: int, out_channels: int, shuffle: int) -> None:
        super().__init__()
        self.shuffle = shuffle
        self.hidden = nn.Conv2d(in_channels, hidden_dim, 1)
        self.out = nn.Conv2d(hidden_dim, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C_in, h, w) -> (B, C_d, h * shuffle, w * shuffle)
        return F.pixel_shuffle(self.out(F.silu(self.hidden(x))), self.shuffle)


class GroupedFeatureMlp(nn.Module):
    """One MLP per group, side by side, each modulated by the average-pooled features of its group (arXiv 2305.18601).

    `widths`: channels before, between and after the layers, of all groups together. Group g's output is the g-th part
    of the channels; a pixel shuffle by `shuffle` follows.
    """

    def __init__(self, widths: list[int], *, num_groups: int, shuffle: int) -> None:
        super().__init__()
        self.shuffle = shuffle
        self.layers = nn.ModuleList(
            ModulatedConv(a, b, 1, style_dim=widths[0], num_groups=num_groups) for a, b in pairwise(widths)
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, C_in, h, w) -> (B, C_d, h * shuffle, w * shuffle)
        pooled = x.mean((2, 3))  # (B, C_in)
        *hidden, last = self.layers
        for layer in hidden:
            x = activate(layer(x, pooled))
        return F.pixel_shuffle(last(x, pooled), self.shuffle)
