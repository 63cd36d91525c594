"""How much arithmetic a diffusion recipe costs, counted as `autoencoder.flops` counts."""

from __future__ import annotations

import torch

from brics_cli.autoencoder.flops import Row, gflop_of, params_m
from brics_cli.config import DiffusionRecipe
from brics_cli.diffusion.denoisers import build_network

DEFAULT_CODE_SHAPE = (16, 16, 16)
"""What a recipe is counted on unless told otherwise: codes of a 256 px image."""


def count(recipe: DiffusionRecipe, *, code_shape: tuple[int, int, int] | None = None) -> list[Row]:
    """The denoiser's row, on codes (C, h, w)."""
    code_shape = code_shape or DEFAULT_CODE_SHAPE
    with torch.device("meta"):
        network = build_network(recipe.denoiser, code_shape=code_shape).eval()
        x, noise_level = torch.empty(1, *code_shape), torch.empty(1)
    shape = " x ".join(str(side) for side in code_shape)
    return [Row(f"denoiser, codes {shape}", gflop_of(lambda: network(x, noise_level, None)), params_m(network))]
