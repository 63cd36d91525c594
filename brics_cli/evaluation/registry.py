"""Which metrics there are, what each compares, which network and weights it needs, and its definition. No torch.

A metric's features depend on two settings: the `mode` of Inception (how images are resized for it: clean-fid's
names) and the `preset` of the manifold metrics (network, k, inequality). `network_of` and `definition_of` resolve them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from brics_cli.config.suggestions import did_you_mean
from brics_cli.errors import UsageError
from brics_cli.networks.registry import NETWORKS

Mode = Literal["clean", "legacy-tensorflow", "legacy-pytorch"]
Preset = Literal["adm", "stylegan3", "prdc"]
Compares = Literal["pairs", "sets", "codes"]
Family = Literal["frechet", "kernel", "inception-score", "manifold", "pairs", "usage", "neighbours"]

MODES: tuple[Mode, ...] = ("clean", "legacy-tensorflow", "legacy-pytorch")


@dataclass(frozen=True)
class ManifoldPreset:
    """What fixes precision, recall, density and coverage: the features, k, whether a radius reaches its own distance
    (`<=`), and how many images of a side are taken at most."""

    network: str
    k: int
    closed: bool
    max_real: int | None
    max_fake: int | None
    source: str


# Inequality, k and sizes as read in guided-diffusion's evaluations/evaluator.py (openai/guided-diffusion, 1b61a43) and
# in StyleGAN3's metrics/precision_recall.py and metric_main.py; both take distances in float16, which we do not.
PRESETS: dict[Preset, ManifoldPreset] = {
    "adm": ManifoldPreset("inception", 3, True, None, None, "ADM's evaluator, arXiv 2105.05233"),
    "stylegan3": ManifoldPreset("nvidia-vgg16", 3, True, 200_000, 50_000, "StyleGAN3's pr50k3_full"),
    "prdc": ManifoldPreset("vgg16-fc2", 5, False, 10_000, 10_000, "prdc, arXiv 2002.09797"),
}


@dataclass(frozen=True)
class Settings:
    """What the features of some metrics depend on."""

    mode: Mode = "clean"
    preset: Preset = "adm"


NETWORK_WEIGHTS: dict[str, str] = {key: known.weights for key, known in NETWORKS.items() if known.weights is not None}
"""Every way that features are made from pretrained weights -> the weights it needs."""

RANDOM_NETWORK = "random-conv"
"""The network whose weights are drawn, always the same: it needs no file."""

NEIGHBOUR_NETWORKS: tuple[str, ...] = ("lpips-alex", "lpips-vgg", "dinov2", "inception-clean", "clip")
"""What nearest images may be looked for in; the first whose weights are there is taken."""


@dataclass(frozen=True)
class Metric:
    """One name of `brics eval --metric`.

    `compares`: `pairs`, an image with its reconstruction, so each image has a value and the mean a standard error;
    `sets`, two collections as a whole; or `codes`, what a store holds. `inputs` says what is looked up when no path
    is given: reconstructions with their originals, or samples with the training collection. `network` is a key of
    NETWORK_WEIGHTS, RANDOM_NETWORK, or `inception` (by mode), `manifold` (by preset), `neighbours`. `definition` is
    what must agree for two figures to be comparable.
    """

    name: str
    title: str
    compares: Compares
    family: Family
    network: str | None
    better: Literal["higher", "lower", ""]
    unit: str
    definition: str
    inputs: Literal["reconstructions", "samples"] = "samples"

    @property
    def published(self) -> bool:
        """Whether anybody else's figures are measured so; nobody else has the network with random weights."""
        return self.network != RANDOM_NETWORK

    @property
    def weights(self) -> tuple[str, ...]:
        """The weights needed under the default settings."""
        return weights_of(self, Settings())


def _pairs(name: str, title: str, network: str | None, better: Literal["higher", "lower"], definition: str) -> Metric:
    unit = "dB" if name == "psnr" else ""
    return Metric(name, title, "pairs", "pairs", network, better, unit, definition, inputs="reconstructions")


def _manifold(name: str, title: str, definition: str) -> Metric:
    return Metric(name, title, "sets", "manifold", "manifold", "higher", "", definition)


_FID = "2048 features, covariance / (N - 1)"

