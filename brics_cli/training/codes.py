"""The codes of a store as diffusion trains on them: on the device, half of them mirrored, with their random draws.

The whole store is kept on the device where it fits: 4 KiB per image at 16 x 16 x 16. Otherwise its rows are copied out
of the memory-mapped file, or of the parts of a folder, which the machine reads a window ahead. Either way stored values
travel and become codes on the device, so batches are the same bits.

N rows of the store, B samples of this process, codes (C, h, w).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import count, pairwise
from typing import Literal, NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from brics_cli.autoencoder.sizes import check_memory
from brics_cli.codes import QUANTISATIONS, KeyCodeStore
from brics_cli.config import DiffusionRecipe
from brics_cli.config.names import Precision
from brics_cli.config.runs import DiffusionScheduleConfig
from brics_cli.diffusion.classes import Classes
from brics_cli.diffusion.denoisers import Denoiser, build_denoiser
from brics_cli.diffusion.diffusion import (
    LEVEL_NAMES,
    Draws,
    draws_for,
    draws_for_validation,
    draws_of_step,
    loss_by_level,
)
from brics_cli.errors import ArtefactError, MachineError, is_out_of_memory
from brics_cli.images.labels import MAX_CLASSES
from brics_cli.images.selection import spread
from brics_cli.runtime.device import memory_bytes, place, widest_float
from brics_cli.runtime.distributed import World
from brics_cli.runtime.precision import computing
from brics_cli.runtime.randomness import Stream, draws_by_step, keyed_coins, step_coins
from brics_cli.runtime.reporting import Reporter
from brics_cli.runtime.stopping import StopRequest
from brics_cli.training.order import SampleOrder

T = TypeVar("T")

SHARE_OF_FREE_MEMORY = 0.25
"""That the store may take under `auto`; the rest is for the optimiser's moments, gradients and activations."""
ROWS_PER_COPY = 16_384
VALIDATION_DRAWS = 2048
WINDOW = 262_144
"""Rows of a store that is a folder, or that memory does not hold, that are shuffled together, at least, where the
recipe leaves it to brics."""
READ_AT_ONCE = 4
"""Shards of the next window."""


class CodeBatch(NamedTuple):
    """One process's share of a batch, on the device."""

    codes: Tensor
    """(B, C, h, w) float32; in [0, 1] when the store's are bounded."""
    labels: Tensor
    """(B,) int64, -1 for none."""
    draws: Draws

    def parts(self, num: int) -> Iterator[tuple[Tensor, Tensor, Draws, bool]]:
        """`num` equal micro-batches: codes, labels, draws, and whether it is the last."""
        split = zip(
            self.codes.chunk(num), self.labels.chunk(num), *(each.chunk(num) for each in self.draws), strict=True
        )
        for index, (codes, labels, *draws) in enumerate(split):
            yield codes, labels, Draws(*draws), index == num - 1


Read = tuple[Tensor, Tensor, Draws | None]
"""A batch before it is on the device: its stored values, or the rows that the device has already; labels; draws (None:
the device's own)."""


def settled_for_store(recipe: DiffusionRecipe, store: KeyCodeStore) -> DiffusionRecipe:
    """`recipe` with the window that `store` is to be shuffled in, should it leave that to brics. A run keeps it: should
    its store become one file, or parts, or the machine another one, it goes on in the same order."""
    is_whole = not store.is_folder and store.num_bytes <= memory_bytes(torch.device("cpu"))
    if recipe.training.shuffle_window is not None or is_whole:
        return recipe
    training = recipe.training.model_copy(update={"shuffle_window": WINDOW})
    return recipe.model_copy(update={"training": training})


def order_of(store: KeyCodeStore, rows: np.ndarray | range, schedule: DiffusionScheduleConfig) -> SampleOrder:
    """The order of the `rows` of `store` that are trained on, which rise: in windows of whole shards, or altogether."""
    if schedule.shuffle_window is None:
        return SampleOrder([rows], seed=schedule.seed)
    cuts = np.searchsorted(rows, store.shard_starts).tolist() if isinstance(rows, np.ndarray) else store.shard_starts
    shards = [rows[start:stop] for start, stop in pairwise(cuts)]
    return SampleOrder(shards, seed=schedule.seed, window=schedule.shuffle_window)


