"""How large a model would be, said before any of it takes memory: it is counted as it is built on the meta device.

Counting ends as soon as there is too much, so that neither ten million channels nor a million layers cost anything.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from brics_cli.errors import ArtefactError, MachineError, machine_error

MOST_TENSORS = 20_000
"""Of a recipe: the largest models of the field have some thousands, and each costs kilobytes of Python alone."""
MOST_BUFFER_VALUES = 1 << 26
"""Of tables that a model makes for itself, and that may be in no file: rotations by position."""
TRAINED_COPIES = 5
"""Copies of the weights that training holds at least: they, gradients, Adam's two moments, an average."""

Build = Callable[[], nn.Module]


class _TooMuchError(Exception):
    pass


@contextmanager
def _at_most(num_values: float, num_tensors: int) -> Iterator[None]:
    """Raise _TooMuchError when modules made in the block have more parameters than this, or far more buffers."""
    values = tensors = buffers = 0

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal values, tensors
        if tensor is not None:
            values += tensor.numel()
            tensors += 1
            if values > num_values or tensors > num_tensors:
                raise _TooMuchError

    def count_buffer(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal buffers
        buffers += 0 if tensor is None else tensor.numel()
        if buffers > num_values + MOST_BUFFER_VALUES:
            raise _TooMuchError

    handles: list[Any] = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count_buffer),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def is_larger(build: Build, *, num_values: float, num_tensors: int) -> bool:
    """Whether what `build` makes has more parameters, in values or in tensors. Raises what it raises (UsageError)."""
    try:
        with torch.device("meta"), _at_most(num_values, num_tensors):
            build()
    except (_TooMuchError, OverflowError):
        return True
    except (RuntimeError, TypeError) as error:  # more than 64 bits count
        if "overflow" in str(error).lower() or "invalid size" in str(error).lower():
            return True
        raise
    return False


def check_against(weights: Path, build: Build) -> None:
    """Raise ArtefactError when `build` would make more than the safetensors file `weights` holds, before it does.

    Of the file its header alone is read. Raises ArtefactError too when it is missing or damaged.
    """
    try:
        with safe_open(weights, "pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - it is no mapping
    except FileNotFoundError:
        raise ArtefactError(f"{weights} is missing") from None
    except (SafetensorError, OSError, RuntimeError, MemoryError) as error:
        if (said := machine_error(error, where=weights)) is not None:
            raise said from None
        raise ArtefactError(f"{weights} is damaged or truncated ({error})") from None
    values = sum(math.prod(shape) for shape in shapes)
    if is_larger(build, num_values=values, num_tensors=len(shapes)):
        raise ArtefactError(
            f"{weights} does not fit its config.json, which describes a larger model than the {len(shapes):,} tensors "
            f"with {values:,} values that are there"
        )


def check_memory(build: Build, *, device: torch.device, what: str, copies: int = TRAINED_COPIES) -> None:
    """Raise MachineError when `copies` of the float32 weights of what `build` makes do not fit in memory."""
    memory = memory_bytes(device)
    if is_larger(build, num_values=memory / 4 / copies, num_tensors=MOST_TENSORS):
        raise MachineError(
            f"{what} describes a model that training has no room for: with gradients, moments and an average its "
            f"weights take more than the {memory / 2**30:.1f} GiB of {device.type}, or it has more than "
            f"{MOST_TENSORS:,} tensors",
            next="Use a smaller recipe (`brics recipes`), or --set smaller widths.",
        )


def check_image_memory(image_size: int, *, what: str) -> None:
    """Raise MachineError when not even one image (3, S, S) fits in the memory of this machine."""
    needed, memory = 12 * image_size**2, memory_bytes(torch.device("cpu"))
    if needed > memory:
        raise MachineError(
            f"{what} has an image_size of {image_size:,}, and one such image takes more than the "
            f"{memory / 2**30:.1f} GiB of this machine",
            next="Use a smaller image_size.",
        )


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
