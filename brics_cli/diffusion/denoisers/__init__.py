"""Denoisers: the networks (`dit`, `unet`), the `Denoiser` around them, and how one is built, saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from brics_cli.autoencoder.model_files import WEIGHTS_NAME, average_file, average_name, load_weights, read_model_config
from brics_cli.autoencoder.sizes import check_against
from brics_cli.config import CodeKind, Config, DenoiserConfig, DiffusionConfig, DiTConfig, UNetConfig, validate
from brics_cli.diffusion.denoisers.denoiser import KIND, LEAST_STD, Denoiser, DiffusionLoss, save_denoiser
from brics_cli.diffusion.denoisers.dit import DiT
from brics_cli.diffusion.denoisers.unet import UNet
from brics_cli.errors import ArtefactError, UsageError

__all__ = ["Denoiser", "DiffusionLoss", "build_denoiser", "build_network", "load_denoiser", "save_denoiser"]


def build_network(config: DenoiserConfig, *, code_shape: tuple[int, int, int], num_classes: int = 0) -> DiT | UNet:
    """The network that `config.kind` names, freshly initialised (torch's global generator draws the weights)."""
    match config:
        case DiTConfig():
            return DiT(config, code_shape=code_shape, num_classes=num_classes)
        case UNetConfig():
            return UNet(config, code_shape=code_shape, num_classes=num_classes)


def build_denoiser(
    config: DenoiserConfig,
    diffusion: DiffusionConfig,
    *,
    code_shape: tuple[int, int, int],
    num_classes: int = 0,
    store_mean: Sequence[float],
    store_std: Sequence[float],
    code_kind: CodeKind = "bounded",
    gradient_checkpointing: bool = False,
) -> Denoiser:
    """A freshly initialised denoiser for codes of `code_shape` (C, h, w) and 0 or more classes.

    `store_mean` and `store_std` (C,) are those of the codes, in [0, 1], over the store that it will be trained on.
    `code_kind` is the store's. `gradient_checkpointing`: less memory in training, for more time. Raises UsageError when
    the network does not fit the codes.
    """
    if diffusion.normalise == "store":
        mean = [2 * float(value) - 1 for value in store_mean]
        std = [max(2 * float(value), LEAST_STD) for value in store_std]
    else:
        mean, std = [0.0] * code_shape[0], [1.0] * code_shape[0]
    network = build_network(config, code_shape=code_shape, num_classes=num_classes)
    network.gradient_checkpointing = gradient_checkpointing
    return Denoiser(
        network,
        config=config,
        diffusion=diffusion,
        code_shape=code_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        code_kind=code_kind,
    )


class _Lineage(Config):
    autoencoder_sha256: str
    store_sha256: str
    store_path: str


class _Normalisation(Config):
    mean: list[float]
    std: list[float]


class _Average(Config):
    file: str
    sha256: str


class _ModelFile(Config):
    """What `save_denoiser` writes into config.json, beside the header."""

    denoiser: DenoiserConfig
    diffusion: DiffusionConfig
    code_shape: tuple[int, int, int]
    num_classes: int = Field(ge=0)
    class_counts: list[Annotated[int, Field(ge=0)]] = Field(default=[])
    class_names: list[str] = Field(default=[])
    code_kind: CodeKind = "bounded"
    normalisation: _Normalisation
    lineage: _Lineage
    averages: dict[str, _Average] = Field(default={})


_HEADER = ("format_version", "kind", "brics_version")


def load_denoiser(path: str | Path, *, device: torch.device | str = "cpu", ema: float | None = None) -> Denoiser:
    """The denoiser of a run directory, or of its `model/`: float32, in evaluation mode, on `device`.

    `ema`: the relative width of the average to take, one of those that the model holds; None: the plain one. Raises
    ArtefactError when there is no such model or average, or when its files are damaged, foreign or of a newer format.
    """
    values, directory = read_model_config(path, kind=KIND)
    source = str(directory / "config.json")
    try:
        values = {key: value for key, value in values.items() if key not in _HEADER}
        file = validate(_ModelFile, values, source=source)
        if not len(file.normalisation.mean) == len(file.normalisation.std) == file.code_shape[0]:
            raise UsageError(f"{source}: the normalisation has not {file.code_shape[0]} channels")
        if len(file.class_counts) not in (0, file.num_classes) or len(file.class_names) > file.num_classes:
            raise UsageError(f"{source}: the counts or names of classes are not {file.num_classes:,}")
        build = partial(build_network, file.denoiser, code_shape=file.code_shape, num_classes=file.num_classes)
        check_against(directory / WEIGHTS_NAME, build)
        network = build()
    except UsageError as error:  # nobody typed this file: it is damaged
        raise ArtefactError(str(error), next="The model's config is damaged; train it again.") from None
    denoiser = Denoiser(
        network,
        config=file.denoiser,
        diffusion=file.diffusion,
        code_shape=file.code_shape,
        num_classes=file.num_classes,
        mean=file.normalisation.mean,
        std=file.normalisation.std,
        code_kind=file.code_kind,
    )
    denoiser.class_counts, denoiser.class_names = tuple(file.class_counts), tuple(file.class_names)
    denoiser.weights_sha256 = _load_average(denoiser, directory, ema, file.averages, device=device)
    denoiser.path = Path(path)
    denoiser.lineage = file.lineage.model_dump()
    return denoiser.eval().requires_grad_(False)


def _load_average(
    denoiser: Denoiser,
    directory: Path,
    ema: float | None,
    averages: Mapping[str, _Average],
    *,
    device: torch.device | str,
) -> str:
    """Load the plain average, or that of width `ema`, and return the sha256 of its file."""
    if ema is None:
        return load_weights(denoiser, directory, device=device, file=WEIGHTS_NAME)
    name = average_name(ema)
    if name not in averages:
        there = f"has those of width {', '.join(averages)}" if averages else "has the plain one alone"
        raise ArtefactError(
            f"{directory} holds no average of width {name}: it {there}",
            next="Leave --ema out for the plain average, or train with --set training.ema_widths=[...].",
        )
    sha256 = load_weights(denoiser, directory, device=device, file=average_file(name))
    if sha256 != averages[name].sha256:
        raise ArtefactError(
            f"{directory / average_file(name)} is not the file that config.json names (its sha256)",
            next="Copy the model again, or leave --ema out for the plain average.",
        )
    return sha256