REGISTRY: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _pairs("psnr", "PSNR", None, "higher", "uint8 RGB, MSE over all channels, mean of the images' values"),
        _pairs(
            "ssim",
            "SSIM",
            None,
            "higher",
            "uint8 RGB (range 255), Gaussian window 11 x 11, sigma 1.5, mean over channels and images",
        ),
        _pairs(
            "ms-ssim",
            "MS-SSIM",
            None,
            "higher",
            "uint8 RGB (range 255), Wang 2003: 5 scales, window 11 x 11, sigma 1.5, mean over channels and images",
        ),
        _pairs("lpips", "LPIPS (alex)", "lpips-alex", "lower", "lpips v0.1, AlexNet, images in [-1, 1]"),
        _pairs("lpips-vgg", "LPIPS (vgg)", "lpips-vgg", "lower", "lpips v0.1, VGG16, images in [-1, 1]"),
        Metric("fid", "FID", "sets", "frechet", "inception", "lower", "", _FID),
        Metric("rfid", "rFID", "sets", "frechet", "inception", "lower", "", _FID, inputs="reconstructions"),
        Metric(
            "clip-fid",
            "CLIP-FID",
            "sets",
            "frechet",
            "clip",
            "lower",
            "",
            "clean-fid's clip_vit_b_32: CLIP ViT-B/32, 512 features, float32, covariance / (N - 1)",
        ),
        Metric(
            "fd-dinov2",
            "FD-DINOv2",
            "sets",
            "frechet",
            "dinov2",
            "lower",
            "",
            "dgm-eval's: DINOv2 ViT-L/14, 1024 features of the class token, float32, covariance / (N - 1)",
        ),
        Metric(
            "fd-random",
            "FD-random",
            "sets",
            "frechet",
            RANDOM_NETWORK,
            "lower",
            "",
            "brics only, at equal N: 112 features of random convolutions, covariance / (N - 1)",
        ),
        Metric(
            "kid",
            "KID",
            "sets",
            "kernel",
            "inception",
            "lower",
            "",
            "unbiased, kernel (x.y/2048 + 1)^3, mean of 100 subsets of 1000",
        ),
        Metric(
            "is",
            "IS",
            "sets",
            "inception-score",
            "inception",
            "higher",
            "",
            "1008 classes without output bias, 10 splits after a shuffle of seed 2020 (torch-fidelity's)",
        ),
        _manifold("precision", "Precision", "share of the fake images inside the manifold of the real"),
        _manifold("recall", "Recall", "share of the real images inside the manifold of the fake"),
        _manifold("density", "Density", "real balls around a fake image, over k (< radius)"),
        _manifold("coverage", "Coverage", "share of the real balls that hold a fake image (< radius)"),
        Metric(
            "usage",
            "Usage",
            "codes",
            "usage",
            None,
            "higher",
            "",
            "share of the bottleneck's grid vertices or codebook entries that the store's codes use",
            inputs="reconstructions",
        ),
        Metric(
            "neighbours",
            "Nearest neighbour",
            "sets",
            "neighbours",
            "neighbours",
            "",
            "",
            "median over the looked-up fake images of the distance to the nearest real one",
        ),
    )
}

DEFAULT: tuple[str, ...] = ("psnr", "ssim", "lpips", "lpips-vgg", "fid", "clip-fid")
"""Measured, where weights and inputs allow, when no metric is named."""

NEEDS_NO_WEIGHTS: tuple[str, ...] = ("psnr", "ssim")
"""What an error about missing weights offers instead."""


def metric(name: str) -> Metric:
    """The metric `name`. Raises UsageError with the nearest name, or all of them, when there is none."""
    if name not in REGISTRY:
        near = did_you_mean(name, [*REGISTRY, "all"]) or f"; there are: {', '.join(REGISTRY)}, and all"
        raise UsageError(f"no metric {name!r}{near}")
    return REGISTRY[name]


def network_of(metric: Metric, settings: Settings) -> str | None:
    """The key of NETWORK_WEIGHTS, or RANDOM_NETWORK, that `metric` takes its features from; None for no network.

    `neighbours` may take several: its first choice is returned.
    """
    network = PRESETS[settings.preset].network if metric.network == "manifold" else metric.network
    if network == "inception":
        return f"inception-{settings.mode}"
    return NEIGHBOUR_NETWORKS[0] if network == "neighbours" else network


def weights_of(metric: Metric, settings: Settings) -> tuple[str, ...]:
    """The weights `metric` needs."""
    return weights_for(network_of(metric, settings))


def weights_for(network: str | None) -> tuple[str, ...]:
    """The weights that `network`, as `network_of` names it, needs."""
    return () if network is None or network == RANDOM_NETWORK else (NETWORK_WEIGHTS[network],)


def smallest_number(metric: Metric, settings: Settings) -> int:
    """How many images of a side `metric` needs at least to have a figure."""
    return {"frechet": 2, "kernel": 2, "manifold": PRESETS[settings.preset].k + 1}.get(metric.family, 1)


def definition_of(metric: Metric, settings: Settings, *, network: str | None = None) -> str:
    """What must agree for two figures to be comparable, the settings filled in.

    `network`: what the features were taken from, where that was chosen by what is there (`neighbours`).
    """
    if metric.family == "manifold":
        preset = PRESETS[settings.preset]
        features = _FEATURES[network_of(metric, settings) or ""]
        sign = "<=" if preset.closed and metric.name in {"precision", "recall"} else "<"
        rule = f", {sign} radius" if metric.name in {"precision", "recall"} else ""
        return f"{metric.definition}: preset {settings.preset} ({preset.source}), k = {preset.k}{rule}, {features}"
    if metric.network == "inception":
        return f"{_FEATURES[f'inception-{settings.mode}']}, {metric.definition}"
    if metric.family == "neighbours" and network is not None:
        return f"{metric.definition}, {_FEATURES[network]}"
    return metric.definition


def caveat_of(metric: Metric, settings: Settings) -> str | None:
    """What sets a figure under `settings` apart from those its definition names; None when nothing does."""
    if metric.name in {"precision", "recall"} and settings.preset == "adm" and settings.mode != "legacy-tensorflow":
        return (
            "ADM published figures of Inception with its own resize: compare with them under --mode legacy-tensorflow"
        )
    return None


def users_of(weights_id: str) -> list[tuple[str, tuple[str, ...]]]:
    """The metrics that need the weights `weights_id`, and the options that make them; those that need none first."""
    found: dict[str, tuple[str, ...]] = {}
    for preset in PRESETS:
        for mode in MODES:
            settings = Settings(mode, preset)
            flags: tuple[str, ...] = () if mode == Settings.mode else ("--mode", mode)
            flags += () if preset == Settings.preset else ("--preset", preset)
            for known in REGISTRY.values():
                if known.network != "neighbours" and weights_id in weights_of(known, settings):
                    found.setdefault(known.name, flags)
    return sorted(found.items(), key=lambda user: len(user[1]))


_FEATURES = {key: known.features for key, known in NETWORKS.items()}
