"""The `brics` command: which commands there are, and how errors end (DESIGN section 8).

Commands are imported when they are called, so that `brics --help` stays fast and never sees torch.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import typer
from typer.core import TyperArgument, TyperOption

import brics_cli
from brics_cli.cli.pages import Group, Old, Row, print_panels
from brics_cli.cli.streams import explain_sigbus, prepare_streams
from brics_cli.errors import ExitCode, MachineError, NothingSavedError, as_brics_error
from brics_cli.runtime.stopping import signals_as_ctrl_c
from brics_cli.runtime.threads import share_the_cores


class Entry(NamedTuple):
    """One command: the panel it is listed in, and one line of help."""

    panel: str
    help: str


COMMANDS: dict[str, Entry] = {
    "demo": Entry("Start here", "Run the whole pipeline on pictures that it draws, in minutes, on any machine."),
    "pack": Entry("Pipeline", "Crop and resize a collection into WebDataset shards."),
    "train-ae": Entry("Pipeline", "Train an autoencoder: images -> key codes -> images."),
    "encode-dataset": Entry("Pipeline", "Encode a collection into a key-code store."),
    "merge": Entry("Pipeline", "Join key-code stores into one."),
    "decode": Entry("Pipeline", "Decode a key-code store back into images."),
    "export": Entry("Pipeline", "Export a key-code store for another trainer."),
    "reconstruct": Entry("Pipeline", "Show images beside their reconstructions."),
    "train-diffusion": Entry("Pipeline", "Train a diffusion model on a key-code store."),
    "sample": Entry("Pipeline", "Sample images from a diffusion model, one seed per image."),
    "eval": Entry("Pipeline", "Measure reconstructions against their originals, or samples against a collection."),
    "info": Entry("Look", "Describe a store, a run, a model with its card, or a collection; count a recipe's GFLOP."),
    "plot": Entry("Look", "Draw loss, learning-rate and validation curves of training runs."),
    "report": Entry("Look", "Write one HTML page of runs, stores, samples and scores, or of the whole workspace."),
    "runs": Entry("Look", "List training runs, show what some differ in, remove them."),
    "status": Entry("Look", "Show the lineage of everything in the workspace."),
    "recipes": Entry("Look", "List the recipes, or show one."),
    "models": Entry("Look", "List the models that are embedded in brics and those of the workspace, or publish one."),
    "weights": Entry("Machine", "List, verify, import and fetch the weights that metrics need."),
    "cache": Entry("Machine", "List and prune the features of reference collections that eval keeps."),
    "doctor": Entry("Machine", "Check the machine: versions, device, memory, disk, kernels, weights."),
    "bench": Entry("Machine", "Measure speed on the device at hand."),
}

TAGLINE = "Turn image collections into key codes, train diffusion models on them, measure the results."
NEXT_STEP = "First time here? brics demo    One command in depth: brics COMMAND --help"


OUTPUTS = ("--out", "-o", "--plot", "--sheet")
"""Options whose values are looked at as they were written."""
WRITES_TO_URLS = ("pack", "encode-dataset", "decode", "sample")


class LazyGroup(Group):
    """A group whose commands live in `brics_cli.cli.<name>` and are imported when they are called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what typer would turn into a bare exit code becomes an error with a line."""
        try:
            _check_current_directory()
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise NothingSavedError(getattr(stop, "signal", signal.SIGINT)) from None
        except BrokenPipeError:  # of no stream of ours: those outlive their readers
            raise MachineError("another process that this command talks to has ended", next="Run it again.") from None

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"brics_cli.cli.{cmd_name.replace('-', '_')}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        for option in OUTPUTS:  # a Path knows no slash at its end, and makes a dot of nothing
            texts = [value for word, value in pairwise(args) if word == option]
            texts += [word.partition("=")[2] for word in args if word.startswith(f"{option}=")]
            for text in texts:
                from brics_cli.workspace.naming import check_written

                check_written(text, option=option, to_urls=option in ("--out", "-o") and args[0] in WRITES_TO_URLS)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """The commands, without importing any of them."""
        from typer._click.shell_completion import CompletionItem

        return [
            CompletionItem(name, help=entry.help) for name, entry in COMMANDS.items() if name.startswith(incomplete)
        ]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the page that lists all commands."""
        from rich.text import Text

        from brics_cli.cli.output import stdout_console

        console = stdout_console()
        console.print(Text.assemble(("\nbrics", "bold"), f" {brics_cli.__version__}  {TAGLINE}\n"))
        console.print(Text.assemble("Usage: ", ("brics COMMAND [OPTIONS]\n", "bold")))
        panels: dict[str, list[Row]] = {}
        for name, entry in COMMANDS.items():
            panels.setdefault(entry.panel, []).append(Row(name, "", entry.help))
        panels["Options"] = [
            Row("--version", "", "Print the version and exit."),
            Row("--traceback", "", "On an error show where in brics it happened (any command takes it)."),
            Row(
                "--install-completion", "", "Let the shell complete commands, options, recipes, runs, metrics and keys."
            ),
            Row("-h, --help", "", "Print this page; after a command, that command's."),
        ]
        print_panels(panels)
        console.print(Text(f"{NEXT_STEP}\n", "dim"))


