"""Image files of every mode and bit depth, each beside the pixels that it shows: computed from how it was built.

PNG and BMP are written here byte by byte, TIFF by tifffile, the rest by Pillow. `CASES`: name -> (file, what it shows:
(H, W, 3) uint8, or the reason for which it is refused; how far a pixel may be off).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import tifffile
from image_files import encoded
from PIL import Image
from skimage.color import lab2rgb

HEIGHT, WIDTH = 7, 11
"""Odd, so that rows end inside a byte, and Adam7's passes have unequal sides."""
Case = tuple[bytes, Any, int]
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of each pass: first column, first row, columns apart, rows apart."""


def random_values(seed: int, top: int, channels: int = 1) -> np.ndarray:
    """(H, W) or (H, W, C) integers from 0 to `top`, both among them."""
    shape = (HEIGHT, WIDTH) if channels == 1 else (HEIGHT, WIDTH, channels)
    values = np.random.default_rng(seed).integers(0, top + 1, shape)
    values[0, 0], values[0, 1] = 0, top
    return values


def packed(values: np.ndarray, depth: int) -> list[bytes]:
    """Rows of `values` (H, W) or (H, W, C) as PNG, BMP and TIFF pack them: big-endian, the first pixel highest."""
    rows = values.reshape(len(values), -1)
    if depth >= 8:
        return [row.astype(f">u{depth // 8}").tobytes() for row in rows]
    bits = (rows[..., None] >> np.arange(depth)[::-1] & 1).astype(np.uint8).reshape(len(rows), -1)
    return [np.packbits(row).tobytes() for row in bits]


def png(values: np.ndarray, depth: int, colour_type: int, *, interlaced: bool = False, **chunks: bytes) -> bytes:
    """A PNG of `values`; `chunks` (PLTE, tRNS, ...) stand between header and pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width = values.shape[:2]
    passes = [values[y::rows, x::columns] for x, y, columns, rows in ADAM7] if interlaced else [values]
    lines = b"".join(b"\0" + row for part in passes if part.size for row in packed(part, depth))
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, interlaced)
    between = b"".join(chunk(name.encode(), body) for name, body in chunks.items())
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + between
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def bmp(rows: list[bytes], bits: int, *, palette: bytes = b"", masks: tuple[int, ...] = (),
        compression: int | None = None, top_down: bool = False, core: bool = False) -> bytes:  # fmt: skip
    """A BMP of `rows`, from the top. With four `masks` its header is version 4, `core`: that of OS/2."""
    body = b"".join(row + bytes(-len(row) % 4) for row in (rows if top_down else rows[::-1]))
    width, height = WIDTH, HEIGHT
    if core:
        header = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        kind = compression if compression is not None else 3 if masks else 0
        fields = (width, -height if top_down else height, 1, bits, kind, len(body), 0, 0, len(palette) // 4, 0)
        header = struct.pack("<IiiHHIIiiII", 108 if len(masks) == 4 else 40, *fields)
        header += b"".join(struct.pack("<I", mask) for mask in masks) + bytes(52 if len(masks) == 4 else 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + palette + body


def tiff(values: np.ndarray, **options: Any) -> bytes:
    """A TIFF by tifffile."""
    buffer = BytesIO()
    options.setdefault("photometric", "minisblack" if values.ndim == 2 else "rgb")
    big = {key: options.pop(key) for key in ("byteorder", "bigtiff") if key in options}
    with tifffile.TiffWriter(buffer, **big) as writer:
        writer.write(values, metadata=None, **options)
    return buffer.getvalue()


def as_rgb(grey: np.ndarray) -> np.ndarray:
    """(H, W) -> (H, W, 3) uint8."""
    return np.repeat(np.asarray(grey)[..., None], 3, axis=-1).astype(np.uint8)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """`colour` (H, W, 3) of 0..255 composited on white by `alpha` (H, W) of 0..1, rounded."""
    return np.rint(colour * alpha[..., None] + 255 * (1 - alpha[..., None])).astype(np.uint8)


def cleared(picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    """`picture` (H, W, 3), white where the file says transparent."""
    return np.where(where[..., None], 255, picture).astype(np.uint8)


def png_cases() -> Iterator[tuple[str, Case]]:
    """Every depth of every colour type, with and without tRNS, with and without interlacing."""
    for interlaced in (False, True):
        name = " interlaced" if interlaced else ""
        for depth in (1, 2, 4, 8, 16):
            top = (1 << depth) - 1
            grey = random_values(depth, top)
            shown = as_rgb(np.rint(grey * 255 / top))
            yield f"PNG grey {depth}{name}", (png(grey, depth, 0, interlaced=interlaced), shown, 0)
            for key in sorted({0, top, int(grey[3, 3])}):
                data = png(grey, depth, 0, interlaced=interlaced, tRNS=struct.pack(">H", key))
                yield f"PNG grey {depth} tRNS {key}{name}", (data, cleared(shown, grey == key), 0)
            if depth <= 8:
                index = random_values(depth, min(top, 15))
                palette = np.random.default_rng(9).integers(0, 256, (min(top, 15) + 1, 3))
                plte, shown = palette.astype(np.uint8).tobytes(), palette[index].astype(np.uint8)
                data = png(index, depth, 3, interlaced=interlaced, PLTE=plte)
                yield f"PNG palette {depth}{name}", (data, shown, 0)
                data = png(index, depth, 3, interlaced=interlaced, PLTE=plte, tRNS=b"\0")
                yield f"PNG palette {depth} tRNS one clear{name}", (data, cleared(shown, index == 0), 0)
                alphas = np.linspace(250, 3, len(palette)).astype(np.uint8)
                data = png(index, depth, 3, interlaced=interlaced, PLTE=plte, tRNS=alphas.tobytes())
                yield f"PNG palette {depth} tRNS alphas{name}", (data, on_white(shown, alphas[index] / 255), 1)
            if depth < 8:
                continue
            off = 0 if depth == 8 else 1  # colour of 16 bits keeps its high byte
            colour, alpha = random_values(3, top, 3), random_values(4, top)
            shown = np.rint(colour * 255 / top).astype(np.uint8)
            yield f"PNG RGB {depth}{name}", (png(colour, depth, 2, interlaced=interlaced), shown, off)
            key = colour[4, 4]
            near = colour.copy()
            near[4, 5], near[4, 6] = key, key ^ 1  # differs in the lowest bit: of 16 it is not seen in the high byte
            data = png(near, depth, 2, interlaced=interlaced, tRNS=struct.pack(">HHH", *key))
            shown_near = cleared(np.rint(near * 255 / top), (near == key).all(axis=-1))
            yield f"PNG RGB {depth} tRNS{name}", (data, shown_near, off)
            data = png(np.dstack([colour, alpha]), depth, 6, interlaced=interlaced)
            yield f"PNG RGBA {depth}{name}", (data, on_white(shown, alpha / top), 1 + off)
            data = png(np.dstack([grey, alpha]), depth, 4, interlaced=interlaced)
            shown = on_white(as_rgb(np.rint(grey * 255 / top)), alpha / top)
            yield f"PNG grey and alpha {depth}{name}", (data, shown, 1 + off)
    colour = random_values(5, 255, 3)
    yield "PNG gAMA is not applied", (png(colour, 8, 2, gAMA=struct.pack(">I", 100_000)), colour, 0)
    profile = b"linear\0\0" + zlib.compress(b"no profile that anybody reads")
    yield "PNG ICC profile is not applied", (png(colour, 8, 2, iCCP=profile), colour, 0)
    yield "PNG palette too short", (png(random_values(1, 15), 4, 3, PLTE=bytes(12)), "palette index 15 of 4", 0)
    yield (
        "PNG tRNS with high bits",
        (
            png(random_values(2, 15), 4, 0, tRNS=b"\x10\x03"),
            cleared(as_rgb(random_values(2, 15) * 17), random_values(2, 15) == 3),
            0,
        ),
    )


def bmp_cases() -> Iterator[tuple[str, Case]]:
    """Palettes of each depth, 16 bits of two layouts, 24 and 32 with and without alpha, run lengths."""
    for bits, num in ((1, 2), (4, 16), (8, 256), (4, 5), (8, 5)):
        index = random_values(bits, num - 1)
        palette = np.random.default_rng(num).integers(0, 256, (num, 4)).astype(np.uint8)  # blue, green, red, unused
        data = bmp(packed(index, bits), bits, palette=palette.tobytes())
        yield f"BMP palette {bits} of {num}", (data, palette[index][..., 2::-1], 0)
        greys = np.linspace(0, 255, num).astype(np.uint8)
        data = bmp(packed(index, bits), bits, palette=np.repeat(greys, 4).tobytes())
        yield f"BMP grey palette {bits} of {num}", (data, as_rgb(greys[index]), 0)
    index = random_values(8, 1)
    for bits in (1, 4, 8):  # two colours, black and white, of more bits than one
        data = bmp(packed(index, bits), bits, palette=bytes([0, 0, 0, 0, 255, 255, 255, 0]))
        yield f"BMP black and white {bits}", (data, as_rgb(index * 255), 0)
        data = bmp(packed(index, bits), bits, palette=bytes([255, 255, 255, 0, 0, 0, 0, 0]))
        yield f"BMP white and black {bits}", (data, as_rgb(255 - index * 255), 0)
    ramp = np.repeat(np.arange(16, dtype=np.uint8), 4).tobytes()
    index = random_values(4, 15)
    yield "BMP grey ramp of 4 bits", (bmp(packed(index, 4), 4, palette=ramp), as_rgb(index), 0)
    yield "BMP palette too short", (bmp(packed(index, 4), 4, palette=bytes(range(20))), "palette index 15 of 5", 0)
    colour = random_values(6, 255, 3)
    blue_first = colour[..., ::-1].astype(np.uint8)
    rows = [row.tobytes() for row in blue_first]
    yield "BMP 24", (bmp(rows, 24), colour, 0)
    yield "BMP 24 from the top", (bmp(rows, 24, top_down=True), colour, 0)
    yield "BMP 24 of OS/2", (bmp(rows, 24, core=True), colour, 0)
    alpha = random_values(7, 255)
    rows = [row.astype(np.uint8).tobytes() for row in np.dstack([blue_first, alpha])]
    yield "BMP 32, its fourth byte unused", (bmp(rows, 32), colour, 0)
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    yield "BMP 32 with alpha", (bmp(rows, 32, masks=masks), on_white(colour, alpha / 255), 1)
    rows = [row.tobytes() for row in np.dstack([blue_first, np.zeros_like(alpha, np.uint8)])]
    yield "BMP 32 with an alpha of zeros", (bmp(rows, 32, masks=masks), colour, 0)
    yield "BMP 32 of odd masks", (bmp(rows, 32, masks=(0x3FF00000, 0xFFC00, 0x3FF, 0)), "Unsupported BMP bitfields", 0)
    for name, depths, masks in (("555", (5, 5, 5), ()), ("565", (5, 6, 5), (0xF800, 0x7E0, 0x1F))):
        levels = np.dstack([random_values(seed, (1 << bits) - 1) for seed, bits in enumerate(depths)])
        red, green, blue = np.moveaxis(levels, -1, 0)
        word = red << (depths[1] + 5) | green << 5 | blue
        rows = [row.astype("<u2").tobytes() for row in word]
        shown = np.rint(levels * 255 / ((1 << np.array(depths)) - 1))
        yield f"BMP 16 of {name}", (bmp(rows, 16, masks=masks), shown, 1)
    index = random_values(8, 200)
    palette = np.random.default_rng(1).integers(0, 256, (256, 4)).astype(np.uint8)
    runs = [b"".join(bytes([1, value]) for value in row) + b"\0\0" for row in index]
    runs[0] += b"\0\1"  # the rows come from below
    whole = bmp([b"".join(runs[::-1])], 8, palette=palette.tobytes(), compression=1)
    yield "BMP run lengths of 8 bits", (whole, palette[index][..., 2::-1], 0)


def tiff_cases() -> Iterator[tuple[str, Case]]:
    """Bit depths, sample formats, byte orders, layouts, and what has no defined range."""
    eight, sixteen = random_values(1, 255).astype(np.uint8), random_values(2, 65535).astype(np.uint16)
    colour, alpha = random_values(3, 255, 3).astype(np.uint8), random_values(4, 255).astype(np.uint8)
    deep = random_values(5, 65535, 3).astype(np.uint16)
    rounded = as_rgb(np.rint(sixteen / 257))
    for order in ("<", ">"):
        at = {"byteorder": order}
        yield f"TIFF bilevel {order}", (tiff(eight > 99, **at), as_rgb((eight > 99) * 255), 0)
        yield f"TIFF grey 8 {order}", (tiff(eight, **at), as_rgb(eight), 0)
        yield f"TIFF grey 16 {order}", (tiff(sixteen, **at), rounded, 0)
        yield f"TIFF RGB 8 {order}", (tiff(colour, **at), colour, 0)
        yield f"TIFF RGB 16 {order}", (tiff(deep, **at), np.rint(deep / 257), 1)
        yield f"TIFF grey 8 deflated {order}", (tiff(eight, compression="zlib", **at), as_rgb(eight), 0)
        yield f"TIFF grey 16 deflated {order}", (tiff(sixteen, compression="zlib", **at), rounded, 0)
        yield f"TIFF RGB 16 deflated {order}", (tiff(deep, compression="zlib", **at), np.rint(deep / 257), 1)
        yield f"TIFF planes {order}", (tiff(np.moveaxis(colour, -1, 0), planarconfig="separate", **at), colour, 0)
        big = tiff(colour, bigtiff=True, **at)
        yield f"BigTIFF {order}", (big, colour if order == "<" else "big-endian BigTIFF", 0)
        yield f"TIFF signed 16 {order}", (tiff(eight.astype(np.int16), **at), "signed pixels", 0)
        yield f"TIFF signed 32 {order}", (tiff(eight.astype(np.int32), **at), "signed pixels", 0)
        yield f"TIFF unsigned 32 {order}", (tiff(eight.astype(np.uint32), **at), "32", 0)
        yield f"TIFF float 32 {order}", (tiff(eight.astype(np.float32), **at), "floating-point pixels", 0)
        yield f"TIFF float 64 {order}", (tiff(eight.astype(np.float64), **at), "floating-point, 64 bits", 0)
        yield f"TIFF float 16 {order}", (tiff(eight.astype(np.float16), **at), "floating-point, 16 bits", 0)
    yield "TIFF signed 8", (tiff(eight.astype(np.int8)), "signed pixels", 0)
    yield "TIFF float RGB", (tiff(colour.astype(np.float32)), "floating-point, 32, 32, 32 bits", 0)
    yield "TIFF white is zero 8", (tiff(eight, photometric="miniswhite"), as_rgb(255 - eight), 0)
    yield "TIFF white is zero 16", (tiff(sixteen, photometric="miniswhite"), 255 - rounded, 0)
    for kind, clear in (("unassalpha", True), ("unspecified", False)):
        data = tiff(np.dstack([colour, alpha]), extrasamples=[kind])
        yield f"TIFF RGB and {kind}", (data, on_white(colour, alpha / 255) if clear else colour, 1)
        data = tiff(np.dstack([eight, alpha]), extrasamples=[kind], photometric="minisblack", planarconfig="contig")
        yield f"TIFF grey and {kind}", (data, on_white(as_rgb(eight), alpha / 255) if clear else as_rgb(eight), 1)
    solid = np.maximum(alpha, 128)  # where alpha is small, 8 bits of a product say little of the factor
    product = np.rint(colour * (solid[..., None] / 255)).astype(np.uint8)
    data = tiff(np.dstack([product, solid]), extrasamples=["assocalpha"])
    yield "TIFF RGB times alpha", (data, on_white(colour, solid / 255), 2)
    product = np.rint(eight * (solid / 255)).astype(np.uint8)
    data = tiff(
        np.dstack([product, solid]), extrasamples=["assocalpha"], photometric="minisblack", planarconfig="contig"
    )
    yield "TIFF grey times alpha", (data, on_white(as_rgb(eight), solid / 255), 2)
    wide = np.dstack([deep, sixteen])
    yield "TIFF RGBA 16", (tiff(wide, extrasamples=["unassalpha"]), on_white(deep / 257, sixteen / 65535), 2)
    colours = np.random.default_rng(2).integers(0, 256, (3, 256))
    shown = colours.T[eight]
    yield "TIFF palette", (tiff(eight, photometric="palette", colormap=(colours * 257).astype(np.uint16)), shown, 0)
    data = tiff(eight, photometric="palette", colormap=colours.astype(np.uint16))
    yield "TIFF palette of 8 bits", (data, shown, 0)
    ink = np.dstack([colour, alpha])
    shown = np.rint((255 - ink[..., :3].astype(float)) * (255 - ink[..., 3:].astype(float)) / 255)
    yield "TIFF CMYK", (tiff(ink, photometric="separated"), shown, 2)
    yield "TIFF four other inks", (tiff(ink, photometric="separated", extratags=[(332, 3, 1, 2, True)]), "inks", 0)
    yield "TIFF two pages", (tiff(np.stack([colour, 255 - colour])), colour, 0)
    yield "TIFF in tiles", (tiff(np.tile(colour, (4, 4, 1)), tile=(16, 16)), np.tile(colour, (4, 4, 1)), 0)
    lab = np.dstack([np.full((HEIGHT, WIDTH), level) for level in (180, 20, 256 - 15)]).astype(np.uint8)
    reference = np.rint(lab2rgb(np.array([[[180 / 2.55, 20.0, -15.0]]])) * 255)
    yield "TIFF LAB", (tiff(lab, photometric="cielab"), np.broadcast_to(reference, lab.shape), 3)
    ycc = random_values(6, 255, 3).astype(np.uint8)
    ycc[..., 1:] = ycc[..., 1:] // 4 + 96
    yield "TIFF YCbCr", (tiff(ycc, photometric="ycbcr"), from_ycc(ycc), 2)
    quarter = np.tile(np.array([90, 90, 90, 90, 128, 128], np.uint8), 12)  # 2 x 2 of luma, then one pair of chroma
    data = raw_tiff([quarter.tobytes()], 8, photometric=6, samples=3, size=(8, 6))
    yield "TIFF YCbCr of fewer colours than pixels", (data, "subsampled 2 x 2", 0)
    for predictor in (1, 2):
        data = encoded(Image.fromarray(colour), "TIFF", compression="tiff_lzw", tiffinfo={317: predictor})
        yield f"TIFF LZW, predictor {predictor}", (data, colour, 0)
    for level in (2, 4):
        grey = random_values(level, (1 << level) - 1)
        shown = as_rgb(grey * (255 // ((1 << level) - 1)))
        yield f"TIFF grey {level}", (raw_tiff(packed(grey, level), level), shown, 0)
        yield f"TIFF grey {level}, white is zero", (raw_tiff(packed(grey, level), level, photometric=0), 255 - shown, 0)
    twelve = random_values(12, 4095)
    twelve = twelve.reshape(-1)[:76].reshape(4, 19)[:, :18]
    first, second = twelve[:, ::2], twelve[:, 1::2]
    triples = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1)
    data = raw_tiff([row.astype(np.uint8).tobytes() for row in triples], 12, size=(18, 4))
    yield "TIFF grey 12", (data, as_rgb(np.rint(twelve * 255 / 4095)), 0)


def raw_tiff(rows: list[bytes], bits: int, *, photometric: int = 1, size: tuple[int, int] = (WIDTH, HEIGHT),
             samples: int = 1, more: tuple[tuple[int, int], ...] = ()) -> bytes:  # fmt: skip
    """A little-endian TIFF of one strip, for depths that tifffile does not write."""
    body = b"".join(rows)
    fields = {256: size[0], 257: size[1], 258: bits, 259: 1, 262: photometric, 273: 8, 277: samples, 278: size[1],
              279: len(body), **dict(more)}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(fields.items()))
    start = 8 + len(body)
    return b"II*\0" + struct.pack("<I", start) + body + struct.pack("<H", len(fields)) + entries + bytes(4)


def from_ycc(ycc: np.ndarray) -> np.ndarray:
    """ITU-R BT.601 of full range, as JPEG has it."""
    y, blue, red = np.moveaxis(ycc.astype(float), -1, 0)
    blue, red = blue - 128, red - 128
    rgb = np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], axis=-1)
    return np.rint(rgb).clip(0, 255)


def other_cases() -> Iterator[tuple[str, Case]]:
    """Netpbm, WebP and JPEG."""
    size = f"{WIDTH} {HEIGHT}\n"
    for top in (15, 255, 1000, 65535):
        kind = ">u2" if top > 255 else "u1"
        grey, colour = random_values(1, top), random_values(2, top, 3)
        shown, painted = as_rgb(np.rint(grey * 255 / top)), np.rint(colour * 255 / top)
        head = f"{size}{top}\n"
        off = 0 if top in (255, 65535) else 1
        yield f"PGM of {top}", (f"P5\n{head}".encode() + grey.astype(kind).tobytes(), shown, off)
        yield f"PGM of {top} in words", (f"P2\n{head}{' '.join(map(str, grey.ravel()))}\n".encode(), shown, off)
        yield f"PPM of {top}", (f"P6\n{head}".encode() + colour.astype(kind).tobytes(), painted, off)
        yield f"PPM of {top} in words", (f"P3\n{head}{' '.join(map(str, colour.ravel()))}\n".encode(), painted, off)
    ink = random_values(3, 1)
    yield "PBM", (f"P4\n{size}".encode() + b"".join(packed(ink, 1)), as_rgb(255 - ink * 255), 0)
    yield "PBM in words", (f"P1\n{size}{' '.join(map(str, ink.ravel()))}\n".encode(), as_rgb(255 - ink * 255), 0)
    floats = random_values(4, 1).astype("<f4").tobytes()
    yield "PFM", (f"Pf\n{size}-1.0\n".encode() + floats, "floating-point pixels", 0)
    colour, alpha = random_values(5, 255, 3).astype(np.uint8), random_values(6, 255).astype(np.uint8)
    picture, clear = Image.fromarray(colour), Image.fromarray(np.dstack([colour, alpha]))
    shown = on_white(colour, alpha / 255)
    yield "WebP lossless", (encoded(picture, "WEBP", lossless=True), colour, 0)
    yield "WebP with alpha", (encoded(clear, "WEBP", lossless=True, exact=True), shown, 1)
    second = Image.fromarray(255 - colour)
    animated = encoded(picture, "WEBP", lossless=True, save_all=True, append_images=[second])
    yield "WebP animated", (animated, colour, 0)
    yield "PNG animated", (encoded(picture, "PNG", save_all=True, append_images=[second]), colour, 0)
    smooth = np.dstack([np.add.outer(np.arange(32) * step, np.arange(48) * 2) for step in (1, 2, 3)]).astype(np.uint8)
    photo = Image.fromarray(smooth)
    exact = {"quality": 100, "subsampling": 0}
    yield "JPEG", (encoded(photo, "JPEG", **exact), smooth, 3)
    yield "JPEG progressive", (encoded(photo, "JPEG", progressive=True, **exact), smooth, 3)
    yield "JPEG of RGB kept", (encoded(photo, "JPEG", keep_rgb=True, quality=100), smooth, 3)
    yield "JPEG grey", (encoded(photo.convert("L"), "JPEG", quality=100), as_rgb(np.array(photo.convert("L"))), 2)
    yield "JPEG of several pictures", (encoded(photo, "MPO", save_all=True, append_images=[photo.rotate(180)], **exact),
                                       smooth, 3)  # fmt: skip
    inks = np.dstack([smooth, smooth[..., 0] // 2])
    shown = np.rint((255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:].astype(float)) / 255)
    cmyk = encoded(Image.fromarray(inks, "CMYK"), "JPEG", **exact)
    yield "JPEG CMYK", (cmyk, shown, 4)
    at = cmyk.index(b"Adobe") + 11
    assert cmyk[at] == 0  # no transform; from here on the same planes, said to be luma, chroma and black
    planes = 255 - inks.astype(float)  # Adobe's inks are stored inverted
    shown = np.rint((255 - from_ycc(planes[..., :3])) * planes[..., 3:] / 255)
    yield "JPEG YCCK", (cmyk[:at] + b"\2" + cmyk[at + 1 :], shown, 5)
    plain = bytearray(encoded(photo, "JPEG", **exact))
    plain[plain.index(b"\xff\xc0") + 4] = 12
    yield "JPEG of 12 bits", (bytes(plain), "12-bit", 0)


def turned_cases() -> Iterator[tuple[str, Case]]:
    """EXIF orientation 1 to 8 of every format that carries it, of 8 and 16 bits, and in a TIFF's own tag."""
    colour, deep = random_values(1, 255, 3).astype(np.uint8), random_values(2, 65535).astype(np.uint16)
    smooth = np.dstack([np.add.outer(np.arange(24) * step, np.arange(40) * 2) for step in (1, 2, 3)]).astype(np.uint8)
    turns = {1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud,
             5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1),
             7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: np.rot90}  # fmt: skip
    for number, turn in turns.items():
        exif = Image.Exif()
        exif[0x0112] = number
        shown, grey = turn(colour), as_rgb(turn(np.rint(deep / 257)))
        yield f"PNG turned {number}", (encoded(Image.fromarray(colour), "PNG", exif=exif), shown, 0)
        yield f"PNG of 16 bits turned {number}", (encoded(Image.fromarray(deep), "PNG", exif=exif), grey, 0)
        yield f"WebP turned {number}", (encoded(Image.fromarray(colour), "WEBP", lossless=True, exif=exif), shown, 0)
        data = encoded(Image.fromarray(smooth), "JPEG", exif=exif, quality=100, subsampling=0)
        yield f"JPEG turned {number}", (data, turn(smooth), 3)
        tag = {"extratags": [(274, 3, 1, number, True)]}
        yield f"TIFF turned {number}", (tiff(colour, **tag), shown, 0)
        yield f"TIFF of 16 bits turned {number}", (tiff(deep, byteorder=">", **tag), grey, 0)
        yield f"TIFF deflated, turned {number}", (tiff(colour, compression="zlib", **tag), shown, 0)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    text = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
    yield "PNG turned by XMP", (png(colour, 8, 2, iTXt=text), turns[6](colour), 0)


CASES: dict[str, Case] = dict([*png_cases(), *bmp_cases(), *tiff_cases(), *other_cases(), *turned_cases()])
