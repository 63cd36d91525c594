"""How large a model would be, said before any of it takes memory: it is counted as it is built on the meta device.

Counting ends as soon as there is too much, so that neither ten million channels nor a million layers cost anything.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from brics_cli.autoencoder.model_files import damage_explained
from brics_cli.errors import ArtefactError, MachineError
from brics_cli.runtime.device import memory_bytes

MOST_TENSORS = 20_000
"""Of a recipe: the largest models of the field have some thousands, and each costs kilobytes of Python alone."""
MOST_BUFFER_VALUES = 1 << 26
"""Of tables that a model makes for itself, and that may be in no file: rotations by position."""
TRAINED_COPIES = 5
"""Copies of the weights that training holds at least: they, gradients, Adam's two moments, an average."""

BATCH_SIZE, LARGE_SIDE = 64, 256
"""Images per batch, of up to so many pixels a side; fewer of larger ones take the same memory."""

Build = Callable[[], nn.Module]


class _TooMuchError(Exception):
    pass


@contextmanager
def _at_most(num_values: float, num_tensors: int) -> Iterator[None]:
    """Raise _TooMuchError when modules made in the block have more parameters than this, or far more buffers."""
    most = {"parameters": num_values, "buffers": num_values + MOST_BUFFER_VALUES, "tensors": num_tensors}
    counted: Counter[str] = Counter()

    def count(of: str) -> Callable[[nn.Module, str, Tensor | None], None]:
        def hook(module: nn.Module, name: str, tensor: Tensor | None) -> None:
            if tensor is not None:
                counted[of] += tensor.numel()
                counted["tensors"] += of == "parameters"
                if any(number > most[what] for what, number in counted.items()):
                    raise _TooMuchError

        return hook

    parameters, buffers = count("parameters"), count("buffers")
    with (
        register_module_parameter_registration_hook(parameters),
        register_module_buffer_registration_hook(buffers),
    ):
        yield


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
    with damage_explained(weights), safe_open(weights, "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - it is no mapping
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


def images_per_batch(size: int) -> int:
    """Images of `size` px that go through a network together where nothing else is asked for."""
    return max(1, min(BATCH_SIZE, BATCH_SIZE * LARGE_SIDE**2 // size**2))


def check_image_memory(image_size: int, *, what: str) -> None:
    """Raise MachineError when not even one image (3, S, S) fits in the memory of this machine."""
    needed, memory = 12 * image_size**2, memory_bytes(torch.device("cpu"))
    if needed > memory:
        raise MachineError(
            f"{what} has an image_size of {image_size:,}, and one such image takes more than the "
            f"{memory / 2**30:.1f} GiB of this machine",
            next="Use a smaller image_size.",
        )