def _without_pydantic(process_value: Callable[..., Any]) -> Callable[..., Any]:
    """`process_value` of a parameter, but for what needs no conversion: that which was left out, and text.

    Typer converts with pydantic, whose import takes as long as all else that `brics status` does.
    """

    def process(self: Any, ctx: Any, value: Any) -> Any:
        is_text = isinstance(value, str) and self.type_descriptor.annotation is str
        if self.nargs == 1 and not self.multiple and (is_text or (value is None and not self.required)):
            return value if self.callback is None else self.callback(ctx, self, value)
        return process_value(self, ctx, value)

    return process


for parameter in (TyperArgument, TyperOption):
    parameter.process_value = _without_pydantic(parameter.process_value)  # type: ignore[method-assign]

app = typer.Typer(
    cls=LazyGroup,
    add_completion=True,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    name="brics",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"brics {brics_cli.__version__}")
        raise typer.Exit()


@app.callback()
def root(version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True)) -> None:
    """Turn image collections into key codes, train diffusion models on them, measure the results."""


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code. Errors become one line on stderr."""
    show_traceback = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    try:
        with signals_as_ctrl_c():
            result = typer.main.get_command(app).main(args=arguments, prog_name="brics", standalone_mode=False)
            sys.stdout.flush()
        return result if isinstance(result, int) else ExitCode.DONE
    except (Exception, KeyboardInterrupt) as error:
        if show_traceback:
            import traceback

            from rich.text import Text

            from brics_cli.cli.output import stderr_console

            stderr_console().print(Text(traceback.format_exc()), soft_wrap=True)
        return _report(error)


def _report(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):  # before or after the command itself
        error = NothingSavedError(getattr(error, "signal", signal.SIGINT))
    from brics_cli.cli.output import print_error

    format_message = getattr(error, "format_message", None)
    if format_message is not None:  # typer's own: a usage error
        if type(error).__name__ == "NoArgsIsHelpError":
            return ExitCode.USAGE  # help has been printed
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "brics"
        text = _usage_error(error, format_message())
        print_error(f"{path}: {text}{'' if text.endswith(('.', '?')) else '.'} See {path} --help")
        return ExitCode.USAGE
    expected = as_brics_error(error)
    if expected is not None:
        from brics_cli.workspace.mirrors import as_urls

        print_error(as_urls(str(expected)))
        return expected.exit_code
    print_error(
        f"this is a bug in brics {brics_cli.__version__}: {type(error).__name__}: {error}. "
        "Run it again with --traceback and report what it prints"
    )
    return ExitCode.BUG


def _check_current_directory() -> None:
    """Raise MachineError when it has been removed: relative paths mean nothing then, and libraries crash."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise MachineError("the current directory has been removed", next="Change to another one.") from None


def _usage_error(error: Any, text: str) -> str:
    """typer's `text` in our words; for an option that there is not, those that it may be."""
    for word in getattr(getattr(error, "param", None), "opts", ()):
        text = text.replace(f" / '{word}'", "") if isinstance(word, Old) else text
    if hasattr(error, "possibilities"):
        near = [repr(str(each)) for each in error.possibilities or () if not isinstance(each, Old)]
        return f"no such option: {error.option_name}" + (f"; did you mean {' or '.join(near)}?" if near else "")
    return _decapitalise(text.replace("Value error, ", "").replace("Input should be ", "it should be "))


def _decapitalise(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def main() -> None:
    """The entry point of the `brics` command."""
    prepare_streams()
    share_the_cores()
    explain_sigbus(ExitCode.MACHINE)
    from brics_cli.cli.output import PrintableStream

    sys.stdout, sys.stderr = (PrintableStream(stream) for stream in (sys.stdout, sys.stderr))
    sys.exit(run(sys.argv[1:]))
