"""`fsq`: finite scalar quantisation (arXiv 2309.15505), by `vector-quantize-pytorch`: no codebook, no extra loss.

Channel c takes the L_c values k / (L_c - 1) in [0, 1]. Outside of training codes are rounded to them once more before
they are decoded, so that a uint8 key-code store (off by at most 1/510) decodes exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from brics_cli.autoencoder.bottlenecks.base import Bottleneck, BottleneckOutput
from brics_cli.autoencoder.bottlenecks.codebook import vector_quantize_pytorch
from brics_cli.autoencoder.bottlenecks.features import build_features
from brics_cli.config import AutoencoderConfig, FsqBottleneckConfig


class FsqBottleneck(Bottleneck):
    """h (B, C, h, w) -> codes (B, C, h, w) on few levels -> 1x1 MLP -> (B, C_d, H_d, W_d)."""

    has_codebook = True
    steps: Tensor

    def __init__(self, config: FsqBottleneckConfig, *, model: AutoencoderConfig) -> None:
        super().__init__(model)
        self.levels = config.channel_levels(model.code_channels)
        # return_indices: the library would list the whole product codebook, L^C entries.
        self.quantiser = vector_quantize_pytorch(kind=config.kind).FSQ(
            self.levels, return_indices=False, preserve_symmetry=True
        )
        steps = torch.tensor(self.levels, dtype=torch.float32).view(-1, 1, 1) - 1  # (C, 1, 1)
        self.register_buffer("steps", steps, persistent=False)
        self.mlp = build_features(model, in_channels=model.code_channels)

    def bound(self, h: Tensor) -> Tensor:
        x = h.float().flatten(2).transpose(1, 2)  # (B, N, C)
        values, _ = self.quantiser(x)  # (B, N, C) in [-1, 1], gradient straight through the rounding
        # contiguous, as codes that come from a store: layouts differ in the order of later sums
        return ((values + 1) / 2).transpose(1, 2).contiguous().unflatten(2, h.shape[2:])

    def forward(self, h: Tensor, *, noise: Tensor | None = None) -> BottleneckOutput:
        """`noise` is not used: these codes are exact."""
        codes = self.bound(h)
        return BottleneckOutput(codes, self.decode_codes(codes), h.new_zeros(()), {"code_std": codes.detach().std()})

    def decode_codes(self, codes: Tensor) -> Tensor:
        if not self.training:  # rounding has no gradient, and training's codes are on their levels already
            codes = (codes * self.steps).round() / self.steps
        return self.mlp(2 * codes - 1)

    def usage_parts(self) -> dict[str, int]:
        """The channels, and the values each can take. (The product codebook cannot be listed.)"""
        return {f"channel_{number}": levels for number, levels in enumerate(self.levels)}

    def usage_of(self, codes: Tensor) -> list[Tensor]:
        values = (codes * self.steps).round().long().transpose(0, 1).flatten(1)  # (C, B * h * w)
        return [torch.bincount(row, minlength=size) for row, size in zip(values, self.levels, strict=True)]
