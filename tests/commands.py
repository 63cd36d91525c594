"""Running `brics` as a user does: a process of its own, in a directory of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 240


def environment(**extra: str) -> dict[str, str]:
    """The environment of a test's `brics`: one thread, no workspace or weights of the machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BRICS_")}
    return {**kept, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "120", **extra}


def brics(*arguments: object, cwd: Path, check: int | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `brics ARGUMENTS` in `cwd`. `check` is the exit code it must have."""
    finished = subprocess.run(
        [sys.executable, "-m", "brics_cli", *map(str, arguments)],
        cwd=cwd,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert "Traceback" not in finished.stderr, finished.stderr
    if check is not None:
        assert finished.returncode == check, f"exit {finished.returncode}\n{finished.stdout}\n{finished.stderr}"
    return finished


def start_brics(*arguments: object, cwd: Path, **env: str) -> subprocess.Popen[str]:
    """Start `brics ARGUMENTS` in `cwd`, to be interrupted or killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "brics_cli", *map(str, arguments)],
        cwd=cwd,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def error_line(finished: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failed command ends with, without its `error: `."""
    lines = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, finished.stderr
    assert finished.stderr.splitlines()[-1] == lines[0], finished.stderr
    return lines[0].removeprefix("error: ")
