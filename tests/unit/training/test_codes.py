"""Batches of codes for diffusion: the same bits wherever the store is kept, in order, ahead or not."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from store_files import SHAPE, header, write_store

from brics_cli.codes import KeyCodeStore, StoreShard, StoreWriter, dequantise
from brics_cli.config import load_recipe
from brics_cli.diffusion.diffusion import draws_for
from brics_cli.errors import MachineError
from brics_cli.runtime.distributed import World
from brics_cli.runtime.randomness import Stream, keyed_coins
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.training import codes as training_codes
from brics_cli.training.codes import (
    LevelMeans,
    TrainingCodes,
    WindowsAhead,
    dequantise_on_device,
    order_of,
    settled_for_store,
)
from brics_cli.training.order import SampleOrder

CPU = torch.device("cpu")
NUM_ROWS = 11
VALUES = {
    "uint8": np.arange(256, dtype="u1"),
    "uint16": np.arange(65536, dtype="<u2"),
    "float16": np.linspace(-8, 8, 1000).astype("<f2"),
}


def make_store(path: Path, quantisation: Any = "uint8", *, flips: bool = True) -> KeyCodeStore:
    """A store of 11 rows in one shard; the mirrored codes are other random ones, so that they cannot be mixed up."""
    generator = np.random.default_rng(0)
    rows, flipped = (generator.choice(VALUES[quantisation], (NUM_ROWS, *SHAPE)) for _ in range(2))
    made_of = header(num_images=NUM_ROWS, flipped=flips, quantisation=quantisation)
    with StoreWriter(path, made_of, [StoreShard("a", NUM_ROWS, 100, "0" * 64)]) as writer:
        with writer.part(0) as part:
            part.add(
                rows, flipped=flipped if flips else None, keys=[f"a/{index}" for index in range(NUM_ROWS)],
                indices=list(range(NUM_ROWS)), labels=[index % 3 for index in range(NUM_ROWS)],
                metas=[None] * NUM_ROWS, failures=[],
            )  # fmt: skip
        writer.merge(parents=(), details={})
    return KeyCodeStore(path)


def batches(
    store: KeyCodeStore,
    where: Any,
    *,
    first_step: int = 0,
    num: int = 4,
    order: SampleOrder | None = None,
    **settings: Any,
) -> list[Any]:
    kept = TrainingCodes(store, seed=5, device=CPU, where=where, reporter=SilentReporter())
    order = order or SampleOrder([np.arange(len(store))], seed=5)
    arguments = {"batch_size": 6, "world": World(device=CPU)} | settings
    stream = kept.batches(order, first_step=first_step, **arguments)
    found = list(islice(stream, num))
    stream.close()
    return found


def test_parts_of_a_folder_are_shuffled_in_windows_of_whole_ones(tmp_path: Path) -> None:
    """The order is that of (seed, epoch): resumed, on two processes, and of the file that the parts become, too."""
    names = [f"s{number}" for number in range(8)]
    many, one = (KeyCodeStore(write_store(tmp_path / path, names)) for path in ("codes", "codes.h5"))
    recipe = load_recipe("tiny", kind="diffusion")
    assert settled_for_store(recipe, one) is recipe and recipe.training.shuffle_window is None
    assert settled_for_store(recipe, many).training.shuffle_window == training_codes.WINDOW
    schedule = recipe.training.model_copy(update={"shuffle_window": 5})  # two shards of 3 codes each
    orders = [order_of(store, rows, schedule) for store in (many, one) for rows in (range(24), np.arange(24))]
    epochs = [[orders[0].batch(24 * epoch, 24) for epoch in range(2)]]
    epochs += [[[order[position] for position in range(24 * epoch, 24 * epoch + 24)] for epoch in range(2)]
               for order in orders]  # fmt: skip
    assert all(each == epochs[0] for each in epochs) and epochs[0][0] != epochs[0][1]
    for epoch in epochs[0]:
        assert sorted(epoch) == list(range(24))
        assert all(len({row // 3 for row in epoch[first : first + 6]}) == 2 for first in range(0, 24, 6))
    kept = np.delete(np.arange(24), [3, 4, 5, 20])  # held out: all of a shard, and one of another
    assert sorted(order_of(many, kept, schedule).batch(0, 20)) == kept.tolist()

    straight = batches(many, "never", order=orders[0], num=8)
    assert_same(straight, batches(one, "never", order=orders[0], num=8))
    assert_same(straight[3:], batches(many, "never", order=orders[0], first_step=3, num=5, ahead=True))
    halves = [
        batches(many, "never", order=orders[0], num=8, world=World(device=CPU, rank=rank, size=2)) for rank in (0, 1)
    ]
    for whole, first, second in zip(straight, *halves, strict=True):
        assert torch.equal(whole.codes, torch.cat([first.codes, second.codes]))

    rows = [*epochs[0][0], *epochs[0][1]]
    windows = [sorted({row // 3 for row in rows[first : first + 6]}) for first in range(0, 48, 6)]
    whole = SampleOrder([range(24)], seed=5)
    for order, num in ((orders[0], {0: 2, 5: 2, 6: 3, 25: 6}), (whole, dict.fromkeys((0, 5, 6, 25), 0))):
        ahead, asked = WindowsAhead(many, order, position=0), list[int]()
        ahead._reader.submit = lambda _, row, asked=asked: asked.append(row // 3)  # type: ignore
        for position, num_windows in num.items():
            ahead.reach(position)
            found = [sorted(asked[first : first + 2]) for first in range(0, len(asked), 2)]
            assert found == windows[:num_windows], "each window, one ahead of its use"


def test_a_file_that_memory_does_not_hold_is_shuffled_in_windows(tmp_path: Path, monkeypatch) -> None:
    one = KeyCodeStore(write_store(tmp_path / "codes.h5", [f"s{number}" for number in range(8)]))
    recipe = load_recipe("tiny", kind="diffusion")
    monkeypatch.setattr(training_codes, "memory_bytes", lambda device: one.num_bytes - 1)
    settled = settled_for_store(recipe, one)
    assert settled.training.shuffle_window == training_codes.WINDOW
    advised: list[tuple[int, int]] = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda file, offset, num_bytes, advice: advised.append((offset, num_bytes))
    )
    one.will_need(7)
    with h5py.File(one.path) as file:
        begin, row_bytes = file["codes"].id.get_offset(), file["codes"][0].nbytes
    assert advised[0] == (begin + 6 * row_bytes, 3 * row_bytes), "the shard that row 7 is in"


def assert_same(ours: list[Any], theirs: list[Any]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        for x, y in zip((a.codes, a.labels, *a.draws), (b.codes, b.labels, *b.draws), strict=True):
            assert x.dtype == y.dtype and torch.equal(x, y)


@pytest.mark.parametrize("quantisation", VALUES)
@pytest.mark.parametrize("flips", [True, False])
def test_a_store_on_the_device_gives_the_same_batches(
    tmp_path: Path, quantisation: str, flips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_codes, "ROWS_PER_COPY", 4)  # several copies, the last one short
    store = make_store(tmp_path / "codes.h5", quantisation, flips=flips)
    resident, mapped = batches(store, "always"), batches(store, "never")
    assert_same(resident, mapped)
    order = SampleOrder([np.arange(NUM_ROWS)], seed=5)
    for step, batch in enumerate(mapped):  # and they are what the store says they are
        samples = order.batch(6 * step, 6)
        coins = keyed_coins(5, step=step, indices=samples, stream=Stream.FLIP).numpy()
        expected = store.batch(samples)
        if flips:
            expected[coins] = store.batch(samples, flipped=True)[coins]
        assert np.array_equal(batch.codes.numpy(), expected)
        assert batch.labels.tolist() == store.labels[samples].tolist()
        assert torch.equal(batch.draws.eps, draws_for(5, step=step, indices=samples, shape=SHAPE).eps)


def test_reading_ahead_and_starting_later_change_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path / "codes.h5")
    plain = batches(store, "never")
    assert_same(batches(store, "never", ahead=True), plain)
    assert_same(batches(store, "always", ahead=True, first_step=2, num=2), plain[2:])


def test_two_processes_share_a_batch_and_micro_batches_split_it(tmp_path: Path) -> None:
    store = make_store(tmp_path / "codes.h5")
    (whole,) = batches(store, "never", num=1)
    halves = [batches(store, "never", num=1, world=World(rank=rank, size=2, device=CPU))[0] for rank in (0, 1)]
    assert torch.equal(torch.cat([half.codes for half in halves]), whole.codes)
    parts = list(whole.parts(3))
    assert [is_last for *_, is_last in parts] == [False, False, True]
    assert torch.equal(torch.cat([codes for codes, *_ in parts]), whole.codes)
    assert torch.equal(torch.cat([draws.eps for _, _, draws, _ in parts]), whole.draws.eps)


def test_draws_of_a_whole_step_are_its_own_whatever_the_processes_and_where_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA: coins and noise of one stream per step, of which each process takes its share."""
    by_sample = batches(make_store(tmp_path / "codes.h5"), "never", num=3)
    monkeypatch.setattr(training_codes, "draws_by_step", lambda device: True)
    store = make_store(tmp_path / "more.h5")
    whole = batches(store, "never", num=3)
    for where in ("never", "always"):
        halves = [batches(store, where, num=3, world=World(rank=rank, size=2, device=CPU)) for rank in (0, 1)]
        for all_of_it, *parts in zip(whole, *halves, strict=True):
            assert torch.equal(torch.cat([part.codes for part in parts]), all_of_it.codes)
            for name in ("u", "eps", "drop"):
                parted = torch.cat([getattr(part.draws, name) for part in parts])
                assert torch.equal(parted, getattr(all_of_it.draws, name))
    assert_same(batches(store, "never", first_step=1, num=2), whole[1:])
    drawn = torch.cat([batch.draws.eps.flatten() for batch in (*by_sample, *whole)])
    assert len(drawn.unique()) == len(drawn), "no two of any step, and none of the CPU's"


