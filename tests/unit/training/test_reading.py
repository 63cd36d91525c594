"""Collections that are not kept in memory: order, memory, failures, shares of a world."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import brics

from brics_cli.images import ImageError, RawImage, open_collection
from brics_cli.images.collection import Collection, Shard
from brics_cli.images.loader import Place
from brics_cli.runtime.distributed import World
from brics_cli.training.images import TrainingImages, WindowReader
from brics_cli.training.order import SampleOrder


class Recorded(Collection):
    """Shards of 10 one-byte files that remembers what was read, and in which order."""

    kind = "recorded"
    path = "recorded"

    def __init__(self, num_shards: int) -> None:
        self.shards = [Shard(f"{number:05d}", 10, 10, "") for number in range(num_shards)]
        self.reads: dict[int, list[int]] = {number: [] for number in range(num_shards)}
        self.lock = threading.Lock()

    def describe(self) -> str:
        return "recorded"

    def key(self, shard_index: int, index: int) -> str:
        return f"{shard_index}/{index}"

    def read(self, shard_index: int, index: int) -> RawImage:
        with self.lock:
            self.reads[shard_index].append(index)
        if (shard_index, index) == (3, 3):
            raise ImageError("cannot be read")
        return RawImage(self.key(shard_index, index), bytes([shard_index * 10 + index]), None, None, shard_index, index)

    def files(self, shard_index: int, indices: Sequence[int] | None = None) -> list[str]:
        return []

    @property
    def num_read(self) -> int:
        with self.lock:
            return sum(map(len, self.reads.values()))


def reader_of(
    collection: Recorded, order: SampleOrder, *, start: int = 0, world: int = 1, rank: int = 0
) -> WindowReader:
    return WindowReader(
        collection,
        order,
        start=start,
        place_of=lambda sample: Place(*divmod(sample, 10)),
        is_mine=lambda position: position % world == rank,
    )


def order_of(num_shards: int, *, seed: int = 0) -> SampleOrder:
    return SampleOrder([np.arange(10) + 10 * shard for shard in range(num_shards)], seed=seed, window=20)


def test_shards_are_read_from_front_to_back_and_handed_out_in_the_training_order() -> None:
    collection, order = Recorded(6), order_of(6, seed=1)  # no shard is in the last window and in the next epoch's first
    reader = reader_of(collection, order)
    for position in range(60):
        sample, place = reader.take(position)
        assert sample == order[position]
        if sample == 33:
            with pytest.raises(ImageError):
                place.read()
        else:
            assert place.read().data == bytes([sample])
    reader.close()
    assert all(reads[:10] == list(range(10)) for reads in collection.reads.values())


def test_no_more_than_two_windows_are_read_ahead() -> None:
    collection = Recorded(100)
    reader = reader_of(collection, order_of(100))
    for position in range(100):
        reader.take(position)
        assert collection.num_read <= (position // 20 + 2) * 20
        assert len(reader._windows) == 2
    reader.close()


def cut_order_of(num_shards: int, *, most: int) -> SampleOrder:
    """Windows of three shards of 10 samples, where `most` allows them."""
    shards = [np.arange(10) + 10 * shard for shard in range(num_shards)]
    return SampleOrder(shards, seed=3, window=25, most=most)


def test_windows_that_may_be_so_large_are_those_without_a_limit() -> None:
    assert cut_order_of(9, most=30).batch(0, 200) == SampleOrder(
        [np.arange(10) + 10 * shard for shard in range(9)], seed=3, window=25
    ).batch(0, 200)


@pytest.mark.parametrize("most", [29, 16, 7, 1])
def test_a_window_is_cut_to_the_budget_and_every_sample_is_still_seen_once_an_epoch(most: int) -> None:
    order = cut_order_of(9, most=most)
    for epoch in range(2):
        assert sorted(order.batch(epoch * 90, 90)) == list(range(90))
    ends = [first + len(samples) for (first, samples), _ in zip(order.windows(0), range(40), strict=False)]
    assert max(np.diff([0, *ends])) <= most and (most > 16 or max(np.diff(ends)) > most // 2)
    assert cut_order_of(9, most=most).batch(37, 90) == order.batch(37, 90)  # resumed anywhere
    if most == 16:  # runs of one sample from several shards
        assert len({sample // 10 for sample in order.batch(0, 16)}) == 3


def test_no_more_is_read_ahead_than_the_budget() -> None:
    collection, order = Recorded(25), cut_order_of(25, most=8)
    reader = reader_of(collection, order)
    for position in range(200):
        _, place = reader.take(position)
        assert collection.num_read <= position + 2 * 8
        with suppress(ImageError):
            place.read()
    reader.close()


def test_the_window_is_a_matter_of_file_sizes_and_the_recipe(photographs: Path) -> None:
    images = TrainingImages(open_collection(photographs), transform="crop-bicubic", size=16, num_workers=1)
    num_bytes = sum(path.stat().st_size for path in photographs.iterdir())
    assert images.window_limit(None) is None
    assert images.window_limit(num_bytes / 2**30) == len(images) // 2  # of which two are read ahead
    assert images.window_limit(1e-9) == 1


def test_resuming_inside_a_window_reads_what_is_left_of_it() -> None:
    collection, order = Recorded(6), order_of(6)
    reader = reader_of(collection, order, start=15)
    taken = [reader.take(position) for position in range(15, 40)]
    assert [sample for sample, _ in taken] == order.batch(15, 25)
    for _, place in taken[:5]:
        place.read()
    reader.close()
    read = {shard * 10 + index for shard, reads in collection.reads.items() for index in reads}
    assert not read & set(order.batch(0, 15))


def test_two_processes_read_each_file_once_between_them() -> None:
    order, collections = order_of(6), [Recorded(6), Recorded(6)]
    for rank, collection in enumerate(collections):
        reader = reader_of(collection, order, world=2, rank=rank)
        for position in range(rank, 60, 2):
            sample, place = reader.take(position)
            assert sample == order[position]
            if sample != 33:
                assert place.read().data == bytes([sample])
        reader.close()
    epochs = [{(s, i) for s, reads in each.reads.items() for i in reads[: len(set(reads))]} for each in collections]
    assert all(len(epoch) < 60 for epoch in epochs) and len(epochs[0] | epochs[1]) == 60


def test_windows_go_on_while_positions_are_looked_up_elsewhere() -> None:
    order = order_of(6)
    windows: Iterator[tuple[int, np.ndarray]] = order.windows(70)
    expected = order_of(6).batch(60, 120)
    seen: list[int] = []
    for first, samples in windows:
        assert first == 60 + len(seen)
        seen += samples.tolist()
        order[first * 7]  # another epoch
        if len(seen) >= 120:
            break
    assert seen[:120] == expected


def test_shares_of_two_processes_are_the_batch_of_one(photographs: Path) -> None:
    def images() -> TrainingImages:
        return TrainingImages(open_collection(photographs), transform="crop-bicubic", size=16, num_workers=1)

    order = SampleOrder([np.arange(48)], seed=0)
    streams = [images().batches(order, start=8, batch_size=8)]
    for rank in range(2):
        world = World(rank=rank, size=2, device=torch.device("cpu"))
        streams.append(images().batches(order, start=8, batch_size=8, world=world))
    for _ in range(12):  # over the end of an epoch
        whole, first, second = (next(stream) for stream in streams)
        assert first.indices + second.indices == whole.indices
        assert (np.concatenate([first.images, second.images]) == whole.images).all()
    for stream in streams:
        stream.close()


def test_validation_images_that_cannot_be_read_give_a_warning_and_no_score(photographs: Path, tmp_path: Path) -> None:
    train, val = tmp_path / "train", tmp_path / "val"
    for folder in (train, val):
        folder.mkdir()
    for path in sorted(photographs.iterdir())[:4]:
        (train / path.name).write_bytes(path.read_bytes())
        (val / path.name).write_text("this is no image")
    small = ("--recipe", "tiny", "--steps", 2, "--set", "training.batch_size=2", "--set", "data.cache_gib=0")
    finished = brics("train-ae", train, "--val", val, *small, "--out", "run", cwd=tmp_path, check=0)
    assert "warning: no validation score: none of the 4 validation images can be read" in finished.stderr
    assert "val/" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
