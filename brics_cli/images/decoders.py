"""What fills a batch with pixels: memory that is used again, and the calling thread or processes that decode into it.

Pillow lets go of the interpreter several times per image, and takes it again when no other thread has it: two threads
decode small JPEGs hardly faster than one. Processes do not wait for each other (`brics bench encode --size 64`), and
where a file crashes its decoder that process is replaced and the file alone has failed. Files go to a process by a
pipe, pixels come back in shared memory, outcomes by the pipe; it ends with the pipe, as its parent does.
N images, S pixels per side.
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from brics_cli.errors import MachineError
from brics_cli.images.pixels import Outcome, decode_files
from brics_cli.runtime.executors import above_standard_streams, start_child

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""What keeps a process from starting threads for arithmetic."""
AGAIN = "Run the same command again."
CRASHES = {-number for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)}
"""Exit codes of a process that an image may have ended."""


class Buffers:
    """`num` places for batches of `shape`, each reused once no array refers to it.

    Fresh memory costs a page fault and a page of zeros for every 4 KiB: a fifth of the time of decoding small JPEGs.
    `shared` memory can be mapped by other processes. It is a memfd (Linux alone): without a name that could be left
    behind, outside /dev/shm, of which containers have little, and gone with the last process that holds it. Raises
    OSError where so much cannot be shared; but memory is taken only when it is used.
    """

    def __init__(self, shape: tuple[int, int, int, int], *, num: int, shared: bool = False) -> None:
        self.shape, self.num_bytes, self.descriptor = shape, max(num * prod(shape), 1), -1
        self._free = deque(range(num))
        if shared:
            self.descriptor = above_standard_streams(os.memfd_create("brics-batches"))
        try:
            if shared:
                os.ftruncate(self.descriptor, self.num_bytes)
            kind = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self._memory = memoryview(mmap.mmap(self.descriptor, self.num_bytes, flags=kind))
        except BaseException as error:
            if shared or not isinstance(error, OSError):
                self.close()
                raise
            self._free.clear()  # more than may be asked for at once: each batch gets memory of its own
            self.num_bytes, self._memory = 1, memoryview(bytearray(1))
        self._address = np.frombuffer(self._memory, np.uint8).ctypes.data

    def take(self, num_images: int) -> np.ndarray:
        """A place for so many images, of undefined content."""
        shape = (num_images, *self.shape[1:])
        if not self._free:
            return np.empty(shape, np.uint8)
        place = self._free.popleft()
        start = place * prod(self.shape)
        images = np.ndarray(shape, np.uint8, self._memory[start : start + prod(shape)])  # no view: views hold it
        weakref.finalize(images, self._free.append, place).atexit = False
        return images

    def offset(self, images: np.ndarray) -> int | None:
        """Where contiguous `images` begin in this memory, in bytes; None when they are not in it."""
        offset = images.ctypes.data - self._address if images.size else 0
        return offset if 0 <= offset < self.num_bytes else None

    def close(self) -> None:
        """Close the descriptor, if any: no process can be given the memory any more. Batches stay whole."""
        if self.descriptor >= 0:
            os.close(self.descriptor)


