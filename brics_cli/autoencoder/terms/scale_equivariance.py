"""Scale equivariance of the decoder (Skorokhodov et al., arXiv 2502.14831): L(D(down(z)), down(x)) beside L(D(z), x).

What is in the high frequencies of the codes then belongs to the high frequencies of the image, and a diffusion model
that gets them wrong does little harm. Codes and images are averaged over squares.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from brics_cli.config.terms import ScaleEquivarianceConfig


def transform(config: ScaleEquivarianceConfig, draw: Callable[[], float]) -> Callable[[Tensor, int], Tensor]:
    """Averaging over squares of a factor that `draw`, uniform in [0, 1), chooses."""
    factor = config.factors[int(draw() * len(config.factors))]
    return lambda maps, f: F.avg_pool2d(maps, factor)
