"""Key codes: what they cost, how they are distributed, what they look like. Codes (N, C, h, w)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brics_cli.codes import KeyCodeStore
from brics_cli.codes.format import bin_edges
from brics_cli.evaluation.registry import REGISTRY
from brics_cli.images.pixels import ImageError, load_pixels
from brics_cli.images.selection import spread
from brics_cli.report.blocks import Block, Chapter, Facts, Gallery, Note, Plot, Plots, Section, Table, Tile, newest_note
from brics_cli.report.context import Context
from brics_cli.report.gathering import Node
from brics_cli.report.pictures import Pixels, picture_of, side_by_side
from brics_cli.report.plots import Series, line_plot, map_plot
from brics_cli.report.scores import figure
from brics_cli.wording import count, human_bytes
from brics_cli.workspace.naming import is_store

DETAILED = 6
"""Stores that have a section of their own: the newest."""
MOST_ROWS = 512
"""Images whose codes are read for spectra and components."""
NUM_MAPS = 12
NUM_FAILURES = 10
MAP_BINS = 64
SHOWN_SIDE = 64
VIV = {"viv": "of the store itself", "viv-local": "of single positions", "viv-linear": "of a linear denoiser"}
"""Figures of diffusability that have a curve over noise levels."""


def chapter(context: Context) -> Chapter:
    """All key-code stores, and latents that were exported."""
    stores = context.gathered.of("codes")
    made = Chapter("codes", "Key codes")
    if not stores:
        return made
    made.lead = "What the autoencoder keeps of each image, and what a diffusion model learns."
    made.blocks += newest_note(stores, DETAILED, "stores")
    for node in stores[:DETAILED]:
        section = Section(node.id, node.name, node.summary)
        if is_store(node.path):
            section.blocks += context.attempt(str(node.path), [], _blocks, node, context)
        else:
            rows = [(name.replace("_", " "), value) for name, value in node.details.items() if name != "settings"]
            section.blocks.append(Facts([("path", node.path), *rows]))
        made.sections.append(section)
    return made


def _blocks(node: Node, context: Context) -> list[Block]:
    store = context.store(node.path)
    channels, height, width = store.code_shape
    num_bytes = int(np.prod(store.code_shape)) * store.raw(slice(0, 0)).itemsize
    facts: list[tuple[str, Any]] = [
        ("path", node.path),
        ("images", f"{len(store):,}" + (", and their mirror images" if store.has_flipped else "")),
        ("codes", f"{channels} channels of {height} x {width}, {store.quantisation}"),
        ("bytes", f"{human_bytes(store.num_bytes)}; {num_bytes:,} for the codes of an image"),
        ("rate", f"{8 * num_bytes / store.image_size**2:.3g} bits per pixel at {store.image_size} px"),
        ("encoded by", f"{store.transform}/{store.transform_version}, {store.precision}"),
    ]
    blocks: list[Block] = [Facts(facts)]
    if store.failures:
        rows = [[each["key"], each["reason"]] for each in store.failures[:NUM_FAILURES]]
        more = f", the first {NUM_FAILURES}" if len(store.failures) > NUM_FAILURES else ""
        blocks.append(
            Table(["image", "why"], rows, f"{count(len(store.failures), 'image')} could not be encoded{more}")
        )
    if not len(store):
        return [*blocks, Note("It holds no codes.", warning=True)]
    rows_read = spread(len(store), MOST_ROWS)
    codes = store.batch(rows_read)  # (B, C, h, w)
    of = f"all {len(store):,}" if len(rows_read) == len(store) else f"a sample of {len(rows_read):,} of {len(store):,}"
    plots = [_histogram(store)]
    originals = _originals(store, node, context)
    if min(height, width) > 1:
        plots.append(_spectrum(codes, list(originals.values()), of))
    blocks.append(Plots(plots))
    blocks += _components(store, codes, of, originals)
    what = f"what was measured of {node.path}"
    return blocks + context.attempt(what, list[Block](), _measured, node, context)


def _measured(node: Node, context: Context) -> list[Block]:
    """The figures of reports that are of codes themselves, and the curves behind those of diffusability."""
    results: dict[str, dict[str, Any]] = {}
    for report in reversed(context.reports):  # the newest counts
        for name, result in report.loaded.results.items():
            known = REGISTRY.get(name)
            of_codes = known is not None and known.one_sided and known.inputs == "reconstructions"
            if of_codes and Path(str(result["fake"])).resolve() == node.path.resolve():
                results[name] = result
    if not results:
        return []
    rows = [[str(each["title"]), figure(each), str(each["definition"])] for each in results.values()]
    plots = curves_of_diffusability(results)
    table = Table(["figure", "value", "definition"], rows, "Measured of these codes by brics eval")
    return [table, Plots(plots)] if plots else [table]


def curves_of_diffusability(results: Mapping[str, Mapping[str, Any]]) -> list[Plot]:
    """What `details` of results hold as curves: spectra, and the velocity's irreducible variance by noise level."""
    plots = []
    spectra = (results.get("spectrum-excess") or {}).get("details")
    if spectra:
        series = []
        for number, (key, name) in enumerate((("codes", "codes"), ("images", "images at the size of the codes"))):
            energy = np.array(spectra[key], float)
            series.append(Series(name, np.arange(1, len(energy) + 1) / len(energy), energy, number))
        title = "Spectrum in zigzag order"
        plots.append(line_plot(title, series, x_label="frequency, of the highest", log_y=True, key=True))
    series = []
    for name, said in VIV.items():
        if curve := (results.get(name) or {}).get("details"):
            t, values, errors = (np.array(curve[key], float) for key in ("t", "viv", "errors"))
            series.append(Series(said, t, values, len(series), errors=errors))
    if series:
        title = "Irreducible variance of the velocity"
        plots.append(line_plot(title, series, x_label="t, 1 is noise", log_y=False, key=True))
    return plots


