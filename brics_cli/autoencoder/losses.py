"""Reconstruction losses of the autoencoder. Images are in [-1, 1]; every loss is computed in float32.

Every term is a mean over images of something that depends on one image alone, so that the loss of a batch is the mean
of the losses of its parts, whatever the micro-batches or processes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from brics_cli.config import LossConfig
from brics_cli.networks.weights import require

Distance = Callable[[Tensor, Tensor], Tensor]
"""(B, 3, H, W) and (B, 3, H, W) in [-1, 1] -> a scalar."""

# Wang, Simoncelli and Bovik, "Multiscale structural similarity", Asilomar 2003: weights of scales, finest first.
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_RANGE = 2.0
LAPLACIAN_LEVELS = 4
LEAST_CONTRAST = 1e-4
"""Structure may be negative, and a fractional power of it is no number; its gradient at 0 is infinite."""


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
        with torch.autocast(images.device.type, enabled=False):
            terms[perceptual.kind] = perceptual.weight * distance(reconstructions, images)
    return terms


def perceptual_distance(config: LossConfig, *, device: torch.device | str = "cpu") -> Distance | None:
    """The distance that `config.perceptual` names, its network on `device`; None for none.

    Raises ArtefactError when the weights that it needs are not there, or are not the published ones.
    """
    kind = config.perceptual.kind
    if kind == "none":
        return None
    if kind == "multiscale":
        return multiscale
    from brics_cli.networks.perceptual import VggFeatureDistance, load_lpips  # lpips takes seconds to import

    lpips = load_lpips(require("vgg16", _named(kind)).path, net="vgg", device=device)
    if kind == "vgg16":
        return VggFeatureDistance(lpips)
    return lambda a, b: lpips(a, b).mean()


def check_perceptual_weights(config: LossConfig) -> None:
    """Raise ArtefactError when the loss needs weights that are not there, with the way to get them. Loads nothing."""
    if config.perceptual.kind in ("lpips", "vgg16"):
        require("vgg16", _named(config.perceptual.kind))


def _named(kind: str) -> str:
    return f"loss.perceptual.kind={kind} (loss.perceptual.kind=multiscale needs no weights)"


def multiscale(reconstructions: Tensor, images: Tensor) -> Tensor:
    """L1 + L1 of the Laplacian pyramid + (1 - MS-SSIM): a perceptual distance without learned weights; a scalar."""
    difference = reconstructions - images
    return difference.abs().mean() + laplacian_l1(difference) + 1 - ms_ssim(reconstructions, images).mean()


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
    kernel = images.new_tensor([1.0, 2.0, 1.0]) / 4
    return _filter(F.pad(images, (1, 1, 1, 1), mode="reflect"), kernel)


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """MS-SSIM (B,) of images (B, 3, H, W) in [-1, 1]: mean over channels, valid windows only.

    Images too small for five scales of the 11 x 11 window take those that fit, with weights that still sum to 1; one
    scale alone is SSIM. Raises ValueError below 11 px.
    """
    num_scales = sum(min(a.shape[2:]) // 2**scale >= SSIM_WINDOW for scale in range(len(MS_SSIM_WEIGHTS)))
    if not num_scales:
        raise ValueError(f"MS-SSIM needs images of at least {SSIM_WINDOW} px, these are {tuple(a.shape[2:])}")
    weights = [weight / sum(MS_SSIM_WEIGHTS[:num_scales]) for weight in MS_SSIM_WEIGHTS[:num_scales]]
    product = a.new_ones(a.shape[:2])  # (B, 3)
    for scale, weight in enumerate(weights):
        luminance, contrast = _ssim_parts(a, b)  # (B, 3, H', W') each
        last = scale == num_scales - 1
        score = (luminance * contrast if last else contrast).mean(dim=(2, 3))
        product = product * score.clamp(min=LEAST_CONTRAST) ** weight
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return product.mean(dim=1)


def _ssim_parts(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The luminance term and the contrast-structure term of SSIM at every valid window, (B, 3, H - 10, W - 10)."""
    c1, c2 = (0.01 * SSIM_RANGE) ** 2, (0.03 * SSIM_RANGE) ** 2
    offsets = torch.arange(SSIM_WINDOW, device=a.device, dtype=a.dtype) - SSIM_WINDOW // 2
    kernel = torch.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    kernel = kernel / kernel.sum()
    mean_a, mean_b = _filter(a, kernel), _filter(b, kernel)
    var_a = _filter(a * a, kernel) - mean_a**2
    var_b = _filter(b * b, kernel) - mean_b**2
    covariance = _filter(a * b, kernel) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance, (2 * covariance + c2) / (var_a + var_b + c2)


def _filter(images: Tensor, kernel: Tensor) -> Tensor:
    """Correlate each channel of (B, 3, H, W) with `kernel` along both axes, no padding."""
    channels, size = images.shape[1], len(kernel)
    rows = kernel.view(1, 1, size, 1).expand(channels, 1, size, 1)
    columns = kernel.view(1, 1, 1, size).expand(channels, 1, 1, size)
    return F.conv2d(F.conv2d(images, rows, groups=channels), columns, groups=channels)
