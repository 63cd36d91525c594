"""CONTRIBUTING.md: its six patches are short, touch what they may, and work; a metric of one's own is measured."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import brics

from brics_cli.evaluation.registry import REGISTRY, Metric, register

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
PATCHES = dict(re.findall(r"^### (An? [a-z ]+)$.*?^```diff\n(.*?)^```$", TEXT, flags=re.M | re.S))
MOST_LINES = 40
"""Added or removed, without blank ones."""
MAY_CHANGE = {
    "A metric": {"brics_cli/evaluation/registry.py"},
    "A sampler": {"brics_cli/diffusion/samplers.py"},
    "A bottleneck": {"brics_cli/autoencoder/bottlenecks/__init__.py", "brics_cli/config/bottlenecks.py"},
    "An input format": {"brics_cli/images/sources/formats.py"},
    "A denoiser": {"brics_cli/diffusion/denoisers/__init__.py", "brics_cli/config/diffusion.py"},
    "A command": {"brics_cli/cli/app.py", "README.md"},
}
"""Registry, and config class; besides one new file of its own and one test."""


def changed_and_new(patch: str) -> tuple[set[str], set[str]]:
    files = re.findall(r"^--- (.*)\n\+\+\+ b/(.*)$", patch, flags=re.M)
    return {path for old, path in files if old != "/dev/null"}, {path for old, path in files if old == "/dev/null"}


def test_there_is_a_patch_for_each() -> None:
    assert set(PATCHES) == set(MAY_CHANGE)


@pytest.mark.parametrize("title", MAY_CHANGE)
def test_a_patch_is_short_and_touches_what_it_may(title: str) -> None:
    patch = PATCHES[title]
    written = [line for line in patch.splitlines() if re.match(r"[+-](?![+-]{2} )\s*\S", line)]
    assert len(written) < MOST_LINES
    changed, new = changed_and_new(patch)
    assert changed == MAY_CHANGE[title]
    assert len(new) == 2 and sum(path.startswith("tests/") for path in new) == 1


@pytest.mark.slow  # each starts a pytest of its own
@pytest.mark.parametrize("title", MAY_CHANGE)
def test_a_patch_applies_and_its_test_passes(title: str, tmp_path: Path) -> None:
    for name in ("brics_cli", "tests", "recipes"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run(["git", "apply", "-"], input=PATCHES[title], text=True, cwd=tmp_path, check=True)
    test = next(path for path in changed_and_new(PATCHES[title])[1] if path.startswith("tests/"))
    others = ["tests/unit/config/test_names.py", "tests/cli/test_contract.py::test_the_readme_has_commands"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test, *others]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert finished.returncode == 0, finished.stdout


MODULE = """
import numpy as np

from brics_cli.evaluation.family import PairFamily


class Largest(PairFamily):
    def values(self, real, fake):
        return np.abs(real.astype(float) - fake).max(axis=(1, 2, 3))
"""


def test_a_metric_of_ones_own_is_measured(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a module outside of the package, through `brics eval`, to the report and the help page."""
    (tmp_path / "of_ones_own.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    definition = "uint8 RGB, largest difference, mean over images"
    register(Metric("largest", "Largest", "of_ones_own:Largest", "lower", definition, compares="pairs"))
    try:
        sides = ("--real", photographs, "--fake", photographs)
        said = json.loads(brics("eval", "--metric", "largest", *sides, "--json", cwd=tmp_path, check=0).stdout)
        (result,) = said["results"]
        assert (result["metric"], result["value"], result["num_fake"]) == ("largest", 0.0, 48)
        assert result["definition"] == definition
        shown = brics("eval", "--metric", "largest", *sides, cwd=tmp_path, check=0).stdout
        assert "Largest ↓" in shown and "0.0000" in shown
        with pytest.raises(ValueError, match="already"):
            register(REGISTRY["largest"])
    finally:
        del REGISTRY["largest"]
        sys.modules.pop("of_ones_own", None)
