"""From a file's bytes to square uint8 RGB, by one of the transforms that `config` names.

Pillow decodes and resizes; that is the reference, with one result for each kind of file: EXIF orientation is applied,
each mode and bit depth is defined or refused by name, and a truncated file, a decompression bomb or a format outside
the list is an `ImageError`. The fast forms of `crop-bicubic` resize with torch's antialiased bicubic and decode plain
JPEGs (RGB or grey, upright) with torchvision (`-fast`) or on the GPU with nvJPEG (`-cuda`); Pillow decodes what is not
plain, and PNG: torchvision 0.29's `decode_png` ends the process on damaged files, and is hardly faster. They agree with
the reference to 60 dB or more (tests/unit/images/test_fast_pixels.py, tests/gpu/test_data.py).

Modes (tests/unit/images/test_modes.py has a table of files beside what they show). Pillow's own `convert("RGB")` clips
16 bits to white, takes 12 for 16 (black), and compares the transparent colour of a PNG with values of another depth.
Here: grey of 12 and 16 bits is scaled and rounded, colour of 16 bits keeps its high byte; transparency is composited on
white; CMYK, YCbCr, LAB and palettes become RGB; pixels without a defined range (signed, floating-point, 32-bit) are
refused. ICC profiles and gAMA are not applied, as in every peer's loader.
Shapes: (H, W), (H, W, 3) uint8 RGB arrays; tensors of the fast forms are (3, H, W).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image, ImageFile, ImagePalette, TiffImagePlugin, UnidentifiedImageError

from brics_cli.config import Transform
from brics_cli.config.suggestions import did_you_mean
from brics_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

_AVIF = find_spec("PIL.AvifImagePlugin") is not None
"""Pillow from 11.3 on."""
_HEIF = find_spec("pillow_heif") is not None
"""The extra `heif`."""
PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF", *(("AVIF",) if _AVIF else ()))
"""The decoders that may touch a user's bytes: no EPS (runs Ghostscript), nothing exotic."""
IMAGE_EXTENSIONS = frozenset(
    ["png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "gif"]
    + (["avif"] if _AVIF else [])
    + (["heic", "heif"] if _HEIF else [])
)
"""Extensions, lower case and without the dot, that make a file an image."""
HOW_TO_READ = {} if _HEIF else dict.fromkeys((".heic", ".heif"), "pip install 'brics-cli[heif]'")
"""Extensions that are not read here, and what makes brics read them."""
MAX_PIXELS = 89_478_485
"""Pillow's own limit, 256 MiB of RGB; beyond it Pillow warns, and we refuse."""
FAST: Final = "crop-bicubic-fast"
CUDA: Final = "crop-bicubic-cuda"
MOST_SCALE = 47
"""By which torch's antialiased bicubic on CUDA shrinks at most in one step."""
_JPEG, _END_OF_JPEG = b"\xff\xd8\xff", b"\xff\xd9"
_PNG, _TIFF = b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*", b"II+\0")
_SIGNATURES = (_PNG, _JPEG, *_TIFF, b"BM", b"P4", b"P5", b"P6", b"GIF87a", b"GIF89a")
_RGB = 3  # torchvision.io.ImageReadMode.RGB
_AVIF_BRANDS = (b"ftypavif", b"ftypavis")
_HEIF_BRANDS = tuple(
    b"ftyp" + brand for brand in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
)
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the image upright."""

_DEEP_GREY = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
_WITH_ALPHA = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
_SCALED_TO_16 = frozenset({"PNG", "PPM"})
"""Formats whose grey in Pillow's 32-bit mode `I` has 16 bits: the format states the range, or Pillow has scaled it."""
_BITS, _PHOTOMETRIC, _COLOURS, _INKS, _SUBSAMPLING, _SAMPLES = 258, 262, 320, 332, 530, 339  # tags of TIFF
_WHITE_IS_ZERO = 0
_SIGNED, _FLOAT = 2, 3
Outcome = str | int | np.ndarray
"""Why a file cannot be used; or the shorter side of the image as it was, px; or, without a transform, its pixels."""

# Process-wide on purpose: warnings.catch_warnings is not safe in the loader's threads.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


class ImageError(Exception):
    """One image that cannot be used, and why. Counted and listed by the loader, never fatal by itself."""


def is_image_file(first: bytes) -> bool:
    """Whether a file that begins with `first` (12 bytes or more) is of a format that is read."""
    boxes = (_AVIF_BRANDS if _AVIF else ()) + (_HEIF_BRANDS if _HEIF else ())
    return first.startswith(_SIGNATURES) or first[4:12] in boxes or (first[:4] == b"RIFF" and first[8:12] == b"WEBP")


def formats_of(data: bytes) -> tuple[str, ...]:
    """The formats that Pillow may take a file's bytes for."""
    if not (_HEIF and data[4:12] in _HEIF_BRANDS):
        return PILLOW_FORMATS
    _register_heif()
    return "HEIF", *PILLOW_FORMATS


@cache
def _register_heif() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()


def decode_files(files: Sequence[bytes], pixels: np.ndarray, *, transform: str | None) -> list[Outcome]:
    """Decode in the calling thread. Raises UsageError for an unknown transform."""
    outcomes: list[Outcome] = []
    for number, data in enumerate(files):
        try:
            if transform is None:
                outcomes.append(np.array(decode_image(data)))
            else:
                pixels[number], side = load_with_side(data, transform=transform, size=pixels.shape[1])
                outcomes.append(side)
        except ImageError as error:
            outcomes.append(str(error))
    return outcomes


def load_pixels(data: bytes, *, transform: str, size: int) -> np.ndarray:
    """A file's bytes as a uint8 array (size, size, 3).

    Raises ImageError; UsageError for an unknown transform, or for `crop-bicubic-cuda` without a CUDA device.
    """
    return load_with_side(data, transform=transform, size=size)[0]


def load_with_side(data: bytes, *, transform: str, size: int) -> tuple[np.ndarray, int]:
    """The same, and the shorter side of the image as it was, in pixels: one below `size` was enlarged."""
    if transform in (FAST, CUDA):
        try:
            if (decoded := decode_plain_jpeg(data, transform=transform)) is not None:
                return _square_by_torch(decoded, size), min(decoded.shape[-2:])
        except RuntimeError:  # of this image alone, its size say: the reference needs no GPU
            if transform != CUDA:
                raise
    image = decode_image(data)
    return apply_transform(image, transform, size), min(image.size)


def decode_image(data: bytes) -> Image.Image:
    """A file's bytes as an upright RGB image; of several pages or frames, the first.

    Raises ImageError (not an image, truncated, a bomb, pixels without a defined range).
    """
    try:
        with Image.open(BytesIO(data), formats=formats_of(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"decompression bomb: {image.width} x {image.height} pixels")
            before_loading(image, data)
            image.load()
            turn = _turn(image)
            rgb = to_rgb(image, data)
            return rgb if turn is None else rgb.transpose(turn)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(why_unidentified(data)) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ImageError(f"decompression bomb: more than {MAX_PIXELS:,} pixels") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise ImageError(f"damaged: {' '.join(str(error).split()) or type(error).__name__}") from None


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF says nothing about orientation; the pixels are fine
        return None


def before_loading(image: ImageFile.ImageFile, data: bytes) -> None:
    """Refuse, or mend, what Pillow would read as other pixels. `image` has been opened, not loaded."""
    if image.format == "BMP" and image.mode in ("1", "L") and image.tile[0][0] == "raw":
        bits = data[24 if data[14] == 12 else 28]  # where the oldest header, of 12 bytes, has it, and all others
        if bits != (1 if image.mode == "1" else 8):  # Pillow has taken the number of greys for the depth
            levels = (0, 255) if image.mode == "1" else range(1 << bits)
            image._mode = "P"
            image.palette = ImagePalette.raw("RGB", bytes(level for level in levels for _ in range(3)))
            codec, box, offset, arguments = image.tile[0]
            assert isinstance(arguments, tuple)
            _set_tile(image, (codec, box, offset, ("P" if bits == 8 else f"P;{bits}", *arguments[1:])))
    if image.format == "TIFF" and image.mode == "YCbCr" and image.tile[0][0] == "raw":
        tags: Any = getattr(image, "tag_v2", {})
        subsampling = tags.get(_SUBSAMPLING, (2, 2))
        if subsampling != (1, 1):
            raise ImageError(f"YCbCr pixels subsampled {subsampling[0]} x {subsampling[1]} without compression")


def to_rgb(image: Image.Image, data: bytes) -> Image.Image:
    """A loaded `image` of the file `data` as RGB. Raises ImageError for pixels without a defined range."""
    tags: Any = getattr(image, "tag_v2", {})  # a TIFF's
    _refuse_undefined(image, tags)
    clear = _clear_pixels(image, data)
    if image.mode in _DEEP_GREY:
        image = _scaled(image, tags)
    elif image.mode in ("P", "PA"):
        _mend_palette(image, tags)
    if image.format == "BMP" and image.mode == "RGBA" and not image.getchannel("A").getbbox():
        image = image.convert("RGB")  # the fourth byte is padding, not alpha: it would hide the whole picture
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    image = image if image.mode == "RGB" else image.convert("RGB")
    if clear is not None:
        image.paste((255, 255, 255), mask=Image.fromarray(clear))
    return image


def _refuse_undefined(image: Image.Image, tags: Any) -> None:
    samples = tags.get(_SAMPLES, (1,))
    if image.mode == "F" or _FLOAT in samples:
        raise ImageError(f"floating-point pixels (mode {image.mode}) have no defined range")
    if _SIGNED in samples:
        raise ImageError(f"signed pixels (mode {image.mode}) have no defined range")
    if image.mode == "I" and image.format not in _SCALED_TO_16:
        raise ImageError("32-bit pixels (mode I) have no defined range")
    if image.mode == "CMYK" and tags.get(_INKS, 1) != 1:
        raise ImageError("four inks that are not cyan, magenta, yellow and black have no defined colours")


def _clear_pixels(image: Image.Image, data: bytes) -> np.ndarray | None:
    """Where a PNG without alpha has its one transparent colour, (H, W) bool; None where it has none."""
    if image.format != "PNG" or image.mode == "P" or "transparency" not in image.info:
        return None
    depth = data[24]  # of the header, which comes first
    top = (1 << depth) - 1
    colour = np.asarray(image.info.pop("transparency")) & (255 if depth == 1 else top)  # higher bits mean nothing
    values = np.asarray(image)
    if image.mode == "1":
        return np.asarray(values == (colour > 0))
    if image.mode == "L":
        return np.asarray(values == colour * (255 // top))  # Pillow has scaled 2 and 4 bits to 8
    if image.mode == "RGB":
        if depth == 16:
            values = values.astype(np.int64) << 8 | _low_bytes(data)
        return np.asarray((values == colour).all(axis=-1))
    return np.asarray(values == colour)


def _low_bytes(data: bytes) -> np.ndarray:
    """The low bytes of a 16-bit RGB PNG (H, W, 3): Pillow keeps the high ones, unless told that they come second."""
    with Image.open(BytesIO(data), formats=("PNG",)) as image:
        _set_tile(image, (*image.tile[0][:3], "RGB;16L"))
        return np.array(image)


def _set_tile(image: ImageFile.ImageFile, tile: tuple[Any, ...]) -> None:
    """Tell Pillow how the pixels are packed: codec, box, offset, arguments (a named tuple in new versions of it)."""
    image.tile = [tile]  # type: ignore[list-item]


def _scaled(image: Image.Image, tags: Any) -> Image.Image:
    """Grey of 12 or 16 bits as 8, rounded, black at zero."""
    top = (1 << tags.get(_BITS, (16,))[0]) - 1
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > top):
        raise ImageError(f"pixels beyond the range of their depth (mode {image.mode})")
    scaled = ((values * 255 + top // 2) // top).astype(np.uint8)
    return Image.fromarray(255 - scaled if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else scaled)


def _mend_palette(image: Image.Image, tags: Any) -> None:
    """Rescale a TIFF palette of 8 bits; refuse pixels whose colour the palette lacks."""
    colours = tags.get(_COLOURS)
    if colours is not None and max(colours) < 256:  # 8 bits where the format wants 16: all would be black
        image.putpalette(bytes(colours), "RGB;L")
    assert image.palette is not None
    num_colours = len(image.palette.palette) // len(image.palette.mode)
    highest = int(np.asarray(image.getchannel("P")).max())
    if highest >= num_colours:
        raise ImageError(f"damaged: palette index {highest} of {num_colours} colours (mode {image.mode})")


def why_unidentified(data: bytes) -> str:
    """What is known of a file that Pillow opens as nothing: a layout it does not know, or no image at all."""
    if not data:
        return "empty file"
    if data[4:12] in _HEIF_BRANDS and not _HEIF:
        return f"a HEIC image: {HOW_TO_READ['.heic']}"
    if data.startswith(b"MM\0+"):
        return "a big-endian BigTIFF, which Pillow does not read"
    if data.startswith(_TIFF):
        with suppress(Exception):  # as with every parser, given damaged bytes
            return _tiff_layout(data)
    for signature, name in ((_JPEG, "JPEG"), (b"\x89PNG", "PNG")):
        if data.startswith(signature):
            try:
                Image.OPEN[name][0](BytesIO(data), "")
            except Exception as error:
                return f"a {name} that cannot be read: {error}"
    return "not an image of a format that is read"


def _tiff_layout(data: bytes) -> str:
    """The pixels of a TIFF in the words of its tags."""
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2] == 43 else 8])
    file = BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    kind = {1: "unsigned", _SIGNED: "signed", _FLOAT: "floating-point"}.get(tags.get(_SAMPLES, (1,))[0], "unknown")
    bits = ", ".join(map(str, tags[_BITS]))
    return f"a TIFF of a mode that cannot be read: {kind}, {bits} bits, photometric {tags.get(_PHOTOMETRIC)}"


def num_frames(data: bytes) -> int:
    """The number of frames of an animation, pages of a TIFF or images of a HEIC; 1 for anything else, and for what is
    damaged."""
    animated = data.startswith(_PNG) and b"acTL" in data[: data.find(b"IDAT")]
    animated = animated or (data[8:16] == b"WEBPVP8X" and bool(data[20:21]) and bool(data[20] & 2))
    may_hold = data.startswith((*_TIFF, b"GIF8")) or data[4:12] in (*_AVIF_BRANDS, *_HEIF_BRANDS)
    if animated or may_hold:
        with suppress(Exception), Image.open(BytesIO(data), formats=formats_of(data)) as image:
            return int(getattr(image, "n_frames", 1))
    return 1


def apply_transform(image: Image.Image, name: str, size: int) -> np.ndarray:
    """An RGB image as a uint8 array (size, size, 3) by the transform `name`.

    Raises ImageError (`none` on an image of another size), UsageError for an unknown name.
    """
    if name not in TRANSFORM_VERSIONS:
        raise UsageError(f"no transform {name!r}{did_you_mean(name, TRANSFORM_VERSIONS)}")
    return np.array(_TRANSFORMS[name][1](image, size))  # (size, size, 3)


def _unchanged(image: Image.Image, size: int) -> Image.Image:
    if image.size != (size, size):
        raise ImageError(f"{image.width} x {image.height} pixels, and transform 'none' needs {size} x {size}")
    return image


def _crop(image: Image.Image, size: int, *, resampling: Image.Resampling) -> Image.Image:
    return _resize(_centre(image, min(image.size)), (size, size), resampling)


def _centre(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _resize(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, resampling)


def _adm(image: Image.Image, size: int) -> Image.Image:
    """Halve with a box filter while twice the size fits, then bicubic to the short side, then crop the centre.

    Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (arXiv 2105.05233), released data loader.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = _resize(image, (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return _centre(image, size)


def _crop_by_torch(image: Image.Image, size: int) -> np.ndarray:
    import torch

    return _square_by_torch(torch.from_numpy(np.array(image)).permute(2, 0, 1), size)


_TRANSFORMS: dict[Transform | str, tuple[str, Callable[[Image.Image, int], Image.Image | np.ndarray]]] = {
    "crop-bicubic": ("pillow-1", partial(_crop, resampling=Image.Resampling.BICUBIC)),
    "adm": ("pillow-1", _adm),
    "edm-lanczos": ("pillow-1", partial(_crop, resampling=Image.Resampling.LANCZOS)),
    "none": ("pillow-1", _unchanged),
    FAST: ("torchvision-1", _crop_by_torch),
    CUDA: ("nvjpeg-1", _crop_by_torch),
}
TRANSFORM_VERSIONS: dict[str, str] = {name: version for name, (version, _) in _TRANSFORMS.items()}
"""Transform -> version, backend included."""


def versioned(transform: str) -> str:
    """`crop-bicubic/pillow-1`: a transform and its version, as every artefact states it."""
    return f"{transform}/{TRANSFORM_VERSIONS[transform]}"


def decode_plain_jpeg(data: bytes, *, transform: str, max_pixels: int = MAX_PIXELS) -> Tensor | None:
    """A plain JPEG's bytes as (3, H, W) uint8 RGB; None for a file that Pillow must decode.

    Raises UsageError for `crop-bicubic-cuda` without a CUDA device.
    """
    if transform == CUDA:
        _require_cuda()
    if not _is_plain_jpeg(data, max_pixels=max_pixels):
        return None
    import torch

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        return _jpeg_decoder(transform)(encoded)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return None  # damaged, or of a kind that this decoder does not know: the reference says which


@cache
def _jpeg_decoder(transform: str) -> Callable[[Tensor], Tensor]:
    """torchvision's decoder of JPEG bytes, to (3, H, W) RGB.

    On the CPU its operator is loaded by itself where it stands in a file of its own: importing all of torchvision takes
    more time than decoding hundreds of images.
    """
    import torch

    package = find_spec("torchvision")
    folders = [] if package is None else package.submodule_search_locations or []
    libraries = [path for folder in folders for path in Path(folder).glob("image*.so")]
    if transform != CUDA and len(libraries) == 1:
        with suppress(OSError, AttributeError):
            torch.ops.load_library(str(libraries[0]))
            operator = torch.ops.image.decode_jpeg
            return lambda encoded: operator(encoded, _RGB, False)
    from torchvision.io import ImageReadMode, decode_jpeg

    return partial(decode_jpeg, mode=ImageReadMode.RGB, device="cuda" if transform == CUDA else "cpu")


def _is_plain_jpeg(data: bytes, *, max_pixels: int) -> bool:
    """Whether the headers say that this is a JPEG whose pixels need no interpretation."""
    if not (data.startswith(_JPEG) and data.endswith(_END_OF_JPEG)):  # libjpeg would fill up a short end in silence
        return False
    try:
        with Image.open(BytesIO(data), formats=("JPEG",)) as image:
            upright = image.getexif().get(_ORIENTATION, 1) == 1
            kept_rgb = image.info.get("adobe_transform") == 0 or image.layer[0][0] == ord("R")  # type: ignore[attr-defined]
            plain = image.mode == "L" or (image.mode == "RGB" and not kept_rgb)  # nvJPEG takes all colour for YCbCr
            return upright and plain and image.width * image.height <= max_pixels
    except Exception:  # Pillow's parsers raise nearly anything on damaged bytes; the reference names what it is
        return False


def _square_by_torch(image: Tensor, size: int) -> np.ndarray:
    """The centre square of (3, H, W) uint8, on any device, resized to (size, size, 3)."""
    import torch
    from torch.nn.functional import interpolate

    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    centre = image[:, top : top + side, left : left + side][None]  # (1, 3, side, side)
    if side != size:
        steps = [size]
        if centre.device.type != "cpu":  # the CPU has a kernel for uint8, in Pillow's own fixed-point arithmetic
            centre, steps = centre.float(), sizes_on_gpu(side, size)
        for step in steps:
            centre = interpolate(centre, size=(step, step), mode="bicubic", antialias=True, align_corners=False)
        if centre.dtype != torch.uint8:
            centre = centre.round().clamp(0, 255).to(torch.uint8)
    return centre[0].permute(1, 2, 0).cpu().contiguous().numpy()  # (size, size, 3)


def sizes_on_gpu(side: int, size: int) -> list[int]:
    """The sizes that a square of `side` px goes through on its way to `size` on CUDA, whose kernel keeps its window in
    shared memory: one, or two where it would not fit."""
    return [size] if side <= MOST_SCALE * size else [math.isqrt(side * size), size]


def device_of_threads(transform: str | None) -> Callable[[], None] | None:
    """What a thread that decodes must do first: take the caller's CUDA device, which CUDA keeps for each thread, and a
    stream of its own there, so that it waits for its own images and not for the network."""
    if transform != CUDA:
        return None
    _require_cuda()
    import torch

    device = torch.cuda.current_device()

    def take() -> None:
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream(device))

    return take


def _require_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise UsageError(
            f"transform {CUDA!r} needs a CUDA device, and none was found", next=f"Use {FAST!r}, or 'crop-bicubic'."
        )
