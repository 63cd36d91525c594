"""Random draws keyed by what they are for, so that they depend on no batch, process count or resume.

On the CPU every sample has a stream of its own. On CUDA, where that would keep the host busy for tens of milliseconds a
step, a training step has one stream for its whole batch, of all processes: each takes its share. The two streams give
different numbers, and each the same ones again (CUDA's on one kind of card).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Stream(IntEnum):
    """What a draw is for. Each purpose has its own streams, so that two purposes never share numbers."""

    DIFFUSION_TRAINING = 1
    IMAGE_NOISE = 2
    IMAGE_LABEL = 3
    CODE_NOISE = 4
    FLIP = 5
    DATA_ORDER = 6
    CODE_TERMS = 7
    DIFFUSION_VALIDATION = 8
    UPSIDE_DOWN = 9
    TRANSPOSE = 10


def keyed_generator(seed: int, *counter: int, stream: Stream) -> np.random.Generator:
    """The random stream of (seed, purpose, up to two more numbers, each below 2^64).

    Philox is counter-based (Salmon et al., SC 2011): streams of different keys cannot overlap, and starting one
    costs microseconds.
    """
    if len(counter) > 2:
        raise ValueError(f"a stream is keyed by at most two numbers beside its seed, got {len(counter)}")
    words = [0, *counter, *[0] * (2 - len(counter)), int(stream)]
    return np.random.Generator(np.random.Philox(key=seed % 2**128, counter=words))


def keyed_normal(seed: int, *, step: int, indices: Sequence[int], shape: Sequence[int], stream: Stream) -> Tensor:
    """Standard normal draws (B, *shape), float32 on the CPU: row i depends on (seed, step, indices[i]) alone."""
    drawn = np.empty((len(indices), *shape), np.float32)
    for row, index in enumerate(indices):
        keyed_generator(seed, int(index), step, stream=stream).standard_normal(out=drawn[row], dtype=np.float32)
    return torch.from_numpy(drawn)


def draws_by_step(device: torch.device) -> bool:
    """Whether a training step on `device` draws for its whole batch at once."""
    return device.type == "cuda"


def step_generator(seed: int, *, step: int, stream: Stream, device: torch.device) -> torch.Generator:
    """The random stream of (seed, purpose, step) on `device`."""
    key = int(keyed_generator(seed, step, stream=stream).integers(2**63))
    return torch.Generator(device).manual_seed(key)


def step_coins(seed: int, *, step: int, num: int, stream: Stream) -> Tensor:
    """`num` fair coins, bool, on the CPU, of (seed, purpose, step)."""
    return torch.from_numpy(keyed_generator(seed, step, stream=stream).random(num) < 0.5)


def keyed_coins(seed: int, *, step: int, indices: Sequence[int], stream: Stream) -> Tensor:
    """Fair coins (B,), bool: coin i depends on (seed, step, indices[i]) alone."""
    return torch.tensor([keyed_generator(seed, int(i), step, stream=stream).random() < 0.5 for i in indices])
