"""`brics bench store`: rows per second of a key-code store, written, and read in random batches.

Each way of reading takes its turn in every repeat, on the same random rows; a numpy.memmap of the same bytes is what
they are compared with.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from brics_cli.bench.timing import Report, Table, device_name
from brics_cli.codes import KeyCodeStore, StoreHeader, StoreShard, StoreWriter
from brics_cli.codes.dataset import KeyCodeDataset
from brics_cli.workspace import Parent

SHARD_SIZE = 1000
CODE_SHAPE = (16, 16, 16)
BATCHES = 100
"""Random batches per repeat."""


def bench_store(*, num_rows: int = 50_000, batch_size: int = 256, repeats: int = 5) -> Report:
    """Write and read a store of `num_rows` random uint8 codes (C, h, w), in the page cache, in a temporary folder.

    `write_rows_per_s` of the value counts parts, hashes, statistics, fsync and merge; `ratio` of each of `readings` is
    its rows per second over numpy.memmap's, the median of the repeats.
    """
    with tempfile.TemporaryDirectory(prefix="brics-bench-") as folder:
        path, raw = Path(folder, "codes.h5"), Path(folder, "codes.npy")
        write_rows_per_s = num_rows / _write(path, num_rows=num_rows)
        store = KeyCodeStore(path)
        plain = np.lib.format.open_memmap(raw, "w+", np.uint8, (num_rows, *CODE_SHAPE))
        for first in range(0, num_rows, SHARD_SIZE):
            plain[first : first + SHARD_SIZE] = store.raw(slice(first, first + SHARD_SIZE))
        mapped = np.lib.format.open_memmap(raw, "r")
        with h5py.File(path, "r") as file:
            codes = file["codes"]
            items = KeyCodeDataset(store)
            ways: dict[str, Callable[[np.ndarray], Any]] = {
                "numpy.memmap, uint8": lambda rows: mapped[rows],
                "KeyCodeStore.raw, uint8": store.raw,
                "KeyCodeStore.batch, float32": store.batch,
                "h5py, rows sorted, uint8": lambda rows: codes[np.unique(rows)],
                "as_dataset items, float32 and labels": lambda rows: items.__getitems__(rows.tolist()),
            }
            seconds: dict[str, list[float]] = {how: [] for how in ways}
            generator = np.random.default_rng(0)
            for repeat in range(repeats + 1):  # the first one warms up
                batches = [generator.integers(0, num_rows, batch_size) for _ in range(BATCHES)]
                for how, read in ways.items():
                    start = time.perf_counter()
                    for rows in batches:
                        read(rows)
                    if repeat:
                        seconds[how].append(time.perf_counter() - start)
    device, shape = device_name(torch.device("cpu")), " x ".join(map(str, CODE_SHAPE))
    title = f"{num_rows:,} rows of {shape} uint8, random batches of {batch_size}, warm, on {device}; "
    title += f"written at {write_rows_per_s:,.0f} rows/s"
    table, readings = Table(title, ["read by", "rows/s", "of numpy.memmap"]), []
    reference = seconds["numpy.memmap, uint8"]
    for how, taken in seconds.items():
        rows_per_s = BATCHES * batch_size / statistics.median(taken)
        ratio = statistics.median(base / each for base, each in zip(reference, taken, strict=True))
        readings.append({"how": how, "rows_per_s": rows_per_s, "ratio": ratio})
        table.rows.append([how, f"{rows_per_s:,.0f}", f"{ratio:.2f}"])
    value = {"device": device, "num_rows": num_rows, "code_shape": list(CODE_SHAPE), "batch_size": batch_size}
    return Report({**value, "write_rows_per_s": write_rows_per_s, "readings": readings}, [table])


def bench_header(num_rows: int) -> StoreHeader:
    """Of a store of so many codes that nothing encoded."""
    return StoreHeader(
        code_shape=CODE_SHAPE, image_size=256, transform="none/bench", quantisation="uint8", source="random",
        source_sha256="0" * 64, num_images=num_rows, autoencoder={"sha256": "0" * 64, "config": {}},
    )  # fmt: skip


def _write(path: Path, *, num_rows: int) -> float:
    """Write the store; the seconds that it took."""
    header = bench_header(num_rows)
    starts = range(0, num_rows, SHARD_SIZE)
    shards = [StoreShard(f"{start:08d}", min(SHARD_SIZE, num_rows - start), 0, "0" * 64) for start in starts]
    codes = np.random.default_rng(0).integers(0, 256, (SHARD_SIZE, *CODE_SHAPE), np.uint8)
    start = time.perf_counter()
    with StoreWriter(path, header, shards) as writer:
        for number, shard in enumerate(shards):
            rows = codes[: shard.num_images]
            with writer.part(number) as part:
                part.add(rows, keys=[f"{shard.name}/{row:04d}" for row in range(len(rows))], indices=range(len(rows)))
        writer.merge(parents=(Parent("autoencoder", "none", "0" * 64),))
    return time.perf_counter() - start
