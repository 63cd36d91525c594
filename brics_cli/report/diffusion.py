"""Diffusion models and what was sampled from them: curves by noise level, samples by seed, the images nearest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from brics_cli.images import open_collection
from brics_cli.images.pixels import decode_image
from brics_cli.images.selection import spread
from brics_cli.report.blocks import Block, Chapter, Facts, Gallery, Section, Tile, newest_note, said
from brics_cli.report.collection import COMPARED_SIDE, distances, shrunk
from brics_cli.report.context import Context
from brics_cli.report.gathering import Node
from brics_cli.report.pictures import Picture, Pixels, picture_of, side_by_side
from brics_cli.report.runs import DETAILED, overview, section_of
from brics_cli.runtime.reporting import command_line
from brics_cli.sampling.tasks import DEFAULT_BATCH_SIZE, key_of
from brics_cli.workspace.naming import is_store

FIGURES = {"FD-random": "val/fd-random", "validation loss": "val/loss"}
NUM_SAMPLES = 48
NUM_NEAREST, NUM_NEIGHBOURS = 8, 3
DETAILED_SAMPLES = 6
NEAREST_SIDE = 96


def chapter(context: Context) -> Chapter:
    """All diffusion models."""
    runs = context.gathered.of("diffusion")
    made = Chapter("diffusion", "Diffusion models" if len(runs) > 1 else "Diffusion model")
    if not runs:
        return made
    made.lead = "Trained on the key codes, so that what it samples can be decoded."
    made.blocks += overview(runs, FIGURES, context)
    made.sections += [section_of(run, FIGURES) for run in runs[:DETAILED]]
    return made


def samples_chapter(context: Context) -> Chapter:
    """What was sampled, as images, codes or pictures."""
    nodes = context.gathered.of("samples")
    made = Chapter("samples", "Samples")
    if not nodes:
        return made
    made.lead = "One image per seed; the image of a seed is the same whatever else is sampled."
    made.blocks += newest_note(nodes, DETAILED_SAMPLES, "sets of samples", how="are shown")
    for node in nodes[:DETAILED_SAMPLES]:
        section = Section(node.id, node.name, node.summary)
        shown = _picture if node.kind == "pictures" else _samples
        section.blocks += context.attempt(str(node.path), [], shown, node, context)
        made.sections.append(section)
    return made


def _settings(node: Node) -> dict[str, Any]:
    settings = node.details.get("settings")
    return settings if isinstance(settings, dict) else {}


def _facts(node: Node) -> Facts:
    kept = {name: value for name, value in _settings(node).items() if value is not None}
    model = next((parent for parent in node.parents if parent.stage == "diffusion"), None)
    rows: list[tuple[str, Any]] = [("path", node.path), ("model", model.path if model is not None else "unknown")]
    return Facts([*rows, *((name.replace("_", " "), said(value)) for name, value in kept.items())])


def sample_command(node: Node, seeds: str | None = None) -> list[str]:
    """The command that samples `seeds` (None: all) as they are in `node`; empty where its model is not known."""
    settings = _settings(node)
    model = next((parent for parent in node.parents if parent.stage == "diffusion"), None)
    if model is None:
        return []
    words = ["brics", "sample", "--model", str(model.path)]
    if node.kind == "samples":
        words += ["--seeds", seeds or str(settings.get("seeds", ""))]
    elif "grid" in settings:
        words += ["--grid", str(settings["grid"]), "--seed", str(settings.get("first_seed", 0))]
    elif isinstance(ends := settings.get("interpolate"), list):
        words += ["--interpolate", *map(str, ends), "--frames", str(settings.get("frames"))]
    for option, name, plain in (
        ("--sampler", "sampler", None), ("--steps", "steps", None), ("--guidance", "guidance", 1.0),
        ("--class", "class", None), ("--class-balance", "class_balance", None), ("--ema", "ema", None),
        ("--batch-size", "batch_size", DEFAULT_BATCH_SIZE),
    ):  # fmt: skip
        if (value := settings.get(name)) not in (None, plain):
            words += [option, f"{value:g}" if isinstance(value, float) else str(value)]
    words += ["--dtype", str(settings.get("precision", "fp32"))]  # the default depends on the device
    words += [] if settings.get("clip", True) else ["--no-clip"]
    guides = [parent for parent in (node.artefact.parents if node.artefact else ()) if parent.kind == "guide"]
    return words + [word for guide in guides for word in ("--guide", guide.path)]


def _samples(node: Node, context: Context) -> list[Block]:
    keys, images, how_many = _images(node, context)
    tiles = []
    for key, image in zip(keys, images, strict=True):
        seed = key.rpartition("/")[2]
        seed = str(int(seed)) if seed.isdecimal() else ""
        words = sample_command(node, f"{seed}-{seed}") if seed else []
        command = command_line(*words, "--out", f"seed-{seed}") if words else ""
        tiles.append(
            Tile(picture_of(image), f"sample of seed {seed}" if seed else f"sample {key}", seed or key, command)
        )
    blocks: list[Block] = [_facts(node), Gallery(tiles, f"{how_many} Choose one for its command and its full size.")]
    what, nothing = f"the training images nearest to {node.path}", list[Block]()
    return blocks + context.attempt(what, nothing, _nearest, node, keys, images, context)


def _images(node: Node, context: Context) -> tuple[list[str], list[Pixels], str]:
    """Keys and pixels of a few samples, and how many they are of how many; codes are decoded."""
    if is_store(node.path):
        store = context.store(node.path)
        rows = spread(len(store), NUM_SAMPLES)
        images = context.decoded(store, rows)
        keys = [store.keys[row] for row in rows[: len(images)]]
        return keys, images, f"{len(images):,} of {len(store):,} samples, decoded for this page."
    collection = open_collection(node.path, labels="none")
    raws = [collection.read(*place) for place in collection.places(spread(len(collection), NUM_SAMPLES))]
    images = [np.array(decode_image(raw.data)) for raw in raws]
    return [_seed_key(raw.key) for raw in raws], images, f"{len(raws):,} of {len(collection):,} samples."


def _seed_key(key: str) -> str:
    """The key of a sample without what a zip or a folder puts in front (`img00000012`)."""
    name = key.rpartition("/")[2]
    digits = name.removeprefix("img")
    return key_of(int(digits)) if digits.isdecimal() else key


def _nearest(node: Node, keys: Sequence[str], images: Sequence[Pixels], context: Context) -> list[Block]:
    """The samples nearest to an image of the collection that was looked at, with the images nearest to each."""
    store, autoencoder = node.ancestor("codes"), node.ancestor("autoencoder")
    made_of = (made_by.ancestor("collection") for made_by in (store, autoencoder) if made_by is not None)
    looked = context.looked(next((found for found in made_of if found is not None), None))
    if looked is None or not len(looked.tiles) or not images:
        return []
    side = min(NEAREST_SIDE, looked.tiles.shape[1])
    bicubic = Image.Resampling.BICUBIC
    samples = np.stack([np.asarray(Image.fromarray(image).resize((side, side), bicubic)) for image in images])
    rows, real = shrunk(samples), looked.small()
    mirrored = shrunk(np.ascontiguousarray(looked.tiles[:, :, ::-1]))
    distance = np.minimum(distances(rows, real), distances(rows, mirrored))  # (samples, images)
    order = np.argsort(distance.min(axis=1), kind="stable")[:NUM_NEAREST]
    tiles = []
    for at in order:
        near = np.argsort(distance[at], kind="stable")[:NUM_NEIGHBOURS]
        beside = [np.asarray(Image.fromarray(looked.tiles[each]).resize((side, side), bicubic)) for each in near]
        name = f"seed {int(keys[at])}" if keys[at].isdecimal() else keys[at]
        listed = ", ".join(f"{looked.keys[each]} ({distance[at, each]:.1f})" for each in near)
        pixels = side_by_side([samples[at], *beside], gap=2)
        tiles.append(
            Tile(picture_of(pixels), f"{name} beside the {len(near)} images nearest to it", f"{name}: {listed}")
        )
    caption = (
        f"The {len(tiles)} samples nearest to an image of {looked.collection.path}, each beside the {NUM_NEIGHBOURS} "
        f"nearest of {looked.how_many} or their mirror images; in brackets grey levels apart (root mean square at "
        f"{COMPARED_SIDE} x {COMPARED_SIDE} px)"
    )
    return [Gallery(tiles, caption, "medium")]


def _picture(node: Node, context: Context) -> list[Block]:
    """A grid of seeds, or the strip of an interpolation."""
    path = node.path / "strip.png" if node.path.is_dir() else node.path
    picture = Picture(np.array(decode_image(path.read_bytes())))
    return [_facts(node), Gallery([Tile(picture, f"picture {path.name}: {node.summary}", node.summary)], "", "maps")]
