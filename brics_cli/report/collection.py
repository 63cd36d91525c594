"""The images: how many, how large, which classes, what failed, and what is in them twice.

A number of images spread over the collection are looked at, for as long as that takes seconds; what is said of these
alone says so. N images, tiles (N, S, S, 3) uint8.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from brics_cli.errors import ArtefactError
from brics_cli.images import Collection, ImageError, open_collection
from brics_cli.images.pixels import PILLOW_FORMATS, load_pixels
from brics_cli.images.selection import spread
from brics_cli.report.blocks import Block, Facts, Gallery, Note, Section, Table, Tile
from brics_cli.report.gathering import Node
from brics_cli.report.pictures import Pixels, picture_of, side_by_side
from brics_cli.wording import count, human_bytes
from brics_cli.workspace.files import read_json

MOST_LOOKED_AT = 1024
LOOKING_S, FEWEST = 4.0, 8
"""Seconds for a collection, however large its images are, and how many of them at least."""
TILE_SIDE = 96
NUM_TILES = 48
COMPARED_SIDE = 16
"""Images are compared at this size, px: copies that were scaled or compressed anew are still alike."""
NEARLY = 2.5
"""Grey levels, root mean square at COMPARED_SIDE, below which two images are called nearly identical."""
FLAT = 6.0
"""Grey levels of standard deviation below which an image is too plain for that."""
NUM_CLASSES, NUM_FAILURES, NUM_PAIRS = 20, 10, 12
MOST_OPENED_SHARDS = 4
MANY_IMAGES = 50_000
"""Above this the shards that brics packed are not all indexed: a few of them, evenly spread, are looked at."""


@dataclass
class Looked:
    """What was seen of a collection of `num_images`. Of the `keys` that were read, `tiles` (n, S, S, 3)."""

    collection: Collection
    num_images: int
    keys: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    labels: list[int | None] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    tiles: Pixels = field(default_factory=lambda: np.zeros((0, 1, 1, 3), np.uint8))
    failures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def how_many(self) -> str:
        """`all 970 images`, `1,024 of 126,227 images`."""
        looked = len(self.keys) + len(self.failures)
        return (
            f"all {count(looked, 'image')}"
            if looked == self.num_images
            else f"{looked:,} of {self.num_images:,} images"
        )

    def small(self) -> NDArray[np.float32]:
        """The tiles at COMPARED_SIDE, (n, 3 * 16 * 16)."""
        return shrunk(self.tiles)


def shrunk(tiles: Pixels) -> NDArray[np.float32]:
    """Images (n, S, S, 3) at COMPARED_SIDE as rows (n, 3 * 16 * 16), 0 to 255."""
    box = Image.Resampling.BOX
    small = [np.asarray(Image.fromarray(tile).resize((COMPARED_SIDE, COMPARED_SIDE), box)) for tile in tiles]
    return np.stack(small).reshape(len(tiles), -1).astype(np.float32) if small else np.zeros((0, 768), np.float32)


def distances(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, d), (m, d) -> root mean square differences (n, m)."""
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squared, 0) / a.shape[1])


def open_node(node: Node) -> tuple[Collection, int]:
    """The collection of a node and its number of images; of very many packed shards some, which are opened alone.

    Raises UsageError and ArtefactError as `open_collection`."""
    manifest = node.path / "manifest.json"
    if node.kind == "shards" and manifest.is_file():
        listed = read_json(manifest, what="manifest")
        num = listed.get("num_images") if isinstance(listed, dict) else None
        if isinstance(num, int) and num > MANY_IMAGES:
            tars = sorted(node.path.glob("*.tar"))
            some = "{" + ",".join(tars[place].stem for place in spread(len(tars), MOST_OPENED_SHARDS)) + "}"
            return open_collection(f"{node.path}/{some}.tar"), num
    collection = open_collection(node.path)
    return collection, len(collection)


