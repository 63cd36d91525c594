"""`brics weights`: the pretrained weights that metrics need."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from brics_cli.cli import options
from brics_cli.cli.output import Session, plain_table
from brics_cli.errors import ExitCode

if TYPE_CHECKING:
    from brics_cli.networks.weights.importing import WeightsState

app = options.command_app(no_args_is_help=True, help="List, verify, import and fetch the weights that metrics need.")

_SAID = {"verified": ("there", "green"), "missing": ("missing", "dim"), "unverified": ("unknown", "yellow")}
"""State -> the word for it, and its style."""


@app.command("list")
def list_weights(
    urls: Annotated[
        bool, typer.Option("--urls", help="Print URLs, one a line, for curl; then brics weights import DIR.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """List every file of weights: what needs it, how large it is, whether and where it stands."""
    from brics_cli.networks.weights import REGISTRY, search_places, weights_root
    from brics_cli.networks.weights.importing import survey

    session = Session(as_json=as_json)
    if urls and not as_json:
        session.result(None, [known.url for known in REGISTRY.values() if known.sha256 is not None])
        for known in REGISTRY.values():
            if known.sha256 is None:
                session.reporter.message(
                    f"not listed, as nobody has published its sha256: curl -LO {known.url}; then brics weights import "
                    f"{known.file} --allow-unverified --as {known.id}"
                )
        session.next_step("brics", "weights", "import", ".")
        return
    states = survey()
    table = plain_table("weights", "file", "size", "for", "state")
    for state in states:
        known = state.entry
        table.add_row(known.id, known.file, known.size, ", ".join(known.metrics), Text(*_SAID[state.state]))
    paths = [f"{state.entry.id}: {state.path}" for state in states if state.path is not None]
    session.result([_record(state) for state in states], [table, *paths])
    session.reporter.message(f"brics keeps weights in {weights_root()}")
    session.reporter.message(f"also looked in: {', '.join(str(place) for place in search_places()[1:])}")
    missing = next((state.entry for state in states if state.state == "missing"), None)
    if missing is not None:
        session.next_step("brics", "weights", "fetch", missing.id)


@app.command()
def verify(as_json: options.Json = False) -> int:
    """Compare every file that is there with its published sha256. Exit code 3 when one differs."""
    from brics_cli.networks.weights.importing import survey

    session = Session(as_json=as_json)
    states = survey(forget=True)
    table = plain_table("weights", "state", "sha256", "published sha256")
    for state in states:
        published = (state.entry.sha256 or "none")[:16]
        table.add_row(state.entry.id, Text(*_SAID[state.state]), (state.sha256 or "-")[:16], published)
    session.result([_record(state) for state in states], [table])
    wrong = [state for state in states if state.state == "unverified" and state.entry.sha256 is not None]
    for state in wrong:
        session.reporter.warning(f"{state.path} is not the published {state.entry.file}")
    return ExitCode.ARTEFACT if wrong else ExitCode.DONE


@app.command("import")
def import_weights(
    source: Annotated[Path, typer.Argument(metavar="FILE|DIR", help="A downloaded file, or a directory of them.")],
    allow_unverified: Annotated[
        bool, typer.Option("--allow-unverified", help="Take a file of unknown sha256; needs --as.")
    ] = False,
    as_id: Annotated[
        str | None,
        typer.Option("--as", metavar="ID", help="Which weights an unknown file is taken for; see brics weights list."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Copy downloaded weights to where brics finds them. They are recognised by sha256, whatever they are called."""
    from brics_cli.networks.weights import importing

    session = Session(as_json=as_json)
    imported = importing.import_weights(
        source, allow_unverified=allow_unverified, as_id=as_id, reporter=session.reporter
    )
    session.result([asdict(found) for found in imported], [f"{found.id}: {found.path}" for found in imported])
    for found in imported:
        if not found.verified:
            session.reporter.warning(
                f"{found.path} has an unknown sha256: brics eval takes it only with --allow-unverified"
            )
    flags = [] if all(found.verified for found in imported) else ["--allow-unverified"]
    session.next_step("brics", "eval", *_metric_flags([found.id for found in imported]), *flags)


@app.command()
def fetch(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Which weights; see brics weights list.")],
    allow_unverified: Annotated[
        bool, typer.Option("--allow-unverified", help="Take weights that have no published sha256 to be checked by.")
    ] = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Download weights, checked by sha256 before they get their name. `BRICS_OFFLINE=1` forbids it.

    A download that broke off goes on where it ended.
    """
    from brics_cli.networks.weights import importing

    session = Session(quiet=quiet, as_json=as_json)
    fetched = importing.fetch(ids, allow_unverified=allow_unverified, reporter=session.reporter)
    session.result([asdict(found) for found in fetched], [f"{found.id}: {found.path}" for found in fetched])
    flags = [] if all(found.verified for found in fetched) else ["--allow-unverified"]
    session.next_step("brics", "eval", *_metric_flags([found.id for found in fetched]), *flags)


def _metric_flags(ids: list[str]) -> list[str]:
    """`--metric` with the first metric of each of the weights, and what makes it need them."""
    from brics_cli.networks.weights import entry

    known = [entry(weights_id) for weights_id in ids]
    metrics = dict.fromkeys(weights.metrics[0] for weights in known)
    flags = known[0].flags if len(known) == 1 else ()
    return [*(word for name in metrics for word in ("--metric", name)), *flags]


def _record(state: WeightsState) -> dict[str, Any]:
    known = state.entry
    return {
        "id": known.id,
        "file": known.file,
        "url": known.url,
        "sha256": known.sha256,
        "num_bytes": known.num_bytes,
        "licence": known.licence,
        "metrics": known.metrics,
        "state": state.state,
        "path": state.path,
        "found_sha256": state.sha256,
    }
