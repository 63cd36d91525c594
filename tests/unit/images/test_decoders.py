"""Processes that decode: the same batches as threads, whatever becomes of the processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from image_files import encoded, grey, write_tar
from PIL import Image

from brics_cli.errors import MachineError, UsageError
from brics_cli.images import load_shards, loader, open_collection
from brics_cli.images.decoders import Buffers, Decoders
from brics_cli.images.loader import CollectionStream
from brics_cli.training.images import TrainingImages
from brics_cli.training.order import SampleOrder

SIZE = 4
SHAPE = (8, SIZE, SIZE, 3)
pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux' memfd_create")

A_WARNING = encoded(Image.new("RGB", (8, 8)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
"""Its EXIF data are damaged, which Pillow says on stderr."""

FAULTS = """
import os, signal
import PIL.Image
pillow = PIL.Image.open
def open(file, **options):
    data = file.getbuffer()
    if data[:5] == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if data[:6] == b"memory":
        raise MemoryError
    if data[:6] == b"killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return pillow(file, **options)
PIL.Image.open = open
"""


@contextmanager
def two_processes() -> Iterator[tuple[Buffers, Decoders]]:
    with closing(Decoders(SHAPE, num=2, transform="crop-bicubic", num_processes=2)) as decoders:
        yield decoders.buffers, decoders


def decode(decoders: Decoders, files: list[bytes], pixels: np.ndarray) -> list[str | int]:
    """By a process, once all are ready."""
    assert all(process.is_ready(wait_s=60) for process in decoders.processes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("brics_cli.images.decoders.decode_files", None)
        return decoders.decode(files, pixels)


def importing_this() -> dict[str, str]:
    """The environment of a program that imports this module."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}


def children() -> list[str]:
    """The command lines of this process' children that decode."""
    found = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True)
    return [line for line in found.stdout.splitlines() if "brics_cli.images.decoders" in line]


def pids(decoders: Decoders) -> list[int]:
    return [process.popen.pid for process in decoders.processes]


@pytest.fixture
def faults(tmp_path, monkeypatch):
    """Files that crash the decoder, or leave it without memory, in the processes alone, which print at their start."""
    (tmp_path / "sitecustomize.py").write_text(FAULTS + "print('using node 17', flush=True)")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_batches_are_those_of_threads(tmp_path, monkeypatch):
    members = [(f"{number:03d}.png", grey(number) if number % 9 else b"no image") for number in range(120)]
    write_tar(tmp_path / "x.tar", members)
    collection = open_collection(tmp_path / "x.tar")

    def load():
        batches = load_shards(collection, transform="crop-bicubic", size=SIZE, batch_size=16, num_workers=2)
        return [
            (batch.images.tolist(), batch.keys, batch.failures, [image.index for image in batch.failed])
            for batch in batches
        ]

    threads, started = load(), []

    def recorded(*arguments, num_processes: int, **options) -> Decoders:
        started.append(num_processes)
        return Decoders(*arguments, num_processes=num_processes, **options)

    monkeypatch.setattr(loader, "Decoders", recorded)
    monkeypatch.setattr(loader, "WORTH_A_PROCESS", 60)
    assert load() == threads
    monkeypatch.setattr(loader, "WORTH_A_PROCESS", 61)
    assert load() == threads
    assert started == [2, 0]


def test_pixels_and_reasons():
    with two_processes() as (buffers, decoders):
        pixels = buffers.take(4)
        reasons = decode(decoders, [grey(7), b"no image", b"", grey(9)], pixels)
        assert reasons == [6, "not an image of a format that is read", "empty file", 6]
        assert (pixels[0] == 7).all() and (pixels[3] == 9).all()


def test_other_memory_is_left_to_the_caller():
    with two_processes() as (buffers, decoders):
        held = [buffers.take(8) for _ in range(3)]
        decode(decoders, [grey(7)], held[1][:1])
        assert decoders.decode([grey(8)], held[2][:1]) == [6]
        with pytest.raises(TypeError):  # by no process: this one's function is not there
            decode(decoders, [grey(9)], held[2][:1])
        assert (held[1][0] == 7).all() and (held[2][0] == 8).all()


def test_a_killed_process_is_replaced():
    with two_processes() as (buffers, decoders):
        pixels = buffers.take(2)
        decode(decoders, [grey(1), grey(2)], pixels)
        for pid in pids(decoders):
            os.kill(pid, signal.SIGKILL)
        for first in (3, 5, 7):
            assert decode(decoders, [grey(first), grey(first + 1)], pixels) == [6, 6]
            assert (pixels[0] == first).all() and (pixels[1] == first + 1).all()
        assert len(pids(decoders)) == 2


@pytest.mark.usefixtures("faults")
def test_a_file_that_crashes_its_decoder_fails_alone():
    with two_processes() as (buffers, decoders):
        pixels = buffers.take(4)
        reasons = decode(decoders, [grey(1), b"crash", grey(3), b"crash"], pixels)
        assert reasons == [6, "its decoder was killed by signal 11", 6, "its decoder was killed by signal 11"]
        assert (pixels[0] == 1).all() and (pixels[2] == 3).all()
        assert decode(decoders, [grey(4)], pixels[:1]) == [6]


