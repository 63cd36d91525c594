"""Reconstruction losses of the autoencoder. Images are in [-1, 1]; every loss is computed in float32.

Every term is a mean over images of something that depends on one image alone, so that the loss of a batch is the mean
of the losses of its parts, whatever the micro-batches or processes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from brics_cli.autoencoder.ms_ssim import filtered, ms_ssim, weights_that_fit
from brics_cli.config import LossConfig
from brics_cli.networks.weights import require
from brics_cli.runtime.precision import full_precision

Distance = Callable[[Tensor, Tensor], Tensor]
"""(B, 3, H, W) and (B, 3, H, W) in [-1, 1] -> a scalar."""

LAPLACIAN_LEVELS = 4
LEAST_CONTRAST = 1e-4
"""Structure may be negative, and a fractional power of it is NaN; its gradient at 0 is infinite."""


def reconstruction_loss(
    config: LossConfig, reconstructions: Tensor, images: Tensor, *, distance: Distance | None = None
) -> dict[str, Tensor]:
    """The weighted terms of the loss, scalars, for images (B, 3, H, W); their sum is what is minimised.

    `distance` is `perceptual_distance(config)`, made once. Raises ValueError when the config needs it and it is None.
    """
    reconstructions, images = reconstructions.float(), images.float()
    difference = reconstructions - images
    terms: dict[str, Tensor] = {}
    if config.l1:
        terms["l1"] = config.l1 * difference.abs().mean()
    if config.l2:
        terms["l2"] = config.l2 * difference.square().mean()
    perceptual = config.perceptual
    if perceptual.kind != "none" and perceptual.weight:
        if distance is None:
            raise ValueError(f"the loss has a perceptual term ({perceptual.kind}) and no distance was given")
        with full_precision(images.device):
            terms[perceptual.kind] = perceptual.weight * distance(reconstructions, images)
    return terms


class Perceptual(NamedTuple):
    """A perceptual distance: how it is made, on a device, and the weights file (of `networks`) that it needs."""

    make: Callable[[Path | None, torch.device | str], Distance]
    weights: str | None = None


def _lpips(backbone: Path | None, device: torch.device | str) -> Distance:
    from brics_cli.networks.perceptual import load_lpips  # takes seconds to import

    assert backbone is not None
    lpips = load_lpips(backbone, net="vgg", device=device)
    return lambda a, b: lpips(a, b).mean()


def _vgg16(backbone: Path | None, device: torch.device | str) -> Distance:
    from brics_cli.networks.perceptual import VggFeatureDistance, load_lpips

    assert backbone is not None
    return VggFeatureDistance(load_lpips(backbone, net="vgg", device=device))


PERCEPTUAL: dict[str, Perceptual] = {
    "multiscale": Perceptual(lambda backbone, device: multiscale),
    "lpips": Perceptual(_lpips, weights="vgg16"),
    "vgg16": Perceptual(_vgg16, weights="vgg16"),
}
"""By `loss.perceptual.kind`; `none` is left out."""


def perceptual_distance(config: LossConfig, *, device: torch.device | str = "cpu") -> Distance | None:
    """The distance that `config.perceptual` names, its network on `device`; None for none.

    Raises ArtefactError when the weights that it needs are not there, or are not the published ones.
    """
    kind = config.perceptual.kind
    return None if kind == "none" else PERCEPTUAL[kind].make(perceptual_weights(config), device)


def perceptual_weights(config: LossConfig) -> Path | None:
    """The weights file that the loss needs; None for none. Raises ArtefactError, with the way to get it."""
    kind = config.perceptual.kind
    if kind == "none" or (weights := PERCEPTUAL[kind].weights) is None:
        return None
    return require(weights, f"loss.perceptual.kind={kind} (loss.perceptual.kind=multiscale needs no weights)").path


def multiscale(reconstructions: Tensor, images: Tensor) -> Tensor:
    """L1 + L1 of the Laplacian pyramid + (1 - MS-SSIM): a perceptual distance without learned weights; a scalar.

    Images too small for five scales of MS-SSIM take those that fit. Raises ValueError below 11 px.
    """
    difference = reconstructions - images
    weights = weights_that_fit(*images.shape[2:])
    similarity = ms_ssim(reconstructions, images, value_range=2.0, weights=weights, least=LEAST_CONTRAST)
    return difference.abs().mean() + laplacian_l1(difference) + 1 - similarity.mean()


def laplacian_l1(difference: Tensor) -> Tensor:
    """Sum over the levels of a Laplacian pyramid of the mean absolute value; the pyramid is linear, so the pyramid of
    the difference (B, 3, H, W) is the difference of the pyramids (Bojanowski et al., arXiv 1707.05776, equation 2)."""
    total = difference.new_zeros(())
    for _ in range(LAPLACIAN_LEVELS):
        if min(difference.shape[2:]) < 4:
            break
        coarse = F.avg_pool2d(_binomial(difference), 2)  # (B, 3, H/2, W/2)
        fine = F.interpolate(coarse, size=difference.shape[2:], mode="bilinear", align_corners=False)
        total = total + (difference - fine).abs().mean()
        difference = coarse
    return total + difference.abs().mean()


def _binomial(images: Tensor) -> Tensor:
    """Blur by the separable kernel 1 2 1, edges reflected: with the averaging of pairs after it, 1 3 3 1."""
    kernel = (2 - torch.arange(-1, 2, device=images.device, dtype=images.dtype).abs()) / 4
    return filtered(F.pad(images, (1, 1, 1, 1), mode="reflect"), kernel)
