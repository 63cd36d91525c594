"""`brics decode` on the command line: what is no store, and what is missing, in one line."""

from __future__ import annotations

import pytest

from brics_cli.cli.app import run


def last_line(capfd) -> str:
    return capfd.readouterr().err.strip().splitlines()[-1]


def test_nothing_to_decode(tmp_path, capfd):
    assert run(["decode", "--workspace", str(tmp_path)]) == 3
    assert "no key-code store in the workspace" in (line := last_line(capfd)) and "brics encode-dataset" in line


@pytest.mark.parametrize(
    ("content", "said"), [(None, "is missing"), (b"hello", "not an HDF5 file"), (b"", "not an HDF5")]
)
def test_what_is_no_store(tmp_path, capfd, content, said):
    path = tmp_path / "codes.h5"
    if content is not None:
        path.write_bytes(content)
    assert run(["decode", str(path), "--out", str(tmp_path / "out")]) == 3
    assert said in last_line(capfd) and not (tmp_path / "out").exists()
