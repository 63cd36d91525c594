"""The Ray executor on a cluster of this machine: every task's events once, whatever dies; versions; nobody left."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from scale_works import DiesOnce, Fails, ReadsAhead, Setting, Squares

from brics_cli.errors import ArtefactError, MachineError, UsageError
from brics_cli.runtime import on_ray
from brics_cli.runtime.executors import TaskFailed
from brics_cli.runtime.on_ray import RayExecutor
from brics_cli.runtime.reporting import SilentReporter


class Lines(SilentReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)

    warning = message


def connected(*, max_retries: int = 1, reporter: SilentReporter | None = None) -> RayExecutor:
    executor = RayExecutor(cpus_per_worker=1, max_retries=max_retries)
    executor.connect("cpu", reporter=reporter or SilentReporter())
    return executor


def test_every_task_is_taken_once_and_workers_end(ray_cluster):
    executor = connected()
    events = list(executor.run(Squares(), list(range(20))))
    assert sorted((told.task, told.value) for told in events) == [(task, task**2) for task in range(20)]
    assert executor.status == "0 workers"


def test_the_task_of_a_dead_worker_is_given_to_another(ray_cluster, tmp_path):
    reporter = Lines()
    executor = connected(reporter=reporter)
    events = list(executor.run(DiesOnce(tmp_path, at=3), list(range(6))))
    assert sorted(told.value for told in events) == [task**2 for task in range(6)]
    assert executor.num_retries >= 1 and "retr" in executor.status
    assert any("died" in line and "\n" not in line for line in reporter.lines), reporter.lines


def test_a_task_that_kills_its_workers_is_given_up_and_the_others_are_done_once(ray_cluster):
    events = list(connected().run(ReadsAhead(), list(range(9))))
    failed = [event for event in events if isinstance(event, TaskFailed)]
    assert [event.task for event in failed] == [5] and "2 workers died over it" in failed[0].reason
    told = Counter((event.task, event.value) for event in events if not isinstance(event, TaskFailed))
    assert told == {(task, value): 1 for task in range(9) if task != 5 for value in (0, 1)}


def test_an_error_of_a_worker_is_raised_with_its_advice(ray_cluster):
    with pytest.raises(ArtefactError, match=r"shard 2 is damaged\. Pack it again\.") as caught:
        list(connected().run(Fails(), [0, 1, 2, 3]))
    assert caught.value.next == "Pack it again."


def test_a_worker_with_other_code_is_one_line(ray_cluster, monkeypatch):
    other = {**on_ray.installed(), "brics": "0.0.1 (0123456789ab)"}
    monkeypatch.setattr(on_ray, "installed", lambda: other)
    with pytest.raises(MachineError, match=r"the Ray worker on \S+ has brics .*, not 0\.0\.1 \(0123456789ab\)\."):
        list(connected().run(Squares(), [1]))


def test_a_folder_that_is_not_shared_is_one_line(ray_cluster, tmp_path, monkeypatch):
    executor, folder = connected(), tmp_path / "out"
    assert len(list(executor.run(Squares(), [1, 2], folder=folder))) == 2 and not [*folder.iterdir()]
    monkeypatch.setattr(on_ray, "SHARED_S", 0)
    monkeypatch.setattr(on_ray.Path, "exists", lambda path: False)  # as it is on another disk
    with pytest.raises(MachineError, match=r"what the Ray worker on \S+ writes to \S+/out is not to be seen there"):
        list(executor.run(Squares(), [1], folder=folder))


def test_workers_have_the_settings_of_the_command(ray_cluster, monkeypatch):
    monkeypatch.setenv("BRICS_CACHE_GIB", "7")
    assert [event.value for event in connected().run(Setting("BRICS_CACHE_GIB"), [1])] == [7]


def test_what_no_worker_can_be_is_said(ray_cluster):
    with pytest.raises(UsageError, match="no worker can start: the cluster is this machine alone, which has 2 cores"):
        RayExecutor(cpus_per_worker=3).connect(reporter=SilentReporter())
    with pytest.raises(UsageError, match="--device cuda:1 is of this machine"):
        RayExecutor().connect("cuda:1", reporter=SilentReporter())
    with pytest.raises(UsageError, match="Ray Client is not supported"):
        RayExecutor("ray://head:10001")


def test_ray_is_loaded_by_whoever_asks_for_it(monkeypatch):
    code = "import sys, brics_cli.cli.app, brics_cli.jobs.pack; assert not {'ray', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"--executor ray needs Ray .* Install it: pip install 'brics-cli\[ray\]'"):
        RayExecutor().connect(reporter=SilentReporter())
