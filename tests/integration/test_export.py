"""`brics export --to lightningdit`: what LightningDiT's loader would read is what the store holds."""

from __future__ import annotations

import json
import signal
from glob import glob
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import brics, error_line
from killing import Command
from safetensors import safe_open
from store_files import PARENTS, header, write_store

from brics_cli.codes import KeyCodeStore, StoreShard, StoreWriter
from brics_cli.jobs import export as job
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.workspace import Workspace, read_provenance

SHAPE = (3, 4, 4)


def make_store(path: Path, num: int = 25, *, labels: bool = True, flipped: bool = True, constant: bool = False) -> Path:
    """One shard of random codes; label i % 4."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (num, *SHAPE), np.uint8)
    rows[:, 1] = 7 if constant else rows[:, 1]
    head = header(num_images=num, code_shape=SHAPE, image_size=32, flipped=flipped)
    with StoreWriter(path, head, [StoreShard("s", num, 100, "f" * 64)]) as writer:
        with writer.part(0) as part:
            part.add(
                rows,
                flipped=rows[..., ::-1] if flipped else None,
                keys=[f"s/{index}" for index in range(num)],
                indices=list(range(num)),
                labels=[index % 4 if labels else None for index in range(num)],
                metas=[None] * num,
                failures=[],
            )
        writer.merge(parents=PARENTS, details={"transform": "crop-bicubic"})
    return path


def export(store: Path, out: Path, **settings) -> job.ExportResult:
    plan = job.plan_export(store, out=out, workspace=Workspace(out.parent), reporter=SilentReporter(), **settings)
    return job.export(plan, reporter=SilentReporter())


def read_as_lightningdit(folder: Path) -> dict[str, torch.Tensor]:
    """As its loader goes: files by name, rows by slices with safetensors, statistics by torch.load."""
    rows: dict[str, list[torch.Tensor]] = {"latents": [], "latents_flip": [], "labels": []}
    for file in sorted(glob(f"{folder}/*.safetensors")):  # noqa: PTH207
        with safe_open(file, framework="pt", device="cpu") as opened:
            assert set(opened.keys()) == set(rows)
            for name, found in rows.items():
                tensor = opened.get_slice(name)
                found += [tensor[row : row + 1] for row in range(tensor.get_shape()[0])]
    return {name: torch.cat(found) for name, found in rows.items()} | torch.load(folder / "latents_stats.pt")


@pytest.mark.parametrize("rows_per_shard", [1, 10, 25, 10_000])
def test_the_loader_reads_what_the_store_holds(tmp_path, rows_per_shard):
    store = KeyCodeStore(make_store(tmp_path / "c.h5"))
    made = export(store.path, tmp_path / "out", rows_per_shard=rows_per_shard)
    read = read_as_lightningdit(tmp_path / "out")
    assert (
        torch.equal(read["latents"], torch.from_numpy(store.batch(range(25))))
        and read["latents"].dtype == torch.float32
    )
    assert torch.equal(read["latents_flip"], torch.from_numpy(store.batch(range(25), flipped=True)))
    assert torch.equal(read["labels"], torch.arange(25) % 4) and read["labels"].dtype == torch.int64
    exact = read["latents"].double()
    assert read["mean"].shape == read["std"].shape == (1, 3, 1, 1)
    std = exact.std((0, 2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(read["mean"].double(), exact.mean((0, 2, 3), keepdim=True), atol=1e-6, rtol=0)
    torch.testing.assert_close(read["std"].double(), std, atol=1e-6, rtol=0)
    assert (made.num_images, made.num_classes, made.num_shards) == (25, 4, -(-25 // rows_per_shard))
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert len(files) == made.num_shards
    overhead = sum(file.stat().st_size for file in files) - made.num_bytes
    assert 0 < overhead < 400 * made.num_shards


def test_normalised_latents_have_mean_0_and_deviation_1(tmp_path):
    export(make_store(tmp_path / "c.h5", constant=True), tmp_path / "out")
    read = read_as_lightningdit(tmp_path / "out")
    normalised = (read["latents"] - read["mean"]) / read["std"]
    assert torch.isfinite(normalised).all()
    assert normalised.mean((0, 2, 3)).abs().max() < 1e-4
    std = normalised.std((0, 2, 3), correction=0)
    assert std[1] < 1e-6 and (std[[0, 2]] - 1).abs().max() < 1e-4  # channel 1 is constant, and not divided by 0


def test_without_flips_and_without_labels(tmp_path):
    store = make_store(tmp_path / "c.h5", flipped=False, labels=False)
    made = export(store, tmp_path / "out", flips=False)
    read = read_as_lightningdit(tmp_path / "out")
    assert torch.equal(read["latents"], read["latents_flip"])
    assert not read["labels"].any() and made.num_classes == 1
    export(make_store(tmp_path / "d.h5"), tmp_path / "d", labels=False)
    assert not read_as_lightningdit(tmp_path / "d")["labels"].any()


def test_more_than_a_thousand_shards_stay_in_order(tmp_path, monkeypatch):
    assert [job.shard_name(number, num_shards=1001) for number in (0, 1000)] == [
        "latents_rank00_shard0000.safetensors", "latents_rank00_shard1000.safetensors",
    ]  # fmt: skip
    assert job.shard_name(7, num_shards=1000) == "latents_rank00_shard007.safetensors"


def test_an_interrupted_export_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    store = make_store(tmp_path / "c.h5")
    export(store, tmp_path / "whole", rows_per_shard=5)
    written = []

    def stop(path, *rest, **settings):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        return write(path, *rest, **settings)

    write = job.write_latents
    monkeypatch.setattr(job, "write_latents", stop)
    with pytest.raises(job.InterruptedRunError, match="whole shards in"):
        export(store, tmp_path / "out", rows_per_shard=5)
    assert not read_provenance(tmp_path / "out").complete
    monkeypatch.setattr(job, "write_latents", write)
    before = {path: path.stat().st_mtime_ns for path in written}
    export(store, tmp_path / "out", rows_per_shard=5)
    assert {path: path.stat().st_mtime_ns for path in written} == before
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    for name in names:
        if name != "brics.json":
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert export(store, tmp_path / "out", rows_per_shard=5).already_complete


def test_a_killed_export_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "c.h5", num=40_000)
    command = Command(["export", "c.h5", "--out", "out"], tmp_path / "log")
    assert command.stop_when(lambda: any(Path("out").glob("*shard000.safetensors")), signal.SIGKILL) == -9
    brics("export", "c.h5", "--out", "out", cwd=tmp_path, check=0)
    assert len(read_as_lightningdit(Path("out"))["labels"]) == 40_000
    assert not [path.name for path in Path("out").iterdir() if path.name.endswith(".tmp")]


def test_the_command_says_what_the_other_config_needs(tmp_path):
    make_store(tmp_path / "c.h5")
    would = json.loads(brics("export", "c.h5", "--dry-run", "--json", cwd=tmp_path, check=0).stdout)
    assert would["bytes"] == 25 * (2 * 4 * 48 + 8) and would["shards"] == 1 and not (tmp_path / "latents").exists()
    done = brics("export", "c.h5", "--to", "lightningdit", "--out", "out", cwd=tmp_path, check=0)
    first, config = done.stdout.splitlines()
    assert first == "25 latents 3 x 4 x 4 of 4 classes in 1 shard, 9.6 KiB: out"
    assert "data.num_classes=4" in config and "vae.downsample_ratio=8" in config and "model.in_chans=3" in config
    assert "data.latent_norm=true data.latent_multiplier=1.0" in config
    assert "complete already" in brics("export", "c.h5", "--out", "out", cwd=tmp_path, check=0).stderr
    made = read_provenance(tmp_path / "out")
    assert made.kind == "latents" and made.parent("store").sha256 == KeyCodeStore(tmp_path / "c.h5").sha256
    assert "latents for LightningDiT" in brics("status", cwd=tmp_path, check=0).stdout


def test_what_cannot_be_exported_is_one_line(tmp_path):
    make_store(tmp_path / "noflips.h5", flipped=False)
    write_store(tmp_path / "half.h5", ["s0", "s1"])
    make_store(tmp_path / "c.h5")
    cases = [
        (("noflips.h5",), 3, "noflips.h5 holds no flipped codes"),
        (("noflips.h5",), 3, "--no-flips"),
        (("half.h5",), 3, "4 of the 6 images in half.h5 have labels, and LightningDiT needs all or none"),
        (("c.h5", "--out", "x.safetensors"), 2, "is named like a .safetensors file"),
        (("c.h5", "--to", "dit"), 2, "dit"),
        (("gone.h5",), 3, "gone.h5 is missing"),
    ]
    for arguments, code, said in cases:
        assert said in error_line(brics("export", *arguments, cwd=tmp_path, check=code))
    brics("export", "half.h5", "--no-labels", "--out", "half", cwd=tmp_path, check=0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    assert "already there" in error_line(brics("export", "c.h5", "--out", "full", cwd=tmp_path, check=4))
