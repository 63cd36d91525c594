"""Denoisers: the networks, the `Denoiser` around them, and how one is built, saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from brics_cli.autoencoder.model_files import (
    average_file,
    average_name,
    load_weights,
    read_model_config,
    save_model,
)
from brics_cli.autoencoder.sizes import check_against
from brics_cli.config import CodeKind, Config, DenoiserConfig, DiffusionConfig, DiTConfig, UNetConfig, validate
from brics_cli.diffusion.denoisers.denoiser import Denoiser, DiffusionLoss
from brics_cli.diffusion.denoisers.dit import DiT
from brics_cli.diffusion.denoisers.parts import Network
from brics_cli.diffusion.denoisers.unet import UNet
from brics_cli.diffusion.normalisation import NUM_LEVELS, normalisation
from brics_cli.errors import ArtefactError, UsageError
from brics_cli.workspace.naming import CONFIG_NAME, WEIGHTS_NAME
from brics_cli.workspace.places import locate

KIND = "diffusion"
NETWORKS: dict[type[Config], type[Network]] = {DiTConfig: DiT, UNetConfig: UNet}
"""The network of each config class. Another one is a line here, its file, and its config in `DenoiserConfig`."""


def build_network(config: DenoiserConfig, *, code_shape: tuple[int, int, int], num_classes: int = 0) -> Network:
    """The network of `config`, freshly initialised (torch's global generator draws the weights)."""
    return NETWORKS[type(config)](config, code_shape=code_shape, num_classes=num_classes)


def build_denoiser(
    config: DenoiserConfig,
    diffusion: DiffusionConfig,
    *,
    code_shape: tuple[int, int, int],
    num_classes: int = 0,
    store_mean: Sequence[float],
    store_std: Sequence[float],
    store_histogram: Sequence[Sequence[int]] | None = None,
    code_kind: CodeKind = "bounded",
    gradient_checkpointing: bool = False,
) -> Denoiser:
    """A freshly initialised denoiser for codes of `code_shape` (C, h, w) and 0 or more classes.

    `store_mean` and `store_std` (C,) are those of the codes, in [0, 1], over the store that it will be trained on, and
    `store_histogram` (C, 256) its counts, which `normalise: probit` needs. `code_kind` is the store's.
    `gradient_checkpointing`: less memory in training, for more time. Raises UsageError when the network does not fit
    the codes, and for `probit` of codes that are not bounded.
    """
    mean, std, levels = normalisation(
        diffusion.normalise, mean=store_mean, std=store_std, histogram=store_histogram, code_kind=code_kind
    )
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
        levels=levels,
        code_kind=code_kind,
    )


class _Lineage(Config):
    autoencoder_sha256: str
    store_sha256: str
    store_path: str


class _Normalisation(Config):
    mean: list[float]
    std: list[float]
    levels: list[Annotated[list[float], Field(min_length=NUM_LEVELS, max_length=NUM_LEVELS)]] | None = None


class _Average(Config):
    file: str
    sha256: str


class _ModelFile(Config):
    """What config.json holds besides the header."""

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


def save_denoiser(
    directory: Path,
    *,
    denoiser: Denoiser,
    state: dict[str, Tensor],
    lineage: dict[str, str],
    averages: Mapping[str, dict[str, Tensor]] | None = None,
) -> str:
    """Write a model directory and return the sha256 of its weights.

    `state` is a state_dict of `denoiser`, usually its plain average's; `averages` are those of its power-function
    averages, by name (the relative width). `lineage` holds `autoencoder_sha256`, `store_sha256` and `store_path`: what
    made the codes, and where they are.
    """
    normalised_by = {"mean": denoiser.mean.flatten().tolist(), "std": denoiser.std.flatten().tolist()}
    if denoiser.levels is not None:
        normalised_by["levels"] = denoiser.levels.tolist()
    config = {
        "denoiser": denoiser.config.model_dump(mode="json"),
        "diffusion": denoiser.diffusion.model_dump(mode="json"),
        "code_shape": list(denoiser.code_shape),
        "num_classes": denoiser.num_classes,
        "class_counts": list(denoiser.class_counts),
        "class_names": list(denoiser.class_names),
        "code_kind": denoiser.code_kind,
        "normalisation": normalised_by,
        "lineage": lineage,
    }
    return save_model(directory, kind=KIND, config=config, state=state, averages=averages)


def load_denoiser(path: str | Path, *, device: torch.device | str = "cpu", ema: float | None = None) -> Denoiser:
    """The denoiser of a run directory, of its `model/`, or of a place on the Hub (`hf://user/name`): float32, in
    evaluation mode, on `device`.

    `ema`: the relative width of the average to take, one of those that the model holds; None: the plain one. Raises
    ArtefactError when there is no such model or average, or when its files are damaged, foreign or of a newer format.
    """
    path = locate(path)
    values, directory = read_model_config(path, kind=KIND)
    source = directory / CONFIG_NAME
    try:
        file = validate(_ModelFile, values, source=str(source))
        of_channels = [each for _, each in file.normalisation if each is not None]
        if any(len(each) != file.code_shape[0] for each in of_channels):
            raise UsageError(f"{source}: the normalisation does not have {file.code_shape[0]} channels")
        if (file.diffusion.normalise == "probit") != (file.normalisation.levels is not None):
            raise UsageError(
                f"{source}: its normalisation is not that of diffusion.normalise {file.diffusion.normalise}"
            )
        if len(file.class_counts) not in (0, file.num_classes) or len(file.class_names) > file.num_classes:
            raise UsageError(f"{source}: the counts or names of classes are not those of {file.num_classes:,} classes")
        build = partial(build_network, file.denoiser, code_shape=file.code_shape, num_classes=file.num_classes)
        check_against(directory / WEIGHTS_NAME, build)
        network = build()
    except UsageError as error:  # the user did not write this file: it is damaged
        raise ArtefactError(str(error), next="The model's config is damaged; train it again.") from None
    denoiser = Denoiser(
        network,
        config=file.denoiser,
        diffusion=file.diffusion,
        code_shape=file.code_shape,
        num_classes=file.num_classes,
        mean=file.normalisation.mean,
        std=file.normalisation.std,
        levels=file.normalisation.levels,
        code_kind=file.code_kind,
    )
    name = None if ema is None else average_name(ema)
    if name is not None and name not in file.averages:
        there = f"those of width {', '.join(file.averages)}" if file.averages else "only the plain one"
        raise ArtefactError(
            f"{directory} holds no average of width {name}: it has {there}",
            next="Leave --ema out for the plain average, or train with --set training.ema_widths=[...].",
        )
    weights = WEIGHTS_NAME if name is None else average_file(name)
    denoiser.weights_sha256 = load_weights(denoiser, directory, device=device, file=weights)
    if name is not None and denoiser.weights_sha256 != file.averages[name].sha256:
        raise ArtefactError(
            f"{directory / weights} is not the file that config.json names (its sha256)",
            next="Copy the model again, or leave --ema out for the plain average.",
        )
    denoiser.class_counts, denoiser.class_names = tuple(file.class_counts), tuple(file.class_names)
    denoiser.path = path
    denoiser.lineage = file.lineage.model_dump()
    return denoiser.eval().requires_grad_(False)
