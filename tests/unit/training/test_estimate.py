"""What a run costs before it begins (`brics_cli.training.estimate`), beside what it then takes."""

from __future__ import annotations

import resource
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from brics_cli.autoencoder import flops
from brics_cli.config import load_recipe
from brics_cli.training import estimate as room
from brics_cli.training.estimate import GPUS, estimate, rehearse_autoencoder

CPU = torch.device("cpu")


def rehearsal_of(name, *overrides):
    return partial(rehearse_autoencoder, load_recipe(name, kind="autoencoder", overrides=overrides))


@pytest.mark.parametrize("overrides", [(), ("gan.weight=0.1",), ("loss.perceptual.kind=multiscale",)])
def test_counted_on_meta_tensors_as_it_is_when_computed(overrides):
    rehearse = rehearsal_of("tiny", *overrides)
    counted = room._count(rehearse)
    state, loss = rehearse(CPU, 1)
    kept = []
    with (
        FlopCounterMode(display=False) as arithmetic,
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor),
    ):
        loss().backward()
    assert counted.flop == arithmetic.get_total_flops()
    own = {parameter.data_ptr() for parameter in state.model.parameters()}
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in kept}
    saved = sum(size for address, size in storages.items() if address not in own)
    assert counted.saved_bytes == pytest.approx(saved, rel=0.1)


def test_forward_and_backward_are_three_times_the_forward():
    recipe = load_recipe("brics-64", kind="autoencoder")
    forward = sum(row.gflop for row in flops.count(recipe) if row.part in ("encoder", "codes to pixels"))
    counted = room._count(partial(rehearse_autoencoder, recipe))
    assert counted.flop / 1e9 == pytest.approx(3 * forward, rel=0.05)


def test_a_long_recipe_is_counted_and_not_computed(monkeypatch):
    """brics-256 on a CPU: no part of its step is timed, and its gigabytes are not taken."""
    monkeypatch.setattr(room, "kernel_flop_per_s", lambda device, precision: 30e9)
    monkeypatch.setattr(room, "_timed", lambda rehearsal: pytest.fail("it was computed"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = estimate(rehearsal_of("brics-256"), steps=1000, device=CPU)
    assert not found.is_timed and found.seconds > 1e6 * 0.1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20, "KiB"
    small, large = found.gpus[0], found.gpus[-1]
    assert small.seconds > 3 * large.seconds and found.gpu in found.gpus
    assert small.memory_bytes == large.memory_bytes > 5 * found.num_parameters * 4
    assert [each.fits for each in found.gpus] == [
        each.memory_bytes < gpu.memory_gib * 2**30 for each, gpu in zip(found.gpus, GPUS, strict=True)
    ]


def test_only_what_is_left_counts(monkeypatch):
    monkeypatch.setattr(room, "kernel_flop_per_s", lambda device, precision: 30e9)
    all_of_it, half = (estimate(rehearsal_of("tiny"), steps=steps, device=CPU, measure=False) for steps in (200, 100))
    assert all_of_it.seconds == 2 * half.seconds and all_of_it.gpus[0].seconds == 2 * half.gpus[0].seconds
    assert half.steps == 100


def test_small_models_wait_for_their_launches_on_a_gpu(monkeypatch):
    monkeypatch.setattr(room, "kernel_flop_per_s", lambda device, precision: 30e9)
    found = estimate(rehearsal_of("tiny"), steps=1, device=CPU, measure=False)
    assert len({gpu.seconds for gpu in found.gpus}) == 1 and found.gpus[0].seconds > 1e-3
