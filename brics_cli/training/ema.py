"""The exponential moving average of the weights: what is saved as the model and used for evaluation."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

ModelT = TypeVar("ModelT", bound=nn.Module)


class Ema(Generic[ModelT]):
    """A copy of `model` whose weights follow it: ema <- decay * ema + (1 - decay) * weights.

    decay = 0.5^(batch / half-life), the half-life in images, held to `warmup` times the images seen so that the
    random start is forgotten (NVlabs/edm's training loop, arXiv 2206.00364: a ramp-up ratio of 0.05).
    """

    def __init__(self, model: ModelT, *, half_life_kimg: float, warmup: float) -> None:
        self.model: ModelT = copy.deepcopy(model).eval().requires_grad_(False)
        self.half_life = half_life_kimg * 1000
        self.warmup = warmup

    @torch.no_grad()
    def update(self, model: nn.Module, *, images_seen: int, batch_size: int) -> None:
        """Follow `model` after a step of `batch_size` images, the `images_seen`-th included."""
        decay = 0.5 ** (batch_size / min(self.half_life, max(self.warmup * images_seen, 1e-8)))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for mine, current in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(current)
