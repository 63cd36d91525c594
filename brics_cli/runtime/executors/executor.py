"""The protocol of executors (DESIGN section 9): batch jobs are one task per shard, whoever runs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

Task_contra = TypeVar("Task_contra", contravariant=True)
Event_co = TypeVar("Event_co", covariant=True)
TaskT = TypeVar("TaskT")
EventT = TypeVar("EventT")


class Work(Protocol[Task_contra, Event_co]):
    """What a worker does: set up once for `device`, then take tasks from the iterator and tell what happens.

    It must be picklable, and so must its events. Asking the iterator for a task is taking it: a worker may read ahead.
    A task's result goes to disk under its final name when it is whole, so that nothing is lost with a worker.
    """

    def __call__(self, device: str, tasks: Iterator[Task_contra]) -> Iterator[Event_co]: ...


class Executor(Protocol):
    """Runs `work` over `tasks` on all workers it has; each task is taken by one of them."""

    def run(self, work: Work[TaskT, EventT], tasks: Sequence[TaskT]) -> Iterator[EventT]:
        """The workers' events as they come, in the order of each worker. Raises what a worker raised.

        Raises MachineError when a worker died. However it ends, no worker is left running.
        """
        ...
