"""Reconstruction losses of the autoencoder. Images are in [-1, 1]; every loss is computed in float32."""

from __future__ import annotations

from torch import Tensor

from brics_cli.config import LossConfig


def reconstruction_loss(config: LossConfig, reconstructions: Tensor, images: Tensor) -> dict[str, Tensor]:
    """The weighted terms of the loss, scalars, for images (B, 3, H, W); their sum is what is minimised."""
    difference = reconstructions.float() - images.float()
    terms: dict[str, Tensor] = {}
    if config.l1:
        terms["l1"] = config.l1 * difference.abs().mean()
    if config.l2:
        terms["l2"] = config.l2 * difference.square().mean()
    return terms
