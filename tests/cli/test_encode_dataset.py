"""`brics encode-dataset` on the command line: bad input in one line with its exit code, before any work."""

from __future__ import annotations

import pytest
from PIL import Image

from brics_cli.cli.app import run


def last_line(capfd) -> str:
    return capfd.readouterr().err.strip().splitlines()[-1]


def test_a_path_without_an_autoencoder(tmp_path, capfd):
    assert run(["encode-dataset", str(tmp_path), "--ae", str(tmp_path / "nowhere")]) == 3
    assert "no autoencoder run at" in last_line(capfd)


@pytest.mark.parametrize(
    ("flag", "value"), [("--quantisation", "uint4"), ("--dtype", "fp8"), ("--transform", "crop"), ("--limit", "0")]
)
def test_flags_that_cannot_be_meant(flag, value, capfd):
    assert run(["encode-dataset", "x", flag, value]) == 2
    assert flag in last_line(capfd)


def test_a_folder_that_is_no_run(tmp_path, capfd):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert run(["encode-dataset", str(tmp_path), "--ae", str(tmp_path)]) == 3
    assert "holds no trained autoencoder" in last_line(capfd)
    assert run(["encode-dataset", str(tmp_path), "--device", "abacus"]) == 2
    assert "abacus" in last_line(capfd)
