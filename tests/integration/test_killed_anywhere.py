"""Batch commands killed before each change they make to the disk, and run again: the bytes of an uninterrupted run.

The default run tries a few points of some commands, `-m slow` every point of every one.
"""

from __future__ import annotations

from functools import partial
from itertools import count
from pathlib import Path

import h5py
import pytest
from commands import brics
from image_files import noise
from killing import KILLED, Command, die_before_change

from brics_cli.workspace import sha256_of_file

SHARDED = ("--shard-size", 5)
DRAWN = ("--model", "dm", "--n", 6, "--steps", 2, "--batch-size", 3)
COMMANDS = {
    "pack": ("shards", ("pack", "images", "--size", 16, *SHARDED, "--workers", 1)),
    "encode a file": ("x.h5", ("encode-dataset", "packed", "--ae", "brics-mini", "--size", 16, "--workers", 1)),
    "encode a folder": ("x/", ("encode-dataset", "packed", "--ae", "brics-mini", "--size", 16, "--workers", 1)),
    "merge": ("x.h5", ("merge", "codes")),
    "decode to PNG": ("images", ("decode", "codes.h5")),
    "decode to tars": ("tars", ("decode", "codes.h5", "--format", "wds")),
    "decode to a zip": ("x.zip", ("decode", "codes.h5")),
    "sample PNG": ("images", ("sample", *DRAWN)),
    "sample codes": ("x.h5", ("sample", *DRAWN, "--codes", "--shard-size", 3)),
    "sample npz": ("x.npz", ("sample", *DRAWN)),
    "sample tars": ("tars", ("sample", *DRAWN, "--format", "wds", "--shard-size", 3)),
}


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of 12 images and one that is none, its shards, its codes in both forms, and a model of them."""
    root = tmp_path_factory.mktemp("killed")
    (root / "images").mkdir()
    for number in range(12):
        (root / "images" / f"{number:02d}.png").write_bytes(noise(number, side=24))
    (root / "images" / "05x.png").write_text("no image")
    brics("pack", "images", "--out", "packed", "--size", 16, *SHARDED, cwd=root, check=5)
    for out in ("codes.h5", "codes/"):
        brics("encode-dataset", "packed", "--ae", "brics-mini", "--size", 16, "--out", out, cwd=root, check=0)
    few = ("--steps", 2, "--set", "training.batch_size=4", "--set", "training.fd_samples=0", "--out", "dm")
    brics("train-diffusion", "codes.h5", "--recipe", "tiny", *few, cwd=root, check=0)
    return root


def arrays(path: Path) -> str:
    """Every array of an HDF5 file, with its name."""
    found: list[str] = []
    with h5py.File(path) as file:
        file.visititems(lambda name, each: found.append(f"{name} {each[()]!r}") if hasattr(each, "dtype") else None)
    return "\n".join(found)


def left(folder: Path) -> dict[str, str]:
    """What every file in `folder` holds, but for locks; of stores the arrays, of provenance that it is there."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.name.endswith(".lock"):
            continue
        if path.suffix == ".h5":
            found[name] = arrays(path)
        else:
            found[name] = "" if path.name.endswith("brics.json") else sha256_of_file(path)
    return found


def check_points(where: Path, tmp_path: Path, command: str, *, every: int) -> int:
    """Kill `command` before each `every`-th change, and go on; how many points that were."""
    out, words = COMMANDS[command]
    asked = [str(where / word) if (where / str(word)).exists() else str(word) for word in words]

    def arguments(folder: str) -> list[str]:
        (tmp_path / folder).mkdir()
        return [*asked, "--out", f"{tmp_path}/{folder}/{out}", "-q"]

    code = Command(arguments("whole"), tmp_path / "log").kill_after(60)
    assert code in (0, 5)
    for num_points in count():
        number = every * num_points
        again, log = arguments(str(number)), tmp_path / f"{number}.log"
        ended = Command(again, log, partial(die_before_change, number, tmp_path / str(number))).kill_after(60)
        if ended != KILLED:
            assert ended == code
            return num_points
        assert Command(again, log).kill_after(60) == code, f"killed before change {number}: {log.read_text()}"
        assert left(tmp_path / str(number)) == left(tmp_path / "whole"), f"killed before change {number}"
    raise AssertionError


@pytest.mark.parametrize(("command", "every"), [("pack", 20), ("decode to PNG", 10)])
def test_killed_here_and_there(where: Path, tmp_path: Path, command: str, every: int) -> None:
    assert check_points(where, tmp_path, command, every=every) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_before_any_change(where: Path, tmp_path: Path, command: str) -> None:
    assert check_points(where, tmp_path, command, every=1) >= 10
