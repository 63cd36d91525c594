"""Autoencoders: curves, recipe, reconstructions and their errors, use of the tables, arithmetic."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from brics_cli.config import AutoencoderRecipe, load_recipe
from brics_cli.evaluation.pairing import match_keys
from brics_cli.evaluation.psnr import psnr
from brics_cli.images import ImageError, open_collection
from brics_cli.images.pixels import decode_image, load_pixels
from brics_cli.images.selection import spread
from brics_cli.report.blocks import (
    Block,
    Chapter,
    Compared,
    Gallery,
    Note,
    Section,
    Sliders,
    Table,
    Tile,
    number,
)
from brics_cli.report.context import Context
from brics_cli.report.gathering import Node
from brics_cli.report.pictures import Pixels, error_map, heat, picture_of, side_by_side
from brics_cli.report.runs import DETAILED, overview, section_of
from brics_cli.wording import count

if TYPE_CHECKING:
    from brics_cli.autoencoder.autoencoder import Autoencoder
    from brics_cli.codes import KeyCodeStore

FIGURES = {"PSNR dB": "val/psnr", "SSIM": "val/ssim", "usage": "val/usage"}
NUM_SHOWN, NUM_WORST = 6, 10
MOST_PAIRS, PAIRING_S = 512, 4.0
MOST_DECODED = 64
MOST_COUNTED = 256
"""Images whose codes are counted for the use of tables."""
ERROR_HIGH = 64.0
"""Grey levels that are brightest on a map of errors."""


def chapter(context: Context) -> Chapter:
    """All autoencoders that are shown."""
    runs = context.gathered.of("autoencoder")
    made = Chapter("autoencoders", "Autoencoders" if len(runs) > 1 else "Autoencoder")
    if not runs:
        return made
    made.lead = "Images are encoded to bounded key codes; these look up features in tables that all images share."
    made.blocks += overview(runs, FIGURES, context)
    for run in runs[:DETAILED]:
        made.sections.append(_section(run, context))
    return made


def _section(run: Node, context: Context) -> Section:
    made = section_of(run, FIGURES)
    what = f"the reconstructions of {run.path}"
    made.blocks += context.attempt(what, [], _reconstructions, run, context)
    made.blocks += context.attempt(f"the use of the tables of {run.path}", [], _usage, run, context)
    made.blocks += context.attempt(f"the arithmetic of {run.path}", [], _arithmetic, run)
    return made


class Pair(NamedTuple):
    """An image (H, W, 3) and its reconstruction."""

    key: str
    before: Pixels
    after: Pixels
    psnr_db: float


def _reconstructions(run: Node, context: Context) -> list[Block]:
    """From decoded images on disk where there are some, else of a few codes of a store that it made."""
    decoded = [node for node in context.gathered.of("reconstructions") if node.ancestor("autoencoder") is run]
    stores = _stores(run, context)
    if decoded:
        pairs, num, where = _from_disk(decoded[0], context)
    elif stores:
        pairs, num, where = _from_store(min(stores, key=len), context)
    else:
        return [Note("No reconstructions: nothing was encoded with it. `brics encode-dataset IMAGES --ae RUN` does.")]
    if not pairs:
        return [Note(f"No reconstructions: no image of {where} was found beside its original.", warning=True)]
    by_psnr = sorted(pairs, key=lambda pair: pair.psnr_db)
    values = np.array([pair.psnr_db for pair in by_psnr])
    finite = values[np.isfinite(values)]
    mean = f"{finite.mean():.2f}" if len(finite) else "infinite"
    mean += " (identical ones left out)" if 0 < len(finite) < len(values) else ""
    ends = {"worst": 0.0, "5%": 0.05, "median": 0.5, "best": 1.0}
    row = ["PSNR, dB", mean, *(f"{np.quantile(values, q, method='nearest'):.2f}" for q in ends.values())]
    said = f"{count(len(pairs), 'image')}" if len(pairs) == num else f"{len(pairs):,} of {num:,} images"
    shown = [pairs[at] for at in spread(len(pairs), NUM_SHOWN)]
    return [
        Table(["", "mean", *ends], [row], f"Reconstructions: {said} of {where}"),
        Sliders([_compared(pair) for pair in shown], f"{len(shown)} images, evenly spread, over their reconstructions"),
        Sliders(
            [_compared(pair) for pair in by_psnr[:NUM_WORST]],
            f"The {min(NUM_WORST, len(pairs))} worst. Maps of errors: black is 0, white {ERROR_HIGH:.0f} grey levels",
        ),
    ]


def _compared(pair: Pair) -> Compared:
    error = error_map(pair.before, pair.after, high=ERROR_HIGH)
    return Compared(pair.key, picture_of(pair.before), picture_of(pair.after), error, pair.psnr_db)


def _from_disk(node: Node, context: Context) -> tuple[list[Pair], int, str]:
    """Pairs of decoded images with their originals; how many there are in all, and of what."""
    looked, details = context.looked(node.ancestor("collection")), node.details
    if looked is None:
        return [], 0, str(node.path)
    fakes = open_collection(node.path, labels="none")
    reals = looked.collection
    pairing = match_keys(list(reals.keys()), list(fakes.keys()))
    transform, size = str(details.get("transform")), int(details["image_size"])
    until, pairs = time.monotonic() + PAIRING_S, list[Pair]()
    places = [(pairing.real[at], pairing.fake[at]) for at in spread(len(pairing), MOST_PAIRS)]
    for at in np.random.default_rng(0).permutation(len(places)).tolist():  # so that any prefix is spread
        if pairs and time.monotonic() > until:
            break
        real, fake = places[at]
        try:
            ((shard, index),) = reals.places([real])
            before = load_pixels(reals.read(shard, index).data, transform=transform, size=size)
            ((shard, index),) = fakes.places([fake])
            after = np.array(decode_image(fakes.read(shard, index).data))
        except ImageError:
            continue
        if after.shape == before.shape:
            pairs.append(_pair(reals.key(*reals.places([real])[0]), before, after))
    return sorted(pairs, key=lambda pair: pair.key), len(fakes), str(node.path)


def _pair(key: str, before: Pixels, after: Pixels) -> Pair:
    return Pair(key, before, after, float(psnr(before[None], after[None])[0]))


def _from_store(store: KeyCodeStore, context: Context) -> tuple[list[Pair], int, str]:
    """The same from codes: those of a few rows are decoded here."""
    node = next(node for node in context.gathered.of("codes") if node.path == store.path)
    looked = context.looked(node.ancestor("collection"))
    where = f"{store.path}, decoded for this page"
    if looked is None:
        return [], 0, where
    keys = list(looked.collection.keys())
    position = {key: at for at, key in enumerate(keys)}
    rows = [row for row in spread(len(store), MOST_DECODED) if store.keys[row] in position]
    rows = np.random.default_rng(0).permutation(rows).tolist()
    pairs = []
    for row, after in zip(rows, context.decoded(store, rows), strict=False):
        ((shard, index),) = looked.collection.places([position[store.keys[row]]])
        try:
            raw = looked.collection.read(shard, index)
            before = load_pixels(raw.data, transform=store.transform, size=store.image_size)
        except ImageError:
            continue
        pairs.append(_pair(raw.key, before, after))
    return sorted(pairs, key=lambda pair: pair.key), len(store), where


def _stores(run: Node, context: Context) -> list[KeyCodeStore]:
    """The stores of this run's codes, as its weights are now."""
    found = []
    for node in context.gathered.of("codes"):
        if run in node.parents and node.kind == "store":
            store = context.attempt(str(node.path), None, context.store_or_none, node.path)
            if store is not None and store.autoencoder["sha256"] == run.details.get("sha256") and len(store):
                found.append(store)
    return found


