"""`brics bench eval`: the moments of features take well under half the memory of storing them."""

from __future__ import annotations

import pytest

from brics_cli.bench.evaluate import gathering_memory


@pytest.mark.slow  # half a minute and 1.2 GB for the stored side
def test_features_of_50000_images_take_less_than_half_the_memory_of_storing_them() -> None:
    row = gathering_memory(50_000)
    assert row.ratio >= 2.5
