"""The fast form of crop-bicubic agrees with Pillow's to 60 dB; files that need interpretation go through Pillow."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from image_files import encoded
from PIL import Image
from skimage import data as photographs

from brics_cli.cli.app import run
from brics_cli.errors import UsageError
from brics_cli.images import pixels
from brics_cli.images.pixels import (
    ImageError,
    apply_transform,
    decode_image,
    decode_plain_jpeg,
    device_of_threads,
    load_pixels,
)

FAST = "crop-bicubic-fast"


def fast(data: bytes, size: int) -> np.ndarray | None:
    is_plain = decode_plain_jpeg(data, transform=FAST) is not None
    return load_pixels(data, transform=FAST, size=size) if is_plain else None


def transformed(data: bytes, size: int) -> np.ndarray:
    return load_pixels(data, transform=FAST, size=size)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b.astype(float)) ** 2), 1e-9)))


def test_threads_decode_on_the_device_of_their_caller(monkeypatch):
    assert device_of_threads(FAST) is None
    chosen: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"stream on {device}")
    monkeypatch.setattr(torch.cuda, "set_stream", chosen.append)
    with ThreadPoolExecutor(1, initializer=device_of_threads("crop-bicubic-cuda")) as pool:
        pool.submit(int).result()
    assert chosen == [3, "stream on 3"]


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(photographs.astronaut())


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket", "camera"])
def test_it_agrees_with_the_reference_on_photographs(name, format):
    image = Image.fromarray(getattr(photographs, name)())
    data = encoded(image, format, **({"quality": 92} if format == "JPEG" else {}))
    for size in (64, 256):
        found, reference = transformed(data, size), load_pixels(data, transform="crop-bicubic", size=size)
        assert (fast(data, size) is not None) == (format == "JPEG")
        assert found.dtype == np.uint8 and found.shape == (size, size, 3)
        assert psnr(found, reference) >= 60
        assert np.abs(found.astype(int) - reference).max() <= 1


def test_it_agrees_on_the_jpegs_that_scikit_image_ships():
    files = sorted(Path(skimage.__file__).with_name("data").glob("*.jp*g"))
    found = {file.name: fast(file.read_bytes(), 128) for file in files}
    assert len(found) >= 2 and all(image is not None for image in found.values())
    for file in files:
        assert psnr(found[file.name], load_pixels(file.read_bytes(), transform="crop-bicubic", size=128)) >= 60


def test_decoded_pixels_are_the_same_ones(photo):
    """Of a square of the size asked for nothing is resized: the two decoders alone are compared."""
    for options in ({"quality": 90}, {"subsampling": 2}, {"progressive": True}):
        data = encoded(photo, "JPEG", **options)
        assert np.array_equal(fast(data, 512), np.array(decode_image(data)))


def special_files(photo: Image.Image) -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    small = photo.resize((96, 64))
    sixteen = np.array(small.convert("L")).astype(np.uint16) * 257
    transparent = small.copy()
    transparent.putalpha(100)
    return {
        "16 bit": encoded(Image.fromarray(sixteen)),
        "CMYK": encoded(small.convert("CMYK"), "JPEG"),
        "palette": encoded(small.quantize(8)),
        "alpha": encoded(transparent),
        "transparent colour": encoded(small, transparency=(0, 0, 0)),
        "EXIF in a JPEG": encoded(small, "JPEG", exif=exif),
        "EXIF in a PNG": encoded(small, exif=exif),
        "WebP": encoded(small, "WEBP"),
        "RGB in a JPEG": encoded(small, "JPEG", keep_rgb=True),
        "1 bit": encoded(small.convert("1")),
    }


def test_files_that_need_interpretation_go_through_the_reference(photo):
    for name, data in special_files(photo).items():
        assert fast(data, 32) is None, name
        through_pillow = apply_transform(decode_image(data), FAST, 32)
        assert np.array_equal(load_pixels(data, transform=FAST, size=32), through_pillow), name
        assert psnr(through_pillow, load_pixels(data, transform="crop-bicubic", size=32)) >= 60, name


def fails(data: bytes, transform: str) -> bool:
    try:
        load_pixels(data, transform=transform, size=32)
    except ImageError:
        return True
    return False


def test_damaged_files_fail_as_in_the_reference(photo):
    small = photo.resize((96, 64))
    for format in ("PNG", "JPEG"):
        whole = encoded(small, format)
        for data in (whole[: len(whole) // 2], whole[:40], b""):
            with pytest.raises(ImageError):
                transformed(data, 32)
        for cut in (1, 2, 3, 20, 60):
            assert fails(whole[:-cut], FAST) == fails(whole[:-cut], "crop-bicubic"), (format, cut)
    assert decode_plain_jpeg(encoded(small, "JPEG"), transform=FAST, max_pixels=100) is None  # a bomb, to Pillow


def test_flipped_bytes_are_an_image_or_an_image_error(photo):
    generator = np.random.default_rng(0)
    for format in ("PNG", "JPEG"):
        good = encoded(photo.resize((48, 48)), format)
        for _ in range(100):
            mutated = bytearray(good)
            for position in generator.integers(0, len(good), 3):
                mutated[position] = int(generator.integers(0, 256))
            try:
                assert load_pixels(bytes(mutated), transform=FAST, size=16).shape == (16, 16, 3)
            except ImageError:
                continue


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a CUDA device")
def test_the_gpu_decoder_without_a_gpu_is_one_line(photo, tmp_path, capfd):
    with pytest.raises(UsageError, match="needs a CUDA device"):
        load_pixels(encoded(photo, "JPEG"), transform="crop-bicubic-cuda", size=32)
    (tmp_path / "images").mkdir()
    photo.save(tmp_path / "images" / "a.jpg")
    arguments = ["pack", str(tmp_path / "images"), "--out", str(tmp_path / "out"), "--transform", "crop-bicubic-cuda"]
    assert run(arguments) == 2
    assert "needs a CUDA device" in capfd.readouterr().err


@pytest.mark.parametrize("size", [1, 16, 64, 512])
@pytest.mark.parametrize("scale", [0.5, 1, 46.9, 47.1, 300, 2000])
def test_no_step_on_the_gpu_shrinks_more_than_its_kernel_can(size: int, scale: float) -> None:
    side = max(1, round(size * scale))
    steps = pixels.sizes_on_gpu(side, size)
    assert steps[-1] == size and len(steps) == 1 + (side > 47 * size)
    assert all(a <= 48 * b for a, b in pairwise([side, *steps]))


@pytest.mark.parametrize("part", ["_jpeg_decoder", "_square_by_torch"])
def test_what_fails_of_an_image_on_the_gpu_is_done_by_the_reference(monkeypatch, part: str) -> None:
    def fails(*arguments: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    data = encoded(Image.fromarray(photographs.astronaut()), "JPEG", quality=92)
    expected = pixels.apply_transform(pixels.decode_image(data), pixels.CUDA, 64)
    square = pixels._square_by_torch
    own = {
        "_jpeg_decoder": lambda transform: fails,
        "_square_by_torch": lambda image, size: fails() if image.shape[-1] == 8 else square(image, size),
    }
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(pixels, "_jpeg_decoder", lambda transform: lambda data: torch.zeros(3, 8, 8, dtype=torch.uint8))
    monkeypatch.setattr(pixels, part, own[part])
    found, side = pixels.load_with_side(data, transform=pixels.CUDA, size=64)
    assert np.array_equal(found, expected) and side == 512
