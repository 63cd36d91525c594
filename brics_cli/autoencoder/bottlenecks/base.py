"""The contract of every bottleneck (DESIGN section 3.3), and what the bounded ones share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from brics_cli.autoencoder.bottlenecks.usage import UsageCounter
from brics_cli.autoencoder.layers import reflect_into_unit
from brics_cli.config import AutoencoderConfig


@dataclass
class BottleneckOutput:
    """`codes` (B, C, h, w) are the ones that were decoded: noisy in training, clean in evaluation.

    `features` (B, C_d, H_d, W_d) go into the decoder; `aux_loss` is a scalar to add to the loss; `stats` are
    scalars worth logging.
    """

    codes: Tensor
    features: Tensor
    aux_loss: Tensor
    stats: dict[str, Tensor] = field(default_factory=dict)


class Bottleneck(nn.Module, ABC):
    """Owns bounding, training noise and retrieval.

    `bounded`: whether codes are in [0, 1]; where they are not, they can be any number, and a key-code store keeps
    them as float16.
    """

    def __init__(self, model: AutoencoderConfig) -> None:
        super().__init__()
        self.bounded = model.code_kind == "bounded"

    @staticmethod
    def encoder_channels(code_channels: int) -> int:
        """C_in: channels that the encoder has to give for codes of `code_channels`."""
        return code_channels

    @abstractmethod
    def forward(self, h: Tensor, *, noise: Tensor | None = None) -> BottleneckOutput:
        """h (B, C_in, h, w), the encoder's unbounded output.

        `noise` (B, C, h, w) is standard normal; the training loop draws it, keyed by sample. None: none is added.
        """

    @abstractmethod
    def bound(self, h: Tensor) -> Tensor:
        """h (B, C_in, h, w) -> clean codes (B, C, h, w), float32."""

    @abstractmethod
    def decode_codes(self, codes: Tensor) -> Tensor:
        """codes (B, C, h, w) -> decoder input (B, C_d, H_d, W_d)."""

    def admissible(self, codes: Tensor) -> Tensor:
        """Codes that were changed, limited to what codes can be."""
        return codes.clamp(0, 1) if self.bounded else codes

    def usage_counter(self) -> UsageCounter:
        """A fresh count of how much of its tables or codebooks is used; an empty one where there are none."""
        return UsageCounter()


class BoundedBottleneck(Bottleneck):
    """Codes bounded to [0, 1] by a sigmoid, so |z - 1/2| <= 1/2 and Var(z) <= 1/4 (DESIGN section 3.1).

    Training noise of standard deviation `noise_std` is added to the codes and reflected at the walls: codes that
    survive it need that much less precision ("relaxed precision").
    """

    def __init__(self, model: AutoencoderConfig, *, noise_std: float) -> None:
        super().__init__(model)
        self.noise_std = noise_std

    def bound(self, h: Tensor) -> Tensor:
        return torch.sigmoid(h.float())  # (B, C, h, w) in [0, 1]

    def forward(self, h: Tensor, *, noise: Tensor | None = None) -> BottleneckOutput:
        codes = self.bound(h)
        stats = {"code_std": codes.detach().std()}
        if noise is not None and self.noise_std:
            codes = reflect_into_unit(codes + self.noise_std * noise)
        return BottleneckOutput(codes, self.decode_codes(codes), h.new_zeros(()), stats)
