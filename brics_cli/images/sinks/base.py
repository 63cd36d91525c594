"""What every sink shares: images are encoded in a few threads and written in order, each file whole or absent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from brics_cli.errors import UsageError
from brics_cli.runtime.reporting import Reporter
from brics_cli.runtime.threads import free_cores
from brics_cli.workspace import MARK, Artefact
from brics_cli.workspace.naming import FOLDER, Codec, ImageFormat
from brics_cli.workspace.outputs import Claim, claim

MOST_THREADS = 8
_MAX_PENDING = 64


@dataclass(frozen=True)
class Encoding:
    """How an image (H, W, 3), uint8 RGB, becomes the bytes of a file: a file format and its settings.

    The same pixels give the same bytes with the same version of Pillow. `name` goes into artefacts: it says all that
    the bytes depend on. Picklable, so that processes can encode.
    """

    name: str
    extension: str
    pillow_format: str
    settings: Mapping[str, Any]

    def encode(self, image: np.ndarray) -> bytes:
        """The bytes of the file. Raises MemoryError."""
        buffer = BytesIO()
        try:
            Image.fromarray(image).save(buffer, format=self.pillow_format, **self.settings)
        except ValueError as error:
            if str(error) in _WEBP_OUT_OF_MEMORY:
                raise MemoryError("encoding") from None
            raise
        return buffer.getvalue()


_WEBP_OUT_OF_MEMORY = ("encoding error 1", "encoding error 2")
"""What Pillow makes of libwebp's `VP8_ENC_ERROR_OUT_OF_MEMORY` and `..._BITSTREAM_OUT_OF_MEMORY`."""


SIGNED = PngInfo()
"""What says in a PNG that brics made it."""
SIGNED.add_text("Software", MARK)
PNG = Encoding("png", "png", "PNG", {"compress_level": 3, "pnginfo": SIGNED})
"""Level 3 of zlib is about twice as fast as Pillow's default 6."""
WEBP = Encoding("webp", "webp", "WEBP", {"lossless": True, "quality": 0, "method": 0})
"""Lossless; `quality` and `method` are effort here: with the least, files are smaller than PNG's all the same, and take
a fraction of its time (`brics bench pack`)."""


JPEG_QUALITY = 95


def jpeg(quality: int) -> Encoding:
    """JPEG of `quality` 1 to 100, with full-resolution colour (4:4:4)."""
    return Encoding(f"jpeg-{quality}", "jpg", "JPEG", {"quality": quality, "subsampling": 0})


def encoding_of(name: Codec, *, quality: int | None = None) -> Encoding:
    """The encoding of that name. Raises UsageError for the `quality` of a lossless one."""
    lossless = {"png": PNG, "webp": WEBP}.get(name)
    if lossless is not None and quality is not None:
        raise UsageError(f"--quality goes with --codec jpeg, and {name} is lossless")
    return lossless or jpeg(quality or JPEG_QUALITY)


class OutputImage(NamedTuple):
    """One image on its way out: `pixels` uint8 (H, W, 3); None leaves the place of an image that failed empty."""

    key: str
    pixels: np.ndarray | None
    label: int | None = None
    meta: dict[str, Any] | None = None


class Encoded(NamedTuple):
    """An image and the bytes of its file; None for an empty place."""

    image: OutputImage
    data: bytes | None


