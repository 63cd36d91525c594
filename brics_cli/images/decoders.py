"""Processes that decode images, for collections large enough to be worth their start.

Pillow lets go of the interpreter several times per image, and takes it again when no other thread has it: two threads
decode small JPEGs hardly faster than one. Processes do not wait for each other (`brics bench encode --size 64`). And
a file that crashes a decoder takes a process with it that can be replaced.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any

import numpy as np

from brics_cli.errors import MachineError
from brics_cli.images.buffers import Buffers, SharedBuffers, above_standard_streams
from brics_cli.images.decoding_process import Decoded, decode_files
from brics_cli.isolation import child_command, child_environment

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""What keeps a process from starting threads for arithmetic."""
AGAIN = "Run the same command again."
CRASHES = {-number for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)}
"""Exit codes of a process that an image may have ended."""

Decode = Callable[[Sequence[bytes], np.ndarray], list[Decoded]]
"""N files into contiguous pixels (N, S, S, 3)."""


@contextmanager
def decoding(
    shape: tuple[int, int, int, int], *, num: int, transform: str, num_processes: int
) -> Iterator[tuple[Buffers, Decode]]:
    """`num` buffers for batches (B, S, S, 3), and what decodes into them: `num_processes` processes, 0: the caller.

    The thread that calls decodes itself while processes start, and where no memory or no process is to be had.
    """

    def here(files: Sequence[bytes], pixels: np.ndarray) -> list[Decoded]:
        return decode_files(files, pixels, transform=transform)

    with ExitStack() as stack:
        buffers, decode = Buffers(shape, num=num), here
        if num_processes:
            with suppress(OSError):
                shared = stack.enter_context(closing(SharedBuffers(shape, num=num)))
                decoders = stack.enter_context(
                    closing(Decoders(shared, transform=transform, size=shape[1], num=num_processes))
                )
                buffers = shared

                def decode(files: Sequence[bytes], pixels: np.ndarray) -> list[Decoded]:
                    decoded = decoders.decode(files, pixels)
                    return here(files, pixels) if decoded is None else decoded

        yield buffers, decode


class Decoders:
    """`num` processes for one transform and size, which decode into `buffers`. Threads may share them."""

    def __init__(self, buffers: SharedBuffers, *, transform: str, size: int, num: int) -> None:
        self._buffers, self._transform, self._size = buffers, transform, size
        self._processes: deque[_Process] = deque()
        try:
            for _ in range(num):
                self._processes.append(self._start())
        except BaseException:
            self.close()
            raise

    def _start(self) -> _Process:
        return _Process(self._buffers, transform=self._transform, size=self._size)

    def decode(self, files: Sequence[bytes], pixels: np.ndarray) -> list[Decoded] | None:
        """Decode N files into the contiguous `pixels` (N, S, S, 3).

        None as a whole: no process is ready, or `pixels` are in other memory; nothing was done. When a process ends,
        its files are decoded again one by one, and those that crash one by themselves have failed. Raises what
        `decode_files` raises; MachineError when a process that ended cannot be replaced, or was killed again.
        """
        offset = self._buffers.offset(pixels)
        if offset is None:
            return None
        try:
            process = self._processes.popleft()
        except IndexError:
            return None
        try:
            if not process.is_ready(wait_s=0):
                self._processes.append(process)
                return None
        except _EndedError:  # at its start: there is something about this machine, and threads do without
            process.stop()
            return None
        try:
            decoded = process.decode(files, offset)
        except _EndedError:
            process.stop()
            return self._one_by_one(files, pixels)
        except BaseException:
            process.stop()
            raise
        self._processes.append(process)
        return decoded

    def _one_by_one(self, files: Sequence[bytes], pixels: np.ndarray) -> list[Decoded]:
        decoded: list[Decoded] = []
        process = self._replacement()
        try:
            for data, image in zip(files, pixels, strict=True):
                offset = self._buffers.offset(image)
                assert offset is not None
                try:
                    decoded += process.decode([data], offset)
                except _EndedError as ended:
                    if ended.code not in CRASHES:  # the image is not to blame
                        raise MachineError(f"a process that decodes images {ended}", next=AGAIN) from None
                    decoded.append(Decoded(f"its decoder {ended}", hashlib.sha256(data).digest()))
                    process.stop()
                    process = self._replacement()
        except BaseException:
            process.stop()
            raise
        self._processes.append(process)
        return decoded

    def _replacement(self) -> _Process:
        try:
            process = self._start()
        except OSError as error:
            raise MachineError(f"no process that decodes images can be started ({error})", next=AGAIN) from None
        try:
            process.is_ready(wait_s=None)
        except _EndedError as ended:
            process.stop()
            raise MachineError(f"a process that decodes images {ended} before it was ready", next=AGAIN) from None
        except BaseException:
            process.stop()
            raise
        return process

    def close(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.kill()
        while self._processes:
            self._processes.popleft().stop()


class _EndedError(Exception):
    """A process ended before it replied, with the exit code `code`; negative: by that signal."""

    def __init__(self, code: int) -> None:
        self.code = code
        memory = " (out of memory?)" if code == -signal.SIGKILL else ""
        super().__init__(f"was killed by signal {-code}{memory}" if code < 0 else f"ended with exit code {code}")


class _Process:
    def __init__(self, buffers: SharedBuffers, *, transform: str, size: int) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        descriptor = above_standard_streams(theirs.fileno())
        theirs.close()
        self._ready = False
        try:
            self._process = subprocess.Popen(
                child_command(
                    "brics_cli.images.decoding_process",
                    *(descriptor, buffers.descriptor, buffers.num_bytes, transform, size),
                ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[descriptor, buffers.descriptor],
                env=child_environment(**ONE_THREAD),
                start_new_session=True,  # Ctrl-C is for the parent, with whom it ends
            )
        except BaseException:
            self._connection.close()
            raise
        finally:
            os.close(descriptor)  # so that its end is the end of the pipe

    def is_ready(self, *, wait_s: float | None) -> bool:
        """Whether it has started; waits for that, None: as long as it takes. Raises _EndedError when it ended."""
        if not self._ready and self._connection.poll(wait_s):
            self._receive()
            self._ready = True
        return self._ready

    def decode(self, files: Sequence[bytes], offset: int) -> list[Decoded]:
        """Decode to `offset` of the shared memory. Raises _EndedError when it ends, or what it raised."""
        try:
            self._connection.send((offset, files))
        except (BrokenPipeError, ConnectionResetError):
            raise _EndedError(self._process.wait()) from None
        found = self._receive()
        if isinstance(found, BaseException):
            raise found
        decoded: list[Decoded] = found
        return decoded

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise _EndedError(self._process.wait()) from None

    def kill(self) -> None:
        """It holds nothing that could be lost."""
        self._process.kill()

    def stop(self) -> None:
        """End it, and wait for that."""
        self.kill()
        self._process.wait()
        self._connection.close()
