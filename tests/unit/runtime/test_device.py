"""Which device a name means, and that a GPU that is named is the only one that is touched."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from brics_cli.runtime.device import place, resolve_device, resolve_devices


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A machine with two GPUs; the devices that were made the process's own."""
    own: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", own.append)
    return own


def test_a_gpu_that_is_named_becomes_the_processs_own(two_gpus: list[torch.device]) -> None:
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert two_gpus == [torch.device("cuda", 1)]
    assert resolve_devices("cuda:1,cuda:0") == [torch.device("cuda", 1), torch.device("cuda", 0)]
    assert two_gpus[-1] == torch.device("cuda", 1), "of several the first, on which this process plans"


def test_auto_is_cuda_or_the_cpu_and_never_mps(two_gpus: list[torch.device], monkeypatch) -> None:
    assert resolve_device("auto") == torch.device("cuda") and two_gpus == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cpu")
    assert resolve_device("mps") == torch.device("mps"), "by its name alone"


def test_convolutions_are_channels_last_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(nn.Module, "to", lambda self, *args, **settings: asked.append((args, settings)) or self)
    for name in ("cpu", "cuda:1"):
        place(nn.Conv2d(3, 3, 1), name)
    assert asked == [(("cpu",), {}), (("cuda:1",), {"memory_format": torch.channels_last})]
