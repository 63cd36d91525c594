"""One meter per metric: images go in batch by batch, the figure comes out. Each network is loaded once.

`PairMeter` gets an image beside its original and keeps one value per pair; `SetMeter` gets images of either side and
keeps moments. N images, (H, W, 3) uint8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from brics_cli.metrics.frechet import FeatureMoments, frechet_distance
from brics_cli.metrics.reconstruction import psnr, ssim
from brics_cli.metrics.registry import Metric
from brics_cli.networks.features import FeatureNetwork

Image = NDArray[np.uint8]
PairFunction = Callable[[Image, Image], NDArray[np.float64]]
Side = Literal["real", "fake"]


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


class SetMeter:
    """The Fréchet distance of two sets of images in the features of one network."""

    def __init__(self, metric: Metric, network: FeatureNetwork) -> None:
        self.metric = metric
        self.network = network
        self.moments: dict[Side, FeatureMoments] = {
            "real": FeatureMoments(network.num_features),
            "fake": FeatureMoments(network.num_features),
        }

    def update(self, side: Side, images: Sequence[Image], *, pool: ThreadPoolExecutor | None = None) -> None:
        """Add images of one side, each (H, W, 3) of any size."""
        if images:
            self.moments[side].update(self.network.features(images, pool=pool))

    @property
    def num_real(self) -> int:
        return self.moments["real"].num

    @property
    def num_fake(self) -> int:
        return self.moments["fake"].num

    @property
    def value(self) -> float:
        return frechet_distance(self.moments["real"], self.moments["fake"])

    @property
    def note(self) -> str | None:
        smallest = min(moments.num for moments in self.moments.values())
        if smallest > self.network.num_features:
            return None
        return f"{smallest:,} images are fewer than the {self.network.num_features:,} features: compare at equal N only"


def pair_meter(
    metric: Metric, *, weights: Sequence[Path], device: torch.device, pool: ThreadPoolExecutor | None = None
) -> PairMeter:
    """The meter of a metric that compares pairs; `weights` are the files of `metric.weights`."""
    if metric.name == "psnr":
        return PairMeter(metric, psnr)
    if metric.name == "ssim":
        return PairMeter(metric, lambda real, fake: ssim(real, fake, pool=pool))
    from brics_cli.metrics.perceptual import lpips_distance
    from brics_cli.networks.perceptual import load_lpips

    model = load_lpips(weights[0], net="vgg" if metric.name == "lpips-vgg" else "alex", device=device)
    return PairMeter(metric, lambda real, fake: lpips_distance(model, real, fake, device=device))


def set_meter(metric: Metric, *, weights: Sequence[Path], device: torch.device) -> SetMeter:
    """The meter of a metric that compares sets; `weights` are the files of `metric.weights`."""
    if metric.name == "clip-fid":
        from brics_cli.networks.clip import load_clip

        return SetMeter(metric, load_clip(weights[0], device=device))
    from brics_cli.networks.inception import load_inception

    return SetMeter(metric, load_inception(weights[0], device=device))
