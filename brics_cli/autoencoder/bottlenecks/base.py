"""The contract of every bottleneck (DESIGN section 3.3), and what the bounded ones share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from brics_cli.autoencoder.layers import reflect_into_unit
from brics_cli.config import AutoencoderConfig


@dataclass
class BottleneckOutput:
    """`codes` (B, C, h, w) are the ones that were decoded: noisy in training, clean in evaluation.

    `features` (B, C_d, H_d, W_d) go into the decoder; `aux_loss` is a scalar to add to the loss; `stats` are
    scalars worth logging. `clean` are the codes before noise (None: `codes` are); `viewed` what the decoder made of
    `codes` under the transforms that it was asked for.
    """

    codes: Tensor
    features: Tensor
    aux_loss: Tensor
    stats: dict[str, Tensor] = field(default_factory=dict)
    clean: Tensor | None = None
    viewed: list[Tensor] = field(default_factory=list)


class Lookup(NamedTuple):
    """What is computed of codes (B, C, h, w) to look them up as they are decoded, and in which tables."""

    name: str
    run: Callable[[Tensor], Tensor]
    tables: Tensor


class Bottleneck(nn.Module, ABC):
    """Owns bounding, training noise and retrieval.

    `bounded`: whether codes are in [0, 1]; where they are not, they can be any number, and a key-code store keeps
    them as float16. `has_codebook`: entries are chosen, not interpolated.
    """

    has_codebook = False

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

    def usage_parts(self) -> dict[str, int]:
        """Name and number of entries of the tables or codebooks whose usage is counted."""
        return {}

    def usage_of(self, codes: Tensor) -> list[Tensor]:
        """What falls of codes (B, C, h, w) on the entries of each part: interpolation weight, or the times chosen."""
        return []

    def usage_counter(self) -> UsageCounter:
        """A fresh count of how much of its tables or codebooks is used; it stays empty where there are none."""
        return UsageCounter(self)

    def lookup(self) -> Lookup | None:
        """Its look-up in tables or codebooks, for counts of arithmetic; None where there is none."""
        return None


class BoundedBottleneck(Bottleneck):
    """Codes bounded to [0, 1] by a sigmoid, so |z - 1/2| <= 1/2 and Var(z) <= 1/4 (DESIGN section 3.1).

    Training noise of standard deviation `noise_std` is added to the codes and reflected at the walls: codes that
    survive it need that much less precision ("relaxed precision").
    """

    def __init__(self, model: AutoencoderConfig, *, noise_std: float, noise_varies: bool = False) -> None:
        super().__init__(model)
        self.noise_std, self.noise_varies = noise_std, noise_varies

    def bound(self, h: Tensor) -> Tensor:
        return torch.sigmoid(h.float())  # (B, C, h, w) in [0, 1]

    def forward(self, h: Tensor, *, noise: Tensor | None = None) -> BottleneckOutput:
        codes = clean = self.bound(h)
        stats = {"code_std": codes.detach().std()}
        if noise is not None and self.noise_std:
            std = self.noise_std * (_uniform_of(noise) if self.noise_varies else 1)
            codes = reflect_into_unit(codes + std * noise)
        return BottleneckOutput(codes, self.decode_codes(codes), h.new_zeros(()), stats, clean)


def _uniform_of(noise: Tensor) -> Tensor:
    """Standard normal noise (B, C, h, w) -> a number per image, (B, 1, 1, 1), uniform in [0, 1]: the distribution
    function of two of its values, so that it is drawn with the noise."""
    values = noise.flatten(1)
    return torch.special.ndtr((values[:, 0] - values[:, -1]) / math.sqrt(2))[:, None, None, None]


class UsageCounter:
    """How much of its tables or codebooks a collection of codes uses (DESIGN section 3.3).

    `counts`: what fell on the entries of each part, float64, on the bottleneck's device; they may be summed over
    processes before `result` is asked for.
    """

    def __init__(self, bottleneck: Bottleneck) -> None:
        self.bottleneck = bottleneck
        device = next(bottleneck.parameters()).device
        parts = bottleneck.usage_parts().items()
        self.counts = {name: torch.zeros(size, dtype=torch.float64, device=device) for name, size in parts}

    def add(self, codes: Tensor) -> None:
        """Count codes (B, C, h, w), on the bottleneck's device."""
        for total, found in zip(self.counts.values(), self.bottleneck.usage_of(codes), strict=True):
            total += found

    def result(self) -> dict[str, float]:
        """`usage`, the fraction of entries that anything fell on, of everything and of each part; `entropy`, of what
        fell on the entries relative to uniform, 0 to 1, of each part and on average; for codebooks `perplexity`, the
        number of entries that uniform use would need for that entropy. Empty when there is nothing to use.
        """
        if not self.counts:
            return {}
        used = {name: int((counts > 0).sum()) for name, counts in self.counts.items()}
        entropies = {name: _entropy(counts) for name, counts in self.counts.items()}
        relative = {name: entropies[name] / math.log(len(counts)) for name, counts in self.counts.items()}
        found = {
            "usage": sum(used.values()) / sum(len(counts) for counts in self.counts.values()),
            "entropy": sum(relative.values()) / len(relative),
        }
        if self.bottleneck.has_codebook:
            found["perplexity"] = sum(math.exp(entropy) for entropy in entropies.values()) / len(entropies)
        for name, counts in self.counts.items():
            found |= {f"usage/{name}": used[name] / len(counts), f"entropy/{name}": relative[name]}
        return found


def _entropy(counts: Tensor) -> float:
    """Of the histogram `counts`, in nats; 0 of an empty one."""
    total = float(counts.sum())
    if total <= 0:
        return 0.0
    share = counts[counts > 0] / total
    return max(0.0, float(-(share * share.log()).sum()))
