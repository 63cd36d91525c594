"""Files and tests that README.md, CONTRIBUTING.md and tests/README.md name are there."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def text(name: str) -> str:
    return (ROOT / name).read_text()


@cache
def functions_of(path: Path) -> list[str]:
    return re.findall(r"^(?:    )?def (test_\w+)", path.read_text(), flags=re.M)


def named_tests() -> list[tuple[str, str]]:
    """(file, pattern of a test; empty: the file alone); `::test` is of the file before it."""
    quoted = re.findall(r"`((?:[\w/]*test_\w+\.py)?(?:::[\w*]+)?)`", text("tests/README.md"))
    named, file = [], ""
    for path, _, pattern in (name.partition("::") for name in quoted if name):
        file = path or file
        named.append((file, pattern))
    return named


def test_every_test_that_is_named_exists() -> None:
    named = named_tests()
    assert len(named) > 90
    missing = []
    for name, pattern in named:
        files = [file for file in TESTS if file.as_posix().endswith(f"/tests/{name}" if "/" in name else f"/{name}")]
        found = [test for file in files for test in functions_of(file) if fnmatchcase(test, pattern)]
        if len(files) != 1 or (pattern and not found):
            missing.append(f"{name}::{pattern}")
    assert not missing


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "tests/README.md"])
def test_every_file_that_is_linked_or_quoted_exists(name: str) -> None:
    without_patches = re.sub(r"^```.*?^```$", "", text(name), flags=re.M | re.S)
    paths = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", without_patches)
    paths += re.findall(r"`((?:brics_cli|tests|recipes|\.ci)/[\w./-]*)`", without_patches)
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_the_house_is_the_tree() -> None:
    block = re.search(r"^    brics_cli/\n((?:      .*\n)+)", text("README.md"), flags=re.M)
    assert block is not None
    said = {
        name.rstrip("/")
        for line in block[1].splitlines()
        for name in re.findall(r"([a-z_]+(?:/|\.py))(?=  |,|$)", line)
    }
    there = {path.name for path in (ROOT / "brics_cli").iterdir() if not path.name.startswith("__")}
    assert said == there