@pytest.mark.usefixtures("faults")
def test_a_crash_costs_one_image_whoever_reads(tmp_path, monkeypatch):
    """Packing and encoding; evaluation with a transform, and as they are; training, where the next one stands in."""
    write_tar(
        tmp_path / "x.tar", [(f"{number:02d}.png", grey(number) if number != 5 else b"crash") for number in range(24)]
    )
    collection, decode, crashed = (
        open_collection(tmp_path / "x.tar"),
        Decoders.decode,
        "its decoder was killed by signal 11",
    )

    def decode_there(self: Decoders, *arguments):
        assert all(process.is_ready(wait_s=60) for process in self.processes)
        return decode(self, *arguments)

    monkeypatch.setattr(Decoders, "decode", decode_there)
    monkeypatch.setattr(loader, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(loader, "MANY_WORKERS", 1)

    batches = list(load_shards(collection, transform="crop-bicubic", size=SIZE, batch_size=8, num_workers=1))
    assert [failure.reason for batch in batches for failure in batch.failures] == [crashed]
    assert [image.index for batch in batches for image in batch.good] == [*range(5), *range(6, 24)]
    for transform, size, shape in (("crop-bicubic", SIZE, (SIZE, SIZE, 3)), (None, None, (6, 8, 3))):
        stream = CollectionStream(collection, transform=transform, size=size, batch_size=8, num_workers=1)
        found = [image for batch in stream.read() for image in batch]
        assert found[5] is None and [failure.reason for failure in stream.failures] == [crashed]
        assert all(
            image.shape == shape and (image == number).all() for number, image in enumerate(found) if number != 5
        )
    images = TrainingImages(collection, transform="crop-bicubic", size=SIZE, num_workers=1)
    with closing(images.batches(SampleOrder([np.arange(24)], seed=0), start=0, batch_size=8)) as reading:
        for _ in range(3):
            batch = next(reading)
            expected = [6 if sample == 5 else sample for sample in batch.indices]
            assert batch.images[:, 0, 0, 0].tolist() == expected
    assert images.failures == {5: crashed}


@pytest.mark.usefixtures("faults")
def test_out_of_memory_is_no_failure_of_the_image():
    with two_processes() as (buffers, decoders):
        with pytest.raises(MemoryError):
            decode(decoders, [grey(1), b"memory"], buffers.take(2))
        with pytest.raises(
            MachineError, match=r"was killed by signal 9 \(out of memory\?\)\. Run the same command again"
        ):
            decode(decoders, [grey(1), b"killed"], buffers.take(2))
    assert not children()


def test_an_error_of_ours_is_raised_as_in_a_thread():
    with (
        closing(Decoders(SHAPE, num=2, transform="crop-bicubc", num_processes=1)) as decoders,
        pytest.raises(UsageError, match="did you mean 'crop-bicubic'"),
    ):
        decode(decoders, [grey(1)], decoders.buffers.take(1))


def test_with_standard_streams_closed_nothing_is_written_to_the_images():
    """Their numbers are given to the next files; what a decoder warns of would go there."""
    program = """
import os
errors = os.dup(2)
os.closerange(0, 3)
try:
    from test_decoders import *
    with two_processes() as (buffers, decoders):
        pixels = buffers.take(2)
        for value in range(3):
            assert [type(each) for each in decode(decoders, [grey(value), A_WARNING], pixels)] == [int, int]
            assert (pixels[0] == value).all()
    os._exit(7)
except BaseException:
    import traceback
    os.write(errors, traceback.format_exc().encode())
"""
    finished = subprocess.run([sys.executable, "-c", program], env=importing_this())
    assert finished.returncode == 7


def test_it_does_not_matter_how_many_files_are_open():
    with ExitStack() as stack:
        for _ in range(1100):
            stack.enter_context(Path(os.devnull).open())
        buffers, decoders = stack.enter_context(two_processes())
        assert decode(decoders, [grey(1)], buffers.take(1)) == [6]


def test_closing_does_not_wait_for_a_process_to_start():
    with two_processes() as (_, decoders):
        pass
    assert not decoders.processes and not children()


def test_processes_that_cannot_start_leave_the_work_to_threads(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with two_processes() as (buffers, decoders):
        deadline = time.monotonic() + 60
        while pids(decoders):
            pixels = buffers.take(1)
            assert decoders.decode([grey(7)], pixels) == [6] and (pixels == 7).all()
            assert time.monotonic() < deadline
    monkeypatch.setattr(sys, "executable", "/does/not/exist")
    with two_processes() as (buffers, decoders):
        pixels = buffers.take(1)
        assert decoders.decode([grey(7)], pixels) == [6]
        assert (pixels == 7).all()


def test_a_process_that_cannot_be_replaced_is_an_error(monkeypatch):
    with two_processes() as (buffers, decoders):
        pixels = buffers.take(1)
        decode(decoders, [grey(1)], pixels)
        monkeypatch.setattr(sys, "executable", "/bin/false")
        for pid in pids(decoders):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(MachineError, match="a process that decodes images ended with exit code 1"):
            decoders.decode([grey(1)], pixels)


def test_they_end_with_their_parent_and_do_not_hear_its_ctrl_c():
    program = """
from test_decoders import *
with two_processes() as (buffers, decoders):
    decode(decoders, [grey(1)], buffers.take(1))
    print(*pids(decoders), flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=importing_this()) as parent:
        assert parent.stdout is not None
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(children) == 2
        assert all(os.getsid(pid) == pid for pid in children)  # sessions of their own: the terminal's signals pass by
        parent.kill()
    deadline = time.monotonic() + 60
    while any(_runs(pid) for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    """Not ended, or only waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
