"""JFIF, GIF, AVIF and HEIC files: read like any other, of animations the first frame, and said."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from brics_cli.images import open_collection
from brics_cli.images.pixels import decode_image, is_image_file, num_frames

pillow_heif.register_heif_opener()
RAMP = np.linspace(0, 255, 64).astype(np.uint8)
BLUE = np.full((64, 64), 90, np.uint8)
PICTURE = Image.fromarray(np.stack([RAMP[None].repeat(64, 0), RAMP[:, None].repeat(64, 1), BLUE], -1))
SECOND = Image.fromarray(255 - np.asarray(PICTURE))


def encoded(format: str, **settings: object) -> bytes:
    buffer = BytesIO()
    PICTURE.save(buffer, format, **settings)
    return buffer.getvalue()


ANIMATED = {"save_all": True, "append_images": [SECOND, SECOND.rotate(90)]}
FILES = {
    "a.jfif": (encoded("JPEG", quality=95), 1),
    "b.gif": (encoded("GIF"), 1),
    "c.gif": (encoded("GIF", **ANIMATED), 3),
    "d.avif": (encoded("AVIF", quality=90), 1),
    "e.avif": (encoded("AVIF", quality=90, **ANIMATED), 3),
    "f.heic": (encoded("HEIF", quality=90), 1),
}


@pytest.mark.parametrize("name", FILES)
def test_the_first_frame_is_read(name: str) -> None:
    data, frames = FILES[name]
    error = np.abs(np.asarray(decode_image(data)).astype(int) - np.asarray(PICTURE)).mean()
    assert error < (12 if name.endswith("gif") else 3)  # of 256 colours, and of lossy codecs
    assert is_image_file(data[:12]) and num_frames(data) == frames


def test_a_folder_of_them_is_a_collection(tmp_path: Path) -> None:
    for name, (data, _) in FILES.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "g.jxl").write_bytes(b"\xff\x0a")
    collection = open_collection(tmp_path)
    assert list(collection.keys()) == ["a", "b", "c", "d", "e", "f"]
    assert collection.passed_over.to_json() == {".jxl": 1}


@pytest.mark.parametrize("name", FILES)
def test_damaged_ones_are_failed_images(name: str) -> None:
    from brics_cli.images.pixels import ImageError

    data, _ = FILES[name]
    for cut in (data[:20], data[: len(data) // 8]):
        with pytest.raises(ImageError):
            decode_image(cut)
