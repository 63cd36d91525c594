"""What a chapter of the page is made of. The template has one macro for each block, of the same name."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from brics_cli.report.pictures import Picture


@dataclass(frozen=True)
class Block:
    """`macro` is the name of the macro that renders it."""

    macro: ClassVar[str]


@dataclass(frozen=True)
class Facts(Block):
    """Names and what is said of them."""

    macro = "facts"
    rows: Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class Table(Block):
    """`head` and `rows` of texts or `Link`s; the first column is a header. `folded`: behind a line that opens it."""

    macro = "table"
    head: Sequence[Any]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    folded: bool = False
    swatches: bool = False
    """Each row begins with the colour of its line in the plots."""


@dataclass(frozen=True)
class Link:
    """A text that leads to the section `to` of the page."""

    text: str
    to: str


@dataclass(frozen=True)
class Plot(Block):
    """An SVG of ours (`plots`), what it shows in words, and the same as numbers: columns `head`, the first is x.

    `frame` says where the axes are in the SVG, and what of: px and data, for the script that shows values."""

    macro = "plot"
    title: str
    svg: str
    alt: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    frame: str = ""
    note: str = ""


@dataclass(frozen=True)
class Plots(Block):
    """Plots side by side."""

    macro = "plots"
    plots: Sequence[Plot]


@dataclass(frozen=True)
class Tile:
    """A picture with a caption. `command` makes it again."""

    picture: Picture
    alt: str
    caption: str = ""
    command: str = ""


@dataclass(frozen=True)
class Gallery(Block):
    """Tiles in rows; the page may hold only the first of them, which it says."""

    macro = "gallery"
    tiles: Sequence[Tile]
    caption: str = ""
    size: str = "small"
    """`small`, `medium`, or `maps`: wide, one below the other."""
    captions: bool = True
    """Whether captions are seen below the tiles, or in the viewer alone."""


@dataclass(frozen=True)
class Compared:
    """An image beside its reconstruction."""

    name: str
    before: Picture
    after: Picture
    error: Picture
    psnr_db: float


@dataclass(frozen=True)
class Sliders(Block):
    """Originals under their reconstructions, to be wiped from one to the other."""

    macro = "sliders"
    pairs: Sequence[Compared]
    caption: str = ""


@dataclass(frozen=True)
class Recipe(Block):
    """The settings of a run, as lines: text and whether it differs from the shipped recipe, which says what it was."""

    macro = "recipe"
    lines: Sequence[tuple[str, str | None]]
    summary: str


@dataclass(frozen=True)
class Commands(Block):
    """Command lines to be copied, each with what it is."""

    macro = "commands"
    commands: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Note(Block):
    """A sentence; `warning` where something is in the way of trusting what stands below it."""

    macro = "note"
    text: str
    warning: bool = False


@dataclass
class Section:
    """What is said of one artefact. `id` is its anchor."""

    id: str
    title: str
    subtitle: str = ""
    blocks: list[Block] = field(default_factory=list)


@dataclass
class Chapter:
    """A step of the pipeline. `blocks` are of all its sections together."""

    id: str
    title: str
    lead: str = ""
    blocks: list[Block] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.blocks or self.sections)


def anchor(text: str, *, prefix: str = "p") -> str:
    """An id for a text, of letters, digits and dashes: the end of the text, and a checksum of all of it."""
    readable = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[-40:]
    return f"{prefix}-{readable}-{zlib.crc32(text.encode('utf-8', 'surrogatepass')):x}"


def newest_note(things: Sequence[Any], num_shown: int, what: str, *, how: str = "have a section below") -> list[Note]:
    """That only the newest of `things` are shown, where that is so."""
    return [Note(f"The {num_shown} newest of {len(things)} {what} {how}.")] if len(things) > num_shown else []


def number(value: Any, form: str = ".4g", *, unit: str = "") -> str:
    """A figure from a file as text: empty where it is none (a damaged file may say anything)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    return f"{value:{form}}{unit}"


def said(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(said, value)) if isinstance(value, list) else str(value)
