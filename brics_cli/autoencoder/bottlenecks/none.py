"""`none`: the bounded codes straight into a 1x1 MLP. The rival every grid is measured against."""

from __future__ import annotations

from torch import Tensor

from brics_cli.autoencoder.bottlenecks.base import BoundedBottleneck
from brics_cli.autoencoder.bottlenecks.features import build_features
from brics_cli.config import AutoencoderConfig, NoneBottleneckConfig


class NoneBottleneck(BoundedBottleneck):
    """codes (B, C, h, w) -> (B, C_d, h * upscale, w * upscale) without any table."""

    def __init__(self, config: NoneBottleneckConfig, *, model: AutoencoderConfig) -> None:
        super().__init__(model, noise_std=config.noise, noise_varies=config.noise_varies)
        self.mlp = build_features(model, in_channels=model.code_channels)

    def decode_codes(self, codes: Tensor) -> Tensor:
        return self.mlp(2 * codes - 1)
