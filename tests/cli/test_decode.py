"""`brics decode` on the command line: what is not a store, and what is missing, in one line; help states defaults."""

from __future__ import annotations

import pytest
from store_files import write_store

from brics_cli.autoencoder.sizes import BATCH_SIZE
from brics_cli.cli.app import run
from brics_cli.codes import KeyCodeStore
from brics_cli.config import DEFAULT_TRANSFORM
from brics_cli.images import open_sink
from brics_cli.images.sinks.base import JPEG_QUALITY
from brics_cli.jobs import decode as decode_job
from brics_cli.jobs import pack as pack_job
from brics_cli.jobs import plot as plot_job
from brics_cli.jobs import reconstruct as reconstruct_job


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


def test_what_a_format_leaves_out_is_said_with_those_that_keep_it(tmp_path):
    store = KeyCodeStore(write_store(tmp_path / "codes.h5", ["a"]))
    plan = decode_job.DecodePlan(store, None, open_sink(tmp_path / "out", "png"), None, "fp32")
    assert plan.left_out == ["2 labels (wds, zip and npz keep them)", "the metadata of 2 images (wds keeps it)"]


def test_help_states_the_defaults_of_the_jobs(capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")  # no line is broken
    for command, defaults in (
        ("decode", (BATCH_SIZE,)),
        ("reconstruct", (reconstruct_job.BATCH_SIZE, reconstruct_job.OUT)),
        ("pack", (pack_job.SIZE, f"{pack_job.SHARD_SIZE:,}", DEFAULT_TRANSFORM, JPEG_QUALITY)),
        ("plot", (plot_job.OUT,)),
    ):
        assert run([command, "--help"]) == 0
        shown = capfd.readouterr().out
        assert all(f"Default: {default}." in shown for default in defaults), command
