"""Every mode and bit depth that Pillow opens: the right picture, or a refusal that names the mode."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from odd_images import CASES, random_values
from PIL import Image

from brics_cli.images.decoders import Decoders
from brics_cli.images.pixels import ImageError, decode_files, decode_image, load_pixels, to_rgb


@pytest.mark.parametrize("name", CASES)
def test_it_shows_what_it_was_built_to_show(name):
    data, expected, off = CASES[name]
    if isinstance(expected, str):
        with pytest.raises(ImageError, match=expected):
            decode_image(data)
        return
    found = np.array(decode_image(data))
    assert found.shape == expected.shape and found.dtype == np.uint8
    assert np.abs(found.astype(int) - np.asarray(expected).astype(int)).max() <= off


def test_there_are_as_many_as_promised():
    assert len(CASES) >= 250
    assert sum(isinstance(expected, str) for _, expected, _ in CASES.values()) >= 15


@pytest.mark.parametrize("name", CASES)
def test_the_fast_form_agrees(name):
    data, expected, _ = CASES[name]
    if isinstance(expected, str):
        with pytest.raises(ImageError, match=expected):
            load_pixels(data, transform="crop-bicubic-fast", size=5)
        return
    size = min(np.asarray(expected).shape[:2])  # nothing is resized: the decoders alone are compared
    found, reference = (load_pixels(data, transform=f"crop-bicubic{form}", size=size) for form in ("-fast", ""))
    assert np.array_equal(found, reference)


def test_processes_decode_the_same(monkeypatch):
    files = [data for data, _, _ in CASES.values()]
    here = np.zeros((len(files), 4, 4, 3), np.uint8)
    reasons = decode_files(files, here, transform="crop-bicubic")
    with closing(Decoders(here.shape, num=1, transform="crop-bicubic", num_processes=1)) as decoders:
        there = decoders.buffers.take(len(files))
        assert all(process.is_ready(wait_s=60) for process in decoders.processes)
        monkeypatch.setattr("brics_cli.images.decoders.decode_files", None)
        assert decoders.decode(files, there) == reasons
        good = [isinstance(reason, int) for reason in reasons]
        assert np.array_equal(there[good], here[good])


@pytest.mark.parametrize("num", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_damaged_files_are_a_picture_or_an_image_error(num):
    generator = np.random.default_rng(num)
    for data, _, _ in CASES.values():
        for _ in range(num):
            damaged = bytearray(data[: generator.integers(1, len(data) + 1)] if generator.random() < 0.2 else data)
            for position in generator.integers(0, min(len(damaged), 200), 3):  # headers, most of all
                damaged[position] = generator.integers(0, 256)
            try:
                assert load_pixels(bytes(damaged), transform="crop-bicubic-fast", size=4).shape == (4, 4, 3)
            except ImageError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"])
def test_modes_without_alpha_are_pillows_rgb(mode):
    image = Image.fromarray(random_values(1, 255, 3).astype(np.uint8)).convert(mode)
    assert np.array_equal(np.array(to_rgb(image, b"")), np.array(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa", "PA"])
def test_modes_with_alpha_stand_on_white(mode):
    clear = Image.new("RGBA", (2, 1), (40, 40, 40, 255))
    clear.putpixel((1, 0), (0, 0, 0, 0))
    if mode == "PA":
        clear = Image.merge("PA", (clear.convert("RGB").quantize(4), clear.getchannel("A")))
    else:
        clear = clear.convert("LA").convert(mode) if mode == "La" else clear.convert(mode)
    assert np.array(to_rgb(clear, b"")).tolist() == [[[40] * 3, [255] * 3]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_range_are_named(mode):
    with pytest.raises(ImageError, match=f"mode {mode}.*no defined range"):
        to_rgb(Image.new(mode, (2, 2), 300), b"")
