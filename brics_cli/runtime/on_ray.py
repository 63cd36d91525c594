"""`RayExecutor`: a batch job's tasks on a Ray cluster, where nodes come and go (https://docs.ray.io).

A worker is an actor: one per GPU, or per so many cores where no node has a GPU. It sets the work up once and asks for
task after task, as a process of `LocalExecutor` does. Its events come home when their task is whole: once for every
task, whatever died on the way. What is waited for is one call per worker, so that the driver's load is that of tasks.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

import brics_cli
from brics_cli.errors import BricsError, MachineError, UsageError, first_line
from brics_cli.runtime.executors import EventT, TaskFailed, TaskT, Work
from brics_cli.runtime.ray_worker import Worker, installed
from brics_cli.runtime.reporting import Reporter, SilentReporter
from brics_cli.runtime.threads import free_cores
from brics_cli.wording import count

if TYPE_CHECKING:
    import ray
    import torch

CPUS_PER_WORKER = 4
"""Where --cpus-per-worker is not given; fewer where no node has so many."""
MAX_RETRIES = 3
"""How often a task is given to another worker after the one that had it died."""
OBJECT_STORE_BYTES = 100 * 2**20
"""Of a local cluster: only the description of the work goes through it."""
SHARED_S = 10.0
"""What a worker has written is seen by then on a file system that is shared."""
PATIENCE_S = 30.0
"""After so long without any worker it is said that one is waited for."""
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class RayExecutor:
    """Workers on the Ray cluster at `address`; None: `$RAY_ADDRESS`, else a cluster of this machine alone.

    `cpus_per_worker`: cores of a worker where no node has a GPU, and what it decodes with everywhere. A task whose
    worker died is given to another, `max_retries` times; then it has failed. Paths that the work names must be on file
    systems that all nodes share: of the working directory and of the `folder` of `run` it is looked after before
    anything is done. Workers take over the environment's `BRICS_` variables. `connect` comes before `run`.
    """

    def __init__(
        self, address: str | None = None, *, cpus_per_worker: int | None = None, max_retries: int | None = None
    ) -> None:
        asked = address or os.environ.get("RAY_ADDRESS") or "local"
        self.address = None if asked == "local" else asked
        self.asked_cpus, self.max_retries = cpus_per_worker, MAX_RETRIES if max_retries is None else max_retries
        if self.address is not None and self.address.startswith("ray://"):
            raise UsageError(
                f"--ray-address {self.address}: Ray Client is not supported",
                next="Run brics on a node of the cluster, with --ray-address auto or HOST:6379.",
            )
        self.local_cores: int | None = None
        """Of a cluster of this machine alone; None: all that are free."""
        self.reporter: Reporter = SilentReporter()
        self.device, self.cpus_per_worker = "cpu", 0
        self.num_workers = self.num_retries = 0

    def connect(self, device: str = "auto", *, reporter: Reporter) -> list[torch.device]:
        """Join the cluster, or start one, and settle what a worker is: `device` (cuda or cpu) and `cpus_per_worker`.

        Returns the one device of this process, which plans on it: of the workers' kind where it has one.

        Raises UsageError where Ray is not installed, for a `device` that is not a kind, and for workers that this
        machine has not the cores for; MachineError when there is no such cluster, or it runs other versions.
        """
        if device not in ("auto", "cuda", "cpu"):
            raise UsageError(
                f"--device {device} is of this machine, and Ray gives each worker its own",
                next="Use cuda, cpu or auto.",
            )
        self.reporter = reporter
        nodes = self._join()
        has_gpus = any(node.get("GPU", 0) >= 1 for node in nodes)
        self.device = "cuda" if device == "cuda" or (device == "auto" and has_gpus) else "cpu"
        cpus = [int(node.get("CPU", 0)) // (int(node.get("GPU", 0)) if self.device == "cuda" else 1) for node in nodes
                if self.device == "cpu" or node.get("GPU", 0) >= 1]  # fmt: skip
        most = max(cpus, default=0)
        self.cpus_per_worker = self.asked_cpus or max(1, min(CPUS_PER_WORKER, most) if self.device == "cpu" else most)
        if self.address is None and not self.num_places():
            what = "no GPU" if self.device == "cuda" else count(most, "core")
            raise UsageError(
                f"no worker can start: the cluster is this machine alone, which has {what}",
                next="Use fewer --cpus-per-worker or --device cpu, or name a cluster: --ray-address HOST:6379",
            )
        where = self.address or "this machine"
        self.reporter.message(
            f"Ray cluster {where}: {count(len(nodes), 'node')}, room for {count(self.num_places(), 'worker')} of "
            + ("a GPU each" if self.device == "cuda" else count(self.cpus_per_worker, "core"))
        )
        import torch

        return [torch.device("cuda" if self.device == "cuda" and torch.cuda.is_available() else "cpu")]

    def run(
        self, work: Work[TaskT, EventT], tasks: Sequence[TaskT], *, folder: Path | None = None
    ) -> Generator[EventT | TaskFailed[TaskT], None, None]:
        """See `executors.Executor.run`. Raises MachineError when worker after worker dies before it has taken a task,
        and when versions differ between machines or they do not share a file system."""
        run = _Run(self, work, tasks, folder)
        try:
            yield from run.events()
        finally:
            run.end()

    @property
    def status(self) -> str:
        """How many workers there are, and how often a task was given to another one."""
        retries = f", {count(self.num_retries, 'retry', 'retries')}" if self.num_retries else ""
        return count(self.num_workers, "worker") + retries

    def _join(self) -> list[dict[str, float]]:
        """The resources of each node of the cluster that `ray` is connected to from now on."""
        os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
        try:
            import ray
        except ImportError as error:
            raise UsageError(
                f"--executor ray needs Ray ({first_line(error)})", next="Install it: pip install 'brics-cli[ray]'"
            ) from None
        self.ray = ray
        if not ray.is_initialized():
            how: dict[str, Any] = {"address": self.address or "local"}
            if self.address is None:
                how |= {
                    "num_cpus": self.local_cores or free_cores(),
                    "object_store_memory": OBJECT_STORE_BYTES,
                    "include_dashboard": False,
                }
            try:
                # Ray lets workers import from where it is started: from brics' own folder, not from among images.
                with chdir(Path(brics_cli.__file__).parents[1]), _signals_kept():
                    ray.init(**how, log_to_driver=False, logging_level=logging.ERROR, namespace="brics")
            except (OSError, RuntimeError, ValueError) as error:
                raise MachineError(
                    f"no Ray cluster at {self.address or 'this machine'}: {first_line(error)}",
                    next="Start one with `ray start --head`, or leave --ray-address and RAY_ADDRESS out. "
                    "Where clusters ask for a token, set RAY_AUTH_MODE=token.",
                ) from None
        return self._nodes()

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def num_places(self) -> int:
        """Workers that the nodes have room for, if nobody else is there."""
        kind, each = ("GPU", 1) if self.device == "cuda" else ("CPU", self.cpus_per_worker)
        return sum(int(node.get(kind, 0)) // each for node in self._nodes())


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray handles SIGTERM in its own way from `init` on: undo that."""
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, handler)