def _usage(run: Node, context: Context) -> list[Block]:
    """How much of each level or codebook is used: figures of the validation, and maps of a store's codes."""
    of = {
        name.removeprefix("val/usage/"): value for name, value in run.details.items() if name.startswith("val/usage/")
    }
    rows = [
        [name.replace("_", " "), number(value, ".1%"), number(run.details.get(f"val/entropy/{name}"), ".3f")]
        for name, value in of.items()
    ]
    blocks: list[Block] = []
    if rows:
        head = ["table", "entries used", "entropy, 1 is uniform"]
        blocks.append(Table(head, rows, "Use of the tables over the validation images"))
    stores = _stores(run, context)
    if not stores:
        return blocks
    store = max(stores, key=len)
    autoencoder = context.autoencoder_of(store)
    if not autoencoder.bottleneck.usage_parts():
        return blocks
    import torch

    counter, places = autoencoder.bottleneck.usage_counter(), spread(len(store), MOST_COUNTED)
    for start in range(0, len(places), 64):
        counter.add(torch.from_numpy(store.batch(places[start : start + 64])))
    tiles = _usage_tiles(autoencoder, {name: found.numpy() for name, found in counter.counts.items()})
    used = f"{len(places):,} of {len(store):,} images" if len(places) < len(store) else f"all {len(store):,} images"
    caption = (
        f"Weight that the codes of {used} of {store.path} put on each entry, by level; black: none. Groups side by "
        "side, the first channel of a group downwards, the second to the right"
    )
    return [*blocks, Gallery(tiles, caption, "maps")] if tiles else blocks


