"""How long a sampling run will take, by timing its first batch in little."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from brics_cli.autoencoder.image_tensors import to_uint8
from brics_cli.sampling.sample_plan import SamplePlan
from brics_cli.sampling.samples import SampleStream


@torch.inference_mode()
def estimate_seconds(plan: SamplePlan) -> float:
    """Time one estimate of the network and one decoding, and scale to the whole plan. Writing is not in it."""
    device, stream = plan.devices[0], plan.stream
    for model in (stream.denoiser, stream.guide, plan.autoencoder):
        if model is not None:
            model.to(device)
    settings = replace(stream.settings, steps=1)  # one estimate, with whatever guidance
    short = SampleStream(
        stream.denoiser, settings, batch_size=stream.batch_size, class_=stream.class_, guide=stream.guide
    )
    size = stream.batch_size
    codes, _ = short.compute(range(size))
    estimate = _timed(lambda: short.compute(range(size)))
    decoding = _timed(lambda: to_uint8(plan.autoencoder.decode(codes)))
    num_batches = (plan.seeds.stop - 1) // size - plan.seeds.start // size + 1
    return num_batches * (stream.settings.num_evaluations * estimate + decoding) / len(plan.devices)


def _timed(call: Callable[[], object]) -> float:
    call()  # the first call of a shape plans memory and kernels
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
