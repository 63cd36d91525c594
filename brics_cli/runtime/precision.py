"""What networks compute in, decided here alone: bf16 or TF32 on CUDA, float32 elsewhere (DESIGN section 9).

Three names. `bf16` is autocast: products in bf16, and of what stays in float32 convolutions in TF32, as is torch's way.
`tf32` keeps float32 and lets CUDA round the factors of its products to 10 bits of mantissa. `fp32` is float32, every
bit. Weights, codes, interpolation, losses, samplers' state and the networks of metrics stay in float32 all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import get_args

import torch

from brics_cli.config import ScheduleConfig
from brics_cli.config.names import Precision
from brics_cli.config.suggestions import check_known
from brics_cli.errors import UsageError
from brics_cli.runtime.reporting import Reporter
from brics_cli.runtime.threads import FREE_CORES

LEAST_CAPABILITY = (8, 0)
"""Of NVIDIA's GPUs: older ones have neither bf16 nor TF32 in hardware."""


def default_precision(device: torch.device) -> Precision:
    """What networks compute in on `device` unless a user says otherwise. Of CUDA on other machines the best is
    assumed."""
    if device.type != "cuda":
        return "fp32"
    is_old = torch.cuda.is_available() and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY
    return "fp32" if is_old else "bf16"


def precision_on(device: torch.device, asked: Precision | None) -> Precision:
    """What networks compute in on `device` where `asked` was given for --dtype, None for nothing.

    Raises UsageError for what is none, and for tf32 where there is none.
    """
    check_known(asked, get_args(Precision), option="--dtype", what="precision")
    if asked == "tf32" and device.type != "cuda":
        raise UsageError(f"--dtype tf32 is arithmetic of CUDA, not of {device}", next="Use --dtype fp32, or bf16.")
    return asked or default_precision(device)


def training_precision(schedule: ScheduleConfig, device: torch.device) -> Precision:
    """What a recipe trains in on `device`."""
    recipes: dict[str, Precision] = {"cuda": schedule.precision, "cpu": schedule.cpu_precision}
    return recipes.get(device.type, "fp32")


def scoring_precision(schedule: ScheduleConfig, device: torch.device) -> Precision:
    """What a run computes its scores and sheets in on `device`: on CUDA as it trains, elsewhere in float32."""
    return schedule.precision if device.type == "cuda" else "fp32"


def say_training_precision(asked: Precision | None, device: torch.device, reporter: Reporter) -> None:
    """Say that what was asked for by name is not what `training_precision` makes of it."""
    if asked is not None and asked != "fp32" and device.type != "cuda":
        own = device.type == "cpu" and asked == "bf16"
        instead = f"--set training.cpu_precision={asked}" if own else "fp32 alone"
        why = ", where it is mostly slower" if asked == "bf16" else ""
        reporter.warning(f"--dtype {asked} is not used on {device}{why}; there it is {instead}")


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """What products of float32 on CUDA are inside, of forward and backward passes: rounded to TF32, or in full.

    For the whole process, so that it holds in autograd's threads, and as it was before once the block has ended.
    """
    _compute_in(FREE_CORES.choose(torch.get_num_threads()))  # here, because all networks compute inside
    matmul, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolutions


@contextmanager
def training_arithmetic(precision: str, *, same_shapes: bool = True) -> Iterator[None]:
    """What a training run sets while the block runs: `float32_products`, of backward passes too, and, where every step
    has the `same_shapes`, that cuDNN tries its kernels and takes the fastest. (Sampling and encoding leave that alone:
    the same seed or image should give the same bits in the next process.)"""
    tries = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = same_shapes
    try:
        with float32_products(precision):
            yield
    finally:
        torch.backends.cudnn.benchmark = tries


@contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """The forward passes inside compute in `precision`."""
    if device.type == "meta":
        yield
        return
    with float32_products(precision), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


@contextmanager
def all_threads() -> Iterator[None]:
    """The block computes in as many threads as torch began with, however busy the machine is: in another number sums
    may come out in another order, and what it makes is known by its bits."""
    before = torch.get_num_threads()
    with FREE_CORES.left_alone(before) as number:
        _compute_in(number)
        try:
            yield
        finally:
            _compute_in(before)


def _compute_in(num_threads: int) -> None:
    if num_threads != torch.get_num_threads():
        torch.set_num_threads(num_threads)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """No autocast inside. (Meta tensors, on which arithmetic is counted, have none.)"""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
