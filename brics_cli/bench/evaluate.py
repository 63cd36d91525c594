"""`brics bench eval`: what a FID and all metrics cost beside the networks' forwards, the Fréchet step, and memory.

Published weights are used where they are there; otherwise networks of the same architecture with random weights: the
arithmetic, and so the time, is the same. N images, D features.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from brics_cli.bench.evaluation_networks import Networks, standin_networks
from brics_cli.bench.evaluation_numerics import BATCH_SIZE, NUM_FEATURES, Row, frechet_step, gathering_memory
from brics_cli.bench.timing import Report, Table, device_name, median_seconds
from brics_cli.evaluation.extraction import Extraction, Gathering
from brics_cli.evaluation.frechet import frechet_distance
from brics_cli.evaluation.jackknife import NUM_GROUPS, frechet_standard_error
from brics_cli.evaluation.moments import FeatureMoments
from brics_cli.evaluation.registry import REGISTRY, Settings
from brics_cli.evaluation.scores import SetScorer
from brics_cli.images import open_collection
from brics_cli.images.loader import default_num_workers
from brics_cli.images.photographs import PHOTOGRAPHS
from brics_cli.images.reading import CollectionStream
from brics_cli.networks.features import FeatureNetwork
from brics_cli.runtime.reporting import Reporter

SIDE = 256


def bench_evaluate(*, num_images: int, memory_images: int, device: torch.device, reporter: Reporter) -> Report:
    """Every row of the table. `memory_images`: for the peak memory of gathering features."""
    with tempfile.TemporaryDirectory(prefix="brics-bench-") as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own, and of random weights: none is about what is measured
        folder = Path(directory) / "images"
        folder.mkdir()
        write_images(folder, num_images, seed=0)
        (Path(directory) / "real").mkdir()
        write_images(Path(directory) / "real", -(-num_images * 5 // 4), seed=1)
        reporter.message("building networks of the published architectures")
        networks = standin_networks(Path(directory), device=device)
        steps: list[Callable[[], Sequence[Row]]] = [
            frechet_step,
            lambda: gathering_memory(memory_images),
            lambda: _fid(folder, num_images, networks, device, reporter),
            lambda: _all_metrics(folder, Path(directory) / "real", networks, device),
        ]
        rows: list[Row] = []
        with reporter.task("bench eval", total=len(steps), unit="step") as task:
            for step in steps:
                rows += step()
                task.advance()
    name = device_name(device)
    table = Table(f"brics bench eval, on {name}", ["measured", "brics", "beside", "is", "ratio", "bar"])
    for row in rows:
        ours, beside = (f"{value:,.2f} {row.unit}" for value in (row.ours, row.beside))
        table.rows.append([row.what, ours, beside, row.beside_name, f"{row.ratio:.2f}x", row.bar])
    return Report({"device": name, "rows": [asdict(row) for row in rows]}, [table])


def write_images(folder: Path, num_images: int, *, seed: int) -> None:
    """Crops of SIDE px of the bundled photographs, at places drawn with `seed`, as PNG."""
    import skimage.data

    generator = np.random.default_rng(seed)
    photographs = []
    for name in PHOTOGRAPHS:
        loaded = getattr(skimage.data, name)()
        pixels = np.asarray(loaded[0] if isinstance(loaded, tuple) else loaded)[..., :3]
        if pixels.ndim == 3 and min(pixels.shape[:2]) >= SIDE:
            photographs.append(pixels)
    for number in range(num_images):
        pixels = photographs[number % len(photographs)]
        top, left = (int(generator.integers(0, extent - SIDE + 1)) for extent in pixels.shape[:2])
        crop = np.ascontiguousarray(pixels[top : top + SIDE, left : left + SIDE])
        Image.fromarray(crop).save(folder / f"{number:06d}.png")


def _fid(folder: Path, num_images: int, networks: Networks, device: torch.device, reporter: Reporter) -> list[Row]:
    """One FID of the folder against fixed statistics, from files to figure and error bar, beside the network alone."""
    reference = FeatureMoments(NUM_FEATURES)
    reference.update(np.random.default_rng(0).random((NUM_FEATURES + 100, NUM_FEATURES)))
    start = time.perf_counter()
    with ThreadPoolExecutor(default_num_workers()) as pool:
        moments = gather(folder, [networks.inception], device, pool, num_groups=NUM_GROUPS)[
            networks.inception.key
        ].moments
        value, error = frechet_distance(reference, moments), frechet_standard_error(reference, moments)
    ours = time.perf_counter() - start
    reporter.message(f"FID {value:.6g}, standard error {error or 0.0:.3g}")
    alone = _forward_seconds(networks.inception, folder, device) * num_images
    what = f"FID of {num_images:,} images of {SIDE} px"
    return [Row(what, "img/s", num_images / ours, num_images / alone, "the network alone", alone / ours, ">= 0.85x")]


def _all_metrics(fake: Path, real: Path, networks: Networks, device: torch.device) -> list[Row]:
    """FID, KID, precision, recall and CLIP-FID of one folder against another, from files to figures, beside the
    networks' forwards of the same images alone.

    The real side is the larger one, so that KID has subsets to draw, as many as it has by default.
    """
    both = {"inception": networks.inception, "clip": networks.clip}
    names = {"inception": ("fid", "kid", "precision", "recall"), "clip": ("clip-fid",)}
    start = time.perf_counter()
    with ThreadPoolExecutor(default_num_workers()) as pool:
        of_real, of_fake = (
            gather(folder, list(both.values()), device, pool, num_groups=num_groups, rows_of=networks.inception)
            for folder, num_groups in ((real, 1), (fake, NUM_GROUPS))
        )
        for name, network in both.items():
            sides = of_real[network.key].result(), of_fake[network.key].result()
            scorer = SetScorer(*sides, network, settings=Settings(), device=device)
            for metric in names[name]:
                scorer.score(REGISTRY[metric])
    total = time.perf_counter() - start
    num_images = sum(gatherings[networks.clip.key].moments.num for gatherings in (of_real, of_fake))
    for gathering in (*of_real.values(), *of_fake.values()):
        gathering.close()
    forwards = sum(_forward_seconds(network, fake, device) for network in both.values()) * num_images
    what = f"FID, KID, P/R, CLIP-FID of {num_images:,} images, over the networks' forwards alone"
    return [Row(what, "s", total, forwards, "forwards alone", total / forwards, "<= 1.15x")]


def _forward_seconds(network: FeatureNetwork, folder: Path, device: torch.device) -> float:
    """Seconds per image of the network alone, its input ready."""
    files = sorted(folder.iterdir())[:BATCH_SIZE]
    prepared = [network.prepare(np.asarray(Image.open(file).convert("RGB"))) for file in files]
    seconds = median_seconds(lambda: network.of_prepared(prepared), device=device, repeats=3, warmup=1)
    return seconds / len(prepared)


def gather(
    folder: Path,
    networks: Sequence[FeatureNetwork],
    device: torch.device,
    pool: ThreadPoolExecutor,
    *,
    num_groups: int = 1,
    rows_of: FeatureNetwork | None = None,
) -> dict[str, Gathering]:
    """One pass over the folder, as `brics eval` makes it; the rows of `rows_of` are kept as well."""
    stream = CollectionStream(
        open_collection(folder), transform=None, size=None, batch_size=BATCH_SIZE, num_workers=None
    )
    gatherings = {
        network.key: Gathering(
            network,
            name_of=lambda position: stream.keys[position],
            keep_rows=network is rows_of,
            num_groups=num_groups,
        )
        for network in networks
    }
    extraction = Extraction({(key, "fake"): gathering for key, gathering in gatherings.items()}, pool)
    start = 0
    for batch in stream.read():
        extraction.add("fake", batch, list(range(start, start + len(batch))))
        start += len(batch)
    extraction.drain()
    return gatherings
