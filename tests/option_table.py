"""The options of `brics`, command by command, as a table: which command takes which.

    python tests/option_table.py            this checkout
    python tests/option_table.py FOLDER     another one, of an older commit, say

A word in brackets is an older spelling that is still taken, and that no help page shows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def commands() -> Iterator[tuple[str, Any]]:
    """(`bench sample`, its command) of every command that does something."""
    import typer

    from brics_cli.cli.app import COMMANDS, app

    group = typer.main.get_command(app)
    for name in COMMANDS:
        command = group.get_command(None, name)  # type: ignore[attr-defined]
        below = getattr(command, "commands", {})
        if getattr(command, "invoke_without_command", not below):
            yield name, command
        for sub, each in below.items():
            yield f"{name} {sub}", each


def option_table() -> dict[str, list[str]]:
    """Option, the short spelling last -> the commands that take it; older spellings, which are `Old`, in brackets."""
    found: dict[str, list[str]] = {}
    for name, command in commands():
        for each in command.params:
            if each.param_type_name == "option" and not each.hidden and "--help" not in each.opts:
                words = sorted([*each.opts, *each.secondary_opts], key=lambda word: not word.startswith("--"))
                found.setdefault(" ".join(word for word in words if type(word) is str), []).append(name)
                for old in (word for word in words if type(word) is not str):
                    found.setdefault(f"({old} for {words[0]})", []).append(name)
    return dict(sorted(found.items(), key=lambda row: (row[0].startswith("("), -len(row[1]), row[0])))


def as_markdown(table: dict[str, list[str]]) -> str:
    """The table, the most common options first."""
    rows = [f"| `{option}` | {len(names)} | {', '.join(names)} |" for option, names in table.items()]
    return "\n".join(["| option | commands | which |", "|---|---|---|", *rows])


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parents[1]))
    print(as_markdown(option_table()))
