"""The features of images computed by workers, a thousand images at a time, and handed on as one process would.

Features come home in whatever order tasks end. They wait in a file, and go to the gatherings batch by batch in the
order of the images: what is summed is summed as in one process, to the last bit. B images per batch, D features.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from brics_cli.errors import UsageError
from brics_cli.evaluation.family import Context, Family, Needs, Side
from brics_cli.evaluation.measuring import Extraction, Gathering, batches_of
from brics_cli.evaluation.registry import Settings
from brics_cli.images.loader import ImageStream, ReadSoFar
from brics_cli.networks.features import load_network
from brics_cli.runtime.executors import TaskFailed, check_none_failed, settled
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.wording import count

IMAGES_AT_ONCE = 1000
"""Of a task, about: whole batches."""


class Part(NamedTuple):
    """A task: the images at `positions` of `side`."""

    side: Side
    positions: Sequence[int]


@dataclass(frozen=True)
class Features:
    """The event of a part: its `batches`, (positions (b), network -> (b, D)); why a network `refused` its images; and
    what else was learnt while they were `read`."""

    part: Part
    batches: list[tuple[list[int], dict[str, np.ndarray]]]
    refused: dict[str, UsageError]
    read: ReadSoFar
    num_tasks: int = 1


class _Collector:
    """Hears of the batches of a network, as a family does."""

    def __init__(self, network: str, batches: dict[tuple[int, ...], dict[str, np.ndarray]]) -> None:
        self.network, self.batches = network, batches

    def add(self, side: Side, features: np.ndarray, positions: Sequence[int], images: Any) -> None:
        self.batches.setdefault(tuple(positions), {})[self.network] = features


@dataclass(frozen=True)
class FeatureWork:
    """Images of `streams` through `networks`: of each side (key, file, sha256). `num_threads` as in one process."""

    streams: Mapping[Side, ImageStream]
    networks: Mapping[Side, Sequence[tuple[str, Path | None, str]]]
    strict: bool
    batch_size: int
    num_workers: int
    num_threads: int

    def __call__(self, device: str) -> Callable[[Iterator[Part]], Iterator[Features]]:
        torch.set_num_threads(self.num_threads)
        on = torch.device(device)
        wanted = {each for of_side in self.networks.values() for each in of_side}
        loaded = {key: load_network(key, path, sha256=sha256, device=on) for key, path, sha256 in wanted}
        streams = {side: stream.on(on, num_workers=self.num_workers) for side, stream in self.streams.items()}

        def run(parts: Iterator[Part]) -> Iterator[Features]:
            with ThreadPoolExecutor(self.num_workers, thread_name_prefix="brics-metrics") as pool:
                context = Context(Settings(), on, pool, SilentReporter(), self.batch_size)
                for part in parts:
                    stream, found = streams[part.side], dict[tuple[int, ...], dict[str, np.ndarray]]()
                    gatherings = {
                        key: Gathering(
                            loaded[key], part.side, stream.keys, needs=[Needs(batches=True)],
                            hearers=[cast(Family, _Collector(key, found))],
                        )
                        for key, _, _ in self.networks[part.side]
                    }  # fmt: skip
                    extraction = Extraction(list(gatherings.values()), context, strict=self.strict)
                    for batch in batches_of(stream, part.positions):
                        extraction.add(part.side, *batch)
                    extraction.drain()
                    refused = {key: each.refused for key, each in gatherings.items() if each.refused is not None}
                    batches = [(list(positions), features) for positions, features in found.items()]
                    yield Features(part, batches, refused, stream.hand_over())

        return run


@dataclass
class _Arrived:
    """Where the features of a part wait: (positions, network, offset in the file) of its batches, in order."""

    batches: list[tuple[list[int], str, int]] = field(default_factory=list)
    read: ReadSoFar = field(default_factory=ReadSoFar)


def extract_on_cluster(
    gatherings: Sequence[Gathering],
    streams: Mapping[Side, ImageStream],
    orders: Mapping[Side, Sequence[int]],
    files: Mapping[str, Path | None],
    context: Context,
    *,
    strict: bool,
) -> None:
    """Hand `gatherings` the features of the images at `orders` of `streams`, computed by the workers of the executor.

    `files` are those of the networks, by key. Raises TooManyFailuresError where workers died over some of the images,
    and with `strict` UsageError for images that a network cannot take.
    """
    executor, size = context.executor, context.batch_size
    assert executor is not None
    step = max(1, round(IMAGES_AT_ONCE / size)) * size
    sides = {gathering.side for gathering in gatherings}
    parts = [
        Part(side, orders[side][start : start + step])
        for side in orders
        if side in sides
        for start in range(0, len(orders[side]), step)
    ]
    for side in sides:
        streams[side].begin(orders[side])
    by_network = {(gathering.side, gathering.network.key): gathering for gathering in gatherings}
    networks = {
        side: [(key, files[key], each.network.weights_sha256) for (of, key), each in by_network.items() if of == side]
        for side in sides
    }
    needed = {side: streams[side] for side in sides}
    work = FeatureWork(needed, networks, strict, size, executor.cpus_per_worker, torch.get_num_threads())
    arrived: dict[tuple[Side, int], _Arrived] = {}
    failed: list[TaskFailed[Part]] = []
    total = sum(len(part.positions) for part in parts)
    with (
        tempfile.TemporaryFile(prefix="brics-features-") as file,
        context.reporter.task("measure", total=total, unit="img") as task,
    ):
        with closing(settled(executor.run(work, parts), failed.append)) as running:
            for event in running:
                waiting = _Arrived(read=event.read)
                for positions, features in event.batches:
                    for key, rows in features.items():
                        waiting.batches.append((positions, key, file.tell()))
                        file.write(np.ascontiguousarray(rows, np.float32).data)
                for key, refused in event.refused.items():
                    by_network[event.part.side, key].refused = refused
                arrived[event.part.side, event.part.positions[0]] = waiting
                task.advance(len(event.part.positions), note=executor.status)
        check_none_failed(failed, what=f"{count(len(parts), 'part')} of the images")
        for part in parts:
            waiting = arrived[part.side, part.positions[0]]
            streams[part.side].take_over(waiting.read)
            for positions, key, offset in waiting.batches:
                gathering = by_network[part.side, key]
                if gathering.refused is None:
                    file.seek(offset)
                    shape = (len(positions), gathering.network.num_features)
                    rows = np.frombuffer(file.read(4 * shape[0] * shape[1]), np.float32).reshape(shape)
                    gathering.take(rows, positions, [])
