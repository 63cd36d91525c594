"""`brics bench encode`: does anything but the network hold `encode-dataset` up?

All of it runs (read, decode, crop, queue, quantise, write parts) with the network replaced by one that returns the
same codes for any image, against decoding and cropping alone, on as many threads, in the same process, in turn; and,
for a recipe, with that recipe's network on the device at hand. Where the collection is large enough that processes
decode it, decoding alone is measured in as many processes too, each with its files in memory.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage import data as photographs

from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.bench.timing import Report, Table, device_name, peak_process_mib
from brics_cli.codes import StoreHeader, StoreShard, StoreWriter
from brics_cli.codes.encoding import CodeEncoder, Network, ShardWork, encoding_network
from brics_cli.config import DEFAULT_TRANSFORM, AutoencoderRecipe, load_recipe
from brics_cli.config.names import Precision
from brics_cli.images import Collection, open_collection
from brics_cli.images.loader import default_num_workers, in_processes
from brics_cli.images.pixels import load_pixels
from brics_cli.runtime.device import place
from brics_cli.runtime.precision import precision_on
from brics_cli.runtime.reporting import TimeSplit
from brics_cli.workspace import Parent
from brics_cli.workspace.naming import Codec

SHARD_SIZE = 1000
SAMPLE = SHARD_SIZE
"""Images that are decoded for the figure they are compared with, each time: all the different ones there are."""


def bench_encode(
    *,
    num_images: int = 4000,
    width: int = 341,
    codec: Codec = "jpeg",
    size: int = 256,
    repeats: int = 3,
    recipe: str | None = None,
    device: torch.device,
    num_workers: int | None = None,
    precision: Precision | None = None,
    batch_size: int = 64,
) -> Report:
    """Encode `num_images` photographs of `width` x 3/4 `width` px at `size` px, `repeats` times.

    Codes are of 16 channels with a position per 8 x 8 px, and no more than 16 x 16 positions, as those of brics-64,
    brics-128 and brics-256 are. With a `recipe` (None: brics-256 on CUDA, else none) size and codes are the recipe's.
    At most SHARD_SIZE images are different ones: further shards are links to the same file, so that a long run needs no
    disk, and the files stay in the page cache.

    The value holds medians of the repeats. `ratio` is of pairs taken in turn: a machine's load changes while it is
    measured. `alone_*` are of threads; `processes_img_per_s` is of processes, None where the collection is too small
    for them. `encodings` are the last repeat's: without a network, and with that of the recipe, if any.
    """
    workers = num_workers or default_num_workers()
    networks: dict[str, Network] = {}
    code_shape = (16, min(16, size // 8), min(16, size // 8))
    recipe = recipe or ("brics-256" if device.type == "cuda" else None)
    if recipe is not None:
        loaded = load_recipe(recipe, kind="autoencoder")
        assert isinstance(loaded, AutoencoderRecipe)
        size, code_shape = loaded.model.image_size, loaded.model.code_shape
        autoencoder = place(build_autoencoder(loaded.model), device).eval().requires_grad_(False)
        precision = precision_on(device, precision)
        networks[f"{loaded.name}, {precision}, random weights"] = encoding_network(autoencoder, precision=precision)
    codes = torch.rand((batch_size, *code_shape), generator=torch.Generator().manual_seed(0)).to(device)
    networks = {"none": lambda pixels: codes[: len(pixels)], **networks}
    header = StoreHeader(
        code_shape=code_shape, image_size=size, transform=f"{DEFAULT_TRANSFORM}/bench", quantisation="uint8",
        source="bench", source_sha256="0" * 64, num_images=num_images, autoencoder={"sha256": "0" * 64, "config": {}},
    )  # fmt: skip
    ratios, alone, alone_cpu_us, by_processes, pipeline = [], [], [], [], []
    with tempfile.TemporaryDirectory(prefix="brics-bench-") as folder:
        write_shards(Path(folder, "shards"), num_images=num_images, width=width, codec=codec)
        collection = open_collection(Path(folder, "shards"))
        sample = collection.first(SAMPLE)
        files = [raw.data for shard in range(len(sample.shards)) for raw in sample.iter_shard(shard)]
        processes = in_processes(num_images, transform=DEFAULT_TRANSFORM, size=size, num_workers=workers)
        _decode_alone(files, size=size, workers=workers)  # warms up
        before, _ = _decode_alone(files, size=size, workers=workers)
        for _ in range(repeats):
            encodings = []
            for name, network in networks.items():
                encoder = CodeEncoder(network, header, device=device, made_by="bench")
                encodings.append(
                    encode_collection(collection, encoder, Path(folder, "codes.h5"), name, workers, batch_size)
                )
                if name == "none":
                    after, cpu_us = _decode_alone(files, size=size, workers=workers)
                    ratios.append(encodings[0]["img_per_s"] / statistics.mean([before, after]))
                    before = after
            if processes:
                by_processes.append(_decode_in_processes(files, size=size, num_processes=workers))
            alone.append(after)
            alone_cpu_us.append(cpu_us)
            pipeline.append(encodings[0]["img_per_s"])
    value = {
        "device": device_name(device),
        "num_images": num_images,
        "size": size,
        "num_workers": workers,
        "alone_img_per_s": statistics.median(alone),
        "alone_cpu_us_per_img": statistics.median(alone_cpu_us),
        "processes_img_per_s": statistics.median(by_processes) if by_processes else None,
        "pipeline_img_per_s": statistics.median(pipeline),
        "ratio": statistics.median(ratios),
        "encodings": encodings,
    }
    return Report(value, [_table(value, f"{codec} images of {width} x {width * 3 // 4} px")])


def _table(found: dict[str, Any], images: str) -> Table:
    alone, processes = found["alone_img_per_s"], found["processes_img_per_s"]
    title = (
        f"{found['num_images']:,} {images} at {found['size']} px, {found['num_workers']} decoding "
        f"{'threads' if processes is None else 'processes'}, on {found['device']}"
    )
    table = Table(title, ["", "img/s", "of decode + crop", "CPU µs/img", "time", "merge s", "peak MiB", "at 10%"])
    cpu = f"{found['alone_cpu_us_per_img']:,.0f}"
    table.rows.append(["decode + crop alone, threads", f"{alone:,.0f}", "1.00", cpu, "", "", "", ""])
    if processes is not None:
        cells = ["decode + crop alone, processes", f"{processes:,.0f}", f"{processes / alone:.2f}"]
        table.rows.append([*cells, "", "", "", "", ""])
    for each in found["encodings"]:
        plain = each["network"] == "none"
        table.rows.append([
            "encode-dataset, no network" if plain else f"encode-dataset, {each['network']}",
            f"{found['pipeline_img_per_s'] if plain else each['img_per_s']:,.0f}",
            f"{found['ratio']:.2f}" if plain else "",
            f"{each['cpu_us_per_img']:,.0f}",
            each["split"],
            f"{each['merge_s']:.2f}",
            f"{each['peak_mib']:,.0f}",
            f"{each['early_peak_mib']:,.0f}",
        ])  # fmt: skip
    return table


def write_shards(folder: Path, *, num_images: int, width: int, codec: Codec = "jpeg") -> None:
    """WebDataset shards of crops of the bundled photographs, in `codec`."""
    folder.mkdir(parents=True)
    height = width * 3 // 4
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
            crop.save(buffer, codec, quality=90)
            member = tarfile.TarInfo(f"{number:06d}.{'jpg' if codec == 'jpeg' else codec}")
            member.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(member, buffer)
    for shard in range(1, -(-num_images // SHARD_SIZE)):
        os.link(first, folder / f"{shard:06d}.tar")


def _decode_alone(files: list[bytes], *, size: int, workers: int) -> tuple[float, float]:
    """Images per second, and microseconds of CPU per image, of `workers` threads that decode and crop files in memory,
    each its share, and no more."""

    def work(share: list[bytes]) -> None:
        for data in share:
            load_pixels(data, transform=DEFAULT_TRANSFORM, size=size)

    with ThreadPoolExecutor(workers) as pool:
        start, cpu_start = time.perf_counter(), time.process_time()
        list(pool.map(work, [files[worker::workers] for worker in range(workers)]))
        seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    return len(files) / seconds, 1e6 * cpu_s / len(files)


_held: tuple[list[bytes], int, Barrier]
"""The files, the size and the barrier of a process that decodes alone."""


def _decode_in_processes(files: list[bytes], *, size: int, num_processes: int) -> float:
    """Images per second of processes that have the files in memory already."""
    context = multiprocessing.get_context("spawn")
    shares = [(worker, num_processes) for worker in range(num_processes)]
    with context.Pool(num_processes, _hold, (files, size, context.Barrier(num_processes))) as pool:
        pool.map(_decode_share, shares, chunksize=1)  # starts and warms up
        start = time.perf_counter()
        pool.map(_decode_share, shares, chunksize=1)
        return len(files) / (time.perf_counter() - start)


def _hold(*held: Any) -> None:
    global _held
    _held = held


def _decode_share(share: tuple[int, int]) -> None:
    """Decode every n-th file, one share per process: each waits for the others before it begins."""
    (files, size, together), (first, step) = _held, share
    together.wait()
    for data in files[first::step]:
        load_pixels(data, transform=DEFAULT_TRANSFORM, size=size)


def encode_collection(
    collection: Collection, encoder: CodeEncoder, out: Path, name: str, num_workers: int, batch_size: int
) -> dict[str, Any]:
    """As `jobs.encode_dataset` does it: parts shard by shard, then the merge, timed apart: it is no part of a rate.

    `early_peak_mib` is the peak of the process' memory after the first tenth of the images, `peak_mib` at the end;
    `split` is where the time went: waiting for images, computing, writing.
    """
    header, split = encoder.header, TimeSplit()
    shards = [StoreShard(shard.name, shard.num_images, shard.size_bytes, shard.layout) for shard in collection.shards]
    num_read, early = 0, 0.0
    with StoreWriter(out, header, shards) as writer:
        work = ShardWork(collection, header, shards, writer.parts_directory, batch_size, num_workers)
        start, cpu_start = time.perf_counter(), sum(os.times()[:4])  # of this process and its ended children
        for progress in work.encode(writer.pending, encoder):
            split.add(progress.seconds)
            num_read += progress.num_read
            if not early and 10 * num_read >= header.num_images:
                early = peak_process_mib()
        seconds, cpu_s = time.perf_counter() - start, sum(os.times()[:4]) - cpu_start
        writer.merge(parents=(Parent("autoencoder", "bench", "0" * 64),))
        merge_s = time.perf_counter() - start - seconds
    out.unlink()
    return {
        "network": name,
        "img_per_s": num_read / seconds,
        "cpu_us_per_img": 1e6 * cpu_s / num_read,
        "merge_s": merge_s,
        "split": str(split),
        "early_peak_mib": early,
        "peak_mib": peak_process_mib(),
    }
