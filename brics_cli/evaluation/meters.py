"""One meter per metric of pairs: an image and its original go in, batch by batch; one value per pair is kept.

N pairs, (H, W, 3) uint8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from brics_cli.errors import UsageError
from brics_cli.evaluation.ms_ssim import ms_ssim
from brics_cli.evaluation.reconstruction import psnr, ssim
from brics_cli.evaluation.registry import Metric

if TYPE_CHECKING:
    from brics_cli.networks.perceptual import LpipsFeatures

Image = NDArray[np.uint8]
PairFunction = Callable[[Image, Image], NDArray[np.float64]]


class PairMeter:
    """The mean of one value per pair, and its standard error."""

    def __init__(self, metric: Metric, function: PairFunction) -> None:
        self.metric = metric
        self._function = function
        self._values: list[NDArray[np.float64]] = []

    def update(self, real: Image, fake: Image) -> None:
        """Add pairs (N, H, W, 3)."""
        self._values.append(self._function(real, fake))

    @property
    def values(self) -> NDArray[np.float64]:
        """One value per pair so far."""
        return np.concatenate(self._values) if self._values else np.empty(0)

    @property
    def num(self) -> int:
        """Pairs so far."""
        return sum(len(values) for values in self._values)

    @property
    def value(self) -> float:
        """The mean over pairs; infinite when a pair is identical and the metric has no finite value for that."""
        return float(self.values.mean())

    @property
    def standard_error(self) -> float | None:
        """Standard deviation of the values over the square root of their number; None below two or if infinite."""
        values = self.values
        if len(values) < 2 or not np.isfinite(values).all():
            return None
        return float(values.std(ddof=1) / math.sqrt(len(values)))

    @property
    def note(self) -> str | None:
        num_identical = int(np.isinf(self.values).sum())
        return f"{num_identical:,} pairs are identical, of infinite {self.metric.title}" if num_identical else None


def pair_meter(
    metric: Metric,
    *,
    weights: Sequence[Path],
    device: torch.device,
    pool: ThreadPoolExecutor | None = None,
    shared: dict[str, LpipsFeatures] | None = None,
) -> PairMeter:
    """The meter of a metric that compares pairs; `weights` are the files of `metric.weights`.

    `shared`: LPIPS networks that are at work already, by key; an image that they have seen is not run again.
    """
    if metric.name == "psnr":
        return PairMeter(metric, psnr)
    if metric.name == "ssim":
        return PairMeter(metric, lambda real, fake: ssim(real, fake, pool=pool))
    if metric.name == "ms-ssim":
        return PairMeter(metric, lambda real, fake: ms_ssim(real, fake, device=device))
    if shared and metric.network in shared:
        return PairMeter(metric, shared[metric.network].distance)
    from brics_cli.networks.perceptual import load_lpips_features

    network = load_lpips_features(weights[0], net="vgg" if metric.name == "lpips-vgg" else "alex", device=device)
    return PairMeter(metric, network.distance)


def stacked_partners(real: Sequence[Image | None], fake: Sequence[Image | None]) -> Iterator[tuple[Image, Image]]:
    """Partners that could both be read, stacked to (N, H, W, 3), one pair of arrays per size of image.

    Raises UsageError when partners differ in size.
    """
    by_shape: dict[tuple[int, ...], list[tuple[Image, Image]]] = {}
    for first, second in zip(real, fake, strict=True):
        if first is None or second is None:
            continue
        if first.shape != second.shape:
            raise UsageError(
                f"the images differ in size: real {first.shape[1]} x {first.shape[0]}, "
                f"fake {second.shape[1]} x {second.shape[0]}",
                next=f"Make the originals squares of the same size: brics pack REAL --out DIR --size {second.shape[0]}",
            )
        by_shape.setdefault(first.shape, []).append((first, second))
    for members in by_shape.values():
        yield np.stack([first for first, _ in members]), np.stack([second for _, second in members])
