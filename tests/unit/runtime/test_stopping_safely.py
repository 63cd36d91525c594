"""A signal never leaves a lock of Python's own taken, and what hangs all the same is ended."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from brics_cli.runtime import stopping
from brics_cli.runtime.stopping import Stopped, signals_as_ctrl_c

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_until_a_lock_is_minded(number: int) -> None:
    left: list[str] = []
    source = "def __enter__():\n    raise_signal(number)\n    left.append('lock')\n"
    inside = {"raise_signal": signal.raise_signal, "number": number, "left": left}
    exec(compile(source, threading.__file__, "exec"), inside)
    previous = {each: signal.getsignal(each) for each in (*SIGNALS, signal.SIGALRM)}
    with pytest.raises(KeyboardInterrupt) as raised, signals_as_ctrl_c():
        inside["__enter__"]()  # type: ignore[operator]
        left.append("what called it")
        time.sleep(10)
        left.append("too late")
    assert left == ["lock", "what called it"]
    assert getattr(raised.value, "signal", signal.SIGINT) == number
    assert isinstance(raised.value, Stopped) == (number != signal.SIGINT)
    assert {each: signal.getsignal(each) for each in previous} == previous
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_command_that_waits_for_somebody_is_interrupted_at_once() -> None:
    with pytest.raises(Stopped), signals_as_ctrl_c():
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        threading.Event().wait(10)


@pytest.mark.parametrize("number", SIGNALS)
def test_what_hangs_while_it_is_stopped_is_ended(number: int, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(stopping, "IN_TIME_S", 0.2)
    said = tmp_path / "said"
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
        with signals_as_ctrl_c():
            try:
                signal.raise_signal(number)
            finally:
                lock = threading.Lock()
                lock.acquire()
                lock.acquire()  # for ever
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + number
    assert said.read_text().startswith("error: interrupted, and did not end in time to clean up.")
