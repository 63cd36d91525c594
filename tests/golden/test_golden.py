from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("golden_measure", Path(__file__).with_name("measure.py"))
assert SPEC is not None and SPEC.loader is not None
golden_measure = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(golden_measure)

# Another processor sums in another order: 12 steps of training spread that to about 1e-4.
TOLERANCE = 2e-3


def test_losses_and_store_layout_are_those_that_were_committed(photographs: Path, tmp_path: Path) -> None:
    expected = json.loads(golden_measure.GOLDEN.read_text())
    found = golden_measure.measure(photographs, tmp_path)
    for name in ("autoencoder losses", "diffusion losses"):
        assert found[name] == pytest.approx(expected[name], rel=TOLERANCE), name
    assert found["code means"] == pytest.approx(expected["code means"], abs=0.005)
    for name in ("store layout", "store attributes"):
        assert found[name] == expected[name], name
