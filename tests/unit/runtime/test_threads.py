"""How torch's threads share a machine (`brics_cli.runtime.threads`)."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from brics_cli.codes.encoding import encoding_network
from brics_cli.runtime import threads
from brics_cli.runtime.precision import float32_products
from brics_cli.runtime.threads import FreeCores, free_cores, seconds_of_others, share_the_cores


@pytest.fixture
def container(tmp_path, monkeypatch):
    """A machine of 8 cores whose container says what the test lets it."""
    monkeypatch.setattr(threads, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that what the test's code sets is undone
        monkeypatch.delenv(name)
    return tmp_path / "cpu.max"


@pytest.mark.parametrize(
    ("said", "cores"), [("max 100000", 8), ("250000 100000", 3), ("50000 100000", 1), ("1600000 100000", 8), ("", 8)]
)
def test_cores_of_a_container(container, said, cores):
    container.write_text(said)
    assert free_cores() == cores
    share_the_cores()
    assert os.environ.get("OMP_NUM_THREADS") == (str(cores) if cores < 8 else None)
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"]) == ("PASSIVE", threads.SPIN_COUNT)


def test_what_the_user_has_set_stands(container, monkeypatch):
    container.write_text("100000 100000")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    share_the_cores()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == ("5", "ACTIVE")
    assert "GOMP_SPINCOUNT" not in os.environ


def test_every_command_waits_passively_before_torch_is_there():
    code = (
        "import os, sys\nfrom brics_cli.cli import app\n"
        "app.run = lambda arguments: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)\n"
        "app.main()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "PASSIVE False\n"


class Machine:
    """A machine of 4 cores, on a clock of its own, where other programs keep `busy` cores busy."""

    def __init__(self, monkeypatch):
        self.busy = self.now = self.others_s = 0.0
        for name in threads._NUM_THREADS:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(threads.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(threads, "seconds_of_others", lambda: self.others_s)
        monkeypatch.setattr(threads, "bound_cores", lambda: set(range(4)))

    def threads_after(self, seconds, free):
        """How many threads torch computes in when the time has come, with so many cores busy since."""
        self.now, self.others_s = self.now + seconds, self.others_s + seconds * self.busy
        torch.set_num_threads(free.choose(torch.get_num_threads()))
        return torch.get_num_threads()


@pytest.fixture
def machine(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield Machine(monkeypatch)
    torch.set_num_threads(before)


def test_threads_make_room_for_other_programs(machine, caplog):
    free = FreeCores()
    found = []
    for machine.busy in (0.2, 1.1, 4.0, 4.0, 2.4, 0.1):
        found.append(machine.threads_after(threads.LOOK_EVERY_S, free))
    assert found == [4, 3, 1, 1, 2, 4]
    assert [record.getMessage() for record in caplog.records] == [
        "other programs keep 1.1 of 4 cores busy: computing in 3 of 4 threads while they do, which may change "
        "last digits (OMP_NUM_THREADS sets a number that stays)"
    ]


def test_it_looks_once_in_a_while(machine):
    free, machine.busy = FreeCores(), 3.0
    assert machine.threads_after(threads.LOOK_EVERY_S - 0.1, free) == 4
    assert machine.threads_after(0.1, free) == 1


@pytest.mark.parametrize("name", threads._NUM_THREADS)
def test_a_number_in_the_environment_stays(machine, monkeypatch, name):
    monkeypatch.setenv(name, "4")
    free, machine.busy = FreeCores(), 4.0
    assert machine.threads_after(60, free) == 4


def test_a_number_that_a_caller_has_set_stays(machine):
    free, machine.busy = FreeCores(), 3.0
    assert machine.threads_after(60, free) == 1
    torch.set_num_threads(3)
    assert machine.threads_after(60, free) == 3


def test_stores_are_encoded_in_all_threads(machine, monkeypatch):
    free, machine.busy, used = FreeCores(), 3.0, []
    monkeypatch.setattr(threads.FREE_CORES, "__dict__", free.__dict__)
    assert machine.threads_after(60, free) == 1

    def encode(images):
        used.append(machine.threads_after(60, free))
        return images

    pixels = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    encoding_network(SimpleNamespace(encode=encode), precision="fp32")(pixels)
    assert used == [4] and torch.get_num_threads() == 1
    machine.busy = 0.0
    assert machine.threads_after(600, free) == 4


def test_a_system_that_does_not_say_changes_nothing(machine, monkeypatch):
    monkeypatch.setattr(threads, "seconds_of_others", lambda: None)
    free, machine.busy = FreeCores(), 4.0
    assert machine.threads_after(60, free) == 4


def test_whatever_computes_looks(monkeypatch):
    looks = []
    monkeypatch.setattr(threads.FREE_CORES, "choose", lambda current: looks.append(current) or current)
    with float32_products("fp32"):
        assert looks == [torch.get_num_threads()]


def test_own_time_is_not_that_of_others(tmp_path, monkeypatch):
    """Of two cores of three, whose counts of 100 ticks a second are user, nice, system, idle, iowait, irq, softirq,
    steal; a process that this one has started has taken 1 s."""
    monkeypatch.setattr(threads, "_PROC", tmp_path)
    monkeypatch.setattr(threads, "bound_cores", lambda: {0, 2})
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    monkeypatch.setattr(os, "times", lambda: (2.0, 1.0, 0.5, 0.0, 99.0))
    line = "100 200 300 9999 9999 10 20 9999 0 0"
    (tmp_path / "stat").write_text(f"cpu 1 1\ncpu0 {line}\ncpu1 7777 {line}\ncpu2 {line}\nintr 5\n")
    (tmp_path / "self/task/1").mkdir(parents=True)
    (tmp_path / "self/task/1/children").write_text("42 43 ")
    (tmp_path / "42").mkdir()
    (tmp_path / "42/stat").write_text("42 (a ) name) S " + " ".join(["0"] * 10) + " 40 30 20 10 0 0")
    assert seconds_of_others() == pytest.approx(2 * 6.3 - 3.5 - 1.0)
    (tmp_path / "stat").unlink()
    assert seconds_of_others() is None
