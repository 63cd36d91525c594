"""`brics cache`: what is printed where, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import brics, error_line

from brics_cli.errors import ExitCode
from brics_cli.evaluation import cache
from brics_cli.evaluation.moments import FeatureMoments


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one entry."""
    monkeypatch.setenv("BRICS_CACHE", str(tmp_path / "cache"))
    moments = FeatureMoments(4)
    moments.update(np.eye(4))
    identity = {"network": "clip", "collection": "a"}
    cache.save(identity, layout="x", description="/photos: 4 images", moments=moments, rows=None, failures=[])
    return tmp_path / "cache"


def test_list_and_prune(root: Path, tmp_path: Path) -> None:
    listed = brics("cache", "list", cwd=tmp_path, check=0, BRICS_CACHE=str(root))
    assert "/photos: 4 images" in listed.stdout and "clip" in listed.stdout and "1 entries" in listed.stdout
    assert f"brics keeps features in {root}" in listed.stderr
    assert listed.stderr.splitlines()[-1] == "next: brics cache prune --unused 30d"
    kept = brics("cache", "prune", "--unused", "1d", "--max-size", "1G", cwd=tmp_path, check=0, BRICS_CACHE=str(root))
    assert kept.stdout == "removed 0 entries, 0 B\n"
    removed = brics("cache", "prune", "--all", "--json", cwd=tmp_path, check=0, BRICS_CACHE=str(root))
    assert [entry["description"] for entry in json.loads(removed.stdout)] == ["/photos: 4 images"]
    empty = brics("cache", "list", cwd=tmp_path, check=0, BRICS_CACHE=str(root))
    assert empty.stdout == "nothing is cached\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("prune",), "brics cache prune removes by --unused AGE, --max-size SIZE, or --all"),
        (("prune", "--all", "--unused", "1d"), "brics cache prune removes by --unused AGE, --max-size SIZE, or --all"),
        (("prune", "--unused", "soon"), "--unused 'soon' is not understood. Write it as 12h, 30d or 8w."),
        (("prune", "--max-size", "5X"), "--max-size '5X' is not understood. Write it as 500M or 5G."),
    ],
)
def test_bad_words_are_one_line(root: Path, tmp_path: Path, words: tuple[str, ...], line: str) -> None:
    finished = brics("cache", *words, cwd=tmp_path, check=ExitCode.USAGE, BRICS_CACHE=str(root))
    assert error_line(finished) == line
