"""The discriminator of the autoencoder: patches of an image, real or reconstructed (PatchGAN, arXiv 1611.07004).

Losses are functions of logits (B, 1, h, w), larger for real; all are means over images, in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brics_cli.autoencoder.layers import group_norm
from brics_cli.config.runs import GanConfig
from brics_cli.runtime.precision import full_precision

SLOPE = 0.2


class Discriminator(nn.Module):
    """images (B, 3, H, W) in [-1, 1] -> logits (B, 1, h, w), one per patch, always float32.

    Strided 4x4 convolutions, then a 3x3 and the head. No image sees another one: norms are per image, or there are
    none, so micro-batches and processes add up exactly.
    """

    def __init__(self, config: GanConfig) -> None:
        super().__init__()
        widths = (3, *config.widths)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.last = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.head = nn.Conv2d(widths[-1], 1, 3, padding=1)
        normed = [*config.widths[1:], config.widths[-1]]  # none after the first: it would hide the colours
        self.norms = nn.ModuleList(group_norm(w) if config.norm == "group" else nn.Identity() for w in normed)

    def forward(self, images: Tensor) -> Tensor:
        h = images
        for i, conv in enumerate(self.convs):
            h = conv(h)  # (B, widths[i], H / 2^(i+1), W / 2^(i+1))
            h = F.leaky_relu(self.norms[i - 1](h) if i else h, SLOPE)
        h = F.leaky_relu(self.norms[-1](self.last(h)), SLOPE)
        with full_precision(images.device):  # bf16 logits end in NaN after tens of thousands of steps
            return self.head(h.float())


class GanLoss(NamedTuple):
    """What each side minimises, a scalar: the discriminator from its logits of real images and of reconstructions, the
    autoencoder from those of its reconstructions."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    autoencoder: Callable[[Tensor], Tensor]


GAN_LOSSES: dict[str, GanLoss] = {
    "hinge": GanLoss(  # arXiv 1705.02894
        lambda real, fake: (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2,
        lambda fake: -fake.mean(),
    ),
    "non-saturating": GanLoss(  # arXiv 1406.2661
        lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
        lambda fake: F.softplus(-fake).mean(),
    ),
}
"""By `gan.loss`."""


def r1_penalty(discriminator: nn.Module, images: Tensor) -> Tensor:
    """Half the squared norm of the gradient of the logits at real images, mean over images (arXiv 1801.04406).

    Images (B, 3, H, W) -> a scalar that can be differentiated by the weights, in float32 throughout. Divided by the
    number of patches, so that one gamma means the same at every image size.
    """
    images = images.detach().float().requires_grad_(True)
    with full_precision(images.device):
        logits = discriminator(images)
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean() / (2 * logits[0].numel())
