"""How commands read their options and show their help: one layout for every page, no types, defaults said one way.

Also what typer lacks: older spellings of options, which are taken for one release and shown nowhere.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import typer
from rich.text import Text
from typer.core import TyperCommand, TyperGroup
from typer.models import CommandFunctionType

from brics_cli.cli.output import stderr_console, stdout_console
from brics_cli.config.suggestions import did_you_mean

ARGUMENTS, OPTIONS, COMMON = "Arguments", "Options", "Common"
LONGEST_CHOICES = 24
"""Characters; more choices than fit are listed in the help text, not beside the option."""
WIDEST_TEXT, WIDEST_PAGE = 100, 120
_QUOTED = re.compile(r"`(.+?)`|\*\*(.+?)\*\*")


class Old(str):
    """An older spelling of an option, to be given beside the new one: `typer.Option("--codec", Old("--format"))`.

    It is taken with a warning, in no help page, and goes with the next release but one.
    """


class Row(NamedTuple):
    """One argument or option as a help page shows it: `-o, --out`, `DIR`, and what it is with its default."""

    names: str
    value: str
    help: str

    def __str__(self) -> str:
        return f"{self.names} {self.value}".strip()


class _Page:
    """What commands and groups have in common."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help page."""
        print_page(self, ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """As typer, with a warning for each older spelling."""
        if not ctx.resilient_parsing:
            _warn_about_old_spellings(self, args)
        return super().parse_args(ctx, args)  # type: ignore[misc]


class Command(_Page, TyperCommand):
    """One command."""


class Group(_Page, TyperGroup):
    """A command with commands below it."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in (known := self.list_commands(ctx)):
            ctx.fail(f"no command {args[0]!r}{did_you_mean(args[0], known)}")
        return super().resolve_command(ctx, args)


class CommandApp(typer.Typer):
    """The typer app of one command or group of commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(cls=Group, add_completion=False, pretty_exceptions_enable=False, **settings)

    def command(  # type: ignore[override]
        self, name: str | None = None, **settings: Any
    ) -> Callable[[CommandFunctionType], CommandFunctionType]:
        return super().command(name, cls=Command, **settings)


def _warn_about_old_spellings(command: Any, args: list[str]) -> None:
    new: dict[str, str] = {
        old: spellings(each)[0] for each in command.params for old in each.opts if isinstance(old, Old)
    }
    for word in args[: args.index("--")] if "--" in args else args:
        if (name := word.partition("=")[0]) in new:
            text = Text.assemble(("warning: ", "yellow"), f"{name} is called {new[name]} now; a later release drops it")
            stderr_console().print(text)


def spellings(parameter: Any) -> list[str]:
    """The ways to write an option, long ones first, without older ones."""
    known = [word for word in parameter.opts if not isinstance(word, Old)]
    return sorted(known, key=lambda word: not word.startswith("--"))


def sections(command: Any, ctx: Any) -> dict[str, list[Row]]:
    """What a help page lists, by the title of each panel: arguments, options, and the options of all commands last."""
    found: dict[str, list[Row]] = {ARGUMENTS: [], OPTIONS: []}
    for each in command.get_params(ctx):
        if each.hidden:
            continue
        is_argument = each.param_type_name == "argument"
        own = COMMON if "--help" in each.opts else each.rich_help_panel
        title = ARGUMENTS if is_argument else own or OPTIONS
        found.setdefault(title, []).append(_row(each, is_argument=is_argument))
    common = found.pop(COMMON, [])
    return {title: rows for title, rows in {**found, COMMON: common}.items() if rows}


def _row(each: Any, *, is_argument: bool) -> Row:
    metavar, listed = _value(each)
    text, said_default, default_words = re.sub(r"\s+", " ", each.help or "").partition("Default: ")
    said = [text.strip()] if text else []
    said += [f"One of {listed}."] if listed else []
    said += [f"Environment: {each.envvar}."] if getattr(each, "envvar", None) else []
    said += ["Required."] if each.required and not is_argument else []
    said += [said_default + default_words] if said_default else []
    said += [f"Default: {default}."] if (default := _default(each)) else []
    if is_argument:
        return Row(metavar, "", " ".join(said))
    return Row(", ".join([*sorted(spellings(each), key=len), *each.secondary_opts]), metavar, " ".join(said))


def _value(each: Any) -> tuple[str, str]:
    """What stands for the value of a parameter, and the choices that are too many to stand there."""
    kind = each.type_descriptor
    if getattr(each, "is_flag", False):
        return "", ""
    if each.metavar is not None:
        return each.metavar, ""
    if kind.is_choice and kind.choices is not None:
        choices = [str(getattr(choice, "value", choice)) for choice in kind.choices]
        short = "|".join(choices)
        return (short, "") if len(short) <= LONGEST_CHOICES else ("NAME", ", ".join(choices))
    text = str(kind.annotation)
    return "N" if "int" in text else "X" if "float" in text else str(each.name).upper(), ""


def _default(each: Any) -> str:
    value = each.default
    if getattr(each, "is_flag", False):
        return "" if not each.secondary_opts or value is None else (each.opts if value else each.secondary_opts)[0]
    if value is None or value in ("", [], ()) or callable(value):
        return ""
    value = getattr(value, "value", value)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def print_page(command: Any, ctx: Any) -> None:
    """Print the help page of a command or group to stdout."""
    from rich.padding import Padding

    console = stdout_console()
    console.print(Text.assemble("\nUsage: ", (_usage(command, ctx), "bold")))
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        is_example = paragraph.startswith("Example:")  # whole, to be copied
        text = _styled(paragraph if is_example else " ".join(paragraph.split()))
        console.print()
        console.print(Padding.indent(text, 1), width=min(console.width, WIDEST_TEXT), soft_wrap=is_example)
    console.print()
    panels: dict[str, list[Row]] = sections(command, ctx)
    if isinstance(command, TyperGroup):
        below = [(name, command.get_command(ctx, name)) for name in command.list_commands(ctx)]
        panels = {"Commands": [Row(name, "", _first_line(each)) for name, each in below if each is not None], **panels}
    print_panels(panels)


def print_panels(panels: dict[str, list[Row]]) -> None:
    """Print rows under the title of each panel, all in columns of one width."""
    from rich.panel import Panel
    from rich.table import Table

    console = stdout_console()
    width = min(console.width, WIDEST_PAGE)
    widest = max(len(str(row)) for rows in panels.values() for row in rows)
    for title, rows in panels.items():
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(width=min(widest, max(24, width * 2 // 5)), style="cyan", overflow="fold")
        table.add_column(ratio=1)
        for row in rows:
            table.add_row(str(row), _styled(row.help))
        console.print(Panel(table, title=title, title_align="left", border_style="dim"), width=width)


def _usage(command: Any, ctx: Any) -> str:
    """`brics decode [OPTIONS] [CODES]`."""
    words = [ctx.command_path, "[OPTIONS]"]
    for each in command.params:
        if each.param_type_name == "argument" and not each.hidden:
            words.append(_value(each)[0] if each.required else f"[{_value(each)[0]}]")
    return " ".join([*words, "COMMAND ..."] if isinstance(command, TyperGroup) else words)


def _first_line(command: Any) -> str:
    return " ".join(inspect.cleandoc(command.help or "").split("\n\n")[0].split())


def _styled(text: str) -> Text:
    """`code` and **words** in bold, the marks gone."""
    styled, end = Text(), 0
    for found in _QUOTED.finditer(text):
        styled.append(text[end : found.start()]).append(found[1] or found[2], "bold")
        end = found.end()
    return styled.append(text[end:])
