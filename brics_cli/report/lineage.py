"""The lineage diagram: a box for each thing, from left to right as the pipeline goes, with a line from what it was
made from. Where the page is narrow the same is a list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from brics_cli.report.gathering import Node

BOX, GAP_X, GAP_Y, HEAD = (152, 44), 26, 12, 26
"""Width and height of a box, the space between columns and between rows, and the height of the headings, px."""
COLUMNS = {
    "collection": "Images", "autoencoder": "Autoencoder", "codes": "Codes", "diffusion": "Diffusion, decoded",
    "samples": "Samples", "scores": "Scores",
}  # fmt: skip
"""Stages and their headings; reconstructions stand among the diffusion models, since both are made from codes."""
MOST_ROWS = 14
"""Of a column; what was made before these is one box."""


@dataclass(frozen=True)
class Box:
    """A box at (x, y), px; `to`: the anchor of its section, empty where there is none."""

    x: int
    y: int
    name: str
    summary: str
    stage: str
    to: str
    state: str
    sources: Sequence[str]
    """Names of what it was made from."""
    width: int = BOX[0]
    height: int = BOX[1]


@dataclass(frozen=True)
class Diagram:
    """`edges` are paths of SVG; `heads` (x, text) the headings of the columns."""

    width: int
    height: int
    boxes: Sequence[Box]
    edges: Sequence[str]
    heads: Sequence[tuple[int, str]]


def diagram(nodes: Sequence[Node], anchors: set[str]) -> Diagram:
    """The boxes of `nodes`; those whose ids are among `anchors` lead there."""
    by_column: dict[str, list[Node]] = {}
    for node in nodes:
        by_column.setdefault(_column(node), []).append(node)
    stages = [stage for stage in COLUMNS if stage in by_column]
    place: dict[int, tuple[int, int]] = {}
    boxes, edges = list[Box](), dict[str, None]()

    def height(node: Node) -> float:
        above = [place[id(parent)][1] for parent in node.parents if id(parent) in place]
        return sum(above) / len(above) if above else 0.0

    for column, stage in enumerate(stages):
        x, members = column * (BOX[0] + GAP_X), by_column[stage]
        if len(members) > MOST_ROWS:
            made = sorted(members, key=lambda node: node.artefact.created if node.artefact else "")
            older = made[: len(made) - MOST_ROWS + 1]
            members = [node for node in members if node not in older]
            y = HEAD + len(members) * (BOX[1] + GAP_Y)
            place.update({id(node): (x, y) for node in older})
            boxes.append(Box(x, y, f"{len(older)} more", "made before these", stage, "", "", ()))
        for row, node in enumerate(sorted(members, key=height)):  # stable: else in the order of their making
            place[id(node)] = (x, HEAD + row * (BOX[1] + GAP_Y))
    shown = {(box.x, box.y) for box in boxes}
    for node in nodes:
        x, y = place[id(node)]
        complete = node.artefact is None or node.artefact.complete
        state = "gone" if not node.there else "" if complete else "unfinished"
        to = node.id if node.id in anchors else ""
        sources = [parent.name for parent in node.parents]
        if (x, y) not in shown:
            boxes.append(Box(x, y, node.name, node.summary, node.stage, to, state, sources))
        for parent in _nearest(node):
            x0, y0 = place[id(parent)][0] + BOX[0], place[id(parent)][1] + BOX[1] // 2
            x1, y1 = x, y + BOX[1] // 2
            if x1 >= x0:
                edges[f"M{x0} {y0}C{x0 + GAP_X * 0.6:.0f} {y0} {x1 - GAP_X * 0.6:.0f} {y1} {x1} {y1}"] = None
    width = len(stages) * (BOX[0] + GAP_X) - GAP_X
    bottom = max(box.y for box in boxes) + BOX[1] + GAP_Y
    heads = [(column * (BOX[0] + GAP_X), COLUMNS[stage]) for column, stage in enumerate(stages)]
    return Diagram(width, bottom, boxes, list(edges), heads)


def _column(node: Node) -> str:
    return "diffusion" if node.stage == "reconstructions" else node.stage


def _nearest(node: Node) -> list[Node]:
    """Its parents, without those that another parent was made from: these lines say nothing new."""
    further = {id(above) for parent in node.parents for above in parent.lineage()}
    return [parent for parent in node.parents if id(parent) not in further]