class ImageSink(ABC):
    """Writes images in the order they come; when that is interrupted, what is whole stays, and nothing else.

    `shard_size`: images per shard. `nested`: PNG files in folders where keys have slashes. `class_names`: what labels
    0, 1, ... stand for. `num_workers`: threads that encode; None: one per CPU core, at most 8.
    """

    format: ClassVar[ImageFormat]
    ending: ClassVar[str]
    """Of the path; `FOLDER` when images go to a folder."""
    labels: ClassVar[Literal["each", "all or none", "none"]] = "each"
    """Which labels there is a place for."""
    keeps_metas: ClassVar[bool] = False
    by_image: ClassVar[bool] = False
    """Whether images are whole one by one, not part by part."""

    def __init__(
        self,
        path: Path,
        *,
        shard_size: int = 1000,
        encoding: Encoding = PNG,
        nested: bool = False,
        class_names: Sequence[str] = (),
        num_workers: int | None = None,
    ) -> None:
        self.path, self.shard_size, self.encoding, self.nested = path, shard_size, encoding, nested
        self.class_names, self.num_workers = class_names, num_workers

    @property
    def settings(self) -> dict[str, Any]:
        """What two runs that write the same output have in common."""
        return {"format": self.format, "shard_size": None}

    @property
    def is_file(self) -> bool:
        """Whether the images go to one file."""
        return self.ending != FOLDER

    @property
    def folder(self) -> Path:
        """Where an interrupted run leaves what is whole."""
        return self.path

    @property
    def sheet(self) -> Path:
        """Where a contact sheet goes: out of the way of whoever reads the images."""
        return self.path.with_name(self.path.name + ".sheet.png")

    def claim(self, artefact: Artefact, *, overwrite: bool) -> Claim:
        """Claim the output for `artefact`, as `workspace.outputs.claim` does."""
        return claim(artefact, overwrite=overwrite)

    @abstractmethod
    def resume_point(self, keys: Sequence[str]) -> int:
        """How many leading `keys` are there from an interrupted run; writing goes on with the next one."""

    @abstractmethod
    def missing(self, number: int, keys: Iterable[str]) -> range:
        """Which of the `keys` of part `number` are not there, from the first of them to the last."""

    def write(self, images: Iterable[OutputImage], *, start: int = 0) -> None:
        """Write `images`, whose places in the output are `start`, `start` + 1, ...

        Raises UsageError for a key that is not a relative path, and what asking for an image raises.
        """
        with self.encoded(images) as ahead:
            for number in count(start // self.shard_size):
                if (first := next(ahead, None)) is None:
                    break
                with self.part(number) as put:
                    for image in chain([first], islice(ahead, self.shard_size - 1)):
                        put(image)

    def encoded(self, images: Iterable[OutputImage]) -> AbstractContextManager[Iterator[Encoded]]:
        """`images` with the bytes of their files, encoded ahead in threads while the block runs."""
        return closing(encoded(images, self.encoding, num_workers=self.num_workers))

    @abstractmethod
    def part(self, number: int) -> AbstractContextManager[Callable[[Encoded], None]]:
        """Write images `number * shard_size` and so on, up to a whole shard: the block puts in what `encoded` gives."""

    def finish(self, reporter: Reporter) -> None:  # noqa: B027 - may stay empty
        """Add what can only be made when all images are written."""


def encoded(
    images: Iterable[OutputImage], encoding: Encoding, *, num_workers: int | None = None
) -> Generator[Encoded, None, None]:
    """`images` in order, encoded in a few threads ahead of their use."""
    pending: deque[tuple[OutputImage, Future[bytes] | None]] = deque()

    def first() -> Encoded:
        image, data = pending.popleft()
        return Encoded(image._replace(pixels=None), None if data is None else data.result())

    pool = ThreadPoolExecutor(num_workers or min(free_cores(), MOST_THREADS), thread_name_prefix="brics-write")
    try:
        for image in images:
            check_key(image.key)
            pixels = None if image.pixels is None else np.array(image.pixels)  # a copy: the buffer may be used again
            pending.append((image, None if pixels is None else pool.submit(encoding.encode, pixels)))
            if len(pending) > _MAX_PENDING:
                yield first()
        while pending:
            yield first()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def check_key(key: str) -> None:
    """Raise UsageError for a key that would be written outside the output."""
    parts = key.split("/")
    if not key or ".." in parts or "" in parts or "\0" in key:
        raise UsageError(f"the key {key!r} is not a relative path", next="Such a file name cannot be written safely.")
