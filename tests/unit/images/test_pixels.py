"""Every kind of image file that others trip over has one defined result; transforms equal their definitions."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from brics_cli.errors import UsageError
from brics_cli.images.pixels import ImageError, apply_transform, decode_image


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(photographs.astronaut())


def test_rgb_png_is_exact(photo):
    assert np.array_equal(np.array(decode_image(encoded(photo))), np.array(photo))


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 127 * 257, 128 * 257, 65535]], np.uint16)
    decoded = np.array(decode_image(encoded(Image.fromarray(values))))
    assert decoded[0, :, 0].tolist() == [0, 127, 128, 255]


def test_alpha_is_composited_on_white():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert np.array(decode_image(encoded(image))).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_palette_with_a_transparent_entry():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    decoded = np.array(decode_image(encoded(image, transparency=0)))
    assert decoded.tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_exif_orientation_is_applied(photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    wide = photo.crop((0, 0, 512, 256))
    decoded = decode_image(encoded(wide, "JPEG", exif=exif, quality=95))
    assert decoded.size == (256, 512)
    upright = np.array(wide.rotate(-90, expand=True)).astype(int)
    assert np.abs(np.array(decoded).astype(int) - upright).mean() < 4


def test_cmyk_jpeg_keeps_its_colours():
    decoded = np.array(decode_image(encoded(Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK"), "JPEG")))
    assert np.abs(decoded.astype(int) - [200, 40, 90]).max() <= 4


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_becomes_rgb(mode):
    decoded = np.array(decode_image(encoded(Image.new("L", (3, 2), 255).convert(mode))))
    assert decoded.shape == (2, 3, 3) and (decoded == 255).all()


def test_bad_bytes_are_image_errors(photo):
    good = encoded(photo, "JPEG")
    bomb = encoded(Image.new("1", (20000, 20000)))
    assert len(bomb) < 100_000
    for data, reason in [
        (b"", "empty"),
        (b"not an image at all", "not an image"),
        (good[: len(good) // 2], "truncated"),
        (encoded(photo)[:5000], "damaged"),
        (bomb, "bomb"),
        (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "floating-point"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ]:
        with pytest.raises(ImageError, match=reason):
            decode_image(data)


def test_flipped_bytes_never_raise_anything_else(photo):
    good = bytearray(encoded(photo.resize((48, 48)), "PNG"))
    generator = np.random.default_rng(0)
    for _ in range(200):
        mutated = good.copy()
        for position in generator.integers(0, len(good), 4):
            mutated[position] = int(generator.integers(0, 256))
        try:
            decode_image(bytes(mutated))
        except ImageError:
            continue


@pytest.mark.parametrize("name", ["crop-bicubic", "adm", "edm-lanczos"])
@pytest.mark.parametrize("size", [(640, 400), (400, 641), (50, 90), (64, 64), (1000, 300)])
def test_transforms_give_the_size_asked_for(name, size, photo):
    assert apply_transform(photo.resize(size), name, 64).shape == (64, 64, 3)


def edm_center_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    """EDM's dataset_tool, `center-crop`: the largest centred square by array slices, then LANCZOS."""
    rows, columns = pixels.shape[:2]
    side = min(rows, columns)
    square = pixels[(rows - side) // 2 : (rows + side) // 2, (columns - side) // 2 : (columns + side) // 2]
    return np.array(Image.fromarray(square).resize((size, size), Image.Resampling.LANCZOS))


def edm2_center_crop_dhariwal(pixels: np.ndarray, size: int) -> np.ndarray:
    """EDM2's dataset_tool, `center-crop-dhariwal`, which is ADM's loader: box halvings, bicubic to the short side with
    both sides rounded, then the centre by array slices."""
    image = Image.fromarray(pixels)
    while image.width >= 2 * size and image.height >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    factor = size / min(image.width, image.height)
    resized = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    rows, columns = resized.height, resized.width
    top, left = (rows - size) // 2, (columns - size) // 2
    return np.array(resized)[top : top + size, left : left + size]


SIDES = [(512, 512), (512, 301), (301, 512), (340, 256), (256, 341), (130, 127), (127, 128), (64, 64), (64, 97),
         (50, 90), (33, 31), (511, 129), (257, 255)]  # fmt: skip


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize(("name", "oracle"), [("edm-lanczos", edm_center_crop), ("adm", edm2_center_crop_dhariwal)])
def test_peers_transforms_to_the_bit(name, oracle, sides, photo):
    image = photo.crop((0, 0, *sides))
    for size in (64, 32, 48):
        assert np.array_equal(apply_transform(image, name, size), oracle(np.array(image), size))


def test_crop_bicubic_is_pillows(photo):
    wide = photo.crop((0, 0, 512, 301))
    square = Image.fromarray(np.array(wide)[:, 105:406]).resize((64, 64), Image.Resampling.BICUBIC)
    assert np.array_equal(apply_transform(wide, "crop-bicubic", 64), np.array(square))


def test_adm_halves_with_a_box_filter(photo):
    """Four times the size: two box halvings and nothing else, so each pixel is about the mean of its 4 x 4."""
    boxed = np.array(photo).astype(np.float64).reshape(128, 4, 128, 4, 3).mean(axis=(1, 3))
    ours = apply_transform(photo, "adm", 128)
    assert np.abs(ours - boxed).max() <= 2  # each halving rounds


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_tiff_of_either_byte_order(order):
    values = np.array([[0, 127 * 257, 65535]], f"{order}u2")
    decoded = np.array(decode_image(encoded(Image.fromarray(values), "TIFF")))
    assert decoded[0, :, 0].tolist() == [0, 127, 255]


@pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (3, 180), (6, -90), (8, 90)])
def test_every_exif_rotation(orientation, turned, photo):
    exif = Image.Exif()
    exif[0x0112] = orientation
    small = photo.resize((40, 24))
    upright = np.array(small.rotate(turned, expand=True))
    assert np.array_equal(np.array(decode_image(encoded(small, exif=exif))), upright)


def test_damaged_exif_leaves_the_pixels(photo):
    data = encoded(photo.resize((40, 24)), "JPEG", exif=b"Exif\0\0garbage that is no TIFF header")
    assert decode_image(data).size == (40, 24)


def test_a_bomb_of_190_kb_is_refused_before_it_is_unpacked(photo):
    bomb = encoded(Image.new("L", (14_000, 14_000)))
    assert len(bomb) < 200_000
    with pytest.raises(ImageError, match="decompression bomb"):
        decode_image(bomb)


def test_none_takes_its_own_size_alone(photo):
    assert np.array_equal(apply_transform(photo, "none", 512), np.array(photo))
    with pytest.raises(ImageError, match="512 x 512"):
        apply_transform(photo, "none", 64)


def test_unknown_transform_names_the_nearest(photo):
    with pytest.raises(UsageError, match="did you mean 'crop-bicubic'"):
        apply_transform(photo, "crop-bicubik", 64)
