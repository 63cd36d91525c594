"""`none`: the bounded codes straight into a 1x1 MLP. The rival every grid is measured against."""

from __future__ import annotations

from torch import Tensor

from brics_cli.config import FeatureConfig, NoneBottleneckConfig
from brics_cli.core.bottlenecks.base import BoundedBottleneck, FeatureMlp


class NoneBottleneck(BoundedBottleneck):
    """codes (B, C, h, w) -> (B, C_d, h * upscale, w * upscale) without any table."""

    def __init__(
        self, config: NoneBottleneckConfig, *, features: FeatureConfig, code_channels: int, out_channels: int
    ) -> None:
        super().__init__(noise_std=config.noise)
        self.mlp = FeatureMlp(features, in_channels=code_channels, out_channels=out_channels)

    def decode_codes(self, codes: Tensor) -> Tensor:
        return self.mlp(2 * codes - 1)
