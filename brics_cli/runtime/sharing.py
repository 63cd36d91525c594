"""Memory that the processes of a machine have in common, such as `torchrun` started them."""

from __future__ import annotations

import mmap
import os

import numpy as np

from brics_cli.runtime.distributed import World, num_local_processes
from brics_cli.runtime.executors import above_standard_streams


def can_share() -> bool:
    """Whether this system has such memory."""
    return hasattr(os, "memfd_create")


def shared_zeros(num_bytes: int, world: World | None = None) -> tuple[np.ndarray, int, int]:
    """`num_bytes` of uint8, this process's number among those that see them, and how many these are.

    Those of `world` on this machine, which must all come here, see the same memory where the system can; otherwise each
    has its own. It is a memfd: without a name that could be left behind, outside /dev/shm, of which containers have
    little, and gone with the last process. Memory is taken when it is written.
    """
    num = 1 if world is None else num_local_processes()
    if world is None or num == 1 or not can_share():
        return np.zeros(num_bytes, np.uint8), 0, 1
    machine, number = divmod(world.rank, num)
    descriptor = above_standard_streams(os.memfd_create("brics-shared")) if number == 0 else -1
    if number == 0:
        os.ftruncate(descriptor, num_bytes)
    owner, theirs = world.gather((os.getpid(), descriptor))[machine * num]
    if number:
        descriptor = os.open(f"/proc/{owner}/fd/{theirs}", os.O_RDWR)
    try:
        memory = mmap.mmap(descriptor, num_bytes)
        world.gather(None)  # the first one keeps it open until all have it
    finally:
        os.close(descriptor)
    return np.frombuffer(memory, np.uint8), number, num
