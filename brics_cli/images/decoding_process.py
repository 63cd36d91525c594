"""The process that `decoders` starts: files come in by a pipe, pixels go to shared memory, outcomes back by the pipe.

A message in is (offset of the first image in the shared memory, files); a message out is what `decode_files` returned,
or the exception it raised. The first message out says that the process is ready. It ends with the pipe, as its parent
does.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np

from brics_cli.images.pixels import ImageError, load_with_side


class Decoded(NamedTuple):
    """Why a file cannot be used, or its shorter side in pixels; and the sha256 of its bytes, which are at hand."""

    outcome: str | int
    sha256: bytes


def decode_files(files: Sequence[bytes], pixels: np.ndarray, *, transform: str) -> list[Decoded]:
    """N files into `pixels` (N, S, S, 3). Raises UsageError for an unknown transform."""
    decoded = []
    for data, image in zip(files, pixels, strict=True):
        outcome: str | int
        try:
            image[:], outcome = load_with_side(data, transform=transform, size=pixels.shape[1])
        except ImageError as error:
            outcome = str(error)
        decoded.append(Decoded(outcome, hashlib.sha256(data).digest()))
    return decoded


def main() -> None:
    """The life of the process; its arguments: pipe, shared memory, its size, transform, image size."""
    connection: Connection = Connection(int(sys.argv[1]))
    memory = np.frombuffer(mmap.mmap(int(sys.argv[2]), int(sys.argv[3])), np.uint8)
    transform, size = sys.argv[4], int(sys.argv[5])
    try:
        connection.send(None)
        while True:
            offset, files = connection.recv()
            images = memory[offset : offset + len(files) * size * size * 3].reshape(len(files), size, size, 3)
            try:
                connection.send(decode_files(files, images, transform=transform))
            except (MemoryError, Exception) as error:
                connection.send(error)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)
