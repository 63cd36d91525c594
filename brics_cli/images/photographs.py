"""Crops of the photographs inside scikit-image: real images that are on every machine.

Each photograph, its short side reduced to at most 512 px, is cut into blocks of 128 px. Every eighth block is held
out; no pixel of it is in a training crop.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import skimage.data
from PIL import Image

CROP = 64
BLOCK = 128
LONGEST_SHORT_SIDE = 512
SMALLEST_SQUARE = 48
HOLD_OUT_EVERY = 8
HELD_OUT_AT = 3

# Functions of skimage.data whose files ship inside its wheel: nothing is downloaded.
PHOTOGRAPHS = (
    "astronaut",
    "chelsea",
    "coffee",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
    "rocket",
    "stereo_motorcycle",
)


class Crop(NamedTuple):
    """A crop (64, 64, 3) uint8, its name, and whether it is held out."""

    name: str
    pixels: np.ndarray
    held_out: bool


def photograph_crops() -> Iterator[Crop]:
    """All crops, photograph by photograph, in a fixed order.

    A block gives four crops side by side and one of the whole block at half size; training blocks also give the five
    crops in between.
    """
    for stem, block, held_out in _blocks():
        stride = CROP if held_out else CROP // 2
        for y in range(0, BLOCK - CROP + 1, stride):
            for x in range(0, BLOCK - CROP + 1, stride):
                pixels = np.asarray(block.crop((x, y, x + CROP, y + CROP)))
                yield Crop(f"{stem}-crop-y{y:02d}-x{x:02d}", pixels, held_out)
        whole = block.resize((CROP, CROP), Image.Resampling.BICUBIC)
        yield Crop(f"{stem}-half-size", np.asarray(whole), held_out)


def photograph_squares(size: int, *, num_per_block: int) -> Iterator[np.ndarray]:
    """(size, size, 3) uint8: squares of 48 to 128 px of the training blocks, drawn by a fixed seed, resized."""
    generator = np.random.default_rng(0)
    for _, block, held_out in _blocks():
        for _ in range(0 if held_out else num_per_block):
            side = int(generator.integers(SMALLEST_SQUARE, BLOCK + 1))
            x, y = generator.integers(0, BLOCK - side + 1, 2).tolist()
            square = block.crop((x, y, x + side, y + side)).resize((size, size), Image.Resampling.BICUBIC)
            yield np.asarray(square)


def _blocks() -> Iterator[tuple[str, Image.Image, bool]]:
    """(name, pixels, whether it is held out) of every block."""
    for name in PHOTOGRAPHS:
        photograph = _load(name)
        num_rows, num_columns = photograph.height // BLOCK, photograph.width // BLOCK
        for number in range(num_rows * num_columns):
            top, left = BLOCK * (number // num_columns), BLOCK * (number % num_columns)
            block = photograph.crop((left, top, left + BLOCK, top + BLOCK))
            yield f"{name}-y{top:04d}-x{left:04d}", block, number % HOLD_OUT_EVERY == HELD_OUT_AT


def bicubic_round_trip(image: np.ndarray, *, side: int) -> np.ndarray:
    """An image (H, W, 3) reduced to side x side and enlarged again, both bicubic: the cheapest code there is."""
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def _load(name: str) -> Image.Image:
    loaded = getattr(skimage.data, name)()
    pixels = loaded[0] if isinstance(loaded, tuple) else loaded  # a stereo pair: the left one
    photograph = Image.fromarray(pixels).convert("RGB")
    scale = LONGEST_SHORT_SIDE / min(photograph.size)
    if scale < 1:
        size = (round(photograph.width * scale), round(photograph.height * scale))
        photograph = photograph.resize(size, Image.Resampling.BICUBIC)
    return photograph
