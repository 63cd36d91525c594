"""A metric of somebody else's, in a module of its own, goes through `brics eval` like those of the package."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import brics
from PIL import Image

from brics_cli.evaluation import registry

MODULE = """
import numpy as np
from brics_cli.evaluation.family import PairFamily, Score, SetFamily

class MeanAbsoluteError(PairFamily):
    def values(self, real, fake):
        return np.abs(real.astype(float) - fake).mean(axis=(1, 2, 3))

class MeanDistance(SetFamily):
    def result(self, metric):
        real, fake = (self.features[side].gaussian for side in ("real", "fake"))
        return Score(float(np.linalg.norm(real.mean - fake.mean)), num_real=real.num, num_fake=fake.num)
"""


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_metrics.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    pairs, sets = "my_metrics:MeanAbsoluteError", "my_metrics:MeanDistance"
    registry.register(registry.Metric("mae", "MAE", pairs, "lower", "uint8 RGB", compares="pairs"))
    registry.register(registry.Metric("mean-distance", "MD", sets, "lower", "{features}", network="random-conv"))
    with pytest.raises(ValueError, match="there is a metric 'mae' already"):
        registry.register(registry.REGISTRY["mae"])
    yield
    del registry.REGISTRY["mae"], registry.REGISTRY["mean-distance"], sys.modules["my_metrics"]


def test_a_metric_of_somebody_elses(added: None, tmp_path: Path) -> None:
    for name, value in (("a", 10), ("b", 14)):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.fromarray(np.full((32, 32, 3), value + number, np.uint8)).save(tmp_path / name / f"{number}.png")
    words = ("eval", "--metric", "mae", "--metric", "mean-distance", "--real", "a", "--fake", "b")
    mae, distance = json.loads(brics(*words, "--json", cwd=tmp_path, check=0).stdout)["results"]
    assert (mae["metric"], mae["value"], mae["standard_error"], mae["definition"]) == ("mae", 4, 0, "uint8 RGB")
    assert mae["num_real"] == mae["num_fake"] == 4
    assert distance["value"] > 0 and distance["definition"] == "112 features of random convolutions"
    table = brics(*words, cwd=tmp_path, check=0).stdout
    assert "MAE ↓" in table and "4.0000" in table
    assert "mae" in registry.metrics_help()
