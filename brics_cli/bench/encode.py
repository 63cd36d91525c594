"""`brics bench encode`: does anything but the network hold `encode-dataset` up?

All of it runs (read, decode, crop, queue, quantise, write parts) with the network replaced by one that returns the
same codes for any image, against decoding and cropping alone, on as many threads, in the same process, in turn; and,
for a recipe, with that recipe's network on the device at hand. Where the collection is large enough that processes
decode it, decoding alone is measured in as many processes too, each with its files in memory.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from skimage import data as photographs

from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.bench.timing import device_name
from brics_cli.codes import StoreHeader, StoreShard, StoreWriter
from brics_cli.codes.encoding import CodeEncoder, Network, ShardWork, encoding_network
from brics_cli.config import AutoencoderRecipe, load_recipe
from brics_cli.images import Collection, open_collection
from brics_cli.images.loader import default_num_workers, in_processes
from brics_cli.images.pixels import load_pixels
from brics_cli.runtime.precision import default_precision
from brics_cli.runtime.reporting import TimeSplit
from brics_cli.workspace import Parent

SHARD_SIZE = 1000
SAMPLE = SHARD_SIZE
"""Images that are decoded for the figure they are compared with, each time: all the different ones there are."""


@dataclass(frozen=True)
class Encoding:
    """One way through: images per second, and where the time went (`wait` for images, `compute`, `write`).

    `early_peak_mib` is the peak of the process' memory after the first tenth of the images, `peak_mib` at the end.
    """

    network: str
    img_per_s: float
    cpu_us_per_img: float
    merge_s: float
    split: str
    early_peak_mib: float
    peak_mib: float


@dataclass(frozen=True)
class EncodeBench:
    """Medians of the repeats. `ratio` is of pairs taken in turn: a machine's load changes while it is measured.

    `alone_*` are of threads; `processes_img_per_s` is of processes, None where the collection is too small for them.
    `encodings` are the last repeat's: without a network, and with that of the recipe, if any.
    """

    device: str
    num_images: int
    size: int
    num_workers: int
    alone_img_per_s: float
    alone_cpu_us_per_img: float
    processes_img_per_s: float | None
    pipeline_img_per_s: float
    ratio: float
    encodings: list[Encoding]


def bench_encode(
    *,
    num_images: int,
    width: int,
    height: int,
    file_format: str,
    size: int,
    repeats: int,
    recipe: str | None = None,
    device: torch.device,
    num_workers: int | None = None,
    batch_size: int = 64,
) -> EncodeBench:
    """Encode `num_images` photographs of `width` x `height` px at `size` px, `repeats` times.

    Codes are of 16 channels with a position per 8 x 8 px, and no more than 16 x 16 positions, as those of brics-64,
    brics-128 and brics-256 are. With a `recipe` size and codes are the recipe's. At most SHARD_SIZE images are
    different ones: further shards are links to the same file, so that a long run needs no disk, and the files stay in
    the page cache.
    """
    workers = num_workers or default_num_workers()
    networks: dict[str, Network] = {}
    code_shape = (16, min(16, size // 8), min(16, size // 8))
    if recipe is not None:
        loaded = load_recipe(recipe, kind="autoencoder")
        assert isinstance(loaded, AutoencoderRecipe)
        size, code_shape = loaded.model.image_size, loaded.model.code_shape
        autoencoder = build_autoencoder(loaded.model).to(device).eval().requires_grad_(False)
        precision = default_precision(device)
        networks[f"{loaded.name}, {precision}, random weights"] = encoding_network(autoencoder, precision=precision)
    codes = torch.rand((batch_size, *code_shape), generator=torch.Generator().manual_seed(0)).to(device)
    networks = {"none": lambda pixels: codes[: len(pixels)], **networks}
    header = StoreHeader(
        code_shape=code_shape, image_size=size, transform="crop-bicubic/bench", quantisation="uint8", source="bench",
        source_sha256="0" * 64, num_images=num_images, autoencoder={"sha256": "0" * 64, "config": {}},
    )  # fmt: skip
    ratios, alone, alone_cpu_us, by_processes, pipeline = [], [], [], [], []
    with tempfile.TemporaryDirectory(prefix="brics-bench-") as folder:
        write_shards(Path(folder, "shards"), num_images=num_images, width=width, height=height, file_format=file_format)
        collection = open_collection(Path(folder, "shards"))
        files = _read(collection.first(SAMPLE))
        processes = in_processes(num_images, transform="crop-bicubic", size=size, num_workers=workers)
        _decode_alone(files, size=size, workers=workers)  # warms up
        before, _ = _decode_alone(files, size=size, workers=workers)
        for _ in range(repeats):
            encodings = []
            for name, network in networks.items():
                encoder = CodeEncoder(network, header, device=device, made_by="bench")
                encodings.append(_encode(collection, encoder, Path(folder, "codes.h5"), name, workers, batch_size))
                if name == "none":
                    after, cpu_us = _decode_alone(files, size=size, workers=workers)
                    ratios.append(encodings[0].img_per_s / statistics.mean([before, after]))
                    before = after
            if processes:
                by_processes.append(_decode_in_processes(files, size=size, num_processes=workers))
            alone.append(after)
            alone_cpu_us.append(cpu_us)
            pipeline.append(encodings[0].img_per_s)
    return EncodeBench(
        device=device_name(device),
        num_images=num_images,
        size=size,
        num_workers=workers,
        alone_img_per_s=statistics.median(alone),
        alone_cpu_us_per_img=statistics.median(alone_cpu_us),
        processes_img_per_s=statistics.median(by_processes) if by_processes else None,
        pipeline_img_per_s=statistics.median(pipeline),
        ratio=statistics.median(ratios),
        encodings=encodings,
    )


def write_shards(folder: Path, *, num_images: int, width: int, height: int, file_format: str) -> None:
    """WebDataset shards of crops of the bundled photographs, as `file_format` (jpg or png)."""
    folder.mkdir(parents=True)
    sources = [photographs.astronaut(), photographs.coffee(), photographs.chelsea(), photographs.rocket()]
    generator = np.random.default_rng(0)
    first = folder / "000000.tar"
    with tarfile.open(first, "w") as tar:
        for number in range(min(num_images, SHARD_SIZE)):
            source = sources[number % len(sources)]
            crop_height = int(min(source.shape[0], source.shape[1] * height / width) * generator.uniform(0.5, 1))
            crop_width = int(crop_height * width / height)
            top = generator.integers(0, source.shape[0] - crop_height + 1)
            left = generator.integers(0, source.shape[1] - crop_width + 1)
            crop = Image.fromarray(source[top : top + crop_height, left : left + crop_width]).resize((width, height))
            buffer = BytesIO()
            crop.save(buffer, "JPEG" if file_format == "jpg" else "PNG", quality=90)
            member = tarfile.TarInfo(f"{number:06d}.{file_format}")
            member.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(member, buffer)
    for shard in range(1, -(-num_images // SHARD_SIZE)):
        os.link(first, folder / f"{shard:06d}.tar")


def _read(collection: Collection) -> list[bytes]:
    return [raw.data for shard in range(len(collection.shards)) for raw in collection.iter_shard(shard)]


def _decode_alone(files: list[bytes], *, size: int, workers: int) -> tuple[float, float]:
    """Images per second, and microseconds of CPU per image, of `workers` threads that decode and crop files in memory,
    each its share, and no more."""

    def work(share: list[bytes]) -> None:
        for data in share:
            load_pixels(data, transform="crop-bicubic", size=size)

    with ThreadPoolExecutor(workers) as pool:
        start, cpu_start = time.perf_counter(), time.process_time()
        list(pool.map(work, [files[worker::workers] for worker in range(workers)]))
        seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    return len(files) / seconds, 1e6 * cpu_s / len(files)


class _Held(NamedTuple):
    """What a process that decodes alone has in memory."""

    files: list[bytes]
    size: int
    together: Barrier


_held: _Held


def _decode_in_processes(files: list[bytes], *, size: int, num_processes: int) -> float:
    """Images per second of processes that have the files in memory already."""
    context = multiprocessing.get_context("spawn")
    shares = [(worker, num_processes) for worker in range(num_processes)]
    with context.Pool(num_processes, _hold, (files, size, context.Barrier(num_processes))) as pool:
        pool.map(_decode_share, shares, chunksize=1)  # starts and warms up
        start = time.perf_counter()
        pool.map(_decode_share, shares, chunksize=1)
        return len(files) / (time.perf_counter() - start)


def _hold(files: list[bytes], size: int, together: Barrier) -> None:
    global _held
    _held = _Held(files, size, together)


def _decode_share(share: tuple[int, int]) -> None:
    """Decode every n-th file, one share per process: each waits for the others before it begins."""
    _held.together.wait()
    first, step = share
    for data in _held.files[first::step]:
        load_pixels(data, transform="crop-bicubic", size=_held.size)


def _encode(
    collection: Collection, encoder: CodeEncoder, out: Path, name: str, num_workers: int, batch_size: int
) -> Encoding:
    """As `jobs.encode_dataset` does it: parts shard by shard, then the merge, timed apart: it is no part of a rate."""
    header, split = encoder.header, TimeSplit()
    shards = [StoreShard(shard.name, shard.num_images, shard.size_bytes, shard.layout) for shard in collection.shards]
    num_read, early = 0, 0.0
    with StoreWriter(out, header, shards) as writer:
        work = ShardWork(collection, header, shards, writer.parts_directory, "crop-bicubic", batch_size, num_workers)
        start, cpu_start = time.perf_counter(), _cpu_s()
        for progress in work.encode(writer.pending, encoder):
            split.add(progress.seconds)
            num_read += progress.num_read
            if not early and 10 * num_read >= header.num_images:
                early = peak_mib()
        seconds, cpu_s = time.perf_counter() - start, _cpu_s() - cpu_start
        writer.merge(parents=(Parent("autoencoder", "bench", "0" * 64),))
        merge_s = time.perf_counter() - start - seconds
    out.unlink()
    return Encoding(name, num_read / seconds, 1e6 * cpu_s / num_read, merge_s, str(split), early, peak_mib())


def _cpu_s() -> float:
    """CPU seconds of this process, and of those it started that have ended."""
    return sum(os.times()[:4])


def peak_mib() -> float:
    """The peak of this process' resident memory so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
