"""How much arithmetic a recipe costs: torch's FLOP counter (2 per multiply-add) on meta tensors, nothing computed.

Retrieval is counted by its own formula (`kernels.functional`), the same on every backend. Activations,
normalisation and resampling are not counted, as the counter does not count them for anybody.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.config import AutoencoderRecipe

# Counted the same way at 256 x 256: DESIGN section 3.2, reference/models.md section 1.
VQGAN_F16_DECODER_GFLOP = 252.7
VQGAN_F16_IMAGE_SIZE = 256


class Row(NamedTuple):
    """One part of a model: its forward pass for one image, in GFLOP, and its parameters, in millions."""

    part: str
    gflop: float
    params_m: float
    vqgan_f16_ratio: float | None = None
    """Of VQGAN-f16's decoder, for everything between codes and pixels, at 256 px alone."""


def count(recipe: AutoencoderRecipe) -> list[Row]:
    """The rows of a recipe."""
    config = recipe.model
    with torch.device("meta"):
        model = build_autoencoder(config).eval()
        images = torch.empty(1, 3, config.image_size, config.image_size)
        codes = torch.empty(1, *config.code_shape)
    bottleneck = model.bottleneck
    encoder = Row("encoder", gflop_of(lambda: model.encode(images)), params_m(model.encoder))
    from_codes = gflop_of(lambda: model.decode(codes))
    features = gflop_of(lambda: bottleneck.decode_codes(codes))
    parts, mlp_m = [], params_m(bottleneck)
    if (lookup := bottleneck.lookup()) is not None:
        entries_m = lookup.tables.numel() / 1e6
        parts.append(Row(lookup.name, gflop_of(partial(lookup.run, codes)), entries_m))
        mlp_m -= entries_m if isinstance(lookup.tables, nn.Parameter) else 0.0
    parts.append(Row("feature MLP", features - sum(row.gflop for row in parts), mlp_m))
    parts.append(Row("decoder", from_codes - features, params_m(model.decoder)))
    ratio = from_codes / VQGAN_F16_DECODER_GFLOP if config.image_size == VQGAN_F16_IMAGE_SIZE else None
    return [encoder, *parts, Row("codes to pixels", from_codes, sum(row.params_m for row in parts), ratio)]


def gflop_of(forward: Callable[[], object]) -> float:
    """What the call `forward` computes, in GFLOP."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return counter.get_total_flops() / 1e9


def params_m(module: nn.Module) -> float:
    """Parameters, in millions."""
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6
