"""`brics merge` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import brics, error_line
from store_files import write_store


@pytest.fixture
def two(tmp_path: Path) -> Path:
    write_store(tmp_path / "a.h5", ["s0", "s1"])
    write_store(tmp_path / "b.h5", ["t0"], source="/more", source_sha256="c" * 64)
    return tmp_path


def test_a_dry_run_says_what_and_writes_nothing(two):
    said = json.loads(brics("merge", "a.h5", "b.h5", "--out", "c.h5", "--dry-run", "--json", cwd=two, check=0).stdout)
    assert said == {"images": 9, "shards": 3, "bytes": 9 * 36, "out": "c.h5"}
    assert not (two / "c.h5").exists()


def test_the_result_and_the_next_command(two):
    done = brics("merge", "a.h5", "b.h5", "--out", "c.h5", "--verify", cwd=two, check=0)
    assert done.stdout.strip() == "9 codes of 3 shards from 2 stores: c.h5"
    assert "every invariant of the format holds" in done.stderr
    assert done.stderr.splitlines()[-1] == "next: brics train-diffusion c.h5"
    again = brics("merge", "a.h5", "b.h5", "--out", "c.h5", cwd=two, check=0)
    assert "c.h5 is complete already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("a.h5", "--out", "c.h5"), 2, "at least two stores, or one that is a folder"),
        (("a.h5", "b.h5"), 2, "missing option '--out'"),
        (("a.h5", "b.h5", "--out", "c.txt"), 2, "is named like a .txt file"),
        (("a.h5", "b.h5", "--out", "a.h5"), 2, "is one of the stores to merge"),
        (("a.h5", "b.h5", "--out", "d.h5"), 2, "is a folder"),
        (("a.h5", "nowhere.h5", "--out", "c.h5"), 3, "nowhere.h5 is missing"),
        (("a.h5", "a.h5", "--out", "c.h5"), 3, "the image 's0/ключ0' is in a.h5 and in a.h5"),
        (("a.h5", "text.h5", "--out", "c.h5"), 3, "not an HDF5 file"),
        (("a.h5", "b.h5", "--out", "text.h5"), 4, "is not a key-code store"),
    ],
)
def test_what_cannot_be_merged(two, arguments, code, said):
    (two / "text.h5").write_text("hello")
    (two / "d.h5").mkdir()
    assert said in error_line(brics("merge", *arguments, cwd=two, check=code))
    assert not (two / "c.h5").exists() and not list(two.glob("*.tmp"))
