"""What networks compute in: names, defaults by device, and what is rounded in products of float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from brics_cli.config import ScheduleConfig
from brics_cli.errors import UsageError
from brics_cli.runtime.precision import (
    computing,
    default_precision,
    float32_products,
    precision_on,
    scoring_precision,
    training_arithmetic,
    training_precision,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)


def flags() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_the_default_is_bf16_where_a_gpu_has_it(monkeypatch, capability, expected) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability if device == CUDA else None)
    assert default_precision(CUDA) == precision_on(CUDA, None) == expected
    assert [precision_on(CUDA, asked) for asked in ("fp32", "bf16", "tf32")] == ["fp32", "bf16", "tf32"]
    assert default_precision(CPU) == default_precision(torch.device("mps")) == "fp32"


def test_tf32_is_refused_where_there_is_none() -> None:
    with pytest.raises(UsageError, match="--dtype tf32 is arithmetic of CUDA, not of cpu"):
        precision_on(CPU, "tf32")
    with pytest.raises(UsageError, match="--dtype 'f16' is not a precision"):
        precision_on(CPU, "f16")  # type: ignore[arg-type]


def test_runs_train_and_score_as_their_recipe_says() -> None:
    schedule = ScheduleConfig(precision="tf32", cpu_precision="bf16")
    assert (training_precision(schedule, CUDA), scoring_precision(schedule, CUDA)) == ("tf32", "tf32")
    assert (training_precision(schedule, CPU), scoring_precision(schedule, CPU)) == ("bf16", "fp32")


def test_fp32_is_float32_and_what_was_set_before_comes_back() -> None:
    before = flags()
    with computing("tf32", CPU):
        assert flags() == ("high", True)
        with float32_products("fp32"):  # a metric's network, say
            assert flags() == ("highest", False)
        assert flags() == ("high", True)
    with pytest.raises(KeyError), computing("bf16", CPU):
        assert flags() == ("highest", True)
        raise KeyError
    assert flags() == before


def test_training_tries_kernels_where_shapes_stay_and_products_are_its_own_in_backward_too() -> None:
    before = torch.backends.cudnn.benchmark, flags()
    for same in (True, False):
        with training_arithmetic("tf32", same_shapes=same):
            assert torch.backends.cudnn.benchmark == same and flags() == ("high", True)
    assert (torch.backends.cudnn.benchmark, flags()) == before


def test_bf16_is_autocast_and_nothing_else_is() -> None:
    convolution, images = nn.Conv2d(3, 4, 3), torch.rand(1, 3, 8, 8)
    for precision, expected in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with computing(precision, CPU):
            assert convolution(images).dtype == expected
    with computing("bf16", torch.device("meta")):
        assert convolution.to("meta")(images.to("meta")).dtype == torch.float32
