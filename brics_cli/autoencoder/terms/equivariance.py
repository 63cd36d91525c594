"""Implicit equivariance under scaling and rotation (EQ-VAE: Kouzelis et al., arXiv 2502.09509): L(D(T z), T x).

T scales each axis by its own factor and turns by a multiple of 90°. In the paper T takes the place of the identity in
some of the batches; here its loss is added to that of the identity, with a weight. Images get the size that the decoder
makes of the scaled codes, which is a whole number of codes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from brics_cli.config.terms import EquivarianceConfig


def transform(config: EquivarianceConfig, draw: Callable[[], float]) -> Callable[[Tensor, int], Tensor]:
    """Scaling and turning as `draw`, uniform in [0, 1), has it."""
    scales = [config.least_scale + (1 - config.least_scale) * draw() for _ in range(2)]
    turns = int(draw() * 4) if config.turns else 0

    def apply(maps: Tensor, f: int) -> Tensor:
        size = [max(1, round(scale * side / f)) * f for scale, side in zip(scales, maps.shape[2:], strict=True)]
        if size != list(maps.shape[2:]):
            maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=True)
        return maps.rot90(turns, (2, 3)) if turns else maps

    return apply
