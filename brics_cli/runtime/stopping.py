"""Being told to stop: Ctrl-C, SIGTERM, SIGHUP mean the same to every command; the exit code says which it was.

A loop that saves between two steps asks `stop_signals`; everything else is ended by an exception, `Stopped`, on whose
way temporary files are removed, children ended, and what is whole kept. What does not end then is ended by a thread.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import _base as futures_base
from concurrent.futures import thread as futures_thread
from contextlib import contextmanager
from types import FrameType

IN_TIME_S = 25.0
"""torchrun kills 30 s after it has sent SIGTERM."""
RETRY_S = 0.002
_ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_RETRY = 128
"""Added to the number of a signal that is to be sent again."""
_LOCKING = {module.__file__ for module in (threading, queue, contextlib, futures_thread, futures_base)}
Handler = Callable[[int, FrameType | None], None]


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP, whose number `signal` is: what ends on Ctrl-C ends on them too."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


class StopRequest:
    """Whether somebody asked to stop, and with what signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def requested(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """While the block runs, all three set the request; a second Ctrl-C stops at once, by KeyboardInterrupt."""
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = number

    with _handled(_ALL, handle):
        yield request


@contextmanager
def signals_as_ctrl_c() -> Iterator[None]:
    """While the block runs, SIGTERM and SIGHUP raise `Stopped`, SIGINT KeyboardInterrupt.

    Not within a lock of Python's own, but a moment later: what is raised between taking and minding it leaves it
    taken, and whoever waits for it, a pool that is shut down say, waits for ever. What has not ended `IN_TIME_S` later
    nevertheless is ended without ceremony: nothing half-written has a final name.
    """
    interrupts = () if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else (signal.SIGINT,)  # of `brics ... &`
    said = "interrupted, and did not end in time to clean up. Run the same command again."
    with _time_limit(said, seconds=IN_TIME_S) as clock:

        def handle(number: int, frame: FrameType | None) -> None:
            if _in_a_lock(frame):
                clock.send(bytes([number + _RETRY]))
                return
            clock.send(bytes([number]))
            raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)

        with _handled((*interrupts, signal.SIGTERM, signal.SIGHUP), handle):
            yield


def _in_a_lock(frame: FrameType | None) -> bool:
    """Whether the main thread is between taking a lock and giving it back, but for where it waits for somebody."""
    if frame is None:
        return False
    return frame.f_code.co_filename in _LOCKING and frame.f_code.co_name not in ("wait", "_wait_for_tstate_lock")


@contextmanager
def in_time(*, leader: bool, seconds: float = IN_TIME_S) -> Iterator[None]:
    """In one of several processes of a run: end it so many seconds after SIGTERM, should it not have ended by then.

    A collective call whose partner is gone, or a step that takes minutes, lets no Python run in the main thread; the
    next signal would be SIGKILL, without a word. Nothing half-written has a final name.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    said = "SIGTERM came, and this step did not end in time to be saved." if leader else None
    with _time_limit(said, seconds=seconds, of=(signal.SIGTERM,)) as clock:
        previous = signal.set_wakeup_fd(clock.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous)


@contextmanager
def _time_limit(said: str | None, *, seconds: float, of: Sequence[int] = _ALL) -> Iterator[socket.socket]:
    """A socket that takes numbers of signals: should the block still run `seconds` after one `of` these, the process
    says why on stderr and ends with that signal's exit code. A thread sees to it, whatever the main thread does."""
    (receiver, sender), main = socket.socketpair(), threading.main_thread()
    sender.setblocking(False)

    def watch() -> None:
        signals: list[tuple[int, float]] = []  # number, when its time is up
        while True:
            receiver.settimeout(max(signals[0][1] - time.monotonic(), 1e-3) if signals else None)
            try:
                byte = receiver.recv(1)
            except TimeoutError:
                if said is not None:
                    os.write(2, f"error: {said}\n".encode())
                os._exit(128 + signals[0][0])
            if not byte:
                return
            if byte[0] in of:
                signals.append((byte[0], time.monotonic() + seconds))
            elif byte[0] > _RETRY and main.ident is not None:
                time.sleep(RETRY_S)
                signal.pthread_kill(main.ident, byte[0] - _RETRY)

    thread = threading.Thread(target=watch, name="brics-in-time", daemon=True)
    thread.start()
    try:
        yield sender
    finally:
        sender.close()
        thread.join()
        receiver.close()


@contextmanager
def _handled(numbers: Sequence[int], handle: Handler) -> Iterator[None]:
    """Let `handle` have these signals; not outside the main thread, and not those that nohup has switched off."""
    previous = {}
    if threading.current_thread() is threading.main_thread():
        ignored = [n for n in numbers if n != signal.SIGINT and signal.getsignal(n) is signal.SIG_IGN]
        previous = {number: signal.signal(number, handle) for number in numbers if number not in ignored}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
