"""`brics bench store --parts`."""

from __future__ import annotations

import pytest

from brics_cli.bench.folder import bench_folder


@pytest.mark.slow
def test_10_000_parts_of_10_000_rows_open_in_little_memory():
    report = bench_folder(num_parts=10_000, repeats=1).value
    print(report)
    assert report["open_mib"] < 500 and len(report["readings"]) == 9
