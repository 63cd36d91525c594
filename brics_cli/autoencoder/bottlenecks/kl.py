"""`kl`: a diagonal Gaussian per code value, pulled towards N(0, 1): the autoencoder of latent diffusion
(arXiv 2112.10752, appendix G). Codes are any real numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from brics_cli.autoencoder.bottlenecks.base import Bottleneck, BottleneckOutput
from brics_cli.autoencoder.bottlenecks.features import build_features
from brics_cli.config import AutoencoderConfig, KlBottleneckConfig

# The range latent diffusion holds log-variances to: exp stays finite, and the gradient of what is outside is zero.
LOG_VARIANCE_RANGE = (-30.0, 20.0)


class KlBottleneck(Bottleneck):
    """h (B, 2C, h, w), means before log-variances. `noise` draws codes from the posterior; without, they are means."""

    def __init__(self, config: KlBottleneckConfig, *, model: AutoencoderConfig) -> None:
        super().__init__(model)
        self.weight = config.weight
        self.pixels_per_code = model.pixels_per_code
        self.mlp = build_features(model, in_channels=model.code_channels)

    @staticmethod
    def encoder_channels(code_channels: int) -> int:
        return 2 * code_channels

    def bound(self, h: Tensor) -> Tensor:
        return h.float().chunk(2, dim=1)[0]

    def forward(self, h: Tensor, *, noise: Tensor | None = None) -> BottleneckOutput:
        mean, log_variance = h.float().chunk(2, dim=1)  # (B, C, h, w) each
        log_variance = log_variance.clamp(*LOG_VARIANCE_RANGE)
        codes = mean if noise is None else mean + torch.exp(0.5 * log_variance) * noise
        # KL(N(mean, variance) || N(0, 1)) in nats, mean over code values
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        stats = {"code_std": mean.detach().std(), "kl": kl.detach()}
        return BottleneckOutput(codes, self.decode_codes(codes), self.weight * kl / self.pixels_per_code, stats, mean)

    def decode_codes(self, codes: Tensor) -> Tensor:
        return self.mlp(codes)
