"""Which device a command computes on, and what memory it has."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from brics_cli.errors import MachineError, UsageError

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def resolve_device(name: str = "auto") -> torch.device:
    """`cuda`, `cuda:N`, `mps`, `cpu` or `auto` (CUDA where there is one, else the CPU) as a device.

    A GPU that is named becomes this process's own, so that nothing opens a context on another one. MPS has to be named:
    it has no float64, which noise levels and counts of use are computed in, and nothing was ever run on it.

    Raises UsageError for a name that is none of these, MachineError for a device this machine has not.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name!r} is not a device", next="Use cuda, cuda:N, mps, cpu or auto.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MachineError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices", next="Use --device cpu."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise MachineError("--device mps: this machine has no MPS device", next="Use --device cpu.")
    if device.type not in {"cuda", "mps", "cpu"}:
        raise UsageError(f"--device {name!r} is not supported", next="Use cuda, cuda:N, mps, cpu or auto.")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def resolve_devices(names: str = "auto") -> list[torch.device]:
    """One device or several, `cuda:0,cuda:1`; `cuda:*` is every CUDA device there is. One named twice
    appears twice.

    Raises what `resolve_device` raises; UsageError for devices of more than one type, whose results would differ.
    """
    if names == "cuda:*":
        names = ",".join(f"cuda:{index}" for index in range(torch.cuda.device_count())) or "cuda"
    devices = [resolve_device(name.strip()) for name in reversed(names.split(","))][::-1]  # the first one stays set
    if len({device.type for device in devices}) > 1:
        raise UsageError(f"--device {names}: devices of different types give different codes", next="Use one type.")
    return devices


def place(model: ModuleT, device: torch.device | str) -> ModuleT:
    """`model` on `device`; on CUDA with the weights of convolutions channels last, which its kernels want."""
    if torch.device(device).type == "cuda":
        return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
    return model.to(device)


def widest_float(device: torch.device) -> torch.dtype:
    """What sums are kept in on `device`: float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def memory_bytes(device: torch.device) -> float:
    """The memory of `device`; infinite where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return math.inf
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:  # of the container, where it has less
        return float(min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text())))
    except (OSError, ValueError):
        return float(machine)
