"""Processes that import and run nothing from the current directory, whatever is there.

`python -m` and `python -c` put the current directory in front of everything else that can be imported, and so do an
empty entry of PYTHONPATH and, for programs, one of PATH: a `json.py` beside somebody's images would be run. Nothing
but `os` and `sys` is imported here, since this runs before anything else may be.
"""

from __future__ import annotations

import os
import sys

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
"""Where this very code is imported from."""
_OWN = tuple(os.path.join(prefix, "lib") for prefix in (sys.prefix, sys.base_prefix))  # noqa: PTH118


def isolate() -> None:
    """Take the current directory off the paths of this process, and of all that it or a library starts."""
    sys.path[:] = import_path()
    os.environ.update(_isolated_variables())


def child_command(module: str, *arguments: object) -> list[str]:
    """The command of a process of our own: `main()` of `module`, to be run with `child_environment()`."""
    return [sys.executable, "-P", "-c", f"from {module} import main; main()", *map(str, arguments)]


def child_environment(**variables: str) -> dict[str, str]:
    """The environment of a child that imports this very code, and what the parent can import, but for the cwd."""
    return {**os.environ, **_isolated_variables(), "PYTHONPATH": os.pathsep.join(import_path()), **variables}


def import_path() -> list[str]:
    """`sys.path` without the current directory; where brics is imported from comes last, if it is nowhere else."""
    entries = [os.path.abspath(entry) for entry in map(os.fspath, sys.path) if entry and not _is_cwd(entry)]  # noqa: PTH100
    return list(dict.fromkeys([*entries, _HERE]))


def _isolated_variables() -> dict[str, str]:
    programs = os.environ.get("PATH", os.defpath).split(os.pathsep)
    kept = {"PATH": os.pathsep.join(entry for entry in programs if os.path.isabs(entry) and not _is_cwd(entry))}  # noqa: PTH117
    if "PYTHONPATH" in os.environ:
        modules = os.environ["PYTHONPATH"].split(os.pathsep)
        kept["PYTHONPATH"] = os.pathsep.join(entry for entry in modules if entry and not _is_cwd(entry))
    return {**kept, "PYTHONSAFEPATH": "1"}


def _is_cwd(entry: str) -> bool:
    """Whether it is the current directory, under whatever name; one of the interpreter's own is what it always was."""
    try:
        return os.path.samefile(entry, os.curdir) and not entry.startswith(_OWN)  # noqa: PTH121
    except OSError:
        return False
