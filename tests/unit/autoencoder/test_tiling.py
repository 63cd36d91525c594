"""Images in tiles come out as in one pass, at any size and shape."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage import data as photographs
from torch import nn

from brics_cli.autoencoder.autoencoder import Autoencoder, load_autoencoder, to_tensor
from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.autoencoder.tiling import SMALLEST_TILE, Tiling, padded, tiling_of
from brics_cli.config import load_recipe
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.workspace import embedded

CPU = torch.device("cpu")


LOCAL = ["model.encoder.norm=place", "model.decoder.norm=place"]


@pytest.fixture(scope="module")
def model() -> Autoencoder:
    """The recipe `tiny`, normalised by place, with weights that let each convolution see all around it."""
    torch.manual_seed(0)
    built = build_autoencoder(load_recipe("tiny", kind="autoencoder", overrides=LOCAL).model)
    for module in built.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return built.eval().requires_grad_(False)


def through(model: Autoencoder, tiling: Tiling, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The codes of an image and what they decode to."""
    with torch.inference_mode(), SilentReporter().task("", total=None, unit="") as task:
        codes = tiling.encode(
            lambda pixels: model.encode(to_tensor(pixels.numpy())), padded(image[None], 8), device=CPU, task=task
        )
        return codes[0], tiling.decode(model, codes, device=CPU, task=task)[0]


def test_tiles_are_what_they_are_in_the_whole(model: Autoencoder) -> None:
    image = photographs.astronaut()[:203, :333]
    whole = replace(tiling_of(model), side=1000)
    tiled = replace(whole, side=9)
    assert (whole.num_tiles(203, 333), tiled.num_tiles(203, 333)) == (1, 15)
    codes, pixels = through(model, whole, image)
    codes_of_tiles, pixels_of_tiles = through(model, tiled, image)
    assert np.abs(codes - codes_of_tiles).max() < 1e-5
    assert np.abs(pixels.astype(int) - pixels_of_tiles).max() <= 1
    # and what reaches less far has seams
    for narrow in (replace(tiled, encode_reach=tiled.encode_reach - 3), replace(tiled, decode_reach=0)):
        codes_of_tiles, pixels_of_tiles = through(model, narrow, image)
        assert np.abs(pixels.astype(int) - pixels_of_tiles).max() > 1


def test_what_looks_at_the_whole_image_is_not_fully_convolutional() -> None:
    assert load_recipe("tiny", kind="autoencoder", overrides=LOCAL).model.is_local
    for overrides in (
        ["model.encoder.attention=true"],
        ["model.bottleneck.positions=image"],
        ["model.features.kind=grouped", "model.features.upscale=2"],
    ):
        model = load_recipe("tiny", kind="autoencoder", overrides=[*LOCAL, *overrides]).model
        assert model.tied_to_size is not None and not model.is_local
    normalised = load_recipe("tiny", kind="autoencoder").model
    assert normalised.tied_to_size is None and not normalised.is_local


@pytest.mark.parametrize("name", [model.name for model in embedded.MODELS if model.kind == "autoencoder"])
def test_an_embedded_autoencoder_takes_any_picture_in_tiles(name: str) -> None:
    model = load_autoencoder(name)
    image = photographs.coffee()[:99, :235]
    whole = replace(tiling_of(model), side=1000)
    (codes, pixels), (codes_of_tiles, pixels_of_tiles) = (
        through(model, tiling, image) for tiling in (whole, replace(whole, side=15))
    )
    assert np.abs(codes - codes_of_tiles).max() < 1e-4
    assert np.abs(pixels.astype(int) - pixels_of_tiles).max() <= 1


def test_less_memory_makes_smaller_tiles(model: Autoencoder) -> None:
    sides = [tiling_of(model, limit_bytes=gib * 2**30).side for gib in (4, 1, 1e-6)]
    assert sides[0] > sides[1] > sides[2] == SMALLEST_TILE
    tiling = Tiling(side=32, encode_reach=4, decode_reach=4, downsampling=8)
    assert (tiling.num_together(64, 64), tiling.num_together(256, 256), tiling.num_together(9, 5000)) == (16, 1, 1)
    whole = Tiling.none(model.config)
    assert whole.num_tiles(9, 5000) == 1 and whole.num_together(512, 512) > 1000


@pytest.mark.parametrize(("height", "width"), [(1, 5000), (1, 1), (5, 3), (8, 16), (257, 9)])
def test_any_shape_is_padded_by_reflection(height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    made = padded(image, 8)
    assert made.shape == (1, -(-height // 8) * 8, -(-width // 8) * 8, 3)
    assert np.array_equal(made[:, :height, :width], image)
    if height > 2 and height % 8:
        assert np.array_equal(
            made[:, height], np.pad(image, ((0, 0), (0, 0), (0, -width % 8), (0, 0)), "reflect")[:, -2]
        )