def _usage_tiles(autoencoder: Autoencoder, counts: dict[str, np.ndarray]) -> list[Tile]:
    """A map per level of a grid; for codebooks their entries in the order of their use, in rows of 64."""
    from brics_cli.autoencoder.bottlenecks.grid import GridBottleneck

    bottleneck, tiles = autoencoder.bottleneck, []
    for number_, (name, weights) in enumerate(counts.items()):
        share, title = float((weights > 0).mean()), name.replace("_", " ")
        if isinstance(bottleneck, GridBottleneck):
            level = bottleneck.spec.levels[number_]
            if not level.dense:
                continue  # one entry stands for several places
            side, dim = level.cells + 1, bottleneck.spec.query_dim
            groups = weights.reshape(bottleneck.num_groups, *[side] * dim)
            groups = groups.sum(axis=tuple(range(3, dim + 1))) if dim > 2 else groups
            maps = [group if group.ndim == 2 else group[None] for group in groups]
            title += f": {side} vertices per axis, {bottleneck.num_groups} groups"
        else:
            ordered = np.sort(weights)[::-1]
            width = min(64, len(ordered))
            padded = np.zeros(-(-len(ordered) // width) * width)
            padded[: len(ordered)] = ordered
            maps = [padded.reshape(-1, width)]
            title += f": {len(ordered):,} entries, the most used first"
        high = max(float(each.max()) for each in maps)
        pixels = side_by_side([heat(np.sqrt(each / max(high, 1e-12)), high=1.0) for each in maps])
        picture = picture_of(pixels)
        tiles.append(Tile(picture, f"map of the use of {title}: {share:.1%} used", f"{title}, {share:.1%} used"))
    return tiles


def _arithmetic(run: Node) -> list[Block]:
    """GFLOP and parameters of its parts, counted on meta tensors."""
    if not (run.path / "config.yaml").is_file():
        return []
    recipe = load_recipe(str(run.path / "config.yaml"), kind="autoencoder")
    assert isinstance(recipe, AutoencoderRecipe)
    from brics_cli.autoencoder.flops import count as flops

    rows = [[row.part, f"{row.gflop:,.4g}", f"{row.params_m:,.4g}"] for row in flops(recipe)]
    return [Table(["part", "GFLOP", "M parameters"], rows, "Arithmetic of one image, 2 per multiply-add")]
