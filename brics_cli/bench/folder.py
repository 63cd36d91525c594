"""`brics bench store --parts N`: opening a store that is a folder, and reading it at random and in shuffled windows.

Of many sparse parts, whose codes are zeros that take no room, rows are read at random, and in windows before anything
else has read them; of as many parts as a disk has time for, from the disk and from the page cache. One file is read
beside them: as many rows of the same bytes.
"""

from __future__ import annotations

import json
import mmap
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from itertools import pairwise
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
NUM_READ = 49
"""Parts that are read in windows, 2 GB: seven windows. The first is not timed, nor is it read ahead."""
ROW_BYTES = int(np.prod(CODE_SHAPE))
BEGINNING = 2048
"""Bytes before the first row."""
BATCHES = 50
"""Random ones per repeat."""
ONE_AT_RANDOM, PARTS_AT_RANDOM = "one file, random batches", "parts, random batches"
IN_ORDER, IN_WINDOWS = "one file, in its order", "parts, in shuffled windows"
ONE_IN_WINDOWS = "one file, in the same windows"
PLACES = ("sparse, not read before", "from the disk", "from the page cache")
PAGE = 4096

Seconds = dict[tuple[str, str], list[float]]
"""Of a batch, by how it is read and from where, in each repeat."""


def bench_folder(*, num_parts: int = 1000, batch_size: int = 256, repeats: int = 5) -> Report:
    """Open a folder of `num_parts` sparse parts of 10,000 rows of 16 x 16 x 16 uint8. Read it, and one file as large,
    at random, where the machine reads nothing ahead, and NUM_READ parts in windows; then as many that are not sparse,
    from the disk and from the page cache.

    `open_s` and `open_mib` of the value are of a process that opens the folder and has never seen it, with what it
    starts; `ratio` of the readings is to the rows per second of one file, in its order or at random, the median of the
    repeats.
    """
    seconds: Seconds = {}
    num_rows = num_parts * ROWS_PER_PART
    with tempfile.TemporaryDirectory(prefix="brics-bench-") as root:
        folder, raw = Path(root, "codes"), Path(root, "codes.bin")
        _write_sparse(folder, num_parts=num_parts)
        environment = child_environment(BRICS_CACHE=str(Path(root, "cache")))
        command = child_command("brics_cli.bench.opening", folder)
        opened = json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
        with raw.open("wb") as file:
            file.truncate(BEGINNING + num_rows * ROW_BYTES)
        os.sync()
        for repeat in range(repeats + 1):  # the first one warms up
            _read_at_random(folder, raw, batch_size, seed=repeat, seconds=seconds)
            _read_in_windows(folder, raw, batch_size, seed=repeat, place=PLACES[0], seconds=seconds)
    with tempfile.TemporaryDirectory(prefix="brics-bench-") as root:
        folder, raw = Path(root, "codes"), Path(root, "codes.bin")
        _write_random(folder, raw)
        os.sync()
        for place in PLACES[1:]:
            for repeat in range(repeats + 1):
                _read_in_windows(folder, raw, batch_size, seed=repeat, place=place, seconds=seconds)
    device, shape = device_name(torch.device("cpu")), " x ".join(map(str, CODE_SHAPE))
    title = f"{num_parts:,} parts of {ROWS_PER_PART:,} rows of {shape} uint8, batches of {batch_size}, on {device}; "
    title += f"opened in {opened['seconds']:.2f} s and {opened['mib']:,.0f} MiB"
    table, readings = Table(title, ["read", "from", "rows/s", "of one file"]), []
    for (how, place), all_taken in seconds.items():
        base = seconds[ONE_AT_RANDOM if "random" in how else IN_ORDER, place][1:]
        ratio = statistics.median(theirs / ours for theirs, ours in zip(base, all_taken[1:], strict=True))
        rows_per_s = batch_size / statistics.median(all_taken[1:])
        readings.append({"how": how, "place": place, "rows_per_s": rows_per_s, "ratio": ratio})
        table.rows.append([how, place, f"{rows_per_s:,.0f}", f"{ratio:.2f}"])
    value = {"device": device, "num_parts": num_parts, "rows_per_part": ROWS_PER_PART, "code_shape": list(CODE_SHAPE)}
    value |= {"batch_size": batch_size, "window": WINDOW, "open_s": opened["seconds"], "open_mib": opened["mib"]}
    return Report({**value, "readings": readings}, [table])


