"""torch.distributed in the few calls we need. One process unless `torchrun` started several.

Every call does nothing in a world of one, so that a loop is written once. Collective calls must be reached by all
processes in the same order. Tensors are summed where they are, by NCCL on CUDA, and nobody waits for a device. What
hosts tell each other, flags and what the leader has done, goes over gloo: no device is waited for there either, and
NCCL, which ends a process that waits for ten minutes, sees nothing of a leader who draws, scores or saves for an hour.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from brics_cli.errors import BricsError, MachineError, UsageError, as_brics_error
from brics_cli.runtime.reporting import Reporter, SilentReporter
from brics_cli.runtime.stopping import in_time

T = TypeVar("T")
SliceT = TypeVar("SliceT", list[int], range, Tensor)

PATIENCE = timedelta(days=7)
"""How long hosts wait for each other: for what the leader alone does. One that has ended is noticed at once."""

_PARTNER_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
"""What gloo and NCCL say in a collective call when another process is not there any more."""

TORCHRUN = "several processes are started by: torchrun --nproc-per-node N -m brics_cli ..."


class World:
    """The processes that train together: this one's `rank` among `size`, and the `device` it computes on.

    `hosts` is the group over which they speak without their devices; None: the default one.
    """

    def __init__(self, *, rank: int = 0, size: int = 1, device: torch.device, hosts: Any = None) -> None:
        self.rank = rank
        self.size = size
        self.device = device
        self.hosts = hosts

    @property
    def is_leader(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def mine(self, batch: SliceT) -> SliceT:
        """This process's share of a global batch: a slice of equal length for every rank."""
        each = len(batch) // self.size
        return batch[self.rank * each : (self.rank + 1) * each]

    def replicate(self, model: nn.Module) -> nn.Module:
        """`model` as DDP: equal weights everywhere, and gradients averaged in the backward pass."""
        if self.size == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        with warnings.catch_warnings():  # torch 2.13 renames broadcast_buffers; torch 2.8 knows no other name
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)

    def averaging(self, model: nn.Module, *, now: bool) -> AbstractContextManager[Any]:
        """While the block runs, a backward pass through `model` averages gradients over the world, or does not yet.

        All micro-batches but the last one of a step only accumulate. Forward and backward both belong inside.
        """
        return nullcontext() if now or self.size == 1 else model.no_sync()  # type: ignore[operator]

    def average(self, tensor: Tensor) -> Tensor:
        """The mean of `tensor` over the world; the same bits everywhere."""
        if self.size == 1:
            return tensor
        tensor = tensor.detach().clone()
        dist.all_reduce(tensor)
        return tensor / self.size

    def average_gradients(self, model: nn.Module) -> None:
        """Average the gradients of `model`, for networks that are not wrapped by `replicate`."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if self.size == 1 or not gradients:
            return
        flat = self.average(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over the world."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.hosts)
        return tensor.tolist()

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each of `tensors` by its sum over the world."""
        for tensor in tensors if self.size > 1 else ():
            dist.all_reduce(tensor)

    def gather(self, value: T) -> list[T]:
        """Every process's `value`, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.hosts)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process, as far as their hosts are: no device is waited for."""
        return self.total([float(flag)])[0] > 0

    def lead(self, action: Callable[[], T]) -> T | None:
        """Run `action` in the leader while the others wait, however long; they get None, or raise what it raised."""
        if self.size == 1:
            return action()
        result, failure = None, None
        if self.is_leader:
            try:
                result = action()
            except Exception as error:
                failure = error
        said = as_brics_error(failure) if failure is not None else None
        heard: list[Any] = [None if failure is None else (type(said or failure), str(said or failure))]
        dist.broadcast_object_list(heard, group=self.hosts)
        if failure is not None:
            raise failure
        if heard[0] is not None:
            kind, text = heard[0]
            raise kind(text) if issubclass(kind, BricsError) else RuntimeError(f"in the first process: {text}")
        return result


def world_size() -> int:
    """How many processes `torchrun` started, 1 without it. Raises UsageError for another program's WORLD_SIZE."""
    return _torchrun_says("WORLD_SIZE", otherwise=1)


def is_first_process() -> bool:
    """Whether this process will lead the world, which it need not have joined yet."""
    return _torchrun_says("RANK", otherwise=0) == 0


def of_first_process(reporter: Reporter) -> Reporter:
    """`reporter` in the first process; in the others one that says nothing, not even warnings."""
    return reporter if is_first_process() else SilentReporter()


def num_local_processes() -> int:
    """How many of them run on this machine."""
    return _torchrun_says("LOCAL_WORLD_SIZE", otherwise=1)


def _torchrun_says(name: str, *, otherwise: int) -> int:
    text = os.environ.get(name, str(otherwise))
    if not text.isdecimal() or (name.endswith("SIZE") and text == "0"):
        raise UsageError(f"{name} is {text!r} in the environment", next=f"Unset it; {TORCHRUN}")
    return int(text)


def check_batch(batch_size: int, *, accumulate: int) -> None:
    """Raise UsageError unless a global batch splits into `accumulate` micro-batches in every process."""
    parts = accumulate * world_size()
    if batch_size % parts:
        processes = f" * {world_size()} processes" if world_size() > 1 else ""
        raise UsageError(
            f"training.batch_size {batch_size} is not a multiple of training.accumulate {accumulate}{processes}",
            next=f"Take a multiple of {parts}: --set training.batch_size={-(-batch_size // parts) * parts}",
        )


@contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """The world that `torchrun` made, joined while the block runs; without `torchrun` a world of one.

    `device` is what this command was asked to use: under `torchrun` on CUDA, each process takes the GPU of its local
    rank. Raises UsageError for `--device cuda:N` with several processes.
    """
    size = world_size()
    if size == 1:
        yield World(device=device)
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {size} in the environment, and {', '.join(missing)} not set", next=f"Unset it; {TORCHRUN}"
        )
    if device.type == "cuda":
        if device.index is not None:
            raise UsageError(f"--device {device} names one GPU for {size} processes", next="Use --device cuda.")
        if num_local_processes() > torch.cuda.device_count():
            raise UsageError(
                f"{num_local_processes()} processes on this machine and {torch.cuda.device_count()} GPUs",
                next="Start one process per GPU: torchrun --nproc-per-node gpu.",
            )
        device = torch.device("cuda", _torchrun_says("LOCAL_RANK", otherwise=0))
        torch.cuda.set_device(device)
    if device.type == "cuda":
        dist.init_process_group("nccl")
        hosts = dist.new_group(backend="gloo", timeout=PATIENCE)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
        hosts = None
    try:
        with in_time(leader=dist.get_rank() == 0):
            yield World(rank=dist.get_rank(), size=size, device=device, hosts=hosts)
    except RuntimeError as error:
        if any(said in str(error) for said in _PARTNER_GONE):
            raise MachineError(
                "another process of this run has ended", next="See what it said; then --resume."
            ) from None
        raise
    finally:
        dist.destroy_process_group()
