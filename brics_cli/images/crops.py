"""Random crops of a collection, as a collection: what `brics pack --crops` packs.

A crop of S px is a square of the image, S / scale of its pixels on a side, reduced to S: at scale 1 the pixels are the
image's own, at 1/4 the crop shows sixteen times the area. Scales are drawn log-uniformly, so that each octave gets its
share. An image smaller than a crop is continued by its mirror image, never enlarged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

from brics_cli.images.collection import Collection, RawImage, Shard, shard_layout
from brics_cli.images.pixels import decode_image


class Crops(NamedTuple):
    """`per_image` crops of every image, of `size` px, at scales between `scale[0]` and `scale[1]`, at most 1.

    `jitter`: brightness, contrast and saturation are multiplied by factors between 1 / (1 + jitter) and 1 + jitter.
    """

    per_image: int
    size: int
    scale: tuple[float, float] = (0.25, 1.0)
    jitter: float = 0.0
    seed: int = 0


class CropCollection(Collection):
    """Crops of the images of another collection: crop j of image i depends on (seed, i, j), and has the label of i."""

    def __init__(self, whole: Collection, crops: Crops) -> None:
        self._whole, self._crops = whole, crops
        self._last: tuple[tuple[int, int], RawImage, Image.Image] | None = None
        self.path, self.kind, self.opened_ns = whole.path, whole.kind, whole.opened_ns
        self.options, self.class_names, self.passed_over = whole.options, whole.class_names, whole.passed_over
        num_bytes = 3 * crops.size**2
        self.shards = []
        for shard in whole.shards:
            num = shard.num_images * crops.per_image
            self.shards.append(Shard(shard.name, num, num * num_bytes, shard_layout(shard.layout, num, [crops])))

    def describe(self) -> str:
        return f"{self._crops.per_image:,} crops of each of {self._whole.describe()}"

    def key(self, shard_index: int, index: int) -> str:
        image, number = divmod(index, self._crops.per_image)
        return f"{self._whole.key(shard_index, image)}-crop-{number:05d}"

    def read(self, shard_index: int, index: int) -> RawImage:
        """The crop as a BMP file. Raises ImageError where the image that it is cut from cannot be read."""
        image, number = divmod(index, self._crops.per_image)
        raw, pixels = self._image(shard_index, image)
        position = self._whole.starts[shard_index] + image
        crop = draw_crop(pixels, self._crops, np.random.default_rng([self._crops.seed, position, number]))
        file = BytesIO()
        crop.save(file, "BMP")
        return RawImage(self.key(shard_index, index), file.getvalue(), raw.label, raw.meta, shard_index, index)

    def files(self, shard_index: int, indices: Sequence[int] | None = None) -> Iterable[str]:
        if indices is not None:
            indices = sorted({index // self._crops.per_image for index in indices})
        return self._whole.files(shard_index, indices)

    def _image(self, shard_index: int, index: int) -> tuple[RawImage, Image.Image]:
        """An image and its pixels; the last one is kept, since crops are asked for image by image."""
        place, last = (shard_index, index), self._last
        if last is not None and last[0] == place:
            return last[1:]
        raw = self._whole.read(*place)
        pixels = decode_image(raw.data)
        self._last = place, raw, pixels
        return raw, pixels


def draw_crop(image: Image.Image, crops: Crops, generator: np.random.Generator) -> Image.Image:
    """One random crop (size x size) of an RGB image."""
    size = crops.size
    if min(image.size) < size:
        pad = [(0, max(0, size - side)) for side in (image.height, image.width)]
        image = Image.fromarray(np.pad(np.asarray(image), [*pad, (0, 0)], mode="symmetric"))
    lowest, highest = np.log(crops.scale)
    side = min(round(size / np.exp(generator.uniform(lowest, highest))), *image.size)
    left, top = (int(generator.integers(0, free - side + 1)) for free in image.size)
    crop = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color) if crops.jitter else ():
        crop = enhance(crop).enhance(float((1 + crops.jitter) ** generator.uniform(-1, 1)))
    return crop
