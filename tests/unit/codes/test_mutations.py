"""Stores with bytes or structures changed at random: `verify` reports every change that a reader could see.

The check is done in a child, since libhdf5 crashes on some. When `verify` finds a mutated store sound, every attribute,
type, shape and value in it must be what it was: whatever else stands in the file is no promise.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import brics
from store_files import write_store

from brics_cli.codes import KeyCodeStore, verify_store, verify_store_in_child
from brics_cli.errors import BricsError, ExitCode, MachineError
from brics_cli.jobs.info import describe
from brics_cli.workspace import read_provenance
from brics_cli.workspace.naming import INDEX_NAME

LIMIT_S = 20
HANG_S = 90
"""A process that opens a store is ended after 8 s of CPU, which a busy machine stretches, or after 60 s in all."""


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns, done in a forked process; None when that crashed or took longer than LIMIT_S."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            faulthandler.disable()  # a crash is an answer here
            signal.alarm(LIMIT_S)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.write(writing, json.dumps(work()).encode()[:60_000])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        text = file.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else None


def all_there_is(path: Path) -> str:
    """Every name, attribute, type, shape and value of a store, and what a reader maps, in one text."""
    found: list[str] = []

    def look(name: str, item: Any) -> None:
        found.append(f"{name} {type(item).__name__} {sorted((k, repr(v)) for k, v in item.attrs.items())}")
        if isinstance(item, h5py.Dataset):
            found.append(
                f"{item.dtype} {item.shape} {hash(item[()].tobytes()) if item.dtype.kind != 'O' else item[()]}"
            )

    with h5py.File(path) as file:
        look("/", file)
        file.visititems(look)
    store = KeyCodeStore(path)
    mapped = [hash(store.raw(slice(None), flipped=flipped).tobytes()) for flipped in (False, True)]
    return "\n".join([*found, str(mapped), str(store.keys), str(store.shards), str(store.failures)])


def in_bytes(data: bytearray, generator: np.random.Generator) -> bytearray:
    """One of: bits flipped, bytes replaced, a run zeroed, cut, or lengthened inside."""
    position = int(generator.integers(len(data)))
    match int(generator.integers(6)):
        case 0 | 1:
            data[position] ^= 1 << int(generator.integers(8))
        case 2:
            for _ in range(int(generator.integers(1, 9))):
                data[int(generator.integers(len(data)))] = int(generator.integers(256))
        case 3:
            length = int(generator.integers(1, 65))
            data[position : position + length] = bytes(len(data[position : position + length]))
        case 4:
            del data[position:]
        case _:
            data[position:position] = bytes(generator.integers(0, 256, 3, dtype=np.uint8))
    return data


def in_structure(path: Path, generator: np.random.Generator) -> None:
    """One thing done with h5py: a dataset gone, moved, retyped or changed; an attribute gone or changed."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        name = names[int(generator.integers(len(names)))]
        values = file[name][()]
        match int(generator.integers(6)):
            case 0:
                del file[name]
            case 1:
                file.move(name, name + "_")
            case 2:
                del file[name]
                file.create_dataset(name, data=values[: len(values) // 2])
            case 3:
                del file[name]
                file.create_dataset(name, data=values, chunks=True)
            case 4:
                attribute = sorted(file.attrs)[int(generator.integers(len(file.attrs)))]
                del file.attrs[attribute]
            case _:
                attribute = sorted(file.attrs)[int(generator.integers(len(file.attrs)))]
                value = file.attrs[attribute]
                file.attrs[attribute] = value + ("x" if isinstance(value, str) else 1)


def to_extremes(data: bytearray, generator: np.random.Generator) -> bytearray:
    """A field of 1 to 8 bytes all ones, all zeros, half of its range, its own address, or exchanged with another."""
    size = int(generator.choice([1, 2, 4, 8]))
    place, other = (int(position) for position in generator.integers(len(data) - size, size=2))
    there = bytes(data[other : other + size])
    values = (b"\xff" * size, bytes(size), b"\0" * (size - 1) + b"\x40", place.to_bytes(8, "little")[:size], there)
    kind = int(generator.integers(len(values)))
    if kind == 4:
        data[other : other + size] = data[place : place + size]
    data[place : place + size] = values[kind]
    return data


def opened(path: Path) -> str:
    """All that a plain opening and its readers give, in this process: an error of ours, or none."""
    try:
        store = KeyCodeStore(path)
        store.labels, store.key_bytes(), store.mean, store.header
        store.raw(slice(None)), store.shards, store.failures, store.keys, store.shard_starts
        store.metas(0, len(store)), read_provenance(path)
    except BricsError as error:
        assert error.exit_code == ExitCode.ARTEFACT, error
        return str(error)
    return ""


def survive(path: Path, read: Callable[[Path], str], *, num: int, seed: int) -> int:
    """Mutate a store `num` times and `read` each: no crash, no hang, no other exception; how many were refused."""
    data = path.read_bytes()
    mutated = path if path.name == INDEX_NAME else path.with_name("mutated.h5")  # an index is nothing elsewhere
    generator = np.random.default_rng(seed)
    refused = 0
    for number in range(num):
        if number % 3 == 2:
            mutated.write_bytes(data)
            in_structure(mutated, generator)
        else:
            change = to_extremes if number % 3 else in_bytes
            mutated.write_bytes(change(bytearray(data), generator))
        start = time.monotonic()
        try:
            refused += read(mutated) != ""
        except Exception as error:
            shutil.copy(mutated, path.with_name(f"failed-{seed}-{number}.h5"))
            raise AssertionError(f"seed {seed}, mutation {number}") from error
        assert time.monotonic() - start < HANG_S, f"seed {seed}, mutation {number} hangs"
    return refused


def check(path: Path, *, num: int, seed: int, structure: bool) -> tuple[int, int]:
    """Mutate a store `num` times; how many were reported, and of these how many by a crash or the time limit."""
    data = path.read_bytes()
    before = all_there_is(path)
    mutated = path if path.name == INDEX_NAME else path.with_name("mutated.h5")
    generator = np.random.default_rng(seed)
    reported = crashed = 0
    for number in range(num):
        if structure:
            mutated.write_bytes(data)
            in_structure(mutated, generator)
        else:
            mutated.write_bytes(in_bytes(bytearray(data), generator))
        broken = in_child(lambda: verify_store(mutated))
        reported += broken != []
        crashed += broken is None
        if broken == []:
            assert in_child(lambda: all_there_is(mutated) == before), f"seed {seed}, mutation {number} is not seen"
    return reported, crashed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_store(tmp_path / "codes.h5", ["s0", "s1", "s2"])


def test_a_sound_store_is_sound_and_the_oracle_sees_it(path):
    assert verify_store(path) == [] and all_there_is(path) == all_there_is(path)


@pytest.mark.parametrize("structure", [False, True], ids=["bytes", "structure"])
def test_mutations_are_reported(path, structure):
    reported, _ = check(path, num=8, seed=0, structure=structure)
    assert reported > (4 if structure else 0)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return write_store(tmp_path / "codes", ["s0", "s1", "s2"]) / INDEX_NAME


@pytest.mark.parametrize("structure", [False, True], ids=["bytes", "structure"])
def test_mutations_of_an_index_are_reported(index, structure):
    reported, _ = check(index, num=4, seed=0, structure=structure)
    assert reported > (1 if structure else 0)


@pytest.mark.slow
@pytest.mark.parametrize("structure", [False, True], ids=["bytes", "structure"])
def test_many_mutations_of_an_index_are_reported(index, structure):
    reported, crashed = check(index, num=500, seed=1, structure=structure)
    print(f"{reported} of 500 reported, {crashed} by a crash or the time limit")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("structure", [False, True], ids=["bytes", "structure"])
def test_many_mutations_are_reported(path, structure, seed):
    reported, crashed = check(path, num=1000, seed=seed, structure=structure)
    print(f"seed {seed}: {reported} of 1000 reported, {crashed} by a crash or the time limit")


def test_a_child_that_dies_or_hangs_is_reported(path, monkeypatch, tmp_path):
    """What libhdf5 does on some files, done on purpose: the parent lives and says so."""
    import brics_cli.codes.verify as verify

    dying = tmp_path / "dying"
    dying.write_text("#!/bin/sh\nkill -SEGV $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(verify.sys, "executable", str(dying))
    assert verify_store_in_child(path) == ["reading it crashes libhdf5 (signal 11)"]
    dying.write_text("#!/bin/sh\nkill -XCPU $$\n")
    assert verify_store_in_child(path) == ["reading it did not end in 61 s"]
    dying.write_text("#!/bin/sh\nexec sleep 60\n")
    run = verify.subprocess.run
    sooner = lambda *args, timeout, **more: run(*args, timeout=timeout / 10, **more)  # noqa: E731
    monkeypatch.setattr(verify.subprocess, "run", sooner)
    with pytest.raises(MachineError, match="did not end in 10 s"):  # it computes nothing: the store is not to blame
        verify_store_in_child(path, limit_s=0.2)


def test_text_that_is_no_utf8_is_shown_and_stored_as_such(path):
    """What libhdf5 gives as surrogates, which nothing can be written with."""
    path.write_bytes(path.read_bytes().replace(b"/images", b"/im\xff\xfees"))
    store = KeyCodeStore(path)
    assert "/im" in store.source and store.source.encode() and described(path) == ""


def test_mutated_stores_are_opened_or_refused(path):
    assert survive(path, opened, num=15, seed=0) > 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_many_mutated_stores_are_opened_or_refused(path, seed):
    """In this very process: a crash would end it."""
    assert survive(path, opened, num=1000, seed=seed) > 100


def test_a_mutated_index_is_opened_or_refused(index):
    assert survive(index, opened, num=9, seed=10) > 2


@pytest.mark.slow
def test_many_mutated_indices_are_opened_or_refused(index):
    assert survive(index, opened, num=500, seed=11) > 100


def described(path: Path) -> str:
    try:
        describe(str(path))
    except BricsError as error:
        assert error.exit_code == ExitCode.ARTEFACT, error
        return str(error)
    return ""


def test_info_survives_mutated_stores(path):
    assert survive(path, described, num=10, seed=6) > 0


@pytest.mark.slow
def test_info_survives_many_mutated_stores(path):
    assert survive(path, described, num=1000, seed=7) > 100


def trained(path: Path) -> str:
    options = ("--recipe", "tiny", "--steps", 1, "--set", "training.batch_size=2", "--out", "run", "--overwrite")
    done = brics("train-diffusion", path, *options, cwd=path.parent)
    assert done.returncode in (ExitCode.DONE, ExitCode.USAGE, ExitCode.ARTEFACT), done.stderr
    return done.stderr if done.returncode else ""


def test_training_survives_mutated_stores(path):
    assert survive(path, trained, num=10, seed=8) > 0


@pytest.mark.slow
def test_training_survives_many_mutated_stores(path):
    assert survive(path, trained, num=1000, seed=9) > 100
