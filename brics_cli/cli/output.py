"""What commands print: results to stdout, everything else to stderr (DESIGN section 8).

Text is literal and printable (`runtime.reporting.printable`), whoever wrote it: no `[red]` of rich, no emoji names, no
escape of the terminal. So it is on a terminal and in a pipe; what needs names to the byte takes `--json`.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.segment import Segment

from brics_cli.runtime.reporting import command_line, printable

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderableType
    from rich.table import Table
    from rich.text import Text

    from brics_cli.cli.progress import ConsoleReporter
    from brics_cli.workspace import Workspace


PIPE_WIDTH = 160
"""Columns of a table when nobody says how wide the reader's page is."""


class LiteralConsole(Console):
    """A console whose text is what it says: escapes and markup come from styles alone, never from text."""

    def __init__(self, file: Any, **settings: Any) -> None:
        file = file.stream if isinstance(file, PrintableStream) else file
        super().__init__(file=file, highlight=False, markup=False, emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """A string as text, in one line: layout comes as Text."""
        return super().render_str(printable(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The pieces that are written: the text of each printable, however it came here."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, keep="\n"), segment.style)


class PrintableStream:
    """What stands in for stdout and stderr, so that warnings and logs of libraries are printable, too."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write `text`; the escapes in it come out written out."""
        self.stream.write(printable(text, keep="\n"))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write them all."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def stdout_console(*, pipe_width: int | None = None) -> Console:
    """The console for results. `pipe_width`: columns where no terminal says how many there are."""
    if sys.stdout.isatty():
        return LiteralConsole(sys.stdout)
    width = pipe_width or (None if "COLUMNS" in os.environ else PIPE_WIDTH)
    return LiteralConsole(sys.stdout, soft_wrap=True, width=width)


def stderr_console() -> Console:
    """The console for progress, messages and errors. One message stays one line when nobody is watching."""
    return LiteralConsole(sys.stderr, soft_wrap=not sys.stderr.isatty())


def print_error(text: str) -> None:
    """Print the one line an error ends with."""
    from rich.text import Text

    line = printable(" ".join(text.split()))
    stderr_console().print(Text.assemble(("error: ", "bold red"), line), soft_wrap=True)


class Session:
    """What every command gets: a workspace, a reporter, and a way to print its result.

    `quiet` silences messages and progress, never warnings; `as_json` turns the result into JSON.
    """

    def __init__(self, *, workspace: Path | None = None, quiet: bool = False, as_json: bool = False) -> None:
        from brics_cli.cli.progress import ConsoleReporter
        from brics_cli.workspace import Workspace

        self.workspace: Workspace = Workspace(workspace or Path())
        self.as_json = as_json
        self.quiet = quiet
        self.reporter: ConsoleReporter = ConsoleReporter(stderr_console(), quiet=quiet)

    def result(
        self, value: Any, text: RenderableType | Sequence[RenderableType] = (), *, pipe_width: int | None = None
    ) -> None:
        """Print a command's result: `value` as JSON with --json, else `text` (lines and rich tables)."""
        if self.as_json:  # all ASCII: exact, and nothing in it that a terminal obeys
            sys.stdout.write(json.dumps(to_json(value), indent=2) + "\n")
            return
        console = stdout_console(pipe_width=pipe_width)
        for part in [text] if not isinstance(text, Sequence) or isinstance(text, str) else text:
            console.print(part)

    def next_step(self, *words: str | Path) -> None:
        """The last stderr line: the command that usually comes next, with this run's real paths."""
        self.reporter.message("next: " + command_line(*words))


def to_json(value: Any) -> Any:
    """`value` with paths as text, tuples as lists, and NaN or infinity as null, which JSON has not."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return value


def plain_table(*columns: str, title: str | None = None) -> Table:
    """A table in the house style: first column left, the others right."""
    from rich import box
    from rich.table import Table

    table = Table(*[], title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=index == 0)
    return table


def short_names(paths: Iterable[str]) -> list[str]:
    """File names where they tell the paths apart, else the paths."""
    paths = list(paths)
    names = [Path(path).name for path in paths]
    return names if len(set(names)) == len(names) else paths
