"""`brics bench store --parts N`: opening a store that is a folder, and reading it at random and in shuffled windows.

At random many sparse parts are read, whose codes are zeros that take no room; in windows as many as a disk has time
for, each byte of it from the disk, as of a store that memory does not hold.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brics_cli.bench.store import CODE_SHAPE, bench_header
from brics_cli.bench.timing import Report, Table, device_name
from brics_cli.codes import KeyCodeStore, StoreShard, StoreWriter
from brics_cli.codes.finishing import write_index
from brics_cli.codes.format import Array
from brics_cli.codes.parts import open_part, part_path, write_part
from brics_cli.isolation import child_command, child_environment
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.training.codes import WindowsAhead
from brics_cli.training.order import SampleOrder
from brics_cli.workspace import Parent
from brics_cli.workspace.naming import PARTS_FOLDER

ROWS_PER_PART = 10_000
WINDOW = 2**16
"""Rows, 256 MiB: seven parts."""
NUM_RANDOM = 40
"""Parts that are not sparse, 1.6 GB."""
ROW_BYTES = int(np.prod(CODE_SHAPE))
BATCHES = 200
"""Random ones per repeat."""
WAYS = ("one file, random batches", "parts, random batches", "one file, in its order", "parts, in shuffled windows")
PAGE = 4096


def bench_folder(*, num_parts: int = 1000, batch_size: int = 256, repeats: int = 5) -> Report:
    """Open a folder of `num_parts` sparse parts of 10,000 rows of 16 x 16 x 16 uint8, and read it, and one file, at
    random; read 40 parts, and one file, that are not sparse and not in the page cache: in windows, and in its order.

    `open_s` and `open_mib` of the value are of a process that opens the folder and has never seen it, with what it
    starts; `ratio` of the readings is to the file's rows per second, the median of the repeats.
    """
    num_rows = num_parts * ROWS_PER_PART
    with tempfile.TemporaryDirectory(prefix="brics-bench-") as root:
        folder, raw = Path(root, "codes"), Path(root, "codes.bin")
        _write_sparse(folder, num_parts=num_parts)
        environment = child_environment(BRICS_CACHE=str(Path(root, "cache")))
        command = child_command("brics_cli.bench.opening", folder)
        opened = json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
        with raw.open("wb") as file:
            file.truncate(num_rows * ROW_BYTES)
        one, store, fresh = _mapped(raw, num_rows), KeyCodeStore(folder), np.random.default_rng(0)
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(repeats + 1):  # the first one warms up
            rows = [fresh.integers(0, num_rows, batch_size) for _ in range(BATCHES)]
            seconds[WAYS[0]].append(_seconds_per_batch(one.__getitem__, rows))
            seconds[WAYS[1]].append(_seconds_per_batch(store.raw, rows))
        del one, store
    with tempfile.TemporaryDirectory(prefix="brics-bench-") as root:
        folder, raw = Path(root, "codes"), Path(root, "codes.bin")
        num_rows = _write_random(folder, raw)
        shards = [range(first, first + ROWS_PER_PART) for first in range(0, num_rows, ROWS_PER_PART)]
        starts = range(0, num_rows - batch_size, batch_size)
        for repeat in range(repeats + 1):
            _forget(root)
            one = _mapped(raw, num_rows)
            in_order = [slice(start, start + batch_size) for start in starts]
            seconds[WAYS[2]].append(_seconds_per_batch(partial(_copy, one), in_order))
            del one
            _forget(root)
            store, order = KeyCodeStore(folder), SampleOrder(shards, seed=repeat, window=WINDOW)
            with WindowsAhead(store, order, position=0) as windows:
                in_windows = partial(_read_in_window, store, order, windows, batch_size)
                seconds[WAYS[3]].append(_seconds_per_batch(in_windows, starts))
            del store
    device, shape = device_name(torch.device("cpu")), " x ".join(map(str, CODE_SHAPE))
    title = f"{num_parts:,} parts of {ROWS_PER_PART:,} rows of {shape} uint8, batches of {batch_size}, on {device}; "
    title += f"opened in {opened['seconds']:.2f} s and {opened['mib']:,.0f} MiB"
    table, readings = Table(title, ["read", "rows/s", "of one file"]), []
    for how, other in zip(WAYS, (WAYS[0], WAYS[0], WAYS[2], WAYS[2]), strict=True):
        taken, base = seconds[how][1:], seconds[other][1:]
        ratio = statistics.median(theirs / ours for theirs, ours in zip(base, taken, strict=True))
        rows_per_s = batch_size / statistics.median(taken)
        readings.append({"how": how, "rows_per_s": rows_per_s, "ratio": ratio})
        table.rows.append([how, f"{rows_per_s:,.0f}", f"{ratio:.2f}"])
    value = {"device": device, "num_parts": num_parts, "rows_per_part": ROWS_PER_PART, "code_shape": list(CODE_SHAPE)}
    value |= {"batch_size": batch_size, "window": WINDOW, "open_s": opened["seconds"], "open_mib": opened["mib"]}
    return Report({**value, "readings": readings}, [table])


def _seconds_per_batch(read: Callable[[Any], Any], asked: Sequence[Any]) -> float:
    start = time.perf_counter()
    for each in asked:
        read(each)
    return (time.perf_counter() - start) / len(asked)


def _copy(mapped: Array, rows: slice) -> Array:
    return np.array(mapped[rows])


def _read_in_window(store: KeyCodeStore, order: SampleOrder, windows: WindowsAhead, size: int, start: int) -> Array:
    windows.reach(start)
    return store.raw(order.batch(start, size))


def _mapped(raw: Path, num_rows: int) -> Array:
    return np.memmap(raw, np.uint8, "r", shape=(num_rows, *CODE_SHAPE)).view(np.ndarray)


def _forget(root: str) -> None:
    """Let go of what the page cache has of all files below `root`."""
    for path in Path(root).rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _write_random(folder: Path, raw: Path) -> int:
    """A folder of parts, and a file of the same random codes; how many."""
    shards = [StoreShard(f"{number:06d}", ROWS_PER_PART, 0, "0" * 64) for number in range(NUM_RANDOM)]
    num_rows = NUM_RANDOM * ROWS_PER_PART
    rows = np.random.default_rng(0).integers(0, 256, (ROWS_PER_PART, *CODE_SHAPE), np.uint8)
    with StoreWriter(folder, bench_header(num_rows), shards) as writer, raw.open("wb") as file:
        for number, shard in enumerate(shards):
            with writer.part(number) as part:
                part.add(rows, keys=[f"{shard.name}/{row}" for row in range(len(rows))], indices=range(len(rows)))
            file.write(rows.data)
        writer.merge(parents=(Parent("autoencoder", "none", "0" * 64),))
    return num_rows


def _write_sparse(folder: Path, *, num_parts: int) -> None:
    """A folder whose parts are all the same, without the pages that hold nothing but zeros."""
    header = bench_header(num_parts * ROWS_PER_PART)
    shards = [StoreShard(f"{number:06d}", ROWS_PER_PART, 0, "0" * 64) for number in range(num_parts)]
    parts, keys = folder / PARTS_FOLDER, [f"{row:04x}" for row in range(ROWS_PER_PART)]
    with write_part(parts, header, shards[0]) as part:
        rows = np.zeros((ROWS_PER_PART, *CODE_SHAPE), np.uint8)
        part.add(rows, keys=keys, indices=range(ROWS_PER_PART), labels=[0] * ROWS_PER_PART)
    first = part_path(parts, shards[0])
    data = np.fromfile(first, np.uint8)
    pages = np.flatnonzero(np.add.reduceat(data, np.arange(0, len(data), PAGE), dtype=np.int64)).tolist()
    for shard in shards:
        with part_path(parts, shard).open("wb") as file:
            for page in pages:
                file.seek(page * PAGE)
                file.write(data[page * PAGE :][:PAGE].data)
            file.truncate(len(data))
    with open_part(first, header, ROWS_PER_PART) as rows_of_all:
        write_index(
            folder, header, shards, lambda number: nullcontext(rows_of_all), kind="store",
            parents=(Parent("autoencoder", "none", "0" * 64),), details={}, reporter=SilentReporter(),
        )  # fmt: skip
