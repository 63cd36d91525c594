"""`brics bench encode` and `brics bench store` measure what they say, and leave nothing behind."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from commands import brics


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_encode_compares_the_pipeline_with_decoding_alone(scratch):
    settings = ("--n", 100, "--width", 64, "--size", 32, "--repeats", 1, "--workers", 1, "--device", "cpu")
    said = json.loads(brics("bench", "encode", *settings, "--json", cwd=scratch, check=0).stdout)
    assert said["num_images"] == 100 and said["num_workers"] == 1
    assert said["ratio"] > 0 and said["alone_img_per_s"] > 0
    (encoding,) = said["encodings"]
    assert encoding["network"] == "none" and encoding["img_per_s"] == said["pipeline_img_per_s"]
    assert 0 < encoding["early_peak_mib"] <= encoding["peak_mib"] and "wait" in encoding["split"]
    assert list(scratch.iterdir()) == []


def test_encode_with_a_recipe_takes_its_sizes(scratch):
    settings = ("--n", 100, "--width", 64, "--repeats", 1, "--recipe", "tiny", "--device", "cpu")
    done = brics("bench", "encode", *settings, cwd=scratch, check=0)
    assert "at 64 px" in done.stdout and "tiny, fp32, random weights" in done.stdout


def test_store_reads_as_fast_as_it_says(scratch):
    said = json.loads(brics("bench", "store", "--n", 1000, "--repeats", 1, "--json", cwd=scratch, check=0).stdout)
    readings = {reading["how"]: reading for reading in said["readings"]}
    assert readings["numpy.memmap, uint8"]["ratio"] == 1 and said["write_rows_per_s"] > 0
    assert len(readings) == 5 and all(reading["rows_per_s"] > 0 for reading in said["readings"])
    assert list(scratch.iterdir()) == []
