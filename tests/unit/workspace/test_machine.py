"""What the machine says (locks, mounts, limits) is never taken for a damaged file, and its way out is a true one."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys

import h5py
import lmdb
import numpy as np
import pytest
from commands import brics, error_line
from safetensors import SafetensorError
from store_files import SHAPE, header, write_store

from brics_cli import KeyCodeStore
from brics_cli.codes import StoreShard, StoreWriter, plan_join, verify_store, verify_store_in_child
from brics_cli.codes.parts import open_part, part_mismatch, part_path
from brics_cli.codes.writer import check_store_output
from brics_cli.errors import ExitCode, MachineError, as_brics_error, machine_error
from brics_cli.workspace import Workspace, hold_lock, read_provenance

SAID = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "quota",
    errno.EFBIG: "ulimit -f",
    errno.EROFS: "read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.EIO: "input/output error",
    errno.ESTALE: "network mount",
    errno.ETIMEDOUT: "network mount",
    errno.ENOMEM: "out of memory",
    errno.EMFILE: "ulimit -n",
    errno.ENFILE: "too many open files",
    errno.ENOLCK: "HDF5_USE_FILE_LOCKING=FALSE",
}


def as_hdf5(number: int) -> Exception:
    return RuntimeError(f"Unable to open file (unable to open: errno = {number}, error message = 'x', flags = 0)")


def as_rust(number: int) -> Exception:
    return SafetensorError(f"I/O error: {os.strerror(number)} (os error {number})")


def as_lmdb(number: int) -> Exception:
    return lmdb.Error(f"/data/lsun: {os.strerror(number)}")


@pytest.mark.parametrize("number", SAID)
@pytest.mark.parametrize("made", [lambda n: OSError(n, os.strerror(n), "x.h5"), as_hdf5, as_rust, as_lmdb])
def test_an_errno_is_the_machine_s_whoever_tells_it(number, made):
    said = machine_error(made(number), where="x.h5")
    assert said is not None and said.exit_code == ExitCode.MACHINE
    assert SAID[number] in str(said) and "x.h5" in str(said)
    assert "--overwrite" not in str(said) and "Make it again" not in str(said)


def test_a_lock_that_is_held_is_no_shortage_of_processes():
    held = machine_error(OSError("unable to lock file, errno = 11, error message = 'x'"), where="c.h5")
    assert "locked by another process: c.h5" in str(held)
    assert "ulimit -u" in str(machine_error(BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")))
    assert "threads" in str(as_brics_error(RuntimeError("can't start new thread")))


@pytest.mark.parametrize("error", [ValueError("x"), OSError(errno.ENOENT, "x"), OSError("truncated file: eof = 96")])
def test_what_the_machine_did_not_do_is_not_put_down_to_it(error):
    assert machine_error(error) is None


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "codes.h5", ["a", "b"])


@pytest.fixture
def part(tmp_path):
    """A part of an unfinished store: its directory, header, shard."""
    shard = StoreShard("a", 1, 100, "0" * 64)
    of = header(num_images=1, flipped=False)
    with StoreWriter(tmp_path / "new.h5", of, [shard]) as writer, writer.part(0) as part:
        part.add(np.zeros((1, *SHAPE), "u1"), keys=["a/0"], indices=[0])
    return tmp_path / "new.h5.parts", of, shard


def opened_part(part):
    directory, made_of, shard = part
    with open_part(part_path(directory, shard), made_of, shard.num_images):
        pass


READERS = {
    "open": KeyCodeStore,
    "provenance": read_provenance,
    "output": lambda path: check_store_output(path, header(), overwrite=False),
    "join": lambda path: plan_join([KeyCodeStore(path), KeyCodeStore(path)]),
    "verify": verify_store,
    "verify in a child": verify_store_in_child,
}


@pytest.mark.parametrize("read", READERS)
def test_a_store_that_another_program_writes_is_locked_not_damaged(store, read):
    before = store.read_bytes()
    with h5py.File(store, "r+"), pytest.raises(MachineError, match="locked by another process") as said:
        READERS[read](store)
    assert "HDF5_USE_FILE_LOCKING=FALSE" in said.value.next and store.read_bytes() == before


@pytest.mark.parametrize("read", [lambda part: part_mismatch(*part), opened_part], ids=["mismatch", "open"])
def test_a_locked_part_is_neither_damaged_nor_removed(part, read):
    with h5py.File(part_path(part[0], part[2]), "r+"), pytest.raises(MachineError, match="locked"):
        read(part)
    assert part_mismatch(*part) is None


def test_columns_of_a_store_that_gets_locked(store):
    opened = KeyCodeStore(store)
    with h5py.File(store, "r+"), pytest.raises(MachineError, match="locked"):
        opened.keys  # noqa: B018


def test_the_way_out_of_a_lock_is_one(store, monkeypatch):
    with h5py.File(store, "r+"):
        monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "FALSE")
        assert len(KeyCodeStore(store)) == 6 and verify_store(store) == []


def test_commands_call_a_locked_store_locked(store, tmp_path):
    before = store.read_bytes()
    commands = {
        "info": ("info", store),
        "verify": ("info", store, "--verify"),
        "decode": ("decode", store, "--out", "out"),
        "merge": ("merge", store, store, "--out", "all.h5"),
        "train-diffusion": ("train-diffusion", store),
    }
    with h5py.File(store, "r+"):
        for arguments in commands.values():
            line = error_line(brics(*arguments, cwd=tmp_path, check=6))
            assert "locked by another process" in line and "--overwrite" not in line and "again" not in line
        listed = brics("status", cwd=tmp_path, check=0)
    assert "is passed over: locked by another process" in listed.stderr
    assert store.read_bytes() == before


def test_a_store_that_this_process_reads_with_h5py_too(store):
    with h5py.File(store, "r"):
        assert len(KeyCodeStore(store).keys) == 6


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks, as NFS is whose lock daemon does not run."""

    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_reading_needs_no_locks(store, no_locks):
    assert len(KeyCodeStore(store)) == 6 and verify_store(store) == []
    assert Workspace(store.parent).newest("store").path == store


def test_writing_says_that_there_are_no_locks_and_its_way_out_is_one(tmp_path, no_locks, monkeypatch):
    with pytest.raises(OSError) as said:
        write_store(tmp_path / "codes.h5", ["a"])
    assert "no locks on this file system" in str(as_brics_error(said.value)) and list(tmp_path.rglob("*lock")) == []
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "FALSE")
    assert len(KeyCodeStore(write_store(tmp_path / "codes.h5", ["a"]))) == 3


def test_a_lock_of_ours_that_is_held_says_so(tmp_path):
    with hold_lock(tmp_path / ".lock", what="codes.h5"), pytest.raises(MachineError, match="another brics process"):
        hold_lock(tmp_path / ".lock", what="codes.h5").__enter__()


@pytest.mark.parametrize("limit", ["-v 2500000", "-t 100"])
def test_a_store_is_read_under_the_users_own_lower_limits(store, limit):
    command = f'ulimit {limit}; exec "$0" -m brics_cli info "$1" --json'
    done = subprocess.run(["bash", "-c", command, sys.executable, store], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
