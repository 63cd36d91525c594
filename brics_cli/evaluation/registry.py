"""Which metrics there are: what each compares, in which network's features, and its definition. No torch.

To add one: a class (`evaluation.family` says what it has), a line here or a call of `register`, and a test. Help texts,
the lists in messages and `brics weights` follow from this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from brics_cli.config.names import Normalise
from brics_cli.config.suggestions import did_you_mean
from brics_cli.errors import UsageError
from brics_cli.evaluation.figures_of_codes import FIGURES
from brics_cli.networks.registry import NETWORKS

Better = Literal["higher", "lower", ""]
Compares = Literal["pairs", "sets", "codes"]
ALL = "all"

MODES = ("clean", "legacy-tensorflow", "legacy-pytorch")
"""How images are resized for Inception, by clean-fid's names."""


@dataclass(frozen=True)
class ManifoldPreset:
    """What fixes precision, recall, density and coverage: the features, k, whether a radius reaches its own distance
    (`<=`), and how many images of a side are taken at most."""

    network: str | None
    """None: Inception in the chosen mode."""
    k: int
    closed: bool
    max_real: int | None
    max_fake: int | None
    source: str

    def describe(self) -> str:
        """`vgg16-fc2, k = 5, at most 10,000 images`."""
        most = f", at most {self.max_real:,} images" if self.max_real is not None else ""
        return f"{self.network or 'Inception'}, k = {self.k}{most}"


# Inequality, k and sizes as read in guided-diffusion's evaluations/evaluator.py (openai/guided-diffusion, 1b61a43) and
# in StyleGAN3's metrics/precision_recall.py and metric_main.py; both take distances in float16, which we do not.
PRESETS = {
    "adm": ManifoldPreset(None, 3, True, None, None, "ADM's evaluator, arXiv 2105.05233"),
    "stylegan3": ManifoldPreset("nvidia-vgg16", 3, True, 200_000, 50_000, "StyleGAN3's pr50k3_full"),
    "prdc": ManifoldPreset("vgg16-fc2", 5, False, 10_000, 10_000, "prdc, arXiv 2002.09797"),
}

NEIGHBOUR_NETWORKS = ("lpips-alex", "lpips-vgg", "dinov2", "inception-clean", "clip")
"""What nearest images may be looked for in; the first whose weights are there is taken."""


@dataclass(frozen=True)
class Settings:
    """What metrics are measured with. Raises UsageError for a name that is not in MODES, PRESETS, NEIGHBOUR_NETWORKS.

    `mode`: how images are resized for Inception; `preset`: of precision, recall, density and coverage. Of `neighbours`:
    `num_queries`, the first so many fake images are looked up; `num_neighbours` of each are found, in the features of
    `neighbours_by` (None: the first whose weights are there); `sheet`: the picture of them (PNG). Of diffusability:
    `normalise`, what is done to codes before they are diffused (`diffusion.normalise`), and `plot`, the figure.
    """

    mode: str = "clean"
    preset: str = "adm"
    neighbours_by: str | None = None
    num_queries: int = 64
    num_neighbours: int = 3
    sheet: Path = Path("neighbours.png")
    normalise: Normalise = "store"
    plot: Path | None = None

    def __post_init__(self) -> None:
        for option, value, known in (
            ("--mode: no mode", self.mode, MODES),
            ("--preset: no preset", self.preset, PRESETS),
            ("--neighbours-by: no network", self.neighbours_by, NEIGHBOUR_NETWORKS),
            ("--normalise: no choice", self.normalise, get_args(Normalise)),
        ):
            if value is not None and value not in known:
                raise UsageError(f"{option} {value!r}{did_you_mean(value, known)}")


@dataclass(frozen=True)
class Metric:
    """One name of `brics eval --metric`.

    `family`: the class that measures it, as `module:Class`. `definition`: what must agree for two figures to be
    comparable; `{features}` stands for those of the network, `{preset}` and `{sign}` for the preset's rule and
    inequality, `{normalise}` for what is done to codes. `network`: the key of NETWORKS that the features are of, or
    what makes it of the settings; None: none. `compares`: `pairs`, an image with its reconstruction, so each image has
    a value and the mean a standard error; `sets`, two collections as a whole; or `codes`, what a store holds. `inputs`
    says what is looked up when no path is given: reconstructions with their originals, or samples with the training
    collection. `default`: measured when no metric is named. `published`: others' figures are measured so, too.
    `one_sided`: looks at the fake side alone. `group`: the name that stands for this metric and others that are
    measured together; only who names it or the metric gets it, `all` does not.
    """

    name: str
    title: str
    family: str
    better: Better
    definition: str
    _: KW_ONLY
    network: str | Callable[[Settings], str | None] | None = None
    compares: Compares = "sets"
    inputs: Literal["reconstructions", "samples"] = "samples"
    unit: str = ""
    decimals: int = 4
    default: bool = False
    published: bool = True
    one_sided: bool = False
    group: str = ""


