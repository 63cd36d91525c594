"""How the seeds of a sampling run are cut into tasks, and what each task writes: a file that is whole or absent.

Any process may take any task; the bytes are those of one process that takes them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from brics_cli.codes import StoreHeader, StoreShard, quantise
from brics_cli.codes.parts import PartWriter
from brics_cli.images import open_sink
from brics_cli.images.sinks import PNG, Encoding


@dataclass(frozen=True)
class SampleTask:
    """`seeds` (a range with step 1) to be written to shard `number`; None: they are only shown on the sheet."""

    number: int | None
    seeds: range


@dataclass(frozen=True)
class Drawn:
    """Part of a task: `seeds`, computed in a batch of `batch_size`, and their labels (None: no classes).

    `images` (b, H, W, 3) uint8, where they were decoded; `codes` (b, C, h, w), where they are kept.
    """

    seeds: range
    batch_size: int
    labels: list[int] | None
    images: np.ndarray | None
    codes: np.ndarray | None

    @property
    def label_of_each(self) -> list[int] | list[None]:
        return self.labels if self.labels is not None else [None] * len(self.seeds)


Add = Callable[[Drawn], None]


class SampleOutput(Protocol):
    """Where tasks are written. Picklable: processes share it."""

    @property
    def keeps(self) -> Literal["images", "codes"]:
        """What of a batch is written."""

    def open(self, task: SampleTask) -> AbstractContextManager[Add]:
        """Write a task inside a `with` block, its parts in order; on an exception nothing half-written stays."""


@dataclass(frozen=True)
class ImageOutput:
    """A folder of PNG files, or of WebDataset shards, which may be the pieces of one file; `encoding` is of those."""

    folder: Path
    format: Literal["png", "wds"]
    encoding: Encoding = PNG
    keeps: Literal["images"] = "images"

    @contextmanager
    def open(self, task: SampleTask) -> Iterator[Add]:
        path = self.folder if self.format == "png" else self.folder / f"{task.number:05d}.tar"
        with open_sink(path, self.format, encoding=self.encoding, overwrite=True) as sink:

            def add(drawn: Drawn) -> None:
                assert drawn.images is not None
                for seed, image, label in zip(drawn.seeds, drawn.images, drawn.label_of_each, strict=True):
                    sink.write(key_of(seed), image, label=label)

            yield add


@dataclass(frozen=True)
class CodeOutput:
    """The parts of a key-code store, one per task."""

    parts_directory: Path
    header: StoreHeader
    shards: list[StoreShard]
    keeps: Literal["codes"] = "codes"

    @contextmanager
    def open(self, task: SampleTask) -> Iterator[Add]:
        assert task.number is not None
        with PartWriter(self.parts_directory, self.header, self.shards[task.number]) as part:

            def add(drawn: Drawn) -> None:
                assert drawn.codes is not None
                part.add(
                    quantise(drawn.codes, self.header.quantisation),
                    keys=[key_of(seed) for seed in drawn.seeds],
                    indices=[seed - task.seeds.start for seed in drawn.seeds],
                    labels=drawn.label_of_each,
                )

            yield add


def key_of(seed: int) -> str:
    """The key of the image of a seed."""
    return f"{seed:08d}"


def cut(seeds: range, size: int) -> list[SampleTask]:
    """Tasks of `size` seeds each, the last perhaps of fewer."""
    starts = range(seeds.start, seeds.stop, size)
    return [SampleTask(number, range(start, min(start + size, seeds.stop))) for number, start in enumerate(starts)]
