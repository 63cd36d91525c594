"""`brics status`: what the workspace holds and what was made from what."""

from __future__ import annotations

from rich.tree import Tree

from brics_cli.cli import options
from brics_cli.cli.output import Session
from brics_cli.workspace import Artefact

app = options.command_app()


@app.command()
def status(workspace: options.Workspace = None, as_json: options.Json = False) -> None:
    """Show the lineage of everything in the workspace.

    Every artefact stands below the one it was made from. `newest` marks what the next command would take when its
    argument is left out.
    """
    session = Session(workspace=workspace, as_json=as_json)
    artefacts = session.workspace.artefacts()
    if as_json:
        session.result([{"path": str(artefact.path), **artefact.to_json()} for artefact in artefacts])
        return
    if not artefacts:
        session.result(f"nothing in {session.workspace.root.resolve()} yet")
        session.reporter.message("next: brics demo, or brics train-ae IMAGES")
        return
    session.result(None, [lineage_tree(artefacts, root=str(session.workspace.root.resolve()))])


def lineage_tree(artefacts: list[Artefact], *, root: str) -> Tree:
    """Artefacts (newest first) as a tree: each below its nearest parent that is in the workspace."""
    by_path = {str(artefact.path.resolve()): artefact for artefact in artefacts}
    newest = {artefact.kind: artefact for artefact in reversed(artefacts) if artefact.usable}
    children: dict[str | None, list[Artefact]] = {}
    for artefact in reversed(artefacts):
        parents = [parent.path for parent in artefact.parents if parent.path in by_path]
        children.setdefault(parents[0] if parents else None, []).append(artefact)
    tree = Tree(f"[bold]{root}[/]")

    def grow(branch: Tree, of: str | None) -> None:
        for artefact in children.get(of, []):
            mark = "  [green]newest[/]" if newest.get(artefact.kind) is artefact else ""
            state = "" if artefact.complete else "  [yellow]unfinished[/]"
            line = f"[cyan]{artefact.kind}[/] {artefact.path}{_summary(artefact)}{mark}{state}"
            grow(branch.add(line), str(artefact.path.resolve()))

    grow(tree, None)
    return tree


def _summary(artefact: Artefact) -> str:
    said = artefact.details.get("summary")
    return f"  [dim]{said}[/]" if said else ""
