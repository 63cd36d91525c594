"""The process that `decoders` starts: files come in on stdin, pixels go to shared memory, reasons to stdout.

All numbers are little-endian int64. A request is: number of files N, offset of the first image in the shared memory,
N lengths, N files. A reply is: N, N lengths of the reasons why files failed (0: the image is in its place), the
reasons; or OUT_OF_MEMORY. A reply of N = 0 says that the process is ready. The end of stdin, which comes however the
parent ends, ends it.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from collections.abc import Sequence
from typing import IO

import numpy as np

from brics_cli.data.pixels import load_all

OUT_OF_MEMORY = -1


def numbers(values: Sequence[int]) -> bytes:
    """int64 values as they are sent."""
    return struct.pack(f"<{len(values)}q", *values)


def read_numbers(stream: IO[bytes], num: int) -> tuple[int, ...]:
    """`num` values. Raises EOFError when the stream ends before."""
    return struct.unpack(f"<{num}q", read_bytes(stream, 8 * num))


def read_bytes(stream: IO[bytes], num: int) -> bytes:
    """`num` bytes. Raises EOFError when the stream ends before."""
    data = stream.read(num)
    if len(data) < num:
        raise EOFError
    return data


def main() -> None:
    """The life of the process; its arguments: descriptor and size of the shared memory, transform, image size."""
    descriptor, num_bytes, transform, size = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    memory = np.frombuffer(mmap.mmap(descriptor, num_bytes), np.uint8)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a decoder prints is no reply
    try:
        _serve(sys.stdin.buffer, replies, memory, transform=transform, size=size)
    except (EOFError, BrokenPipeError):
        os._exit(0)  # without another attempt to write what is in the buffers


def _serve(requests: IO[bytes], replies: IO[bytes], memory: np.ndarray, *, transform: str, size: int) -> None:
    _reply(replies, [])
    while True:
        num_files, offset = read_numbers(requests, 2)
        lengths = read_numbers(requests, num_files)
        files = [read_bytes(requests, length) for length in lengths]
        images = memory[offset : offset + num_files * size * size * 3].reshape(num_files, size, size, 3)
        try:
            reasons = load_all(files, images, transform=transform)
        except MemoryError:
            replies.write(numbers([OUT_OF_MEMORY]))
            replies.flush()
        else:
            _reply(replies, [(reason or "").encode("utf-8", "replace") for reason in reasons])


def _reply(replies: IO[bytes], reasons: Sequence[bytes]) -> None:
    replies.write(b"".join([numbers([len(reasons), *map(len, reasons)]), *reasons]))
    replies.flush()
