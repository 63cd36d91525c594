"""`brics bench eval`: what a FID and all metrics cost beside the networks' forwards, the Fréchet step, and memory.

Published weights are used where they are there; otherwise networks of the same architecture with random weights: the
arithmetic, and so the time, is the same. N images, D features.
"""

from __future__ import annotations

import logging
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor, nn

from brics_cli.bench.timing import Report, Table, device_name, median_seconds
from brics_cli.evaluation.family import SIDES, Context, Score
from brics_cli.evaluation.frechet import NUM_GROUPS, frechet_distance
from brics_cli.evaluation.measuring import Input, Measurement
from brics_cli.evaluation.moments import FeatureMoments, Gaussian
from brics_cli.evaluation.pairing import Pairing
from brics_cli.evaluation.registry import REGISTRY, Settings, network_of
from brics_cli.evaluation.selection import Chosen
from brics_cli.evaluation.statistics import SavedStatistics
from brics_cli.images import open_collection
from brics_cli.images.loader import CollectionStream, default_num_workers
from brics_cli.images.photographs import PHOTOGRAPHS
from brics_cli.networks.clip import ClipFeatures
from brics_cli.networks.features import FeatureNetwork, load_network
from brics_cli.networks.inception import InceptionFeatures, fid_inception
from brics_cli.networks.weights import find
from brics_cli.runtime.reporting import Reporter, SilentReporter

SIDE = 256
BATCH_SIZE = 32
NUM_FEATURES = 2048


@dataclass(frozen=True)
class Row:
    """One measurement: ours, what it is measured against, and the ratio that must hold."""

    what: str
    unit: str
    ours: float
    beside: float
    beside_name: str
    ratio: float
    bar: str