def _histogram(store: KeyCodeStore) -> Plot:
    """A row per channel: how often each value occurs. Every code of the store is counted."""
    counts, (low, high) = store.histogram.astype(float), bin_edges(store.code_kind)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # (C, bins)
    entropy = -(share * np.log2(np.maximum(share, 1e-300))).sum(axis=1)
    ends = share[:, 0], share[:, -1]
    rows = [
        [f"{channel}", f"{store.mean[channel]:.4f}", f"{store.std[channel]:.4f}", f"{ends[0][channel]:.2%}",
         f"{ends[1][channel]:.2%}", f"{entropy[channel]:.2f}"]
        for channel in range(len(share))
    ]  # fmt: skip
    grouped = share.reshape(len(share), MAP_BINS, -1).sum(axis=2)
    saturated = float((ends[0] + ends[1]).mean())
    kept = f"{saturated:.1%} of values are in the lowest or the highest bin; {entropy.mean():.2f} bits of entropy each"
    return map_plot(
        "Values of each channel",
        np.sqrt(grouped / grouped.max()),
        extent=(low, high),
        x_label="code",
        y_label="channel",
        alt=f"How often each value occurs in each of {len(share)} channels, over all {len(store):,} images: {kept}.",
        head=["channel", "mean", "standard deviation", f"at {low:g}", f"at {high:g}", "entropy, bits"],
        rows=rows,
        note=f"All {len(store):,} images; brighter is more often. {kept}.",
    )


def _spectrum(codes: NDArray[np.floating], originals: list[Pixels], of: str) -> Plot:
    """Mean energy of the 2D-DCT by radial frequency, of channels with unit variance; of images at the codes' size."""
    lines = [_radial(codes)]
    names = ["codes"]
    if originals:
        from PIL import Image

        size, box = (codes.shape[3], codes.shape[2]), Image.Resampling.BOX
        small = np.stack([np.asarray(Image.fromarray(image).resize(size, box)) for image in originals])
        lines.append(_radial(small.transpose(0, 3, 1, 2).astype(np.float32)))
        names.append("images at the size of the codes")
    series = [Series(name, x, y, number) for number, (name, (x, y)) in enumerate(zip(names, lines, strict=True))]
    beside = f"; beside them {count(len(originals), 'image')}" if originals else ""
    return line_plot(
        "Spectrum",
        series,
        x_label="frequency, cycles over two widths",
        log_y=True,
        shows="Mean energy of the discrete cosine transform",
        key=True,
        note=f"Codes of {of} images{beside}. Flat is noise; images fall.",
    )


