"""Which metrics there are, what each compares, which weights it needs, and its definition in one line. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from brics_cli.config.suggestions import did_you_mean
from brics_cli.errors import UsageError


@dataclass(frozen=True)
class Metric:
    """One name of `brics eval --metric`.

    `compares`: `pairs`, an image with its reconstruction, so each image has a value and the mean a standard error;
    or `sets`, two collections as a whole. `definition` is what must agree for two figures to be comparable.
    """

    name: str
    title: str
    compares: Literal["pairs", "sets"]
    weights: tuple[str, ...]
    better: Literal["higher", "lower"]
    unit: str
    definition: str


REGISTRY: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="psnr",
            title="PSNR",
            compares="pairs",
            weights=(),
            better="higher",
            unit="dB",
            definition="uint8 RGB, MSE over all channels, mean of the images' values",
        ),
        Metric(
            name="ssim",
            title="SSIM",
            compares="pairs",
            weights=(),
            better="higher",
            unit="",
            definition="uint8 RGB (range 255), Gaussian window 11 x 11, sigma 1.5, mean over channels and images",
        ),
        Metric(
            name="lpips",
            title="LPIPS (alex)",
            compares="pairs",
            weights=("alexnet",),
            better="lower",
            unit="",
            definition="lpips v0.1, AlexNet, images in [-1, 1]",
        ),
        Metric(
            name="lpips-vgg",
            title="LPIPS (vgg)",
            compares="pairs",
            weights=("vgg16",),
            better="lower",
            unit="",
            definition="lpips v0.1, VGG16, images in [-1, 1]",
        ),
        Metric(
            name="fid",
            title="FID",
            compares="sets",
            weights=("inception",),
            better="lower",
            unit="",
            definition="clean-fid's mode clean: Inception 2015, 2048 features, covariance / (N - 1)",
        ),
        Metric(
            name="clip-fid",
            title="CLIP-FID",
            compares="sets",
            weights=("clip-vit-b-32",),
            better="lower",
            unit="",
            definition="clean-fid's clip_vit_b_32: CLIP ViT-B/32, 512 features, float32, covariance / (N - 1)",
        ),
    )
}

NEEDS_NO_WEIGHTS: tuple[str, ...] = tuple(name for name, metric in REGISTRY.items() if not metric.weights)


def metric(name: str) -> Metric:
    """The metric `name`. Raises UsageError with the nearest name, or all of them, when there is none."""
    if name not in REGISTRY:
        raise UsageError(f"no metric {name!r}{did_you_mean(name, REGISTRY)}")
    return REGISTRY[name]
