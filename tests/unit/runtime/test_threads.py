"""How torch's threads share a machine (`brics_cli.runtime.threads`)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from brics_cli.runtime import threads
from brics_cli.runtime.threads import free_cores, share_the_cores


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
