"""The discriminator of the autoencoder: patches of an image, real or reconstructed (PatchGAN, arXiv 1611.07004).

Losses are functions of logits (B, 1, h, w), larger for real; all are means over images, in float32.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brics_cli.autoencoder.layers import group_norm
from brics_cli.config.runs import GanConfig

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
        with torch.autocast(
            images.device.type, enabled=False
        ):  # bf16 logits end in NaN after tens of thousands of steps
            return self.head(h.float())


def discriminator_loss(config: GanConfig, *, real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator minimises, a scalar, from its logits of real images and of reconstructions."""
    if config.loss == "hinge":  # arXiv 1705.02894
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    return F.softplus(-real).mean() + F.softplus(fake).mean()  # non-saturating, arXiv 1406.2661


def adversarial_loss(config: GanConfig, fake: Tensor) -> Tensor:
    """What the autoencoder minimises, a scalar, from the logits of its reconstructions."""
    return -fake.mean() if config.loss == "hinge" else F.softplus(-fake).mean()


def r1_penalty(discriminator: nn.Module, images: Tensor) -> Tensor:
    """Half the squared norm of the gradient of the logits at real images, mean over images (arXiv 1801.04406).

    Images (B, 3, H, W) -> a scalar that can be differentiated by the weights, in float32 throughout. Divided by the
    number of patches, so that one gamma means the same at every image size.
    """
    images = images.detach().float().requires_grad_(True)
    with torch.autocast(images.device.type, enabled=False):
        logits = discriminator(images)
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean() / (2 * logits[0].numel())
