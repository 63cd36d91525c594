"""Pictures of the page: arrays that are encoded, at the detail that fits the page, as data URIs.

(H, W, 3) uint8 RGB throughout; `heat` makes one of (H, W) floats.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

LOSSLESS_SIDE = 128
"""Pictures up to this are kept exactly, px: small ones are looked at enlarged, where artefacts would be seen."""
EXACT_ABOVE = 85
"""But not at details of a lower quality, which are for pages that must be small."""


class Detail(NamedTuple):
    """The longest side of a picture, px; WebP's quality for those that are not kept exactly; tiles of a gallery."""

    side: int
    quality: int
    num_tiles: int


DETAILS = (Detail(1024, 90, 96), Detail(512, 88, 96), Detail(256, 85, 64), Detail(160, 80, 48), Detail(96, 75, 24),
           Detail(64, 60, 12))  # fmt: skip
"""From fine to coarse: the first whose page is not too large is taken."""


@dataclass(frozen=True, eq=False)
class Picture:
    """`pixels` (H, W, 3), or (H, W, 4) with alpha. `crisp`: enlarged by whole pixels, as maps and small images are."""

    pixels: Pixels
    crisp: bool = False
    exact: bool = False
    """Never made smaller: a map whose cells are pixels."""

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    def uri(self, detail: Detail) -> str:
        """The picture as a data URI at this detail."""
        return _encode(self, Detail(0, 100, 0) if self.exact else detail._replace(num_tiles=0))


@cache
def _encode(picture: Picture, detail: Detail) -> str:
    image = Image.fromarray(np.ascontiguousarray(picture.pixels))
    if detail.side and max(image.size) > detail.side:
        image.thumbnail((detail.side, detail.side), Image.Resampling.LANCZOS)
    file = BytesIO()
    lossless = picture.exact or (max(picture.pixels.shape[:2]) <= LOSSLESS_SIDE and detail.quality >= EXACT_ABOVE)
    image.save(file, "WEBP", lossless=lossless, quality=60 if lossless else detail.quality, method=3)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def picture_of(pixels: Pixels) -> Picture:
    """An image as it is looked at: small ones enlarged by whole pixels."""
    return Picture(pixels, crisp=max(pixels.shape[:2]) <= LOSSLESS_SIDE)


def heat(values: NDArray[np.floating], *, high: float) -> Pixels:
    """(H, W) -> a map in magma from 0 to `high`."""
    from matplotlib import colormaps

    return (colormaps["magma"](np.clip(values / high, 0, 1))[..., :3] * 255).round().astype(np.uint8)


def error_map(a: Pixels, b: Pixels, *, high: float) -> Picture:
    """The mean over channels of |a - b|, (H, W, 3) uint8, from black (0) to bright (`high` grey levels and more)."""
    difference = np.abs(a.astype(np.float32) - b.astype(np.float32)).mean(axis=2)  # (H, W)
    return picture_of(heat(difference, high=high))


def side_by_side(pictures: Sequence[Pixels], *, gap: int = 1) -> Pixels:
    """Pictures of one height in a row, with `gap` px of nothing between them: (H, W, 4)."""
    height = pictures[0].shape[0]
    nothing = np.zeros((height, gap, 4), np.uint8)
    row: list[Pixels] = []
    for picture in pictures:
        opaque = np.concatenate([picture, np.full((*picture.shape[:2], 1), 255, np.uint8)], axis=2)
        row += [nothing, opaque] if row else [opaque]
    return np.concatenate(row, axis=1)
