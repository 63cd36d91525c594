"""The autoencoder: encoder, bottleneck, decoder (arXiv 2305.18601, figure 2).

Between uint8 images and its tensors stand `to_tensor` and `to_uint8`, one rounding rule for the whole of brics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from brics_cli.autoencoder.bottlenecks.base import Bottleneck, BottleneckOutput
from brics_cli.autoencoder.model_files import (
    damage_explained,
    load_weights,
    read_model_config,
    save_model,
)
from brics_cli.autoencoder.sizes import check_against, check_image_memory
from brics_cli.config import AutoencoderConfig, validate
from brics_cli.errors import ArtefactError, UsageError
from brics_cli.workspace import sha256_of_file
from brics_cli.workspace.naming import CONFIG_NAME, WEIGHTS_NAME
from brics_cli.workspace.places import reference

if TYPE_CHECKING:
    from brics_cli.autoencoder.terms import View

KIND = "autoencoder"


def to_tensor(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1] on `device`, channels last in memory."""
    return of_uint8(pixels_on(images, device))


def pixels_on(images: np.ndarray, device: torch.device | str) -> Tensor:
    """(B, H, W, 3) uint8 as a tensor on `device`; a copy to CUDA is not waited for."""
    pixels = torch.from_numpy(np.ascontiguousarray(images))
    if torch.device(device).type == "cuda":
        pixels = pixels.pin_memory()
    return pixels.to(device, non_blocking=True)


def of_uint8(pixels: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1], channels last in memory."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def rounded(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8 where they are, rounded and clamped as a PNG of it would be."""
    return ((images.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def to_uint8(images: Tensor) -> np.ndarray:
    """`rounded`, in memory: (B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8."""
    return rounded(images).cpu().numpy()


class Autoencoder(nn.Module):
    """images (B, 3, H, W) in [-1, 1] -> codes (B, C, h, w) in [0, 1] -> images.

    A loaded autoencoder also says where it came from: `path`, `weights_sha256`, and `transform`, the pixel
    transform it was trained with.
    """

    path: Path
    weights_sha256: str
    transform: str

    def __init__(
        self, config: AutoencoderConfig, *, encoder: nn.Module, bottleneck: Bottleneck, decoder: nn.Module
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.bottleneck = bottleneck
        self.decoder = decoder

    @property
    def reference(self) -> str:
        """What artefacts and messages call it."""
        return reference(self.path)

    def forward(
        self, images: Tensor, *, noise: Tensor | None = None, views: Sequence[View] = ()
    ) -> tuple[Tensor, BottleneckOutput]:
        """The training pass: reconstructions (B, 3, H, W) in about [-1, 1], and what the bottleneck made of the images.

        `noise` (B, C, h, w), standard normal, is what the bottleneck adds to the codes. `views`: transforms of the
        codes that are decoded too, into `viewed` of the output.
        """
        out = self.bottleneck(self.encoder(images), noise=noise)
        for view in views:
            codes = self.bottleneck.admissible(view.apply(out.codes, 1))
            out.viewed.append(self.decoder(self.bottleneck.decode_codes(codes)))
        return self.decoder(out.features), out

    def encode(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [-1, 1] -> codes (B, C, h, w), float32 in [0, 1], without noise."""
        return self.bottleneck.bound(self.encoder(images))

    def decode(self, codes: Tensor) -> Tensor:
        """codes (B, C, h, w) in [0, 1] -> images (B, 3, H, W), float32, clamped to [-1, 1]."""
        return self.decoder(self.bottleneck.decode_codes(codes)).float().clamp(-1, 1)


def save_autoencoder(
    directory: Path, *, config: AutoencoderConfig, state: dict[str, Tensor], details: dict[str, Any]
) -> str:
    """Write a model directory and return the sha256 of its weights. `details` holds at least `transform`."""
    return save_model(directory, kind=KIND, config={"model": config.model_dump(mode="json"), **details}, state=state)


@dataclass(frozen=True)
class AutoencoderFiles:
    """A trained autoencoder on disk, of which its config alone was read. `path` is its run."""

    path: Path
    directory: Path
    config: AutoencoderConfig
    transform: str

    @cached_property
    def weights_sha256(self) -> str:
        """Of the weights file, which is read for it."""
        weights = self.directory / WEIGHTS_NAME
        with damage_explained(weights):
            return sha256_of_file(weights)


def read_autoencoder(path: str | Path) -> AutoencoderFiles:
    """What `load_autoencoder` would load: nothing is built. Raises ArtefactError as it does for the config."""
    values, directory = read_model_config(path, kind=KIND)
    source = directory / CONFIG_NAME
    try:
        config = validate(AutoencoderConfig, values.get("model"), source=str(source))
    except UsageError as error:  # no user wrote this file: it is damaged
        raise ArtefactError(str(error), next="The model's config is damaged; train it again.") from None
    if not isinstance(values.get("transform"), str):
        raise ArtefactError(f"{source} does not say the pixel transform it was trained with")
    run = directory.parent if directory.name == "model" else directory  # whichever was given
    return AutoencoderFiles(run, directory, config, values["transform"])


def load_autoencoder(path: str | Path, *, device: torch.device | str = "cpu") -> Autoencoder:
    """The autoencoder of a run directory, of its `model/`, of an embedded model's name, or of a place on the Hub
    (`hf://user/name`): float32, in evaluation mode, on `device`.

    Raises ArtefactError when it is not found, or when its files are damaged, foreign or of a newer format.
    """
    from brics_cli.autoencoder.build import build_autoencoder

    files = read_autoencoder(path)
    config, directory = files.config, files.directory
    check_image_memory(config.image_size, what=str(directory / CONFIG_NAME))
    check_against(directory / WEIGHTS_NAME, lambda: build_autoencoder(config))
    model = build_autoencoder(config)
    model.weights_sha256 = load_weights(model, directory, device=device)
    model.path, model.transform = files.path, files.transform
    return model.eval().requires_grad_(False)
