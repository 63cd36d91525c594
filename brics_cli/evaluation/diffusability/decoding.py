"""What the decoder makes of changed codes: transformed ones, and noisy ones.

Equivariance (EQ-VAE, arXiv 2502.09509, and Skorokhodov et al., arXiv 2502.14831): decode(T codes) beside T images, for
T that mean the same to maps of codes and of pixels. B images (B, 3, H, W) in [-1, 1], codes (B, C, h, w), f = H / h.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from brics_cli.autoencoder.autoencoder import Autoencoder
from brics_cli.evaluation.jackknife import error_of_mean
from brics_cli.evaluation.moments import Array
from brics_cli.evaluation.psnr import IDENTICAL_DB
from brics_cli.runtime.randomness import Stream, keyed_normal

ABSOLUTE = (0.01, 0.02, 0.05, 0.1)
"""Standard deviations of the noise, in units of the codes."""
RELATIVE = (0.05, 0.1, 0.2, 0.4)
"""The same in standard deviations of each channel over the store."""
SEED = 2303_00848


class Transform(NamedTuple):
    """One that acts on codes and images alike: `apply(maps, f)`, with f = 1 for codes. `divides` the sides of codes."""

    apply: Callable[[Tensor, int], Tensor]
    divides: int = 1


def _smaller(factor: int) -> Transform:
    return Transform(lambda maps, f: F.avg_pool2d(maps, factor), factor)


TRANSFORMS: dict[str, Transform] = {
    "down2": _smaller(2),
    "down4": _smaller(4),
    "flip": Transform(lambda maps, f: maps.flip(-1)),
    "turn": Transform(lambda maps, f: maps.rot90(1, (2, 3))),
    "shift": Transform(lambda maps, f: maps[..., f:]),
}
"""Scaling is averaging; a turn is of 90°; a shift is by one code, of which what moves out of sight is cut off."""


class Decoded:
    """Squared errors of every image, added batch by batch; codes are of `code_shape` (C, h, w), and `std` (C,) is that
    of each channel over the store."""

    def __init__(
        self, autoencoder: Autoencoder, *, code_shape: tuple[int, int, int], std: np.ndarray, device: torch.device
    ) -> None:
        self.autoencoder, self.device = autoencoder, device
        self.downsampling = autoencoder.config.downsampling
        _, height, width = code_shape
        self.transforms = {
            name: each
            for name, each in TRANSFORMS.items()
            if height % each.divides == width % each.divides == 0 and (name != "shift" or width > 1)
        }
        self._std = torch.from_numpy(std).to(device)[:, None, None]
        self._errors: dict[tuple[str, object], list[Array]] = {}

    @torch.inference_mode()
    def add(self, codes: Tensor, images: Tensor, rows: list[int]) -> None:
        """Codes of rows `rows` of the store, and their images."""
        decode, admissible = self.autoencoder.decode, self.autoencoder.bottleneck.admissible
        self._add("plain", None, decode(codes), images)
        for name, transform in self.transforms.items():
            self._add(name, None, decode(transform.apply(codes, 1)), transform.apply(images, self.downsampling))
        shape = codes.shape[1:]
        noise = keyed_normal(SEED, step=0, indices=rows, shape=shape, stream=Stream.CODE_NOISE).to(self.device)
        for kind, levels, unit in (("absolute", ABSOLUTE, 1.0), ("relative", RELATIVE, self._std)):
            for level in levels:
                self._add(kind, level, decode(admissible(codes + level * unit * noise)), images)

    def _add(self, name: str, level: object, made: Tensor, target: Tensor) -> None:
        """The mean squared error of each image, for values in [0, 1]."""
        error = (made - target).square().mean(dim=(1, 2, 3)) / 4
        self._errors.setdefault((name, level), []).append(error.double().cpu().numpy())

    @property
    def num(self) -> int:
        return sum(len(part) for part in self._errors.get(("plain", None), []))

    def ratio(self, name: str) -> tuple[float, float]:
        """The mean error under the transform over the plain error, 1 for an equivariant decoder; its standard error is
        that of a ratio of means."""
        changed, plain = self._of(name), self._of("plain")
        scale = max(plain.mean(), 1e-12)
        ratio = changed.mean() / scale
        return float(ratio), error_of_mean(changed - ratio * plain) / float(scale)

    def psnr(self, kind: str, level: float) -> tuple[float, float]:
        """The mean PSNR over images, dB, of codes with noise, and its standard error."""
        decibels = -10 * np.log10(self._of(kind, level).clip(min=10 ** (-IDENTICAL_DB / 10)))
        return float(decibels.mean()), error_of_mean(decibels)

    def curve(self, kind: str) -> dict[str, Any]:
        """PSNR, dB, by the noise's standard deviation."""
        levels = ABSOLUTE if kind == "absolute" else RELATIVE
        return {f"{level:g}": self.psnr(kind, level)[0] for level in levels}

    def _of(self, name: str, level: object = None) -> Array:
        return np.concatenate(self._errors[name, level])
