"""`brics bench executor`: what a Ray cluster costs a batch command.

Scheduling: tasks without work, which tell what encoding a shard tells and may sleep as long as it takes. A worker waits
so long between two tasks, and the driver computes so long per task, however large the cluster is.
Encoding: shards of real crops through `brics-mini` in one worker of Ray and in one process of the local executor, in
turn; from the end of the first shard to that of the last, since a worker starts once.
"""

from __future__ import annotations

import itertools
import statistics
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from brics_cli.autoencoder.autoencoder import read_autoencoder
from brics_cli.bench.no_work import NoWork, Told
from brics_cli.bench.timing import Report, Table, device_name, peak_process_mib
from brics_cli.codes import StoreHeader, StoreShard, StoreWriter
from brics_cli.codes.encoding import ShardWork
from brics_cli.images import Collection, open_collection
from brics_cli.images.photographs import photograph_crops
from brics_cli.runtime.executors import Executor, LocalExecutor
from brics_cli.runtime.on_ray import RayExecutor
from brics_cli.runtime.reporting import SilentReporter

SHARD_SIZE, BATCH_SIZE = 1000, 64
MODEL = "brics-mini"


def bench_executor(
    *,
    num_tasks: int = 5000,
    num_listed: int = 1_000_000,
    num_workers: int = 2,
    task_s: float = 0.0,
    num_shards: int = 5,
    repeats: int = 1,
) -> Report:
    """Schedule `num_tasks` of the `num_listed` tasks of a run, of `task_s` seconds each, on `num_workers` workers;
    encode `num_shards` shards with one, `repeats` times in each way (0: not at all).

    The list of tasks is that of the whole run, since the driver's memory is what it takes.
    """
    executor = RayExecutor(cpus_per_worker=1)
    executor.local_cores = num_workers
    executor.connect("cpu", reporter=SilentReporter())
    scheduling = _schedule(
        executor, NoWork(task_s), num_tasks=num_tasks, num_listed=num_listed, num_workers=num_workers
    )
    title = (
        f"{num_tasks:,} of {num_listed:,} tasks of {task_s:g} s without work on {num_workers} workers, per task; "
        f"{device_name(torch.device('cpu'))}"
    )
    worker_ms = scheduling["worker_ms_per_task"]
    shown: list[Table | str] = [
        Table(
            title,
            ["tasks/s", "ms idle, worker", "CPU ms, driver", "MiB more, driver", "2% of a shard from"],
            [
                [
                    f"{scheduling['tasks_per_s']:,.0f}", f"{worker_ms:.2f}", f"{scheduling['driver_ms_per_task']:.2f}",
                    f"{scheduling['driver_mib']:,.0f}", f"{worker_ms / 20:.2f} s on",
                ]
            ],
        )
    ]  # fmt: skip
    value: dict[str, Any] = {"num_tasks": num_tasks, "num_listed": num_listed, "num_workers": num_workers}
    value |= {"task_s": task_s, "scheduling": scheduling}
    if repeats:
        found = _encode_both(executor, num_shards=num_shards, repeats=repeats)
        ratio = statistics.median(ray / local for local, ray in zip(found["local"], found["ray"], strict=True))
        value["encoding"] = {**found, "ratio": ratio}
        rates = [f"{statistics.median(found[name]):,.1f}" for name in ("local", "ray")]
        shown.append(
            Table(
                f"{num_shards} shards of {SHARD_SIZE:,} crops of 64 px through {MODEL}, one worker",
                ["local img/s", "ray img/s", "ray / local"],
                [[*rates, f"{ratio:.3f}"]],
            )
        )
    return Report(value, shown)


def _schedule(
    executor: RayExecutor, work: NoWork, *, num_tasks: int, num_listed: int, num_workers: int
) -> dict[str, float]:
    before = peak_process_mib()
    running = executor.run(work, range(num_listed))
    while executor.num_workers < num_workers:
        next(running)
    start, cpu, num, idle_s = time.perf_counter(), time.process_time(), 0, 0.0
    for event in running:
        if isinstance(event, Told) and event.num_tasks:
            num, idle_s = num + 1, idle_s + event.seconds["idle"]
        if num == num_tasks:
            break
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    running.close()
    return {
        "tasks_per_s": num / seconds,
        "worker_ms_per_task": 1e3 * idle_s / num,
        "driver_ms_per_task": 1e3 * cpu_s / num,
        "driver_mib": peak_process_mib() - before,
    }


def _encode_both(executor: RayExecutor, *, num_shards: int, repeats: int) -> dict[str, list[float]]:
    """img/s of every repeat, by executor."""
    found: dict[str, list[float]] = {"local": [], "ray": []}
    with tempfile.TemporaryDirectory(prefix="brics-bench-") as folder:
        collection = _crops(Path(folder, "shards"), num_shards=num_shards)
        executor.cpus_per_worker = executor.local_cores or 1  # one worker has them all
        for repeat in range(repeats):
            ways: dict[str, Executor] = {"local": LocalExecutor(["cpu"]), "ray": executor}
            for name, way in ways.items():
                found[name].append(_encode(way, collection, Path(folder, f"{name}-{repeat}.h5")))
    return found


def _crops(folder: Path, *, num_shards: int) -> Collection:
    """Shards of 64 px PNG crops."""
    folder.mkdir()
    crops = itertools.cycle(list(photograph_crops()))
    for shard in range(num_shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for index in range(SHARD_SIZE):
                data = BytesIO()
                Image.fromarray(next(crops).pixels).save(data, format="PNG")
                member = tarfile.TarInfo(f"{index:05d}.png")
                member.size = data.tell()
                data.seek(0)
                tar.addfile(member, data)
    return open_collection(folder)


def _encode(executor: Executor, collection: Collection, out: Path) -> float:
    """img/s from the end of the first shard on."""
    files = read_autoencoder(MODEL)
    header = StoreHeader(
        code_shape=files.config.code_shape_of(64), image_size=64, transform="crop-bicubic/bench",
        quantisation="uint8", source="crops", source_sha256="0" * 64, num_images=len(collection),
        autoencoder={"sha256": files.weights_sha256, "config": {}},
    )  # fmt: skip
    shards = [StoreShard(shard.name, shard.num_images, shard.size_bytes, shard.layout) for shard in collection.shards]
    ended = []
    with StoreWriter(out, header, shards) as writer:
        work = ShardWork(collection, header, shards, writer.parts_directory, BATCH_SIZE, 1, MODEL)
        for event in executor.run(work, range(len(shards))):
            if event.num_tasks:
                ended.append(time.perf_counter())
        for number in range(len(shards)):
            writer.discard(number)
    return (len(collection) - SHARD_SIZE) / (ended[-1] - ended[0])