@dataclass(eq=False)
class _Hired:
    """A worker as the driver knows it: `holding` are the tasks it has taken that are not whole, the oldest first."""

    actor: Any
    node: str = ""
    is_set_up: bool = False
    asks: bool = False
    holding: deque[int] = field(default_factory=deque)


class _Run(Generic[TaskT, EventT]):
    """One `RayExecutor.run`."""

    def __init__(
        self, executor: RayExecutor, work: Work[TaskT, EventT], tasks: Sequence[TaskT], folder: Path | None
    ) -> None:
        self.executor, self.ray, self.tasks = executor, executor.ray, tasks
        self.work = self.ray.put(work)
        self.fresh = deque(range(len(tasks)))
        self.suspects: deque[int] = deque()
        """Tasks that a worker died over. They come last, and each alone, so that it is known which one it was."""
        self.deaths: Counter[int] = Counter()
        self.num_left = len(tasks)
        self.hired: set[_Hired] = set()
        self.calls: dict[ray.ObjectRef[Any], _Hired] = {}
        """What is waited for: a call of each worker."""
        self.num_false_starts = 0
        self.has_waited = False
        self.environment = {name: value for name, value in os.environ.items() if name.startswith("BRICS_")}
        self.probed = None if folder is None else str(folder)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        resources = {"num_gpus": 1} if executor.device == "cuda" else {"num_cpus": executor.cpus_per_worker}
        self.hire_actor = self.ray.remote(Worker).options(max_concurrency=2, **resources).remote

    def events(self) -> Iterator[EventT | TaskFailed[TaskT]]:
        self._hire()
        while self.num_left:
            timeout = None if self.has_waited or self._workers() else PATIENCE_S
            ready, _ = self.ray.wait(list(self.calls), timeout=timeout)
            if not ready:
                self._say_waiting()
            elif len(self.calls) > 1:  # and all others that are
                ready, _ = self.ray.wait(list(self.calls), num_returns=len(self.calls), timeout=0)
            for call in ready:
                worker = self.calls.pop(call)
                try:
                    answer = self.ray.get(call)
                except self.ray.exceptions.RayTaskError as error:
                    raise _raised(error) from None
                except self.ray.exceptions.RayError as error:
                    yield from self._died(worker, error)
                else:
                    yield from self._answered(worker, answer)
            self._hand_out()

    def end(self) -> None:
        """End all workers; they end, too, when this process does."""
        for worker in self.hired:
            self.ray.kill(worker.actor)
        self.executor.num_workers = 0

    def _hire(self) -> None:
        """Have a worker for each place there is, and one more, which a node that joins can start."""
        wanted = min(self.num_left, self.executor.num_places() + 1)
        for _ in range(wanted - len(self.hired)):
            worker = _Hired(self.hire_actor())
            self.hired.add(worker)
            self.calls[worker.actor.begin.remote(str(Path.cwd()), installed(), self.environment, self.probed)] = worker

    def _answered(self, worker: _Hired, answer: Any) -> Iterator[EventT]:
        """Hear what a call of `worker` gave, and make the next one."""
        if not worker.node:
            worker.node, probe = answer
            if probe is not None:
                self._check_shared(worker, Path(probe))
            call = worker.actor.set_up.remote(self.work, self.executor.device)
        else:
            if not worker.is_set_up:
                worker.is_set_up, self.num_false_starts = True, 0
                self._hire()
            for kind, value in answer:
                if kind == "error":
                    raise value
                worker.asks |= kind == "asks"
                if kind == "events":
                    for event in value:
                        for _ in range(event.num_tasks):
                            worker.holding.popleft()
                            self.num_left -= 1
                        yield event
            call = worker.actor.listen.remote()
        self.calls[call] = worker
        self.executor.num_workers = self._workers()

    def _hand_out(self) -> None:
        """Answer those that ask: with a task; with None, which is to finish what they have; or not yet."""
        for worker in self.hired:
            if not worker.asks:
                continue
            is_alone = any(self.deaths[task] for task in worker.holding)
            if self.fresh and not is_alone:
                task = self.fresh.popleft()
            elif worker.holding:
                worker.actor.give.remote(None)
                worker.asks = False
                continue
            elif self.suspects:
                task = self.suspects.popleft()
            else:
                continue  # what others hold may come back
            worker.holding.append(task)
            worker.asks = False
            worker.actor.give.remote((self.tasks[task],))

    def _died(self, worker: _Hired, error: Exception) -> Iterator[TaskFailed[TaskT]]:
        """Give the tasks of a worker to others, or up."""
        self.hired.remove(worker)
        self.executor.num_workers = self._workers()
        self.ray.kill(worker.actor)  # should it only be out of reach
        reason = _reason(error)
        if not worker.is_set_up:
            self.num_false_starts += 1
            if self.num_false_starts > self.executor.max_retries + self.executor.num_places():
                raise MachineError(
                    f"{self.num_false_starts} workers in a row could not start: {reason}", next=_next(reason)
                )
        where = f"a worker on {worker.node}" if worker.node else "a worker that was starting"
        self.executor.reporter.warning(f"{where} died ({reason}), and had {count(len(worker.holding), 'task')}")
        for task in worker.holding:
            self.deaths[task] += 1
            if self.deaths[task] > self.executor.max_retries:
                self.num_left -= 1
                times = count(self.deaths[task], "worker")
                yield TaskFailed(self.tasks[task], f"{times} died over it, the last one: {reason}")
            else:
                self.executor.num_retries += 1
                self.suspects.append(task)
        self._hire()

    def _check_shared(self, worker: _Hired, probe: Path) -> None:
        """Raise MachineError where what `worker` has put into the folder of the output is not to be seen here."""
        end = time.monotonic() + SHARED_S
        while not probe.exists():
            if time.monotonic() > end:
                raise MachineError(
                    f"what the Ray worker on {worker.node} writes to {probe.parent} is not to be seen there from here",
                    next="Write to a file system that all nodes share; for an output at a URL set BRICS_CACHE to one.",
                )
            time.sleep(0.1)

    def _workers(self) -> int:
        return sum(worker.is_set_up for worker in self.hired)

    def _say_waiting(self) -> None:
        self.has_waited = True
        each = "a GPU" if self.executor.device == "cuda" else count(self.executor.cpus_per_worker, "core")
        self.executor.reporter.warning(
            f"no worker after {PATIENCE_S:.0f} s: each needs {each}, the cluster has room for "
            f"{self.executor.num_places()} and others may be using it; waiting"
        )


def _raised(error: Any) -> Exception:
    """What a worker raised."""
    cause = error.cause
    if isinstance(cause, BricsError):
        return cause
    if isinstance(cause, Exception):
        with suppress(Exception):
            cause.add_note(str(error))
        return cause
    return error


def _reason(error: Exception) -> str:
    """Why a worker is no more, in a line."""
    lines = [line.partition(" Some common causes")[0].strip() for line in str(error).splitlines() if line.strip()]
    for mark in ("ModuleNotFoundError", "OutOfMemory", "The actor is dead because", "The actor died because"):
        if found := [line for line in lines if mark in line]:
            return found[0]
    return lines[0] if lines else type(error).__name__


def _next(reason: str) -> str:
    if "brics_cli" in reason:
        return f"Install brics-cli {brics_cli.__version__} in the Python that Ray was started with on every node."
    return "Look into Ray's logs (/tmp/ray/session_latest/logs) on that node."
