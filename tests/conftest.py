"""What every test may use."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported: one thread, so that sums are taken in one order here and in the processes tests start, and
# a forked process has no OpenMP threads of its parent's to enter.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
from hub_server import Hub, serve
from PIL import Image

# A shell that starts pytest in the background has it ignore Ctrl-C, which tests send to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What is remembered of collections is this run's alone, and the user's stays as it is.
os.environ["BRICS_CACHE"] = tempfile.mkdtemp(prefix="brics-cache-")
atexit.register(shutil.rmtree, os.environ["BRICS_CACHE"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device, and this machine has none")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


def write_photographs(folder: Path) -> None:
    """Write 48 real crops of 64 px as PNG files, the same ones every time."""
    from brics_cli.images.photographs import photograph_crops

    crops = list(photograph_crops())
    for crop in crops[:: len(crops) // 48][:48]:
        Image.fromarray(np.ascontiguousarray(crop.pixels)).save(folder / f"{crop.name}.png")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 48 real crops of 64 px, as PNG."""
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hugging Face Hub on this machine, which huggingface_hub talks to, with a cache of its own."""
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serve() as hub:
        places = {"HF_HUB_CACHE": str(tmp_path / "hub-cache"), "HF_TOKEN_PATH": str(tmp_path / "no-token")}
        places["HUGGINGFACE_CO_URL_TEMPLATE"] = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {"ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": True, **places}.items():
            monkeypatch.setattr(constants, name, value)
        yield hub


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray cluster of this machine with 2 cores, whose workers import what tests import."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'brics-cli[ray]'")
    from brics_cli.runtime.on_ray import RayExecutor
    from brics_cli.runtime.reporting import SilentReporter

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        patch.delenv("RAY_ADDRESS", raising=False)
        executor = RayExecutor()
        executor.local_cores = 2
        executor.connect("cpu", reporter=SilentReporter())
    yield
    ray.shutdown()
