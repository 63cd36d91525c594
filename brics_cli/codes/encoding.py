"""From images to the parts of a key-code store, shard by shard, on one device.

While the device works on a batch, threads decode the next ones and, on CUDA, the batch before it is brought home and
written: copies are asynchronous, from and to pinned memory. B images, (B, H, W, 3) uint8; codes (B, C, h, w).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from brics_cli.autoencoder.autoencoder import Autoencoder, load_autoencoder
from brics_cli.codes import StoreHeader, StoreShard, quantise, quantise_on_device
from brics_cli.codes.parts import write_part
from brics_cli.errors import THEN_AGAIN, ArtefactError
from brics_cli.images import Batch, Collection, load_shards
from brics_cli.images.fingerprints import read_digest, settled_digest
from brics_cli.images.loader import Failure
from brics_cli.runtime.precision import all_threads, computing
from brics_cli.runtime.reporting import TimeSplit

Network = Callable[[Tensor], Tensor]
"""uint8 pixels (B, H, W, 3) on the device -> codes (B, C, h, w) there, float32."""


@dataclass(frozen=True)
class Rows:
    """A batch and its stored values: (B, C, h, w) each, of the images and, with flips, of their mirror images."""

    batch: Batch
    codes: np.ndarray
    flipped: np.ndarray | None


@dataclass(frozen=True)
class Progress:
    """What one batch adds: images read and encoded (some enlarged or of several frames), failures, seconds by phase.

    `num_tasks` is 1 once the part of its shard is whole (`runtime.executors.Event`).
    """

    num_read: int = 0
    num_encoded: int = 0
    failures: list[Failure] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    num_enlarged: int = 0
    num_multi_frame: int = 0
    num_tasks: int = 0


def encoding_network(autoencoder: Autoencoder, *, precision: str) -> Network:
    """The network of an autoencoder's codes. `precision` is fp32, or bf16 for autocast."""

    def network(pixels: Tensor) -> Tensor:
        images = pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)  # (B, 3, H, W) in [-1, 1]
        with all_threads(), computing(precision, pixels.device):  # a store is known by its bits
            return autoencoder.encode(images).float()

    return network


@dataclass(frozen=True)
class CodeEncoder:
    """Batches of images in, stored values out, through `network` on `device`."""

    network: Network
    header: StoreHeader
    device: torch.device
    made_by: Path | str

    def encode(self, batch: Batch) -> Rows:
        """One batch, waited for. Raises ArtefactError when codes are not finite."""
        return self.launch(batch)()

    def stream(self, batches: Iterator[Batch], split: TimeSplit) -> Iterator[Rows]:
        """All batches in order; `split` is told the seconds spent waiting for them, and for the device."""
        depth = 1 if self.device.type == "cuda" else 0
        launched: deque[Callable[[], Rows]] = deque()
        while True:
            with split.phase("wait"):
                batch = next(batches, None)
            with split.phase("compute"):
                if batch is not None:
                    launched.append(self.launch(batch))
                rows = launched.popleft()() if len(launched) > depth or (batch is None and launched) else None
            if rows is not None:
                yield rows
            elif batch is None:
                return

    @torch.inference_mode()
    def launch(self, batch: Batch) -> Callable[[], Rows]:
        """Start one batch; what is returned waits for it."""
        if not batch.keys:
            empty = np.empty((0, *self.header.code_shape), self.header.dtype)
            return lambda: Rows(batch, empty, empty if self.header.flipped else None)
        pixels = torch.from_numpy(batch.images)  # (B, H, W, 3)
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        pixels = pixels.to(self.device, non_blocking=self.device.type == "cuda")
        codes = self._start(pixels)
        flipped = self._start(pixels.flip(2)) if self.header.flipped else None

        def wait() -> Rows:
            try:
                return Rows(batch, codes(), flipped() if flipped is not None else None)
            except ValueError:
                raise ArtefactError(
                    f"{self.made_by} makes codes that are not finite of {batch.keys[0]} or its neighbours",
                    next="Use --dtype fp32, or train the autoencoder again.",
                ) from None

        return wait

    def _start(self, pixels: Tensor) -> Callable[[], np.ndarray]:
        codes = self.network(pixels)
        if self.device.type == "cpu":  # numpy's arithmetic is the same, and stays in this thread: the others decode
            return partial(quantise, codes.numpy(), self.header.quantisation)
        stored, finite = quantise_on_device(codes, self.header.quantisation)
        event = None
        if self.device.type == "cuda":
            stored, finite = (_to_pinned(each) for each in (stored, finite))
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self.device))

        def wait() -> np.ndarray:
            if event is not None:
                event.synchronize()
            if not bool(finite):
                raise ValueError("codes hold values that are not finite")
            return stored.cpu().numpy().astype(self.header.dtype, copy=False)  # (B, C, h, w)

        return wait


