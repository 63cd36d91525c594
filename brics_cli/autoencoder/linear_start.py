"""An autoencoder that starts as a good linear one: each block of f x f pixels by its DCT (`bottleneck.init: dct`).

Of the coefficients of a block (DCT-II per axis, orthonormal; colours by Ohta's fixed approximation of their principal
components, "Color information for region segmentation", 1980) the C with the highest variance in natural images become
the codes, each scaled to about unit variance before the sigmoid. They pass through the shortcuts of encoder and decoder
alone: the heads of both networks start at zero, the finest grids at the sigmoid's inverse, and pairs of hidden features
hand a value x on as silu(x) - silu(-x) = x. On photographs this is as good as PCA to 0.03 dB, without any data.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor, nn

from brics_cli.autoencoder.bottlenecks.features import FeatureMlp
from brics_cli.autoencoder.bottlenecks.grid import GridBottleneck
from brics_cli.autoencoder.decoders import ResNetDecoder
from brics_cli.autoencoder.encoder import Encoder

COLOURS = ((1, 1, 1), (1, 0, -1), (1, -2, 1))
"""Ohta's, of R, G and B, before they are normalised."""
COLOUR_STD = (1.0, 0.4, 0.2)
CONSTANT_STD = 0.55
FREQUENCY_STD = 2.0
"""Of a block's mean, per pixel of its side; of frequency (u, v), over u + v. Measured on 34,000 crops: 0.83 and 1.0.
Means fill the sigmoid's range better at less; frequencies, of long-tailed distributions, lose less at more."""


class Coefficient(NamedTuple):
    """Colour, vertical and horizontal frequency, and its standard deviation (pixels in [-1, 1])."""

    colour: int
    u: int
    v: int
    std: float


def leading_coefficients(num: int, *, block: int) -> list[Coefficient]:
    """The `num` coefficients of a block x block patch that vary most in natural images."""
    found = []
    for colour, gain in enumerate(COLOUR_STD):
        for u in range(block):
            for v in range(block):
                std = gain * (CONSTANT_STD * block if u == v == 0 else FREQUENCY_STD / (u + v))
                found.append(Coefficient(colour, u, v, std))
    return sorted(found, key=lambda each: (-each.std, each.u**2 + each.v**2, each[:3]))[:num]


def basis(coefficients: list[Coefficient], *, block: int) -> Tensor:
    """(C, 3 * block²), orthonormal rows over the values of a block as `pixel_unshuffle` orders them."""
    waves = dct(np.eye(block), norm="ortho", axis=0)  # (frequency, pixel)
    colours = np.asarray(COLOURS) / np.linalg.norm(COLOURS, axis=1, keepdims=True)
    rows = [np.einsum("i,y,x->iyx", colours[each.colour], waves[each.u], waves[each.v]) for each in coefficients]
    return torch.from_numpy(np.stack(rows)).flatten(1).float()


@torch.no_grad()
def start_linear(encoder: nn.Module, bottleneck: nn.Module, decoder: nn.Module) -> None:
    """Set the weights of a fresh autoencoder whose config has passed the check for it."""
    assert isinstance(bottleneck, GridBottleneck)
    if bottleneck.tables.is_meta:  # it is only counted, and has no values
        return
    assert isinstance(encoder, Encoder) and isinstance(decoder, ResNetDecoder)
    spec, mlp, block = bottleneck.spec, bottleneck.mlp, encoder.downsampling
    assert isinstance(mlp, FeatureMlp) and encoder.shortcut is not None and decoder.shortcut is not None
    assert mlp.hidden.bias is not None and mlp.out.bias is not None
    num_codes = bottleneck.num_groups * spec.key_dim
    coefficients = leading_coefficients(num_codes, block=block)
    rows, std = basis(coefficients, block=block), torch.tensor([each.std for each in coefficients])
    for layer in (encoder.head, encoder.shortcut, decoder.head, decoder.shortcut):
        nn.init.zeros_(layer.weight)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    encoder.shortcut.weight.copy_((rows / std[:, None])[:, :, None, None])  # (C, 3 f², 1, 1)

    finest = spec.levels[-1]
    axis = torch.linspace(0, 1, finest.cells + 1).clamp(0.25 / finest.cells, 1 - 0.25 / finest.cells).logit()
    vertices = torch.cartesian_prod(*[axis] * spec.key_dim).view(-1, spec.key_dim)  # (V_l, D)
    bottleneck.tables[:, finest.start : finest.start + finest.rows, : spec.key_dim] = vertices

    for code in range(num_codes):
        group, axis_of_key = divmod(code, spec.key_dim)
        feature = group * spec.num_features + (len(spec.levels) - 1) * spec.level_dim + axis_of_key
        for unit, sign in ((2 * code, 1.0), (2 * code + 1, -1.0)):
            mlp.hidden.weight[unit], mlp.hidden.bias[unit] = 0.0, 0.0
            mlp.hidden.weight[unit, feature] = sign
        mlp.out.weight[code], mlp.out.bias[code] = 0.0, 0.0
        mlp.out.weight[code, 2 * code], mlp.out.weight[code, 2 * code + 1] = 1.0, -1.0
    decoder.shortcut.weight[:, :num_codes, 0, 0] = (rows * std[:, None]).T  # (3 f², C)
