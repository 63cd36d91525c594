"""What `brics bench sample` measures: models of recipes with random weights, and the GFLOP of what they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from brics_cli.autoencoder.autoencoder import Autoencoder
from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.autoencoder.flops import gflop_of
from brics_cli.config import AutoencoderRecipe, DiffusionRecipe, load_recipe
from brics_cli.diffusion.denoisers import Denoiser, build_denoiser
from brics_cli.diffusion.samplers import estimate


def estimate_gflop(denoiser: Denoiser, *, guide: Denoiser | None = None, guidance: float = 1.0) -> float:
    """GFLOP of one estimate of one image's codes: of all the networks that guidance takes."""
    main, weaker = on_meta(denoiser), None if guide is None else on_meta(guide)
    x_t, log_snr = torch.empty(1, *denoiser.code_shape, device="meta"), torch.empty(1, device="meta")
    labels = torch.zeros(1, dtype=torch.int64, device="meta") if denoiser.num_classes else None
    return gflop_of(lambda: estimate(main, x_t, log_snr, guidance=guidance, guide=weaker, labels=labels))


def decoding_gflop(autoencoder: Autoencoder) -> float:
    """GFLOP from the codes of one image to its pixels."""
    with torch.device("meta"):
        twin = build_autoencoder(autoencoder.config).eval()
        codes = torch.empty(1, *autoencoder.config.code_shape)
    return gflop_of(lambda: twin.decode(codes))


def on_meta(denoiser: Denoiser) -> Denoiser:
    """A denoiser of the same shapes on the meta device, which computes shapes and no values."""
    num_channels = denoiser.code_shape[0]
    with torch.device("meta"):
        return build_denoiser(
            denoiser.config,
            denoiser.diffusion,
            code_shape=denoiser.code_shape,
            num_classes=denoiser.num_classes,
            store_mean=[0.5] * num_channels,
            store_std=[0.25] * num_channels,
            code_kind=denoiser.code_kind,
        ).eval()


@dataclass(frozen=True)
class RandomModels:
    """Models of recipes with random weights: they cost what trained ones cost."""

    denoiser: Denoiser
    autoencoder: Autoencoder
    guide: Denoiser | None


def random_models(
    recipe: str, *, ae_recipe: str, guide_recipe: str | None = None, overrides: Sequence[str] = (), device: torch.device
) -> RandomModels:
    """The denoiser of `recipe` (with `overrides`) for the codes of `ae_recipe`, that autoencoder, and a guide.

    Raises UsageError for a recipe that is not there, or a denoiser that does not fit the codes.
    """
    loaded = load_recipe(ae_recipe, kind="autoencoder")
    assert isinstance(loaded, AutoencoderRecipe)
    torch.manual_seed(0)
    autoencoder = build_autoencoder(loaded.model).to(device).eval().requires_grad_(False)
    denoiser = _random_denoiser(recipe, loaded, overrides=overrides).to(device)
    guide = None if guide_recipe is None else _random_denoiser(guide_recipe, loaded).to(device)
    return RandomModels(denoiser, autoencoder, guide)


def _random_denoiser(recipe: str, of: AutoencoderRecipe, *, overrides: Sequence[str] = ()) -> Denoiser:
    loaded = load_recipe(recipe, kind="diffusion", overrides=overrides)
    assert isinstance(loaded, DiffusionRecipe)
    num_channels = of.model.code_channels
    denoiser = build_denoiser(
        loaded.denoiser,
        loaded.diffusion,
        code_shape=of.model.code_shape,
        store_mean=[0.5] * num_channels,
        store_std=[0.25] * num_channels,
        code_kind=of.model.code_kind,
    )
    denoiser.path = Path(loaded.name)
    return denoiser.eval().requires_grad_(False)
