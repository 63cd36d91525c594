"""A step of training that does not log waits for no device: on CUDA every figure that is read there is waited for, and
so is every one that is sent from ordinary memory. Here the same steps are taken on the CPU, as they would be on CUDA
(fused optimiser, draws of the whole batch, batches prepared ahead), and what they read is counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from store_files import header
from torch.utils._python_dispatch import TorchDispatchMode

import brics_cli
from brics_cli.codes import KeyCodeStore, StoreShard, StoreWriter
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.training import adversary, codes, loop, state, step

READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::unique2", "aten::lift_fresh"}
"""What `float`, `bool`, `item`, indexing by a mask and `torch.equal` come to; the last one is `torch.tensor`."""
LOG_EVERY, STEPS = 3, 6


class Reads(TorchDispatchMode):
    """The step during whose computation, or at whose end, each figure was read."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.found = ("before", 0), list[tuple[str, int, str]]()

    def note(self, name: str) -> None:
        self.found.append((*self.place, name))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.name().split(".")[0] in READS:
            self.note(function.name())
        return function(*args, **(kwargs or {}))


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reads]:
    """What is read while the block trains as on CUDA; the last step's end, at which all is due, left out."""
    for module in (state, adversary):
        monkeypatch.setattr(module, "wants_fused", lambda model: True)
    for module in (codes, step):
        monkeypatch.setattr(module, "draws_by_step", lambda device: True)
    one_ahead = step.one_ahead
    for module in (codes, step):
        ahead = lambda read, *, first_step, threaded: one_ahead(read, first_step=first_step, threaded=True)  # noqa: E731
        monkeypatch.setattr(module, "one_ahead", ahead)
    reads = Reads()
    for name in ("tolist", "cpu"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, _of=real, _as=name: (reads.note(_as), _of(tensor))[1])
    end_step = loop.Loop.end_step

    def ended(self: Any, *arguments: Any, **settings: Any) -> None:
        reads.place = ("end", self.state.step)
        end_step(self, *arguments, **settings)
        reads.place = ("step", self.state.step + 1)

    monkeypatch.setattr(loop.Loop, "end_step", ended)
    with reads:
        yield reads


def check(reads: Reads) -> None:
    ends = {number for where, number, _ in reads.found if where == "end"}
    assert ends == {LOG_EVERY, STEPS}, "figures are read where a log line is due, and nowhere else"
    assert [each for each in reads.found if each[0] == "step" and each[1] <= STEPS] == []


def settings(*more: str) -> list[str]:
    return [f"training.log_every={LOG_EVERY}", "training.loggers=[]", *more]


@pytest.mark.parametrize(
    "more",
    [
        ["training.accumulate=2"],
        [
            *("gan.weight=0.2", "gan.ramp_steps=2", "loss.perceptual.kind=multiscale", "terms.marginals.weight=0.1"),
            *("terms.whitening.weight=0.1", "terms.spectrum.weight=0.1", "terms.spectrum.mask_weight=0.1"),
            *("terms.equivariance.weight=0.1", "terms.scale_equivariance.weight=0.1"),
        ],
    ],
    ids=["plain", "everything"],
)
def test_a_step_of_the_autoencoder(photographs: Path, tmp_path: Path, monkeypatch, more: list[str]) -> None:
    with counted(monkeypatch) as reads:
        result = brics_cli.train_autoencoder(
            photographs, recipe="tiny", steps=STEPS, batch_size=4, overrides=settings(*more), out=tmp_path / "run",
            device="cpu", reporter=SilentReporter(),
        )  # fmt: skip
    check(reads)
    assert np.isfinite(result.metrics["train/loss"]) and result.metrics["train/skipped"] == 0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> KeyCodeStore:
    """Twelve codes, mirrored too, of three classes."""
    made_of = header(num_images=12, flipped=True)
    path = tmp_path_factory.mktemp("store") / "codes.h5"
    rows = np.random.default_rng(0).integers(0, 256, (2, 12, *made_of.code_shape), np.uint8)
    with StoreWriter(path, made_of, [StoreShard("a", 12, 100, "0" * 64)]) as writer:
        with writer.part(0) as part:
            part.add(
                rows[0], flipped=rows[1], keys=[f"a/{i}" for i in range(12)], indices=list(range(12)),
                labels=[i % 3 for i in range(12)], metas=[None] * 12, failures=[],
            )  # fmt: skip
        writer.merge(parents=(), details={})
    return KeyCodeStore(path)


@pytest.mark.parametrize("where", ["always", "never"])
@pytest.mark.parametrize("kind", ["dit", "unet"])
def test_a_step_of_the_denoiser(store: KeyCodeStore, tmp_path: Path, monkeypatch, kind: str, where: str) -> None:
    networks = {
        "dit": ["denoiser.dim=32", "denoiser.depth=1", "denoiser.num_heads=2"],
        "unet": ["denoiser.kind=unet", "denoiser.dim=32", "denoiser.head_dim=32", "denoiser.dropout=0.1"],
    }
    with counted(monkeypatch) as reads:
        brics_cli.train_diffusion(
            store.path, recipe="tiny", steps=STEPS, batch_size=4, out=tmp_path / "run", device="cpu",
            overrides=settings(f"training.store_on_device={where}", *networks[kind]), reporter=SilentReporter(),
        )  # fmt: skip
    check(reads)
