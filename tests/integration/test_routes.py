"""The way of one image stays short: so many files somebody has to open to follow it."""

from __future__ import annotations

from pathlib import Path

import pytest
from routes import Route, routes


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Route]:
    return routes(tmp_path_factory.mktemp("routes"))


@pytest.mark.parametrize(
    ("route", "most", "ends"),
    [
        ("seed -> PNG", 12, ("cli/sample.py", "images/sinks/png.py")),
        ("image -> row", 15, ("cli/encode_dataset.py", "codes/parts.py")),
        ("image -> FD", 12, ("cli/eval.py", "evaluation/frechet.py")),
        ("row -> step", 7, ("cli/train_diffusion.py", "diffusion/denoisers/denoiser.py")),
    ],
)
def test_the_route_is_short(found: dict[str, Route], route: str, most: int, ends: tuple[str, str]) -> None:
    files = found[route].files
    assert set(ends) <= set(files), list(files)
    assert len(files) <= most, list(files)
    assert all((Path(__file__).parents[2] / "brics_cli" / path).is_file() for path in files)