REGISTRY: dict[str, Metric] = {}
GROUPS: dict[str, list[str]] = {}
"""Name of a group -> its metrics."""


def register(metric: Metric) -> Metric:
    """Add a metric, so that `brics eval --metric NAME` knows it; returns it.

        register(Metric("mae", "MAE", "my_module:MeanAbsoluteError", "lower", "uint8 RGB", compares="pairs"))

    Raises ValueError when the name is taken.
    """
    if metric.name in REGISTRY or metric.name in GROUPS or metric.name == ALL:
        raise ValueError(f"there is a metric {metric.name!r} already")
    REGISTRY[metric.name] = metric
    if metric.group:
        GROUPS.setdefault(metric.group, []).append(metric.name)
    return metric


def _inception(settings: Settings) -> str:
    return f"inception-{settings.mode}"


def _of_preset(settings: Settings) -> str:
    return PRESETS[settings.preset].network or _inception(settings)


def _of_neighbours(settings: Settings) -> str | None:
    return settings.neighbours_by


_HERE = "brics_cli.evaluation"
_pairs = partial(Metric, compares="pairs", inputs="reconstructions")
_sets = partial(Metric, network=_inception)
_frechet = partial(_sets, family=f"{_HERE}.frechet:Frechet", better="lower")
_manifold = partial(Metric, family=f"{_HERE}.manifold:Manifold", better="higher", network=_of_preset)

_FID = "{features}, 2048 features, covariance / (N - 1)"
_LPIPS = f"{_HERE}.reconstruction:Lpips"

for _metric in (
    _pairs(
        "psnr", "PSNR", f"{_HERE}.reconstruction:Psnr", "higher",
        "uint8 RGB, MSE over all channels, mean of the images' values",
        unit="dB", decimals=2, default=True,
    ),
    _pairs(
        "ssim", "SSIM", f"{_HERE}.reconstruction:Ssim", "higher",
        "uint8 RGB (range 255), Gaussian window 11 x 11, sigma 1.5, mean over channels and images",
        default=True,
    ),
    _pairs(
        "ms-ssim", "MS-SSIM", f"{_HERE}.reconstruction:MsSsim", "higher",
        "uint8 RGB (range 255), Wang 2003: 5 scales, window 11 x 11, sigma 1.5, mean over channels and images",
    ),
    _pairs(
        "lpips", "LPIPS (alex)", _LPIPS, "lower", "lpips v0.1, AlexNet, images in [-1, 1]",
        network="lpips-alex", default=True,
    ),
    _pairs(
        "lpips-vgg", "LPIPS (vgg)", _LPIPS, "lower", "lpips v0.1, VGG16, images in [-1, 1]",
        network="lpips-vgg", default=True,
    ),
    _frechet("fid", "FID", definition=_FID, default=True),
    _frechet("rfid", "rFID", definition=_FID, inputs="reconstructions"),
    _frechet(
        "clip-fid", "CLIP-FID", network="clip", default=True,
        definition="clean-fid's clip_vit_b_32: CLIP ViT-B/32, 512 features, float32, covariance / (N - 1)",
    ),
    _frechet(
        "fd-dinov2", "FD-DINOv2", network="dinov2",
        definition="dgm-eval's: DINOv2 ViT-L/14, 1024 features of the class token, float32, covariance / (N - 1)",
    ),
    _frechet(
        "fd-effnet", "FD-EffNet", network="efficientnet-lite0", published=False,
        definition="brics only, at equal N: EfficientNet-Lite0 (TensorFlow's), 1280 features, covariance / (N - 1)",
    ),
    _frechet(
        "fd-random", "FD-random", network="random-conv", published=False,
        definition="brics only, at equal N: 112 features of random convolutions, covariance / (N - 1)",
    ),
    _sets(
        "kid", "KID", f"{_HERE}.kernel:Kernel", "lower",
        "{features}, unbiased, kernel (x.y/2048 + 1)^3, mean of 100 subsets of 1000", decimals=6,
    ),
    _sets(
        "is", "IS", f"{_HERE}.inception_score:InceptionScore", "higher",
        "{features}, 1008 classes without output bias, 10 splits after a shuffle of seed 2020 (torch-fidelity's)",
        one_sided=True,
    ),
    _manifold(
        "precision", "Precision",
        definition="share of the fake images inside the manifold of the real: {preset}, {sign} radius, {features}",
    ),
    _manifold(
        "recall", "Recall",
        definition="share of the real images inside the manifold of the fake: {preset}, {sign} radius, {features}",
    ),
    _manifold(
        "density", "Density", definition="real balls around a fake image, over k (< radius): {preset}, {features}"
    ),
    _manifold(
        "coverage", "Coverage",
        definition="share of the real balls that hold a fake image (< radius): {preset}, {features}",
    ),
    Metric(
        "usage", "Usage", f"{_HERE}.usage:Usage", "higher",
        "share of the bottleneck's grid vertices or codebook entries that the store's codes use",
        compares="codes", inputs="reconstructions", one_sided=True,
    ),
    Metric(
        "neighbours", "Nearest neighbour", f"{_HERE}.neighbours:Neighbours", "",
        "median over the looked-up fake images of the distance to the nearest real one, {features}",
        network=_of_neighbours,
    ),
):  # fmt: skip
    register(_metric)