def _radial(maps: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """(B, C, h, w) -> radial frequencies from 1 on, and the mean energy of the coefficients there."""
    from scipy.fft import dctn

    centred = maps - maps.mean(axis=(0, 2, 3), keepdims=True)
    centred = centred / np.maximum(maps.std(axis=(0, 2, 3), keepdims=True), 1e-6)
    energy = (dctn(centred, axes=(2, 3), norm="ortho") ** 2).mean(axis=(0, 1))  # (h, w)
    y, x = np.indices(energy.shape)
    radius = np.sqrt(x**2 + y**2).round().astype(int)
    last = min(energy.shape) - 1
    return np.arange(1, last + 1, dtype=float), np.array([energy[radius == r].mean() for r in range(1, last + 1)])


def _originals(store: KeyCodeStore, node: Node, context: Context) -> dict[int, Pixels]:
    """The images of a few rows as they were encoded, by row; none where the collection is gone."""
    looked = context.looked(node.ancestor("collection"))
    if looked is None:
        return {}
    from brics_cli.evaluation.pairing import match_keys

    wanted = spread(len(store), NUM_MAPS)
    pairing = match_keys(list(looked.collection.keys()), [store.keys[row] for row in wanted])
    found = {}
    for position, at in zip(pairing.real, pairing.fake, strict=True):
        ((shard, index),) = looked.collection.places([position])
        try:
            data = looked.collection.read(shard, index).data
            found[wanted[at]] = load_pixels(data, transform=store.transform, size=store.image_size)
        except ImageError:
            continue
    return dict(sorted(found.items()))


def _components(store: KeyCodeStore, codes: NDArray[np.floating], of: str, originals: dict[int, Pixels]) -> list[Block]:
    """The first three principal components of the codes at every position, as red, green and blue."""
    vectors = codes.transpose(0, 2, 3, 1).reshape(-1, codes.shape[1]).astype(np.float64)  # (B h w, C)
    mean = vectors.mean(axis=0)
    values, basis = np.linalg.eigh(np.cov(vectors - mean, rowvar=False).reshape(len(mean), len(mean)))
    num = min(3, len(mean))
    basis, explained = basis[:, ::-1][:, :num], values[::-1][:num] / max(values.sum(), 1e-12)
    projected = (vectors - mean) @ basis
    low, high = np.quantile(projected, 0.02, axis=0), np.quantile(projected, 0.98, axis=0)
    effective = values.sum() ** 2 / max((values**2).sum(), 1e-12)
    rows = list(originals) or spread(len(store), NUM_MAPS)
    tiles = []
    for row, code in zip(rows, store.batch(rows), strict=True):  # (C, h, w)
        scaled = ((code.transpose(1, 2, 0) - mean) @ basis - low) / np.maximum(high - low, 1e-12)  # (h, w, 3)
        map_ = np.zeros((*scaled.shape[:2], 3), np.uint8)
        map_[..., :num] = (scaled.clip(0, 1) * 255).round().astype(np.uint8)
        key = store.keys[row]
        tiles.append(Tile(picture_of(_beside(map_, originals.get(row))), f"{key} and a map of its codes", key))
    shares = ", ".join(f"{share:.0%}" for share in explained)
    beside = "Images, and beside each its codes" if originals else "The codes of some images"
    caption = (
        f"{beside}: the first {num} principal components ({shares} of the variance, over {of} images) as red, green "
        f"and blue. Effective dimension {effective:.1f} of {len(mean)}"
    )
    return [Gallery(tiles, caption, "medium")]


def _beside(map_: Pixels, image: Pixels | None) -> Pixels:
    """A map, enlarged to about SHOWN_SIDE, beside the image at that size where there is one."""
    factor = max(1, SHOWN_SIDE // max(map_.shape[:2]))
    large = map_.repeat(factor, axis=0).repeat(factor, axis=1)
    if image is None:
        return large
    from PIL import Image

    size = (large.shape[1], large.shape[0])
    return side_by_side([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)), large], gap=2)