def bench_evaluate(*, num_images: int, memory_images: int, device: torch.device, reporter: Reporter) -> Report:
    """Every row of the table. `memory_images`: for the peak memory of gathering features."""
    with tempfile.TemporaryDirectory(prefix="brics-bench-") as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own, and of random weights: none is about what is measured
        fake, real = Path(directory) / "images", Path(directory) / "real"
        write_images(fake, num_images, seed=0)
        # The real side is the larger one, so that KID has subsets to draw, as many as it has by default.
        write_images(real, -(-num_images * 5 // 4), seed=1)
        reporter.message("building networks of the published architectures")
        networks = _networks(device)
        steps: list[Callable[[], Row]] = [
            frechet_step,
            lambda: gathering_memory(memory_images),
            lambda: _fid(fake, num_images, networks, device, reporter),
            lambda: _all_metrics(fake, real, networks, device),
        ]
        rows: list[Row] = []
        with reporter.task("bench eval", total=len(steps), unit="step") as task:
            for step in steps:
                rows.append(step())
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

    folder.mkdir(exist_ok=True)
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


def measure(
    metrics: Sequence[str],
    *,
    real: Path | Gaussian,
    fake: Path,
    networks: Mapping[str, FeatureNetwork],
    device: torch.device,
) -> list[Score]:
    """The figures of a folder against another, or against known moments, in one pass as `brics eval` makes it."""
    sides: dict[str, Input] = {}
    for side, source in zip(SIDES, (real, fake), strict=True):
        if isinstance(source, Gaussian):
            sides[side] = SavedStatistics("moments", source, "", None, None, None)
        else:
            collection = open_collection(source)
            sides[side] = CollectionStream(
                collection, transform=None, size=None, batch_size=BATCH_SIZE, num_workers=None
            )
    chosen = [Chosen(REGISTRY[name], network_of(REGISTRY[name], Settings()), None) for name in metrics]
    with ThreadPoolExecutor(default_num_workers()) as pool:
        context = Context(Settings(), device, pool, SilentReporter(), BATCH_SIZE, use_cache=False)
        unpaired = Pairing([], [], *(list(range(len(source))) for source in sides.values()))
        used = {each.network: networks[each.network] for each in chosen if each.network is not None}
        with closing(Measurement(sides, unpaired, chosen, used, context)) as measurement:  # type: ignore[arg-type]
            measurement.run()
            return [measurement.family(each).result(each.metric) for each in chosen]


def frechet_step() -> Row:
    """Ours and scipy's matrix root on the same two covariances of full rank."""
    import scipy.linalg

    generator = np.random.default_rng(0)
    sides = []
    for _ in range(2):
        factor = generator.normal(size=(NUM_FEATURES, NUM_FEATURES)) / np.sqrt(NUM_FEATURES)
        covariance = factor @ factor.T + 0.01 * np.eye(NUM_FEATURES)
        sides.append(Gaussian(generator.normal(size=NUM_FEATURES), covariance, num=5 * NUM_FEATURES))
    start = time.perf_counter()
    frechet_distance(*sides)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    scipy.linalg.sqrtm(sides[0].covariance @ sides[1].covariance)
    theirs = time.perf_counter() - start
    return Row("Fréchet step, 2,048 features", "s", ours, theirs, "scipy's sqrtm", theirs / ours, ">= 5x")


def gathering_memory(num_images: int) -> Row:
    """Peak memory of a FID's features, above what was there: gathered as moments, for distance and error bar, against
    storing them for numpy's mean and covariance."""

    def batches() -> Iterator[np.ndarray]:
        generator = np.random.default_rng(0)
        for start in range(0, num_images, BATCH_SIZE):
            yield generator.random((min(BATCH_SIZE, num_images - start), NUM_FEATURES), dtype=np.float32)

    def ours() -> None:
        moments = FeatureMoments(NUM_FEATURES, num_groups=NUM_GROUPS)
        for batch in batches():
            moments.update(batch)
        _ = moments.gaussian(), moments.gaussian(without=0)

    def theirs() -> None:
        rows = np.concatenate(list(batches()))
        _ = np.mean(rows, axis=0), np.cov(rows, rowvar=False)

    peaks = []
    for work in (ours, theirs):
        tracemalloc.start()
        work()
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    what = f"peak memory of the moments of {num_images:,} images"
    return Row(what, "MiB", peaks[0], peaks[1], "stored features", peaks[1] / peaks[0], ">= 2.5x")


def _fid(
    folder: Path, num_images: int, networks: Mapping[str, FeatureNetwork], device: torch.device, reporter: Reporter
) -> Row:
    """One FID of the folder against fixed moments, from files to figure and error bar, beside the network alone."""
    reference = FeatureMoments(NUM_FEATURES)
    reference.update(np.random.default_rng(0).random((NUM_FEATURES + 100, NUM_FEATURES)))
    start = time.perf_counter()
    (score,) = measure(["fid"], real=reference.gaussian(), fake=folder, networks=networks, device=device)
    ours = time.perf_counter() - start
    reporter.message(f"FID {score.value:.6g}, standard error {score.standard_error or 0.0:.3g}")
    alone = _forward_seconds(networks["inception-clean"], folder, device) * num_images
    what = f"FID of {num_images:,} images of {SIDE} px"
    return Row(what, "img/s", num_images / ours, num_images / alone, "the network alone", alone / ours, ">= 0.85x")


def _all_metrics(fake: Path, real: Path, networks: Mapping[str, FeatureNetwork], device: torch.device) -> Row:
    """FID, KID, precision, recall and CLIP-FID of one folder against another, from files to figures, beside the
    networks' forwards of the same images alone."""
    names = ("fid", "kid", "precision", "recall", "clip-fid")
    start = time.perf_counter()
    measure(names, real=real, fake=fake, networks=networks, device=device)
    total = time.perf_counter() - start
    num_images = sum(len(list(folder.iterdir())) for folder in (real, fake))
    forwards = sum(_forward_seconds(network, fake, device) for network in networks.values()) * num_images
    what = f"FID, KID, P/R, CLIP-FID of {num_images:,} images, over the networks' forwards alone"
    return Row(what, "s", total, forwards, "forwards alone", total / forwards, "<= 1.15x")


def _forward_seconds(network: FeatureNetwork, folder: Path, device: torch.device) -> float:
    """Seconds per image of the network alone, its input ready."""
    files = sorted(folder.iterdir())[:BATCH_SIZE]
    prepared = [network.prepare(np.asarray(Image.open(file).convert("RGB"))) for file in files]
    seconds = median_seconds(lambda: network.of_prepared(prepared), device=device, repeats=3, warmup=1)
    return seconds / len(prepared)


def _networks(device: torch.device) -> dict[str, FeatureNetwork]:
    """Inception and CLIP on `device`."""
    found = {key: find(weights) for key, weights in (("inception-clean", "inception"), ("clip", "clip-vit-b-32"))}
    networks = {key: load_network(key, at.path, device=device) for key, at in found.items() if at is not None}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if "inception-clean" not in networks:
            networks["inception-clean"] = InceptionFeatures(_RandomInception(), device, resize_inside=False)
        if "clip" not in networks:
            logging.getLogger().setLevel(logging.ERROR)  # open_clip warns of the random weights that are wanted
            model = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None, precision="fp32", device=device)
            model.visual.image_mean, model.visual.image_std = (
                open_clip.OPENAI_DATASET_MEAN,
                open_clip.OPENAI_DATASET_STD,
            )
            networks["clip"] = ClipFeatures(model, device)
    return networks


class _RandomInception(nn.Module):
    """Inception as clean-fid's wrapper has it: pixels of 0-255 -> 2048 features."""

    def __init__(self) -> None:
        super().__init__()
        self.base = fid_inception(init_weights=True)
        self.base.output, self.base.fc = self.base.fc, nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.base((pixels - 128) / 128)
        return features
