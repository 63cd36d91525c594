"""`brics status`: what the workspace holds and what was made from what."""

from __future__ import annotations

from rich.text import Text
from rich.tree import Tree

from brics_cli.cli import options
from brics_cli.cli.output import Session
from brics_cli.runtime.reporting import printable
from brics_cli.workspace import Artefact, Workspace, embedded
from brics_cli.workspace.artefacts import of_embedded

app = options.command_app()


@app.command()
def status(workspace: options.Workspace = None, as_json: options.Json = False) -> None:
    """Show the lineage of everything in the workspace.

    Every artefact stands below the one it was made from. `newest` marks what the next command would take when its
    argument is left out.

    Example: brics status --workspace brics-demo
    """
    session = Session(workspace=workspace, as_json=as_json)
    artefacts = session.workspace.artefacts()
    for path, reason in session.workspace.passed_over.items():
        session.reporter.warning(f"{path} is passed over: {reason}")
    if as_json:
        session.result([{"path": str(artefact.path), **artefact.to_json()} for artefact in artefacts])
        return
    if not artefacts:
        session.result(artefacts, f"nothing in {session.workspace.root.resolve()} yet")
        session.next_step("brics", "demo")
        return
    used = {parent.sha256 for artefact in artefacts for parent in artefact.parents}
    artefacts += [of_embedded(model) for model in embedded.MODELS if model.sha256 in used]
    tree = lineage_tree(artefacts, session.workspace)
    session.result(None, [tree], pipe_width=UNCUT)


UNCUT = 100_000
"""Columns: rich cuts what is too long for a tree, where it folds what is too long for a table."""

# A collection that a run names as its parent may be shards that brics packed.
_KINDS = {"collection": "shards", "validation": "shards"}


def lineage_tree(artefacts: list[Artefact], workspace: Workspace) -> Tree:
    """Artefacts (newest first) as a tree: each below its nearest parent that is in the workspace."""
    by_path = {str(artefact.path.resolve()): artefact for artefact in artefacts}
    by_sha256 = {(str(a.kind), a.details.get("sha256")): str(a.path.resolve()) for a in artefacts}
    usable = {artefact.kind for artefact in artefacts if artefact.usable}
    newest = {workspace.newest(kind, wanted="training", among=artefacts).path for kind in usable}
    children: dict[str | None, list[Artefact]] = {}
    for artefact in reversed(artefacts):
        moved = [by_sha256.get((_KINDS.get(parent.kind, parent.kind), parent.sha256)) for parent in artefact.parents]
        places = zip([parent.path for parent in artefact.parents], moved, strict=True)
        parents = [path if path in by_path else other for path, other in places if path in by_path or other]
        children.setdefault(parents[0] if parents else None, []).append(artefact)
    tree = Tree(Text(printable(str(workspace.root.resolve())), "bold"))

    def grow(branch: Tree, of: str | None) -> None:
        for artefact in children.get(of, []):
            said, shipped = artefact.details.get("summary"), embedded.embedded_at(artefact.path)
            line = Text.assemble(
                (artefact.kind, "cyan"),
                printable(f" {artefact.path if shipped is None else shipped.name}"),
                (printable(f"  {said}") if said else "", "dim"),
                ("  newest" if artefact.path in newest else "", "green"),
                (printable(f"  {artefact.shortcoming}") if artefact.shortcoming else "", "yellow"),
            )
            grow(branch.add(line), str(artefact.path.resolve()))

    grow(tree, None)
    return tree
