"""Running `brics` as a user does, in a directory of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import typer

from brics_cli.cli.app import app, run


def environment(**extra: str) -> dict[str, str]:
    """The environment of a test's `brics`: one thread, no workspace or weights of the machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BRICS_") or name == "BRICS_CACHE"}
    return {**kept, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "120", **extra}


@dataclass(frozen=True)
class Finished:
    """What a command ended with."""

    returncode: int
    stdout: str
    stderr: str


def brics(*arguments: object, cwd: Path, check: int | None = None, **env: str) -> Finished:
    """Run `brics ARGUMENTS` in `cwd`, in this process (importing torch takes seconds). `check`: its exit code."""
    words = [str(argument) for argument in arguments]
    stdout, stderr = StringIO(), StringIO()
    with (
        chdir(cwd),
        patch.dict(os.environ, environment(**env), clear=True),
        patch.object(sys, "argv", ["brics", *words]),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        code = int(run(words))
    finished = Finished(code, stdout.getvalue(), stderr.getvalue())
    assert "Traceback" not in finished.stderr, finished.stderr
    if check is not None:
        assert code == check, f"exit {code}\n{finished.stdout}\n{finished.stderr}"
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


def error_line(finished: Finished) -> str:
    """The one line that a failed command ends with, without its `error: `."""
    lines = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, finished.stderr
    assert finished.stderr.splitlines()[-1] == lines[0], finished.stderr
    return lines[0].removeprefix("error: ")


def parse(line: str) -> None:
    """Parse a command line `brics ...` as a shell and then brics would, and run nothing. Raises on wrong usage."""
    _, name, *arguments = shlex.split(line)
    command = typer.main.get_command(app).get_command(None, name)  # type: ignore[attr-defined]
    assert command is not None, f"no command {name}"
    context = command.make_context(name, arguments, resilient_parsing=False)
    if hasattr(command, "list_commands") and context._protected_args:
        rest = [*context._protected_args, *context.args]
        command.get_command(context, rest[0]).make_context(rest[0], rest[1:])
