"""Averages of the weights: what is saved as the model and used for evaluation.

The plain one is exponential. Those of EDM2 (Karras et al., arXiv 2312.02696, section 3.1) follow a power of time, so
that their length grows with training, and several are kept side by side: which one samples best is found afterwards.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import nn

ModelT = TypeVar("ModelT", bound=nn.Module)

Decay = Callable[[int, int], float]
"""(images seen, this step's included; images in this step) -> the share that an average keeps of what it was."""


def half_life_decay(*, half_life_kimg: float, warmup: float) -> Decay:
    """decay = 0.5^(batch / half-life), the half-life in thousands of images.

    It is held to `warmup` times the images seen so that the random start is forgotten (NVlabs/edm's training loop,
    arXiv 2206.00364: a ramp-up ratio of 0.05).
    """
    half_life = half_life_kimg * 1000

    def decay(images_seen: int, batch_size: int) -> float:
        return float(0.5 ** (batch_size / min(half_life, max(warmup * images_seen, 1e-8))))

    return decay


def power_decay(width: float) -> Decay:
    """decay = (1 - batch / images)^(gamma + 1): weights at time t count as t^gamma (arXiv 2312.02696, section 3.1).

    `width` is sigma_rel, the standard deviation of that profile relative to the whole of training so far. The first
    step's decay is 0, so nothing is left of the random start.
    """
    exponent = gamma_of(width) + 1

    def decay(images_seen: int, batch_size: int) -> float:
        return float((1 - batch_size / images_seen) ** exponent)

    return decay


def gamma_of(width: float) -> float:
    """The power gamma of a profile of relative width sigma_rel, 0 < sigma_rel < 12^-1/2 (a flat profile).

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) is the variance of the density (gamma + 1) t^gamma on [0, 1]
    (section 3.1): a cubic in gamma, of which the largest root is meant. Raises ValueError otherwise.
    """
    if not 0 < width < 12**-0.5:
        raise ValueError(f"a width of {width} is not between 0 and {12**-0.5:.3f}")
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class Ema(Generic[ModelT]):
    """A copy of `model` whose weights follow it: ema <- decay * ema + (1 - decay) * weights."""

    def __init__(self, model: ModelT, decay: Decay) -> None:
        self.model: ModelT = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, *, images_seen: int, batch_size: int) -> None:
        """Follow `model` after a step of `batch_size` images, the `images_seen`-th included."""
        change = 1 - self.decay(images_seen, batch_size)
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), change)
        for mine, current in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(current)
