"""How many frames or pages an image file has: of an animation or a document only the first is read.

Seen in the structure of the file alone: nothing is decoded, and what is damaged has one.
"""

from __future__ import annotations

import struct

MOST_PAGES = 10_000
"""A longer chain of TIFF directories goes in circles, perhaps."""
_TIFF = {b"II*\0": ("<", "I", "H", 12), b"MM\0*": (">", "I", "H", 12),
         b"II+\0": ("<", "Q", "Q", 20), b"MM\0+": (">", "Q", "Q", 20)}  # fmt: skip
"""By the first bytes: order, offsets, numbers of entries, and bytes per entry; the last two are BigTIFF's."""


def num_frames(data: bytes) -> int:
    """The number of frames of a PNG (APNG) or WebP, or of pages of a TIFF; 1 for anything else."""
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _num_of_png(data)
        if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X" and data[20] & 2:
            return max(1, _num_of_webp(data))
        if data[:4] in _TIFF:
            return _num_of_tiff(data)
    except (struct.error, IndexError):
        pass
    return 1


def _num_of_png(data: bytes) -> int:
    """By `acTL`, which is before the first `IDAT`."""
    place = 8
    while data[place + 4 : place + 8] not in (b"IDAT", b""):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"acTL":
            return max(1, int(struct.unpack_from(">I", data, place + 8)[0]))
        place += 12 + length
    return 1


def _num_of_webp(data: bytes) -> int:
    num, place = 0, 12
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        num += kind == b"ANMF"
        place += 8 + length + length % 2
    return num


def _num_of_tiff(data: bytes) -> int:
    """By the chain of directories, as far as it goes."""
    order, offset, number, entry = _TIFF[data[:4]]
    place, pages = struct.unpack_from(order + offset, data, 4 if offset == "I" else 8)[0], 0
    try:
        while place and pages < MOST_PAGES:
            (num_entries,) = struct.unpack_from(order + number, data, place)
            place += struct.calcsize(number) + num_entries * entry
            (place,) = struct.unpack_from(order + offset, data, place)
            pages += 1
    except struct.error:
        pass
    return max(1, pages)