class Decoders:
    """Decode N images of S px by `transform` into one of `num` buffers of `shape` (B, S, S, 3), which they own.

    By `num_processes` processes; by the calling thread while these start, and where no memory or no process can be had.
    Threads may share them.
    """

    def __init__(
        self, shape: tuple[int, int, int, int], *, num: int, transform: str | None, num_processes: int = 0
    ) -> None:
        self.transform = transform
        self.buffers = Buffers(shape, num=num)
        self.processes: list[_Process] = []
        self._idle: deque[_Process] = deque()
        try:
            with suppress(OSError):
                if num_processes:
                    self.buffers = Buffers(shape, num=num, shared=True)
                for _ in range(num_processes):
                    self._idle.append(self._start())
        except BaseException:
            self.close()
            raise

    def decode(self, files: Sequence[bytes], pixels: np.ndarray) -> list[Outcome]:
        """Decode N files into contiguous `pixels` (N, S, S, 3); without a transform S is 0, and images come back as
        they are.

        When a process ends, its files are decoded again one by one, and those that crash one by themselves have failed.
        Raises what `decode_files` raises; MachineError when a process that ended cannot be replaced, or was killed
        again.
        """
        offset = self.buffers.offset(pixels)
        process = self._ready() if offset is not None else None
        if process is None or offset is None:
            return decode_files(files, pixels, transform=self.transform)
        outcomes: list[Outcome] = []
        again = False
        while num := len(files) - len(outcomes):
            some = files[len(outcomes) : len(outcomes) + (1 if again else num)]
            try:
                outcomes += process.decode(some, offset + len(outcomes) * prod(pixels.shape[1:]))
            except _EndedError as ended:
                self._remove(process)
                if again and ended.code not in CRASHES:  # the image is not to blame
                    raise MachineError(f"a process that decodes images {ended}", next=AGAIN) from None
                if again:
                    outcomes.append(f"its decoder {ended}")
                again, process = True, self._replacement()
        self._idle.append(process)
        return outcomes

    def _ready(self) -> _Process | None:
        """A process that has started and is idle, if any."""
        try:
            process = self._idle.popleft()
        except IndexError:
            return None
        try:
            if process.is_ready(wait_s=0):
                return process
            self._idle.append(process)
        except _EndedError:  # at its start: there is something about this machine, and threads do without
            self._remove(process)
        return None

    def _start(self) -> _Process:
        process = _Process(self.buffers, transform=self.transform)
        self.processes.append(process)
        return process

    def _replacement(self) -> _Process:
        try:
            process = self._start()
            process.is_ready(wait_s=None)
        except OSError as error:
            raise MachineError(f"no process that decodes images can be started ({error})", next=AGAIN) from None
        except _EndedError as ended:
            raise MachineError(f"a process that decodes images {ended} before it was ready", next=AGAIN) from None
        return process

    def _remove(self, process: _Process) -> None:
        process.stop()
        self.processes.remove(process)

    def close(self) -> None:
        """End all processes. Batches stay whole."""
        for process in self.processes:
            process.popen.kill()
        while self.processes:
            self.processes.pop().stop()
        self.buffers.close()


class _EndedError(Exception):
    """A process ended before it replied, with the exit code `code`; negative: by that signal."""

    def __init__(self, code: int) -> None:
        self.code = code
        memory = " (out of memory?)" if code == -signal.SIGKILL else ""
        super().__init__(f"was killed by signal {-code}{memory}" if code < 0 else f"ended with exit code {code}")


class _Process:
    """The parent's side of a process that decodes."""

    def __init__(self, buffers: Buffers, *, transform: str | None) -> None:
        self._ready = False
        self._connection, self.popen = start_child(
            "brics_cli.images.decoders",
            *(buffers.descriptor, buffers.num_bytes, buffers.shape[1], transform or ""),
            pass_fds=[buffers.descriptor],
            env=ONE_THREAD,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent, with whom it ends
        )

    def is_ready(self, *, wait_s: float | None) -> bool:
        """Whether it has started; waits for that, None: as long as it takes. Raises _EndedError when it ended."""
        if not self._ready and self._connection.poll(wait_s):
            self._receive()
            self._ready = True
        return self._ready

    def decode(self, files: Sequence[bytes], offset: int) -> list[Outcome]:
        """Decode to `offset` of the shared memory. Raises _EndedError when it ends, or what it raised."""
        try:
            self._connection.send((offset, files))
        except (BrokenPipeError, ConnectionResetError):
            raise _EndedError(self.popen.wait()) from None
        found = self._receive()
        if isinstance(found, BaseException):
            raise found
        outcomes: list[Outcome] = found
        return outcomes

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise _EndedError(self.popen.wait()) from None

    def stop(self) -> None:
        """End it, and wait for that: it holds nothing that could be lost."""
        self.popen.kill()
        self.popen.wait()
        self._connection.close()


def main() -> None:
    """The life of a process; its arguments: pipe, shared memory, its size, image size, transform (none: as they are).

    A message in is (offset of the first image in the shared memory, files); a message out is what `decode_files`
    returned, or the exception it raised. The first message out says that the process is ready.
    """
    connection: Connection = Connection(int(sys.argv[1]))
    memory = np.frombuffer(mmap.mmap(int(sys.argv[2]), int(sys.argv[3])), np.uint8)
    size, transform = int(sys.argv[4]), sys.argv[5] or None
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