def _read_at_random(folder: Path, raw: Path, batch_size: int, *, seed: int, seconds: Seconds) -> None:
    """Rows of all parts, each of which is mapped, and as many of one file."""
    _forget([raw])
    one, store, fresh = _mapped(raw, mmap.MADV_RANDOM), KeyCodeStore(folder), np.random.default_rng(seed)
    assert store._parts is not None
    for mapping in store._parts.mapped(np.arange(len(store.part_paths)))[0].values():
        mapping.advise(mmap.MADV_RANDOM)
    rows = [fresh.integers(0, len(store), batch_size) for _ in range(BATCHES)]
    for how, read in ((ONE_AT_RANDOM, one.__getitem__), (PARTS_AT_RANDOM, store.raw)):
        _add(seconds, how, PLACES[0], read, rows)


def _read_in_windows(folder: Path, raw: Path, batch_size: int, *, seed: int, place: str, seconds: Seconds) -> None:
    """The rows of NUM_READ parts in windows, and as many of one file, in its order and in the windows' order."""
    store, one, is_cached = KeyCodeStore(folder), _mapped(raw), place == PLACES[2]
    starts = range(0, NUM_READ * ROWS_PER_PART - 2 * batch_size, batch_size)
    order = SampleOrder([range(*pair) for pair in pairwise(store.shard_starts)], seed=seed, window=WINDOW)

    def in_order() -> None:
        _add(seconds, IN_ORDER, place, lambda start: np.array(one[start : start + batch_size]), starts)

    def in_windows() -> None:
        with WindowsAhead(store, order, position=0) as windows:

            def read(start: int) -> Array:
                windows.reach(start)
                return store.raw(order.batch(start, batch_size))

            num_first = next(number for number, start in enumerate(starts) if start > WINDOW + ROWS_PER_PART)
            for start in starts[:num_first]:
                read(start)
            _add(seconds, IN_WINDOWS, place, read, starts[num_first:])

    if not is_cached:
        _forget([raw, *store.part_paths])
    for read_all in (in_order, in_windows)[:: (-1) ** seed]:  # a disk that others use is not always as fast
        read_all()
    if is_cached:
        _add(seconds, ONE_IN_WINDOWS, place, lambda start: one[order.batch(start, batch_size)], starts)


def _add(seconds: Seconds, how: str, place: str, read: Callable[[Any], Any], asked: Sequence[Any]) -> None:
    start = time.perf_counter()
    for each in asked:
        read(each)
    seconds.setdefault((how, place), []).append((time.perf_counter() - start) / len(asked))


def _mapped(raw: Path, advice: int = mmap.MADV_NORMAL) -> Array:
    """The rows of a file, which begin where they do in a store: no page of memory is one row."""
    with raw.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        mapped.madvise(advice)
        return np.frombuffer(mapped, np.uint8, offset=BEGINNING).reshape(-1, *CODE_SHAPE)


def _forget(paths: Iterable[Path]) -> None:
    """Let go of what the page cache has of these files."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _write_random(folder: Path, raw: Path) -> None:
    """A folder of parts, and a file of the same random codes."""
    shards = [StoreShard(f"{number:06d}", ROWS_PER_PART, 0, "0" * 64) for number in range(NUM_READ)]
    num_rows = NUM_READ * ROWS_PER_PART
    rows = np.random.default_rng(0).integers(0, 256, (ROWS_PER_PART, *CODE_SHAPE), np.uint8)
    with StoreWriter(folder, bench_header(num_rows), shards) as writer, raw.open("wb") as file:
        file.seek(BEGINNING)
        for number, shard in enumerate(shards):
            with writer.part(number) as part:
                part.add(rows, keys=[f"{shard.name}/{row}" for row in range(len(rows))], indices=range(len(rows)))
            file.write(rows.data)
        writer.merge(parents=(Parent("autoencoder", "none", "0" * 64),))


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
