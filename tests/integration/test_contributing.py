"""CONTRIBUTING.md: its six patches are short, touch what they may, and work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
