"""Processes that decode images, for collections large enough to be worth their start.

Pillow lets go of the interpreter several times per image, and takes it again when no other thread has it: two threads
decode small JPEGs hardly faster than one. Processes do not wait for each other (`brics bench encode --size 64`). And
a file that crashes a decoder takes a process with it that can be replaced.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress

import numpy as np

from brics_cli.data.buffers import Buffers, SharedBuffers
from brics_cli.data.decoding_process import OUT_OF_MEMORY, numbers, read_bytes, read_numbers
from brics_cli.data.pixels import load_all
from brics_cli.errors import MachineError

_MAIN = "from brics_cli.data.decoding_process import main; main()"
STOP_S = 5.0
"""Seconds that a process has to end before it is killed."""


Decode = Callable[[Sequence[bytes], np.ndarray], list[str | None]]
"""N files into contiguous pixels (N, S, S, 3): for each the reason why it cannot be used, or None."""


@contextmanager
def decoding(
    shape: tuple[int, int, int, int], *, num: int, transform: str, num_processes: int
) -> Iterator[tuple[Buffers, Decode]]:
    """`num` buffers for batches (B, S, S, 3), and what decodes into them: `num_processes` processes, 0: the caller.

    The thread that calls decodes itself while processes start, and where no memory or no process is to be had.
    """

    def here(files: Sequence[bytes], pixels: np.ndarray) -> list[str | None]:
        return load_all(files, pixels, transform=transform)

    with ExitStack() as stack:
        buffers, decode = Buffers(shape, num=num), here
        if num_processes:
            with suppress(OSError):
                shared = stack.enter_context(closing(SharedBuffers(shape, num=num)))
                decoders = stack.enter_context(
                    closing(Decoders(shared, transform=transform, size=shape[1], num=num_processes))
                )
                buffers = shared

                def decode(files: Sequence[bytes], pixels: np.ndarray) -> list[str | None]:
                    return decoders.decode(files, pixels) or here(files, pixels)

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

    def decode(self, files: Sequence[bytes], pixels: np.ndarray) -> list[str | None] | None:
        """Decode N files into the contiguous `pixels` (N, S, S, 3): for each the reason why it failed, or None.

        None as a whole: no process is ready, or `pixels` are in other memory; nothing was done. When a process ends,
        its files are decoded again one by one, and those that end one by themselves have failed. Raises MemoryError;
        MachineError when a process that ended cannot be replaced.
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
            reasons = process.decode(files, offset)
        except _EndedError:
            process.stop()
            reasons = self._one_by_one(files, pixels)
        else:
            self._processes.append(process)
        return reasons

    def _one_by_one(self, files: Sequence[bytes], pixels: np.ndarray) -> list[str | None]:
        reasons: list[str | None] = []
        process = self._replacement()
        for data, image in zip(files, pixels, strict=True):
            offset = self._buffers.offset(image)
            assert offset is not None
            try:
                reasons += process.decode([data], offset)
            except _EndedError as ended:
                reasons.append(f"its decoder {ended}")
                process.stop()
                process = self._replacement()
        self._processes.append(process)
        return reasons

    def _replacement(self) -> _Process:
        process = self._start()
        try:
            process.is_ready(wait_s=None)
        except _EndedError as ended:
            raise MachineError(
                f"a process that decodes images {ended} before it was ready", next="Run the same command again."
            ) from None
        return process

    def close(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.end_input()
        while self._processes:
            self._processes.popleft().stop()


class _EndedError(Exception):
    """A process ended before it replied; says how."""


class _Process:
    def __init__(self, buffers: SharedBuffers, *, transform: str, size: int) -> None:
        arguments = [str(buffers.descriptor), str(buffers.num_bytes), transform, str(size)]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _MAIN, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[buffers.descriptor],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,  # Ctrl-C is for the parent, with whom it ends
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        self._ready = False

    def is_ready(self, *, wait_s: float | None) -> bool:
        """Whether it has started; waits for that, None: as long as it takes. Raises _EndedError when it ended."""
        if not self._ready and select.select([self._replies], [], [], wait_s)[0]:
            if not self._replies.read(8):  # of the empty reply
                raise _EndedError(self._how())
            self._ready = True
        return self._ready

    def decode(self, files: Sequence[bytes], offset: int) -> list[str | None]:
        """Decode to `offset` of the shared memory. Raises _EndedError when it ends, MemoryError."""
        header = numbers([len(files), offset, *map(len, files)])
        try:
            self._requests.write(b"".join([header, *files]))
            self._requests.flush()
            (num,) = read_numbers(self._replies, 1)
            if num == OUT_OF_MEMORY:
                raise MemoryError("out of memory while decoding")
            reasons = [read_bytes(self._replies, length) for length in read_numbers(self._replies, num)]
        except (BrokenPipeError, EOFError):
            raise _EndedError(self._how()) from None
        return [reason.decode() or None for reason in reasons]

    def _how(self) -> str:
        code = self._process.wait()
        return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"

    def end_input(self) -> None:
        """Tell it to end."""
        with suppress(BrokenPipeError):
            self._requests.close()

    def stop(self) -> None:
        """End it, and wait for that."""
        self.end_input()
        self._replies.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
