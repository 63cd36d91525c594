"""The batch commands on a Ray cluster: the bytes are those of this machine alone, whatever dies on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from diffusion_workspace import make_workspace, tree

from brics_cli import api
from brics_cli.codes.verify import verify_store
from brics_cli.runtime.executors import TaskFailed
from brics_cli.runtime.on_ray import RayExecutor
from brics_cli.runtime.reporting import SilentReporter

SHARD = 12


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, photographs: Path, ray_cluster: None) -> Path:
    """Models, and `shards`: the photographs, the second shard of which holds an image that is none."""
    root = make_workspace(tmp_path_factory.mktemp("ray"))
    images = root / "images"
    images.mkdir()
    for file in photographs.iterdir():
        (images / file.name).write_bytes(file.read_bytes())
    sorted(images.iterdir())[SHARD + 3].write_bytes(b"no image")
    return root


def on_ray(num_workers: int = 1) -> RayExecutor:
    return RayExecutor(cpus_per_worker=2 // num_workers)


class GivesUp(RayExecutor):
    """Gives up the second task, as if worker after worker had died over it."""

    def run(self, work: Any, tasks: Any, *, folder: Path | None = None) -> Any:
        yield from super().run(work, [task for task in tasks if task != tasks[1]], folder=folder)
        yield TaskFailed(tasks[1], "4 workers died over it")


def common(workspace: Path, **more: Any) -> dict[str, Any]:
    return {"workspace": workspace, "device": "cpu", "reporter": SilentReporter(), **more}


def contents(store: Path) -> dict[str, bytes]:
    """All of a store but its creation time."""
    with h5py.File(store) as file:
        return {name: np.asarray(file[name]).tobytes() for name in ("codes", "keys", "labels", "shards", "failures")}


def test_encoding(workspace, monkeypatch):
    how = common(workspace, autoencoder=workspace / "runs/autoencoder/a", flips=True)
    monkeypatch.setattr("brics_cli.images.collection.VIRTUAL_SHARD_SIZE", SHARD)
    alone = api.encode(workspace / "images", out=workspace / "alone.h5", **how)
    cluster = api.encode(workspace / "images", out=workspace / "cluster.h5", executor=on_ray(2), **how)
    assert (cluster.num_images, cluster.num_failed, cluster.num_now) == (47, 1, 47) == (
        alone.num_images, alone.num_failed, alone.num_now
    )  # fmt: skip
    assert contents(cluster.path) == contents(alone.path)
    assert verify_store(cluster.path) == []


def test_images_of_a_shard_that_was_given_up_are_failures(workspace, monkeypatch):
    monkeypatch.setattr("brics_cli.images.collection.VIRTUAL_SHARD_SIZE", SHARD)
    how = common(workspace, autoencoder=workspace / "runs/autoencoder/a", executor=GivesUp(cpus_per_worker=2))
    encoded = api.encode(workspace / "images", out=workspace / "given-up.h5", **how)
    assert (encoded.num_images, encoded.num_failed) == (36, 12)
    assert {reason for _, reason in encoded.failures} == {"4 workers died over it"}
    assert verify_store(encoded.path) == []
    assert api.encode(workspace / "images", out=workspace / "given-up.h5", **how).already_complete


@pytest.mark.parametrize(
    "out", ["samples", *(pytest.param(out, marks=pytest.mark.slow) for out in ("pngs", "codes.h5"))]
)
def test_sampling(workspace, out):
    how = common(workspace, num=60, steps=3, batch_size=8, shard_size=20, format="png" if out == "pngs" else None)
    alone, cluster = workspace / "alone" / out, workspace / "cluster" / out
    api.sample(out=alone, **how)
    assert api.sample(out=cluster, executor=on_ray(), **how).num_now == 60
    same = contents if out == "codes.h5" else tree
    assert same(cluster) == same(alone)
