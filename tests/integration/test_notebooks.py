"""The notebook of recipes/notebooks: it uses the public API alone, runs, and is committed with its pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import brics_cli
from brics_cli import api

TOUR = Path(__file__).parents[2] / "recipes/notebooks/tour.ipynb"
MOST_BYTES = 1_000_000


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def pictures(notebook: dict) -> int:
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    return sum("image/jpeg" in output.get("data", {}) for output in outputs)


def test_the_notebook_uses_the_public_api_alone() -> None:
    source = "\n".join("".join(cell["source"]) for cell in code_cells(json.loads(TOUR.read_text())))
    assert "from brics_cli" not in source and re.findall(r"^import brics_cli.*$", source, re.M) == ["import brics_cli"]
    used = set(re.findall(r"\bbrics_cli\.(\w+)", source))
    assert used <= set(brics_cli.__all__) and set(api.__all__) <= used


def test_the_notebook_is_committed_with_its_pictures_and_no_path_of_a_machine() -> None:
    text = TOUR.read_text()
    assert len(text) < MOST_BYTES and pictures(json.loads(text)) == 4
    assert not re.search(r"/(tmp|home|root|work|usr|Users)/", text)


@pytest.mark.slow  # minutes: it trains two models
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(TOUR, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where).execute()
    assert pictures(notebook) == 4
    said = "".join(output.get("text", "") for cell in code_cells(notebook) for output in cell["outputs"])
    psnr = float(re.search(r"([\d.]+) dB on held-out images", said)[1])
    assert psnr > 26, said
