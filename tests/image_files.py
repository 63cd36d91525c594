"""Image files and archives of them, as tests need them: small, and of any kind."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from brics_cli.images.collection import Collection
from brics_cli.images.sinks import OutputImage, discard_pieces, open_sink
from brics_cli.runtime.reporting import SilentReporter


def write_images(path: Path, images: Iterable[OutputImage], format: str | None = None, **settings: object) -> Path:
    """An output of images, as a job makes one from beginning to end."""
    sink = open_sink(path, format, **settings)
    sink.write(images)
    sink.finish(SilentReporter())
    discard_pieces(path)
    return path


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def grey(value: int = 0, size: tuple[int, int] = (8, 6), format: str = "PNG") -> bytes:
    """An image file of one grey value."""
    return encoded(Image.new("RGB", size, (value, value, value)), format)


def noise(seed: int, side: int = 16, format: str = "PNG", **options: object) -> bytes:
    """An image file of random pixels: long enough to be taken for an image by its length."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), format, **options)


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], *, mode: str = "w", **settings: object) -> Path:
    """A tar of `members` (name, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, **settings) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def read_all(collection: Collection) -> list:
    """Every RawImage in order."""
    return [raw for shard in range(len(collection.shards)) for raw in collection.iter_shard(shard)]


def keys_of(collection: Collection) -> list[str]:
    """The keys in order, as reading gives them; `key` must give the same ones."""
    read = [raw.key for raw in read_all(collection)]
    assert list(collection.keys()) == read
    return read


def holds_in_child(check: Callable[[], bool]) -> bool:
    """Whether `check` holds in a forked process, as in a DataLoader's worker."""
    child = os.fork()
    if child == 0:
        held = False
        try:
            held = check()
        finally:
            os._exit(0 if held else 1)
    return os.waitpid(child, 0)[1] == 0
