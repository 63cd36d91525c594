"""What a trained autoencoder is worth: clean, with disturbed codes, and between two images.

N images, codes (N, C, h, w). Noise is in units of each channel's standard deviation over the images scored: codes of
different bottlenecks have different ranges, and a diffusion model, whose codes are normalised, errs in these units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from brics_cli.autoencoder.autoencoder import Autoencoder, to_tensor, to_uint8
from brics_cli.evaluation.psnr import capped_psnr
from brics_cli.evaluation.reconstruction import ssim
from brics_cli.runtime.precision import float32_products

NOISE_LEVELS = (0.05, 0.1, 0.2)
"""Standard deviations of the noise, in standard deviations of the codes."""
BITS = (8, 5)
PATH_STEPS = 16
NUM_PATHS = 32
BATCH = 64


@dataclass(frozen=True)
class Scores:
    """Means over the held-out images; PSNR in dB, on uint8 pixels.

    `psnr_noise` and `psnr_bits` are PSNR with disturbed codes, by noise level and by bits per code value. Between the
    codes of two images, in equal steps: `path_length` is the length of the decoded path over the distance of its ends
    (1 is a cross-fade of pixels), `largest_step` its largest step over its mean step (1 is perfectly even).
    """

    psnr: float
    ssim: float
    lpips: float | None
    psnr_noise: dict[str, float]
    psnr_bits: dict[str, float]
    path_length: float
    largest_step: float
    usage: dict[str, float]


@torch.inference_mode()
@float32_products("fp32")
def score(model: Autoencoder, images: np.ndarray, *, device: torch.device, lpips: nn.Module | None = None) -> Scores:
    """Score (N, S, S, 3) uint8, in float32. `lpips` is `networks.perceptual.load_lpips`'s network, if its weights are
    there."""
    codes = torch.cat([model.encode(part) for part in _tensors(images, device)])  # (N, C, h, w)
    clean = _decode(model, codes)
    std = codes.std(dim=(0, 2, 3), keepdim=True)
    noise = torch.randn(codes.shape, generator=torch.Generator().manual_seed(0)).to(device)
    path_length, largest_step = _paths(model, codes[: 2 * NUM_PATHS])
    usage = model.bottleneck.usage_counter()
    for part in codes.split(BATCH):
        usage.add(part)
    return Scores(
        psnr=_psnr(images, clean),
        ssim=float(ssim(images, clean).mean()),
        lpips=None if lpips is None else _lpips(lpips, images, clean, device),
        psnr_noise={f"{level:g}": _psnr(images, _decode(model, codes + level * std * noise)) for level in NOISE_LEVELS},
        psnr_bits={f"{bits}": _psnr(images, _decode(model, _round(model, codes, bits))) for bits in BITS},
        path_length=path_length,
        largest_step=largest_step,
        usage=usage.result(),
    )


def _decode(model: Autoencoder, codes: Tensor) -> np.ndarray:
    """(N, C, h, w), brought back into the range that the bottleneck's codes have, -> (N, S, S, 3) uint8."""
    codes = model.bottleneck.admissible(codes)
    return np.concatenate([to_uint8(model.decode(part)) for part in codes.split(BATCH)])


def _round(model: Autoencoder, codes: Tensor, bits: int) -> Tensor:
    """Round to 2^bits values, evenly over [0, 1], or over each channel's range where codes are not bounded."""
    low, high = codes.new_zeros(1), codes.new_ones(1)
    if not model.bottleneck.bounded:
        low, high = codes.amin(dim=(0, 2, 3), keepdim=True), codes.amax(dim=(0, 2, 3), keepdim=True)
    steps = 2**bits - 1
    return torch.round((codes - low) / (high - low).clamp(min=1e-12) * steps) / steps * (high - low) + low


def _paths(model: Autoencoder, codes: Tensor) -> tuple[float, float]:
    """Mean path length and largest step between codes 2i and 2i + 1 of (2P, C, h, w); in pixels before rounding."""
    starts, ends = codes[0::2], codes[1::2]
    starts = starts[: len(ends)]
    at = torch.linspace(0, 1, PATH_STEPS + 1, device=codes.device).view(-1, 1, 1, 1)
    lengths, largest = [], []
    for start, end in zip(starts, ends, strict=True):
        frames = model.decode(torch.lerp(start, end, at)).flatten(1)  # (K + 1, 3 * S * S)
        steps = (frames[1:] - frames[:-1]).square().mean(dim=1).sqrt()
        distance = (frames[-1] - frames[0]).square().mean().sqrt()
        if steps.sum() > 0:
            lengths.append(float(steps.sum() / distance.clamp(min=1e-6)))
            largest.append(float(steps.max() / steps.mean()))
    return float(np.mean(lengths)), float(np.mean(largest))


def _psnr(real: np.ndarray, fake: np.ndarray) -> float:
    return float(capped_psnr(real, fake).mean())


def _lpips(lpips: nn.Module, real: np.ndarray, fake: np.ndarray, device: torch.device) -> float:
    pairs = zip(_tensors(real, device), _tensors(fake, device), strict=True)
    return float(torch.cat([lpips(a, b).flatten() for a, b in pairs]).mean())


def _tensors(images: np.ndarray, device: torch.device) -> Iterator[Tensor]:
    for start in range(0, len(images), BATCH):
        yield to_tensor(images[start : start + BATCH], device)