@pytest.mark.parametrize("quantisation", VALUES)
def test_every_stored_value_becomes_the_code_that_the_store_gives(quantisation: Any) -> None:
    values = VALUES[quantisation]
    stored = torch.from_numpy(values.view(np.int16) if quantisation == "uint16" else values)
    scale = {"uint8": 255, "uint16": 65535, "float16": 1}[quantisation]
    assert np.array_equal(dequantise_on_device(stored, scale=scale).numpy(), dequantise(values, quantisation))


def test_a_store_that_does_not_fit_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "codes.h5")

    def full(*arguments: Any, **settings: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(MachineError, match=r"store_on_device always: the .* GiB of .*codes\.h5 do not fit on cpu") as e:
        TrainingCodes(store, seed=0, device=CPU, where="always", reporter=SilentReporter())
    assert "\n" not in str(e.value)


def test_an_error_of_the_reader_reaches_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "codes.h5")
    monkeypatch.setattr(KeyCodeStore, "raw", lambda *_, **__: (_ for _ in ()).throw(OSError("the disk is gone")))
    with pytest.raises(OSError, match="the disk is gone"):
        batches(store, "never", ahead=True)


def test_means_by_noise_level_add_up_over_batches_and_start_again() -> None:
    means, world = LevelMeans(CPU), World(device=CPU)
    means.add(torch.tensor([1.0, 2.0]), torch.tensor([-9.0, 1.0]))
    means.add(torch.tensor([4.0]), torch.tensor([2.0]))
    assert means.result(world) == {"loss/logsnr<-4": 1.0, "loss/logsnr0..4": 3.0}
    assert means.result(world) == {}