def look(collection: Collection, num_images: int | None = None) -> Looked:
    """Look at up to MOST_LOOKED_AT images, evenly spread, for LOOKING_S seconds.

    They are taken in an order in which those of any prefix are spread, too."""
    looked = Looked(collection, len(collection) if num_images is None else num_images)
    places, tiles = np.array(spread(len(collection), MOST_LOOKED_AT), int), []
    order, until = np.random.default_rng(0).permutation(places).tolist(), time.monotonic() + LOOKING_S
    side = 0
    for position in order:
        if time.monotonic() > until and len(looked.keys) >= FEWEST:
            break
        ((shard, index),) = collection.places([position])
        try:
            raw = collection.read(shard, index)
            with Image.open(BytesIO(raw.data), formats=PILLOW_FORMATS) as image:
                size = image.size
            side = side or min(TILE_SIDE, *size)
            tile = load_pixels(raw.data, transform="crop-bicubic", size=side)
        except (ImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            looked.failures.append((collection.key(shard, index), str(error)))
            continue
        looked.keys.append(raw.key)
        looked.sizes.append(size)
        looked.labels.append(raw.label)
        looked.digests.append(hashlib.sha256(raw.data).digest())
        tiles.append(tile)
    by_key = sorted(range(len(looked.keys)), key=looked.keys.__getitem__)
    for name in ("keys", "sizes", "labels", "digests"):
        column = getattr(looked, name)
        setattr(looked, name, [column[place] for place in by_key])
    if tiles:
        looked.tiles = np.stack([tiles[place] for place in by_key])
    return looked


def section(node: Node, looked: Looked | None) -> Section:
    """What is said of a collection. `looked` None: it is gone, or cannot be read."""
    details = node.details
    made = Section(node.id, node.name, node.summary)
    facts: list[tuple[str, Any]] = [("path", node.path)]
    blocks: list[Block] = made.blocks
    failures: list[tuple[str, str]] = []
    if looked is not None:
        collection = looked.collection
        facts += [
            ("images", f"{looked.num_images:,}"),
            ("what it is", collection.describe() if looked.num_images == len(collection) else collection.kind),
            ("bytes", human_bytes(sum(shard.size_bytes for shard in collection.shards))),
            ("size", _sizes(looked)),
        ]
        if collection.remark:
            facts.append(("note", collection.remark))
        if collection.passed_over:
            facts.append(("beside them", collection.passed_over.describe()))
        failures += looked.failures
    facts += [
        (name, details[key]) for name, key in (("packed", "num_images"), ("failed", "num_failed")) if key in details
    ]
    settings = details.get("settings")
    if isinstance(settings, dict) and "transform" in settings:
        facts.append(("cut by", f"{settings['transform']} at {settings.get('size')} px"))
    blocks.append(Facts(facts))
    failures = _listed_failures(node) or failures
    if failures:
        rows = [[key, reason] for key, reason in failures[:NUM_FAILURES]]
        more = f", the first {NUM_FAILURES}" if len(failures) > NUM_FAILURES else ""
        blocks.append(Table(["image", "why"], rows, f"{count(len(failures), 'image')} could not be read{more}"))
    if looked is None:
        return made
    if classes := _classes(looked):
        blocks.append(classes)
    shown = spread(len(looked.keys), NUM_TILES)
    tiles = [Tile(picture_of(looked.tiles[at]), f"image {looked.keys[at]}", looked.keys[at]) for at in shown]
    if tiles:
        blocks.append(Gallery(tiles, f"{len(tiles)} images, evenly spread, the middle square of each", captions=False))
    blocks += _repeated(looked)
    return made


def _sizes(looked: Looked) -> str:
    if not looked.sizes:
        return ""
    widths, heights = np.array(looked.sizes).T
    of = "" if len(looked.sizes) == looked.num_images else f" ({looked.how_many} looked at)"
    if len(set(looked.sizes)) == 1:
        return f"{widths[0]} x {heights[0]} px{of}"
    low, high = (min(looked.sizes, key=min), max(looked.sizes, key=min))
    median = int(np.median(np.minimum(widths, heights)))
    return f"{low[0]} x {low[1]} to {high[0]} x {high[1]} px, shorter side {median} in the median{of}"


def _listed_failures(node: Node) -> list[tuple[str, str]]:
    """Those of a pack, as its manifest lists them."""
    try:
        listed = read_json(node.path / "manifest.json", what="manifest") if node.kind == "shards" else {}
        return [(str(each["key"]), str(each["reason"])) for each in listed.get("failures", [])]
    except (ArtefactError, OSError, AttributeError, KeyError, TypeError):
        return []


def _classes(looked: Looked) -> Table | None:
    counts = Counter(label for label in looked.labels if label is not None)
    if not counts:
        return None
    names = dict(enumerate(looked.collection.class_names))
    rows = [[names.get(label, str(label)), f"{num:,}"] for label, num in counts.most_common(NUM_CLASSES)]
    more = f", the {NUM_CLASSES} with the most images" if len(counts) > NUM_CLASSES else ""
    unlabelled = sum(label is None for label in looked.labels)
    without = f"; {unlabelled:,} without a label" if unlabelled else ""
    title = f"{count(max(len(counts), len(names)), 'class', 'classes')}{more}, in {looked.how_many}{without}"
    return Table(["class", "images"], rows, title)


def _repeated(looked: Looked) -> list[Block]:
    """What of the images looked at is there twice, to the bit or nearly."""
    identical, nearly = repeated(looked)
    said = f"Among {looked.how_many} looked at: "
    if not identical and not nearly:
        return [Note(said + "no image is there twice, to the bit or nearly.")]
    pairs = [(a, b, "identical") for a, b in identical] + [
        (a, b, f"{apart:.1f} grey levels apart") for a, b, apart in nearly
    ]
    tiles = [
        Tile(
            picture_of(side_by_side([looked.tiles[a], looked.tiles[b]], gap=2)),
            f"{looked.keys[a]} beside {looked.keys[b]}",
            f"{looked.keys[a]} and {looked.keys[b]}: {how}",
        )
        for a, b, how in pairs[:NUM_PAIRS]
    ]
    numbers = f"{count(len(identical), 'pair')} of identical files, {count(len(nearly), 'pair')} nearly identical"
    measure = f"nearly: within {NEARLY:g} grey levels (root mean square at {COMPARED_SIDE} x {COMPARED_SIDE} px)"
    shown = f"; the first {NUM_PAIRS}" if len(pairs) > NUM_PAIRS else ""
    return [Note(f"{said}{numbers} ({measure}){shown}.", warning=bool(identical)), Gallery(tiles, "", "medium")]


def repeated(looked: Looked) -> tuple[list[tuple[int, int]], list[tuple[int, int, float]]]:
    """Pairs of identical files, and pairs of nearly identical images with their distance, the nearest first."""
    first: dict[bytes, int] = {}
    identical = []
    for at, digest in enumerate(looked.digests):
        if digest in first:
            identical.append((first[digest], at))
        else:
            first[digest] = at
    rows = looked.small()
    apart = distances(rows, rows)  # (n, n)
    found = np.argwhere(np.triu(apart < NEARLY, k=1))
    flat = rows.reshape(len(rows), -1, 3).std(axis=1).max(axis=1) < FLAT if len(rows) else np.zeros(0, bool)
    nearly = [
        (a, b, float(apart[a, b]))
        for a, b in found.tolist()
        if looked.digests[a] != looked.digests[b] and not (flat[a] or flat[b])
    ]
    return identical, sorted(nearly, key=lambda pair: pair[2])
