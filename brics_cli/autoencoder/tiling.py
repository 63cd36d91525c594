"""Images of any size and shape through a fully convolutional autoencoder, in tiles where memory does not take all.

An image is padded by reflection to multiples of f, and what comes out is cut back. A tile is computed with all around
it that its codes (or pixels) depend on, and at the border of the image with what is there, so that it comes out as in
one pass: only sums are taken in another order, which moves a pixel by one grey level at most.
Letters: f pixels per code and axis; images (B, H, W, 3) uint8, codes (B, C, h, w) with H = f h, W = f w.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brics_cli.autoencoder.autoencoder import Autoencoder, to_uint8
from brics_cli.config import AutoencoderConfig
from brics_cli.runtime.device import memory_bytes
from brics_cli.runtime.reporting import Task

MEMORY_SHARE = 1 / 8
"""Of the device's memory that the activations of a tile may take."""
LIVE = 3
"""Activations of the largest kind that are there together: a block's input, what it makes of it, and what is next."""
SMALLEST_TILE = 32
"""Codes a side, however little memory there is."""


def padded(images: np.ndarray, multiple: int) -> np.ndarray:
    """Images (B, H, W, 3), each side reflected up to a multiple of `multiple`, at its right and its bottom."""
    height, width = images.shape[1:3]
    return np.pad(images, ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0)), mode="reflect")


@dataclass(frozen=True)
class Tiling:
    """How images are cut: `side` codes per tile and axis, computed with so many codes around it as `encode_reach` (of
    the encoder) and `decode_reach` (from codes to pixels) say."""

    side: int
    encode_reach: int
    decode_reach: int
    downsampling: int

    @classmethod
    def none(cls, config: AutoencoderConfig) -> Tiling:
        """One tile, however large: what an autoencoder needs that looks at the whole image."""
        return cls(sys.maxsize, 0, 0, config.downsampling)

    def tiles(self, height: int, width: int) -> list[tuple[slice, slice]]:
        """The tiles of h x w codes, row by row."""
        starts = product(range(0, height, self.side), range(0, width, self.side))
        return [
            (slice(top, min(top + self.side, height)), slice(left, min(left + self.side, width)))
            for top, left in starts
        ]

    def num_tiles(self, height: int, width: int) -> int:
        """Of an image of H x W pixels."""
        return math.prod(math.ceil(side / (self.side * self.downsampling)) for side in (height, width))

    def num_together(self, height: int, width: int) -> int:
        """Images of H x W pixels that take no more memory together than a tile."""
        return max(1, (self.side * self.downsampling) ** 2 // (height * width))

    def encode(
        self, network: Callable[[Tensor], Tensor], images: np.ndarray, *, device: torch.device, task: Task
    ) -> np.ndarray:
        """Images (B, H, W, 3) -> codes (B, C, h, w) by `network`, which takes uint8 on `device`; `task` hears of each
        tile."""
        f = self.downsampling
        height, width = images.shape[1] // f, images.shape[2] // f
        codes = None
        for rows, columns in self.tiles(height, width):
            (above, inner_rows), (beside, inner_columns) = (
                _around(tile, self.encode_reach, length) for tile, length in ((rows, height), (columns, width))
            )
            part = np.ascontiguousarray(images[:, _scaled(above, f), _scaled(beside, f)])
            found = network(torch.from_numpy(part).to(device)).cpu().numpy()
            if codes is None:
                codes = np.empty((*found.shape[:2], height, width), found.dtype)
            codes[:, :, rows, columns] = found[:, :, inner_rows, inner_columns]
            task.advance()
        assert codes is not None
        return codes

    def decode(self, model: Autoencoder, codes: np.ndarray, *, device: torch.device, task: Task) -> np.ndarray:
        """Codes (B, C, h, w) -> images (B, H, W, 3)."""
        f = self.downsampling
        height, width = codes.shape[2:]
        images = np.empty((len(codes), height * f, width * f, 3), np.uint8)
        for rows, columns in self.tiles(height, width):
            (above, inner_rows), (beside, inner_columns) = (
                _around(tile, self.decode_reach, length) for tile, length in ((rows, height), (columns, width))
            )
            part = torch.from_numpy(np.ascontiguousarray(codes[:, :, above, beside])).to(device)
            found = to_uint8(model.decode(part))
            inner = found[:, _scaled(inner_rows, f), _scaled(inner_columns, f)]
            images[:, _scaled(rows, f), _scaled(columns, f)] = inner
            task.advance()
        return images


@torch.inference_mode()
def tiling_of(model: Autoencoder, *, limit_bytes: float | None = None) -> Tiling:
    """The tiling of a fully convolutional autoencoder whose tiles take about `limit_bytes` (None: MEMORY_SHARE).

    What its convolutions reach, and what they take, is seen in the pass of a small image.
    """
    assert model.config.is_local
    device = next(model.parameters()).device
    f, side = model.config.downsampling, 8 * model.config.downsampling
    encoding, decoding = _Pass(side), _Pass(side)
    image = torch.zeros(1, 3, side, side, device=device)
    with encoding.watching(model):
        codes = model.encode(image)
    with decoding.watching(model):
        model.decode(codes)
    encode_reach, decode_reach = (math.ceil(each.reach / f) for each in (encoding, decoding))
    limit_bytes = limit_bytes or MEMORY_SHARE * memory_bytes(device)
    per_pixel = 4 * LIVE * max(encoding.values_per_pixel, decoding.values_per_pixel)
    most = math.isqrt(int(limit_bytes / per_pixel)) // f - 2 * max(encode_reach, decode_reach)
    return Tiling(max(most, SMALLEST_TILE), encode_reach, decode_reach, f)


class _Pass:
    """What the convolutions in a pass of an image of `side` pixels reach (pixels to each side) and how many values
    they make per pixel at most."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.reach = 0.0
        self.values_per_pixel = 3.0

    def watching(self, model: nn.Module) -> ExitStack:
        """Add up all convolutions of `model` that run in the block: as if each came after the others."""
        stack = ExitStack()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                stack.callback(module.register_forward_hook(self._add).remove)
        return stack

    def _add(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d) and isinstance(module.padding[0], int)
        self.reach += module.dilation[0] * (module.kernel_size[0] // 2) * self.side / inputs[0].shape[-1]
        values = max(inputs[0].numel(), output.numel())
        self.values_per_pixel = max(self.values_per_pixel, values / self.side**2)


def _around(tile: slice, reach: int, length: int) -> tuple[slice, slice]:
    """The tile with what is around it, and where it is in that."""
    outer = slice(max(tile.start - reach, 0), min(tile.stop + reach, length))
    return outer, slice(tile.start - outer.start, tile.stop - outer.start)


def _scaled(codes: slice, f: int) -> slice:
    return slice(codes.start * f, codes.stop * f)
