"""What the machine withholds (memory, files, room, a directory) is exit 6 with a line: exit 1 is left for bugs."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment
from image_files import noise
from store_files import write_store

from brics_cli.errors import ExitCode, as_brics_error

LIMITS = {
    "memory": (resource.RLIMIT_AS, 400 << 20),
    "little memory": (resource.RLIMIT_AS, 150 << 20),
    "open files": (resource.RLIMIT_NOFILE, 8),
    "more open files": (resource.RLIMIT_NOFILE, 16),
    "size of files": (resource.RLIMIT_FSIZE, 2000),
    "no files": (resource.RLIMIT_FSIZE, 0),
    "stack": (resource.RLIMIT_STACK, 256 << 10),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("limits")
    write_store(root / "codes.h5", ["a"])
    (root / "images").mkdir()
    for number in range(8):
        (root / "images" / f"{number}.png").write_bytes(noise(number, side=40))
    return root


ARGUMENTS = [("info", "codes.h5"), ("status",), ("pack", "images", "--out")]
SHORT = {
    ("pack", "memory"),
    ("pack", "open files"),
    ("status", "stack"),
    ("info", "no files"),
    ("info", "size of files"),
}


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        pytest.param(arguments, limit, marks=[] if (arguments[0], limit) in SHORT else pytest.mark.slow)
        for arguments in ARGUMENTS
        for limit in LIMITS
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_limit_is_met_with_a_line(workspace, tmp_path, arguments, limit):
    out = [str(tmp_path / "out")] if arguments[-1] == "--out" else []
    done = subprocess.run(
        [sys.executable, "-m", "brics_cli", *arguments, *out], cwd=workspace, env=environment(), capture_output=True,
        text=True, preexec_fn=lambda: resource.setrlimit(LIMITS[limit][0], (LIMITS[limit][1],) * 2), check=False,
    )  # fmt: skip
    assert done.returncode in (0, 6), done.stderr
    assert done.returncode == 0 or done.stderr.splitlines()[-1].startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", ["info codes.h5", "status", "pack images --out x", "train-ae images", "doctor"])
def test_a_current_directory_that_is_gone_is_one_line(tmp_path, arguments):
    here = tmp_path / "here"
    here.mkdir()
    shell = f'cd "{here}" && rmdir "{here}" && exec "{sys.executable}" -m brics_cli {arguments}'
    done = subprocess.run(["sh", "-c", shell], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 6 and done.stderr.startswith("error: the current directory has been removed."), done


@pytest.mark.parametrize(
    "variables", [{"TMPDIR": "/nowhere", "HOME": ""}, {"HOME": "/proc/x", "XDG_CACHE_HOME": "/proc/y"}]
)
def test_directories_of_the_environment_that_are_not_there(workspace, tmp_path, variables):
    command = [sys.executable, "-m", "brics_cli", "pack", "images", "--out", str(tmp_path / "out")]
    subprocess.run(command, cwd=workspace, env=environment(**variables), capture_output=True, check=True)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RecursionError("maximum recursion depth exceeded"), ExitCode.ARTEFACT, "nested too deeply"),
        (FileNotFoundError(2, "No such file", "a.png"), ExitCode.ARTEFACT, "a.png is missing"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/x']"), ExitCode.MACHINE, "TMPDIR"),
        (ImportError("libx.so: failed to map segment from shared object"), ExitCode.MACHINE, "out of memory"),
        (OSError("libx.so: cannot allocate memory in static TLS block"), ExitCode.MACHINE, "out of memory"),
    ],
)
def test_what_a_library_raises_has_its_code(error, code, said):
    expected = as_brics_error(error)
    assert expected is not None and expected.exit_code == code and said in str(expected)