for _figure in FIGURES:
    register(
        Metric(
            family=f"{_HERE}.diffusability:Diffusability",
            compares="pairs",
            inputs="reconstructions",
            published=False,
            one_sided=True,
            group="diffusability",
            **_figure._asdict(),
        )
    )


def metric(name: str) -> Metric:
    """The metric `name`. Raises UsageError with the nearest name, or all of them, when it is unknown."""
    if name not in REGISTRY:
        single = [each for each, known in REGISTRY.items() if not known.group]
        near = did_you_mean(name, [*REGISTRY, *GROUPS, ALL]) or f"; there are: {', '.join([*single, *GROUPS])}, and all"
        raise UsageError(f"no metric {name!r}{near}")
    return REGISTRY[name]


def metrics_help() -> str:
    """What `--metric` takes, in a few sentences."""

    def names(compares: Compares, inputs: str = "") -> list[str]:
        known = (each for each in REGISTRY.values() if not each.group)
        return [each.name for each in known if each.compares == compares and inputs in ("", each.inputs)]

    def listed(names: list[str]) -> str:
        return ", ".join(names)

    groups = [f"Many at once: {group}, that is {listed(its)}. " for group, its in GROUPS.items()]
    without = [each.name for each in REGISTRY.values() if each.network == "random-conv"]
    return (
        f"Pairs of images: {listed(names('pairs') + names('sets', 'reconstructions'))}. "
        f"Sets of images: {listed(names('sets', 'samples'))} ({listed(without)} needs no weights). "
        f"Codes: {listed(names('codes'))}. "
        f"{''.join(groups)}"
        "Or all: whatever else the weights at hand allow. Repeatable. "
        f"Default: {listed([each.name for each in REGISTRY.values() if each.default])}, where inputs and weights are "
        "there."
    )


def network_of(metric: Metric, settings: Settings) -> str | None:
    """The key of NETWORKS that `metric` takes its features from; None for no network, and for one that is chosen by
    what is there."""
    return metric.network(settings) if callable(metric.network) else metric.network


def weights_of(metric: Metric, settings: Settings) -> str | None:
    """The weights that `metric` needs."""
    network = network_of(metric, settings)
    return None if network is None else NETWORKS[network].weights


def need_no_weights() -> list[str]:
    """The metrics that an error about missing weights offers instead."""
    return [known.name for known in REGISTRY.values() if known.default and known.network is None]


def users_of(weights_id: str) -> list[tuple[str, tuple[str, ...]]]:
    """The metrics that need the weights `weights_id`, and the options that make them; those that need none first."""
    found: dict[str, tuple[str, ...]] = {}
    for preset in PRESETS:
        for mode in MODES:
            flags: tuple[str, ...] = () if mode == Settings.mode else ("--mode", mode)
            flags += () if preset == Settings.preset else ("--preset", preset)
            for known in REGISTRY.values():
                if weights_of(known, Settings(mode, preset)) == weights_id:
                    found.setdefault(known.name, flags)
    return sorted(found.items(), key=lambda user: len(user[1]))


def definition_of(metric: Metric, settings: Settings) -> str:
    """What must agree for two figures to be comparable, the settings filled in."""
    network, preset = network_of(metric, settings), PRESETS[settings.preset]
    return metric.definition.format(
        features="" if network is None else NETWORKS[network].features,
        preset=f"preset {settings.preset} ({preset.source}), k = {preset.k}",
        sign="<=" if preset.closed else "<",
        normalise=settings.normalise,
    )


def caveat_of(metric: Metric, settings: Settings) -> str | None:
    """What sets a figure under `settings` apart from those its definition names; None when nothing does."""
    published = "{sign}" in metric.definition and settings.preset == "adm"
    if published and settings.mode != "legacy-tensorflow":
        return (
            "ADM published figures of Inception with its own resize: compare with them under --mode legacy-tensorflow"
        )
    return None
