"""`none`: the bounded codes straight into a 1x1 MLP. The rival every grid is measured against."""

from __future__ import annotations

from torch import Tensor

from brics_cli.config import NoneBottleneckConfig
from brics_cli.core.bottlenecks.base import BoundedBottleneck, PointwiseHead


class NoneBottleneck(BoundedBottleneck):
    """codes (B, C, h, w) -> (B, C_d, h * upscale, w * upscale) without any table."""

    def __init__(self, config: NoneBottleneckConfig, *, code_channels: int, out_channels: int) -> None:
        super().__init__(noise_std=config.noise)
        self.head = PointwiseHead(
            code_channels, hidden_dim=config.hidden_dim, out_channels=out_channels, upscale=config.upscale
        )

    def decode_codes(self, codes: Tensor) -> Tensor:
        return self.head(2 * codes - 1)