class WindowsAhead:
    """Lets the machine read the shards of a store a window ahead of the training that is at a position of `order`: to
    be told where it is, in a `with` block. Of a store that is shuffled as a whole it does nothing."""

    def __init__(self, store: KeyCodeStore, order: SampleOrder, *, position: int) -> None:
        self._store, self._order = store, order
        self._last = self._asked = position  # the window from one to the other is the last that was asked for
        self._reader = ThreadPoolExecutor(READ_AT_ONCE, thread_name_prefix="brics-windows")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.shutdown(cancel_futures=True)

    def reach(self, position: int) -> None:
        """Ask for the window after that of `position`. What is wrong with its parts is said when they are read."""
        while len(self._order.shards) > 1 and position >= self._last:
            self._last, (self._asked, rows) = self._asked, self._order.window_of(self._asked)
            for row in rows:
                self._reader.submit(self._store.will_need, row)


class TrainingCodes:
    """The batches of a store, on `device`. `where` is the recipe's `store_on_device`.

    Raises MachineError when the store is always to be kept there and does not fit.
    """

    def __init__(
        self,
        store: KeyCodeStore,
        *,
        seed: int,
        device: torch.device,
        where: Literal["auto", "always", "never"],
        reporter: Reporter,
    ) -> None:
        self.store, self.seed, self.device = store, seed, device
        self._resident: Tensor | None = None
        num_bytes = len(store) * store.header.bytes_per_image
        if where == "always" or (where == "auto" and _fits(num_bytes, device)):
            self._resident = self._upload(num_bytes)
            reporter.message(f"{len(store):,} codes kept on {device} ({num_bytes / 2**20:,.0f} MiB)")

    def batches(
        self, order: SampleOrder, *, first_step: int, batch_size: int, world: World, ahead: bool | None = None
    ) -> Generator[CodeBatch, None, None]:
        """The batches of the steps from `first_step` on, without end; close it when done.

        `ahead` reads one and draws its noise while the device computes on the one before; None: on a GPU.
        """

        def read(step: int) -> Read:
            if self._resident is None:
                windows.reach(step * batch_size)
            return self._read(order.batch(step * batch_size, batch_size), step=step, world=world)

        threaded = self.device.type != "cpu" if ahead is None else ahead
        with (
            WindowsAhead(self.store, order, position=first_step * batch_size) as windows,
            closing(one_ahead(read, first_step=first_step, threaded=threaded)) as found,
        ):
            for step, one in enumerate(found, start=first_step):
                yield self._on_device(one, step=step, batch_size=batch_size, world=world)

    def _read(self, batch: list[int], *, step: int, world: World) -> Read:
        """What step `step` needs of this process's share of `batch`, rows of the store; a coin each decides on the
        mirrored codes."""
        samples, by_step = world.mine(batch), draws_by_step(self.device)
        rows = np.asarray(samples, np.int64)
        mirrored = np.zeros(len(rows), bool)
        if self.store.has_flipped and by_step:
            mirrored = world.mine(step_coins(self.seed, step=step, num=len(batch), stream=Stream.FLIP)).numpy()
        elif self.store.has_flipped:
            mirrored = keyed_coins(self.seed, step=step, indices=samples, stream=Stream.FLIP).numpy()
        if self._resident is None:
            values = self.store.raw(rows)
            if mirrored.any():
                values[mirrored] = self.store.raw(rows[mirrored], flipped=True)
            source = _as_tensor(values)
        else:
            source = torch.from_numpy(rows + len(self.store) * mirrored)
        draws = None if by_step else draws_for(self.seed, step=step, indices=samples, shape=self.store.code_shape)
        labels = torch.from_numpy(self.store.labels[rows])
        pin = self.device.type == "cuda"
        return pinned(source, on=pin), pinned(labels, on=pin), draws

    def _on_device(self, read: Read, *, step: int, batch_size: int, world: World) -> CodeBatch:
        """The batch on the device, which nothing waits for."""
        source, labels = (each.to(self.device, non_blocking=True) for each in read[:2])
        if (drawn := read[2]) is None:
            shape = self.store.code_shape
            of_all = draws_of_step(self.seed, step=step, num=batch_size, shape=shape, device=self.device)
            draws = Draws(*map(world.mine, of_all))
        else:
            draws = Draws(*(each.to(self.device) for each in drawn))
        stored = source if self._resident is None else self._resident.index_select(0, source)
        codes = dequantise_on_device(stored, scale=QUANTISATIONS[self.store.quantisation][1])
        return CodeBatch(codes, labels, draws)

    def _upload(self, num_bytes: int) -> Tensor:
        """Every stored row on the device, (N, C, h, w), the mirrored ones after them."""
        num, flips = len(self.store), (False, True)[: 1 + self.store.has_flipped]
        dtype = _as_tensor(self.store.raw(slice(0, 1))).dtype
        try:
            resident = torch.empty((num * len(flips), *self.store.code_shape), dtype=dtype, device=self.device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise MachineError(
                f"training.store_on_device always: the {num_bytes / 2**30:,.1f} GiB of {self.store.path} do not fit "
                f"on {self.device}",
                next="Leave it at auto: what does not fit is read from the memory-mapped file.",
            ) from None
        for side, flipped in enumerate(flips):
            for start in range(0, num, ROWS_PER_COPY):
                stored = _as_tensor(self.store.raw(slice(start, start + ROWS_PER_COPY), flipped=flipped))
                first = side * num + start
                resident[first : first + len(stored)] = stored.to(self.device)
        return resident


def dequantise_on_device(stored: Tensor, *, scale: int) -> Tensor:
    """Stored values (int16 stands for uint16) as float32 codes: the bits that the store's own `dequantise` gives."""
    codes = (stored.int() & 0xFFFF if stored.dtype == torch.int16 else stored).float()
    # By a tensor: CUDA divides by a number as it multiplies by its reciprocal, which is off in the last place.
    return codes if scale == 1 else codes / torch.full((), scale, dtype=torch.float32, device=codes.device)


def _as_tensor(stored: np.ndarray) -> Tensor:
    """Stored values; uint16 as int16 of the same bits, since torch can do next to nothing with uint16."""
    return torch.from_numpy(stored.view(np.int16) if stored.dtype == np.uint16 else stored)


def _fits(num_bytes: int, device: torch.device) -> bool:
    if device.type != "cuda":  # the CPU reads the file's pages; of MPS the free memory is not known
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return num_bytes <= SHARE_OF_FREE_MEMORY * free


class ValidationLoss:
    """The loss of a denoiser on held-out rows of a store, mean and by range of noise levels, under fixed draws.

    At least `VALIDATION_DRAWS` of them, so that a few rows are met at many noise levels; of more rows as many, spread
    evenly.
    """

    def __init__(self, store: KeyCodeStore, rows: np.ndarray, *, seed: int, device: torch.device) -> None:
        self.store, self.seed, self.device = store, seed, device
        self._rows = np.resize(rows[spread(len(rows), VALIDATION_DRAWS)], VALIDATION_DRAWS)

    @torch.inference_mode()
    def __call__(
        self, denoiser: Denoiser, *, precision: Precision, batch_size: int, world: World, stop: StopRequest
    ) -> dict[str, float]:
        """By name, the same in every process, each of which does its share; nothing once somebody asked to stop."""
        num, levels = len(self._rows), LevelMeans(self.device)
        for start in range(world.rank * batch_size, num, world.size * batch_size):
            if stop.requested:
                break
            places = range(start, min(start + batch_size, num))
            rows = self._rows[start : places.stop]
            draws = draws_for_validation(self.seed, places=places, num=num, shape=self.store.code_shape)
            codes, labels = torch.from_numpy(self.store.batch(rows)), torch.from_numpy(self.store.labels[rows])
            with computing(precision, self.device):
                loss, log_snr = denoiser.loss(
                    codes.to(self.device),
                    Draws(*(each.to(self.device) for each in draws)),
                    labels=labels.to(self.device),
                )
            levels.add(loss, log_snr)
        if world.any(stop.requested):
            return {}
        mean, by_level = levels.mean_and_result(world)
        return {"val/loss": mean} | {f"val/{name}": value for name, value in by_level.items()}


class LevelMeans:
    """The mean loss of each range of noise levels since the last log line, over batches and processes.

    Summed on the device: nothing waits for it before a log line is due.
    """

    def __init__(self, device: torch.device) -> None:
        self._totals = torch.zeros(2, len(LEVEL_NAMES), dtype=widest_float(device), device=device)

    def add(self, loss: Tensor, log_snr: Tensor) -> None:
        """Add the samples of a micro-batch: loss (B,) at log_snr (B,)."""
        self._totals += loss_by_level(loss.detach().to(self._totals.dtype), log_snr.detach())

    def result(self, world: World) -> dict[str, float]:
        """By name; a range that no sample fell into is left out. The sums start again."""
        return self.mean_and_result(world)[1]

    def mean_and_result(self, world: World) -> tuple[float, dict[str, float]]:
        """The same, and the mean over all levels."""
        world.add_up([self._totals])
        totals, counts = self._totals.tolist()
        self._totals.zero_()
        found = zip(LEVEL_NAMES, totals, counts, strict=True)
        mean = sum(totals) / max(sum(counts), 1)
        return mean, {f"loss/{name}": total / count for name, total, count in found if count}


def build_for_store(recipe: DiffusionRecipe, store: KeyCodeStore, *, device: torch.device) -> Denoiser:
    """A fresh denoiser for the shape, the classes and the statistics of `store`'s codes.

    Raises ArtefactError for labels that are too large to be classes, MachineError when it cannot be trained in the
    memory there is, before any is taken.
    """
    largest = int(store.labels.max(initial=-1))
    if largest >= MAX_CLASSES:
        raise ArtefactError(
            f"the labels of {store.path} go up to {largest:,}, and a model has at most {MAX_CLASSES:,} classes",
            next="Encode again with brics encode-dataset, which renumbers them.",
        )
    classes = Classes.of(store.labels, store.class_names)
    build = partial(
        build_denoiser,
        recipe.denoiser,
        recipe.diffusion,
        code_shape=store.code_shape,
        num_classes=classes.num,
        store_mean=store.mean.tolist(),
        store_std=store.std.tolist(),
        store_histogram=store.histogram.tolist() if recipe.diffusion.normalise == "probit" else None,
        code_kind=store.code_kind,
        gradient_checkpointing=recipe.training.gradient_checkpointing,
    )
    check_memory(build, device=device, what=f"recipe {recipe.name}")
    denoiser = place(build(), device)
    denoiser.class_counts, denoiser.class_names = classes.counts, classes.names
    return denoiser


# Batches prepared one ahead of the device, of codes here and of images in `training.step` ----------------------------


def one_ahead(read: Callable[[int], T], *, first_step: int, threaded: bool) -> Generator[T, None, None]:
    """`read(step)` for every step from `first_step` on, without end; close it when done.

    `threaded`: the next one is read while the device computes on this one.
    """
    if not threaded:
        yield from map(read, count(first_step))
    with ThreadPoolExecutor(1, thread_name_prefix="brics-ahead") as reader:
        next_one = reader.submit(read, first_step)
        for step in count(first_step + 1):
            current, next_one = next_one.result(), reader.submit(read, step)
            yield current


def pinned(tensor: Tensor, *, on: bool) -> Tensor:
    """`tensor` in pinned memory, from where a copy to CUDA is not waited for; as it is unless `on`."""
    return tensor.pin_memory() if on else tensor
