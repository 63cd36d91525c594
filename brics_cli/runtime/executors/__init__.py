"""Executors: where a batch job's tasks run, one shard each. `local` now: one process per device of this machine."""

from brics_cli.runtime.executors.executor import Executor, Work
from brics_cli.runtime.executors.local import LocalExecutor

__all__ = ["Executor", "LocalExecutor", "Work"]