def _to_pinned(tensor: Tensor) -> Tensor:
    """A copy in pinned memory, under way: it is there once the stream has come so far."""
    home = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return home.copy_(tensor, non_blocking=True)


def code_encoder(autoencoder: Autoencoder, header: StoreHeader, *, device: torch.device) -> CodeEncoder:
    """The encoder of `autoencoder`, which is on `device`, for the store of `header`."""
    network = encoding_network(autoencoder, precision=header.precision)
    return CodeEncoder(network, header, device=device, made_by=autoencoder.path)


@dataclass(frozen=True)
class ShardWork:
    """Shards to be encoded into parts: what every process that takes some of them needs to know.

    In a process of its own (`runtime.executors.Work`) it loads the `autoencoder` for its device.
    """

    collection: Collection
    header: StoreHeader
    shards: list[StoreShard]
    parts_directory: Path
    batch_size: int
    num_workers: int | None
    autoencoder: str | None = None
    num_processes: int = 1

    def __call__(self, device: str) -> Callable[[Iterator[int]], Iterator[Progress]]:
        assert self.autoencoder is not None
        if device == "cpu":
            torch.set_num_threads(max(1, torch.get_num_threads() // self.num_processes))
        autoencoder = load_autoencoder(self.autoencoder, device=device)
        if autoencoder.weights_sha256 != self.header.autoencoder["sha256"]:
            raise ArtefactError(f"{self.autoencoder} was written again since this run began", next=THEN_AGAIN)
        return partial(self.encode, encoder=code_encoder(autoencoder, self.header, device=torch.device(device)))

    def encode(self, shard_indices: Iterable[int], encoder: CodeEncoder) -> Iterator[Progress]:
        """Write the part of each shard; closing the iterator, or an error, throws away the part being written.

        Raises ArtefactError when a shard cannot be read or changes meanwhile, or codes are not finite; OSError when
        parts cannot be written.
        """
        if encoder.device.type == "cuda" and encoder.device.index is not None:
            torch.cuda.set_device(encoder.device)  # for pinned memory, and for JPEGs decoded on the device
        batches = load_shards(
            self.collection,
            shard_indices,
            transform=self.header.transform_name,
            size=self.header.image_size,
            num_workers=self.num_workers,
            batch_size=self.batch_size,
        )
        split = TimeSplit()
        try:
            encoded = encoder.stream(batches, split)
            for first in encoded:
                with write_part(self.parts_directory, self.header, self.shards[first.batch.shard_index]) as part:
                    for rows in chain([first], encoded):
                        batch = rows.batch
                        good, failures = batch.good, batch.failures
                        with split.phase("write"):
                            part.add(
                                rows.codes,
                                flipped=rows.flipped,
                                keys=[image.key for image in good],
                                indices=[image.index for image in good],
                                labels=[image.label for image in good],
                                metas=[image.meta for image in good],
                                failures=failures,
                            )
                        seconds, split.seconds = split.seconds, {}
                        counts = len(batch.enlarged), len(batch.multi_frame)
                        yield Progress(len(batch.loaded), len(good), failures, seconds, *counts)
                        if batch.content is not None:
                            part.digest = settled_digest(self.collection, batch.shard_index, batch.content)
                            break
                yield Progress(num_tasks=1)
        finally:
            batches.close()

    def give_up(self, shard_index: int, reason: str) -> Progress:
        """Write the part of a shard none of whose images can be encoded, for this reason."""
        shard = self.collection.shards[shard_index]
        keys = [self.collection.key(shard_index, index) for index in range(shard.num_images)]
        failures = [Failure(key, reason) for key in keys]
        nothing = np.empty((0, *self.header.code_shape), self.header.dtype)
        with write_part(self.parts_directory, self.header, self.shards[shard_index]) as part:
            part.add(nothing, keys=[], indices=[], failures=failures)
            part.digest = read_digest(self.collection, shard_index)
        return Progress(len(keys), failures=failures, num_tasks=1)
