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
    from brics_cli.networks.weights import FoundWeights, WeightsState

app = options.command_app(
    no_args_is_help=True,
    help="List, verify, import and fetch the weights that metrics need.\n\nExample: brics weights list",
)

_SAID = {"verified": ("there", "green"), "missing": ("missing", "dim"), "unverified": ("unknown", "yellow")}
"""State -> the word for it, and its style."""


@app.command("list")
def list_weights(
    urls: Annotated[
        bool, typer.Option("--urls", help="Print URLs, one a line, for curl; then brics weights import DIR.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """List every file of weights: what needs it, how large it is, whether and where it stands.

    Example: brics weights list --urls
    """
    from brics_cli.networks.registry import WEIGHTS
    from brics_cli.networks.weights import search_places, survey, weights_root

    session = Session(as_json=as_json)
    if urls and not as_json:
        session.result(None, [known.url for known in WEIGHTS.values() if known.sha256 is not None and not known.extra])
        for known in WEIGHTS.values():
            if known.extra:
                session.reporter.message(f"not listed, as a package carries {known.file}: {known.how_to_get}")
            elif known.sha256 is None:
                session.reporter.message(
                    f"not listed, as its sha256 has not been published: {known.how_to_get} "
                    f"--allow-unverified --as {known.id}"
                )
        session.next_step("brics", "weights", "import", ".")
        return
    states = survey()
    records = [_record(state) for state in states]
    table = plain_table("weights", "file", "size", "for", "state")
    for state, record in zip(states, records, strict=True):
        style = _SAID[state.state]
        table.add_row(record["id"], record["file"], state.entry.size, ", ".join(record["metrics"]), Text(*style))
    session.result(records, [table, *(f"{state.entry.id}: {state.path}" for state in states if state.path is not None)])
    session.reporter.message(f"brics keeps weights in {weights_root()}")
    session.reporter.message(f"also looked in: {', '.join(str(place) for place in search_places()[1:])}")
    missing = next((state.entry for state in states if state.state == "missing" and not state.entry.extra), None)
    if missing is not None:
        session.next_step("brics", "weights", "fetch", missing.id)


@app.command()
def verify(as_json: options.Json = False) -> int:
    """Compare every file that is there with its published sha256. Exit code 3 when one differs.

    Example: brics weights verify
    """
    from brics_cli.networks.weights import survey

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
    """Copy downloaded weights to where brics finds them. They are recognised by sha256, whatever they are called.

    Example: brics weights import ./downloads
    """
    from brics_cli.networks import weights

    session = Session(as_json=as_json)
    imported = weights.import_weights(source, allow_unverified=allow_unverified, as_id=as_id)
    for found in imported:
        if not found.verified:
            session.reporter.warning(
                f"{found.path} has an unknown sha256: brics eval takes it only with --allow-unverified"
            )
    _say_found(session, imported)


@app.command()
def fetch(
    ids: Annotated[list[str], typer.Argument(metavar="ID ...", help="Which weights; see brics weights list.")],
    allow_unverified: Annotated[
        bool, typer.Option("--allow-unverified", help="Take weights that have no published sha256 to be checked by.")
    ] = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Download weights, checked by sha256 before they get their name. `BRICS_OFFLINE=1` forbids it.

    A download that broke off goes on where it ended.

    Example: brics weights fetch inception
    """
    from brics_cli.networks import weights

    session = Session(quiet=quiet, as_json=as_json)
    _say_found(session, weights.fetch(ids, allow_unverified=allow_unverified, reporter=session.reporter))


def _say_found(session: Session, found: list[FoundWeights]) -> None:
    """Where the weights are, and how to measure with them."""
    from brics_cli.evaluation.registry import users_of

    session.result([asdict(each) for each in found], [f"{each.id}: {each.path}" for each in found])
    users = dict(users_of(each.id)[0] for each in found)
    flags = [word for name in users for word in ("--metric", name)]
    if len(found) == 1:
        flags += next(iter(users.values()))
    if not all(each.verified for each in found):
        flags.append("--allow-unverified")
    session.next_step("brics", "eval", *flags)


def _record(state: WeightsState) -> dict[str, Any]:
    from brics_cli.evaluation.registry import users_of

    known = state.entry
    return {
        **{name: getattr(known, name) for name in ("id", "file", "url", "sha256", "num_bytes", "licence")},
        "metrics": [name for name, _ in users_of(known.id)],
        "state": state.state,
        "path": state.path,
        "found_sha256": state.sha256,
    }
