"""The process that `decoders` starts: files come in by a pipe, pixels go to shared memory, outcomes back by the pipe.

A message in is (offset of the first image in the shared memory, files); a message out is what `load_all` returned, or
the exception it raised. The first message out says that the process is ready. It ends with the pipe: with its parent.
"""

from __future__ import annotations

import mmap
import os
import sys
from multiprocessing.connection import Connection

import numpy as np

from brics_cli.data.pixels import load_all


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
                connection.send(load_all(files, images, transform=transform))
            except (MemoryError, Exception) as error:
                connection.send(error)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)
