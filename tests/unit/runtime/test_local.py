"""The local executor: every task once, events come home, errors and deaths too, and no process is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scale_works import SIGINT_BLOCKED, Dies, Fails, Lingers, SaysWhetherBlocked, Squares

from brics_cli.errors import ArtefactError, MachineError
from brics_cli.runtime.executors import LocalExecutor


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_every_task_is_taken_once():
    events = list(LocalExecutor(["a", "b"]).run(Squares(), list(range(40))))
    assert sorted(told.task for told in events) == list(range(40))
    assert all(told.value == told.task**2 for told in events)
    assert {told.device for told in events} == {"a", "b"}
    for name in ("a", "b"):
        taken = [told.task for told in events if told.device == name]
        assert taken == sorted(taken)


def test_ctrl_c_cannot_reach_a_worker_that_is_starting():
    (told,) = LocalExecutor(["a"]).run(SaysWhetherBlocked(), [0])
    assert told.value and not SIGINT_BLOCKED


def test_an_error_of_a_worker_is_raised_with_its_advice():
    with pytest.raises(ArtefactError, match=r"shard 2 is damaged\. Pack it again\.") as caught:
        list(LocalExecutor(["a"]).run(Fails(), [0, 1, 2, 3]))
    assert caught.value.next == "Pack it again." and caught.value.exit_code == 3


def test_a_worker_that_is_killed_is_an_error_and_not_a_wait():
    with pytest.raises(MachineError, match=r"the process of device a was killed by signal 9 \(out of memory\?\)"):
        list(LocalExecutor(["a"]).run(Dies(), [0, 1]))


def test_workers_end_when_nobody_listens_any_more(tmp_path):
    events = LocalExecutor(["a"]).run(Lingers(tmp_path), [0])
    pid = next(events).value
    events.close()
    assert not is_running(pid)


def test_workers_end_when_their_parent_is_killed(tmp_path):
    code = (
        "from pathlib import Path; from scale_works import Lingers\n"
        "from brics_cli.runtime.executors import LocalExecutor\n"
        f"if __name__ == '__main__': list(LocalExecutor(['a']).run(Lingers(Path({str(tmp_path)!r})), [0]))"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment)
    deadline = time.monotonic() + 60
    while not (found := [path for path in tmp_path.iterdir() if path.name.isdigit()]):
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    while is_running(int(found[0].name)):
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.02)
