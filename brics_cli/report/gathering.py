"""What a page is to show: artefacts, what they were made from, and what could not be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brics_cli.errors import ArtefactError, BricsError, UsageError
from brics_cli.images.opening import collection_exists
from brics_cli.report.blocks import anchor
from brics_cli.workspace import Artefact, Parent, Workspace, open_hdf5, provenance_at
from brics_cli.workspace.naming import INDEX_NAME, STORE_ENDING, store_file
from brics_cli.workspace.remote import is_remote

STAGES = {
    "collection": "collection", "shards": "collection", "validation": "collection",
    "autoencoder": "autoencoder",
    "store": "codes", "latents": "codes",
    "reconstructions": "reconstructions",
    "diffusion": "diffusion", "guide": "diffusion",
    "samples": "samples", "pictures": "samples",
    "report": "scores",
}  # fmt: skip
"""The step of the pipeline that each kind of artefact or parent belongs to, in order."""
SHOWS = "It takes runs, stores, samples, decoded images and reports of `brics eval --out`: `brics status` lists them."


@dataclass(eq=False)
class Node:
    """Something that is on disk, or was: `artefact` is None for a collection that brics did not make, and for what is
    gone. `details` may hold anything, since files are edited and damaged."""

    stage: str
    path: Path
    artefact: Artefact | None = None
    there: bool = True
    parents: list[Node] = field(default_factory=list)
    sha256: str = ""
    """What a child says that it had."""
    label: str = ""

    @property
    def kind(self) -> str:
        return self.artefact.kind if self.artefact is not None else self.stage

    @property
    def id(self) -> str:
        return anchor(str(self.path), prefix=self.stage)

    @property
    def name(self) -> str:
        """A short name: its file's or directory's, with as much of the path as tells it from the others."""
        return self.label or self.path.name or str(self.path)

    @property
    def details(self) -> dict[str, Any]:
        return self.artefact.details if self.artefact is not None else {}

    @property
    def summary(self) -> str:
        said = self.details.get("summary")
        return said if isinstance(said, str) else ""

    def ancestor(self, stage: str) -> Node | None:
        """The nearest node of `stage` among what it was made from, breadth first."""
        return next((node for node in self.lineage() if node.stage == stage), None)

    def lineage(self) -> Iterator[Node]:
        """Everything it was made from, the nearest first, each once."""
        waiting, seen = list(self.parents), {id(self)}
        while waiting:
            node = waiting.pop(0)
            if id(node) not in seen:
                seen.add(id(node))
                yield node
                waiting += node.parents


@dataclass
class Gathered:
    """The nodes of a page, in the order of the pipeline and of their making; `passed_over`: path -> why not."""

    nodes: list[Node]
    passed_over: dict[str, str]
    demo_seconds: dict[str, float] = field(default_factory=dict)

    def of(self, stage: str) -> list[Node]:
        """Those of a stage that are there, the newest first."""
        found = [node for node in self.nodes if node.stage == stage and node.there]
        return sorted(found, key=lambda node: node.artefact.created if node.artefact else "", reverse=True)


def gather(inputs: Sequence[Path], workspace: Workspace) -> Gathered:
    """`inputs` and what they were made from, or everything in `workspace` when there are none.

    Raises UsageError for a path that is not there or was not made by brics, ArtefactError for a damaged one, and for
    a workspace with nothing in it.
    """
    found = workspace.artefacts()
    passed_over = {str(path): reason for path, reason in workspace.passed_over.items()}
    passed_over |= {} if inputs else _unreadable_stores(workspace.root, {artefact.path for artefact in found})
    chosen = found if not inputs else [_named(path) for path in inputs]
    shown = [artefact for artefact in chosen if artefact.kind in STAGES]
    if not shown and not passed_over:
        raise ArtefactError(
            f"nothing to report on in {workspace.root.resolve()}", next="Make something: brics demo, or brics train-ae"
        )
    known = {str(artefact.path.resolve()): artefact for artefact in [*found, *shown]}
    by_sha256 = {(STAGES.get(each.kind), str(each.details.get("sha256"))): each for each in known.values()}
    nodes: dict[str, Node] = {}

    def node_of(artefact: Artefact) -> Node:
        place = str(artefact.path.resolve())
        if place not in nodes:
            nodes[place] = node = Node(STAGES[artefact.kind], artefact.path, artefact)
            for parent in artefact.parents:
                if (above := parent_node(parent)) is not None and above is not node and above not in node.parents:
                    node.parents.append(above)
        return nodes[place]

    def parent_node(parent: Parent) -> Node | None:
        try:
            stage, place = (
                STAGES.get(parent.kind),
                parent.path if is_remote(parent.path) else str(Path(parent.path).resolve()),
            )
        except (OSError, ValueError, TypeError, RuntimeError) as error:  # a loop of links, a path that cannot be one
            passed_over[str(parent.path)] = f"it is no path ({error})"
            return None
        if stage is None:
            return None
        there = known.get(place)
        if there is None:
            try:
                there = provenance_at(parent.path)
            except BricsError as error:
                passed_over[parent.path] = error.what
        if there is None or STAGES.get(there.kind) != stage:
            there = by_sha256.get((stage, parent.sha256))  # it may have moved
        if there is not None:
            return node_of(there)
        return nodes.setdefault(
            place, Node(stage, Path(parent.path), there=_is_there(stage, parent.path), sha256=parent.sha256)
        )

    for artefact in sorted(shown, key=lambda artefact: artefact.created):
        node_of(artefact)
    for stage in set(STAGES.values()):
        of_stage = [node for node in nodes.values() if node.stage == stage]
        for node, label in zip(of_stage, short_names([node.path for node in of_stage]), strict=True):
            node.label = label
    order = {stage: number for number, stage in enumerate(dict.fromkeys(STAGES.values()))}
    seconds = next((each.details.get("seconds") for each in found if each.kind == "demo"), None)
    return Gathered(
        sorted(nodes.values(), key=lambda node: order[node.stage]),
        passed_over,
        seconds if isinstance(seconds, dict) else {},
    )


def _is_there(stage: str, path: str) -> bool:
    """A collection may be a pattern, or a part of a file; other names that are gone are not looked for as parts."""
    if is_remote(path):
        return False  # a report asks no network
    where = Path(path)
    is_named_otherwise = stage == "collection" and (where.parent.is_file() or not {*"{*?"}.isdisjoint(path))
    return where.exists() or (is_named_otherwise and collection_exists(path))


def _unreadable_stores(root: Path, known: set[Path]) -> dict[str, str]:
    """Stores in a workspace that are cut short: what they are is said inside, so nothing else tells of them."""
    found = {}
    folders = (path.parent for path in root.glob(f"*/{INDEX_NAME}"))
    for path in sorted([*root.glob(f"*{STORE_ENDING}"), *folders]):
        if path not in known and store_file(path).is_file():
            try:
                with open_hdf5(store_file(path)):
                    pass
            except (OSError, RuntimeError, ValueError, BricsError) as error:
                found[str(path)] = f"it is damaged or truncated ({error})"
    return found


def short_names(paths: Sequence[Path]) -> list[str]:
    """The end of each path: its name, and as many folders in front as make it unlike the others."""
    names = []
    parts = [path.resolve().parts for path in paths]
    for own in parts:
        length = 1
        while length < len(own) and sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(own[-length:]))
    return names


def _named(path: Path) -> Artefact:
    if not path.exists():
        raise UsageError(f"no such file or folder: {path}", next=SHOWS)
    if path.name == "model" and provenance_at(path) is None:
        path = path.parent
    artefact = provenance_at(path)
    if artefact is None and path.suffix == ".json" and path.is_file():
        from brics_cli.evaluation.comparing import load_report

        load_report(path)  # says what is wrong with it
        return Artefact("report", path, "", True)
    if artefact is None or artefact.kind not in STAGES:
        what = "was not made by brics" if artefact is None else f"is a {artefact.kind}, which has no page of its own"
        raise UsageError(f"{path} {what}", next=SHOWS)
    return artefact
