"""A real Ray cluster of which something is killed while brics works: the output has the bytes of one machine's.

The head is on this machine; each of its nodes has network, process, mount and host name space of its own, so an address
and a /tmp/ray of its own, and the process ids that the others have, too, as containers do.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import environment, start_brics
from diffusion_workspace import make_workspace, tree
from PIL import Image
from remote_servers import s3_environment, s3_server

import brics_cli
from brics_cli.codes import KeyCodeStore
from brics_cli.codes.verify import verify_store

pytestmark = pytest.mark.slow

NUM_SHARDS, PER_SHARD = 24, 60
COMMANDS = {
    "encode-dataset": ("encode-dataset", "shards", "--ae", "brics-mini", "--size", "96", "--out", "codes.h5"),
    "pack": ("pack", "shards", "--size", "256", "--shard-size", str(PER_SHARD), "--out", "packed"),
    "sample": ("sample", "--n", "400", "--shard-size", "20", "--batch-size", "10", "--steps", "50", "--out", "samples"),
    "eval": (
        *("eval", "--metric", "fd-random", "--real", "shards", "--fake", "shards/{00012..00023}.tar"),
        *("--no-cache", "--out", "fd.json"),
    ),
}
"""As they are given in the workspace; what they write is named last."""
EXIT = {"encode-dataset": 5, "pack": 5, "sample": 0, "eval": 5}
"""An image of `shards` is none."""


def sh(command: str, **settings: Any) -> None:
    subprocess.run(command, shell=True, check=True, **settings)


def below(pid: int) -> list[int]:
    """The processes that `pid` has started, and those that they have."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
    return [each for child in children for each in (child, *below(child))]


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Node:
    """A machine of one core that has joined the cluster at `address`, with `mounts` and an environment of its `own`."""

    num = 0

    def __init__(self, bridge: str, address: str, *mounts: str, **own: str) -> None:
        Node.num += 1
        self.name, link = f"node{Node.num}", f"{bridge}-{Node.num}"
        host, _, _ = address.partition(":")
        self.space, place = f"{bridge}-{self.name}", f"{host.rpartition('.')[0]}.{Node.num}"
        sh(
            f"ip netns add {self.space} && ip link add {link} type veth peer name eth0 netns {self.space} && "
            f"ip link set {link} master {bridge} up && ip -n {self.space} addr add {place}/24 dev eth0 && "
            f"ip -n {self.space} link set eth0 up && ip -n {self.space} link set lo up"
        )
        from ray._common.utils import get_default_ray_temp_dir

        ray = Path(sys.executable).with_name("ray")
        mounted = " && ".join(f"mount {each}" for each in (f"-t tmpfs none {get_default_ray_temp_dir()}", *mounts))
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", self.space, "unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child",
             "--mount-proc", "sh", "-c", f"hostname {self.name} && {mounted} && "
             f"exec {ray} start --address={address} --node-ip-address={place} --num-cpus=1 "
             "--object-store-memory=100000000 --block"],
            env=environment(**own), cwd="/", stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def processes(self, name: str) -> list[int]:
        return [pid for pid in below(self.process.pid) if name in name_of(pid)]

    @property
    def is_whole(self) -> bool:
        return self.process.poll() is None and bool(self.processes("raylet/raylet"))

    def end(self) -> None:
        """All of its processes at once, as when the power goes."""
        self.process.kill()
        self.process.wait()
        sh(f"ip netns del {self.space}")


class Nodes:
    """The cluster; `restore` brings it back to two nodes."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        number = os.getpid() % 250
        self.bridge, place = f"brics{number}", f"10.203.{number}.254"
        sh(f"ip link add {self.bridge} type bridge && ip addr add {place}/24 dev {self.bridge} && "
           f"ip link set {self.bridge} up")  # fmt: skip
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 10**8, "node_ip_address": place}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes: list[Node] = []

    def add(self, *mounts: str, **own: str) -> Node:
        num = self.num_alive()
        self.nodes.append(Node(self.bridge, self.cluster.address, *mounts, **own))
        until(lambda: self.num_alive() > num)
        return self.nodes[-1]

    def remove(self, node: Node) -> None:
        node.end()
        self.nodes.remove(node)
        until(lambda: self.num_alive() == len(self.nodes))

    def restore(self, num: int = 2) -> None:
        for node in [node for node in self.nodes if not node.is_whole] + self.nodes[num:]:
            if node in self.nodes:
                self.remove(node)
        while len(self.nodes) < num:
            self.add()

    def num_alive(self) -> int:
        """Nodes that the cluster knows of, beside its head."""
        return sum(node["Alive"] for node in self.cluster.global_state.node_table()) - 1

    def workers(self, *, busy: bool = False) -> list[int]:
        """Those that have begun, or that have been set up: Ray names them by class and method."""
        name = "ray::Worker.listen" if busy else "ray::Worker"
        return [pid for node in self.nodes for pid in node.processes(name)]

    def shutdown(self) -> None:
        for node in list(self.nodes):
            node.end()
        self.cluster.shutdown()
        sh(f"ip link del {self.bridge}")


def until(holds: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    """Wait for what must come to hold; None when `process` has ended before."""
    end = time.monotonic() + 240
    while not (found := holds()):
        assert time.monotonic() < end
        if process is not None and process.poll() is not None:
            return None
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    pytest.importorskip("ray", reason="needs Ray: pip install 'brics-cli[ray]'")
    try:
        sh(f"ip netns add brics-{os.getpid()} && ip netns del brics-{os.getpid()}", stderr=subprocess.DEVNULL)
    except subprocess.CalledProcessError:
        pytest.skip("needs iproute2 and the right to make network namespaces")
    nodes = Nodes()
    yield nodes
    nodes.shutdown()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """Models, and `shards` with an image that is none."""
    root = make_workspace(tmp_path_factory.mktemp("faults"))
    (root / "shards").mkdir()
    files = cycle(sorted(photographs.iterdir()))
    for shard in range(NUM_SHARDS):
        with tarfile.open(root / "shards" / f"{shard:05d}.tar", "w") as tar:
            for index, file in enumerate(islice(files, PER_SHARD)):
                pixels = np.asarray(Image.open(file)) ^ np.uint8(shard)
                data = io.BytesIO()
                Image.fromarray(pixels).save(data, format="PNG")
                content = b"no image" if (shard, index) == (7, 3) else data.getvalue()
                member = tarfile.TarInfo(f"{index:04d}.png")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return root


def command(name: str, out: Path) -> tuple[Any, ...]:
    return (*COMMANDS[name][:-1], out / COMMANDS[name][-1])


@pytest.fixture(scope="module")
def alone(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What this machine makes of a command."""
    out, made_here = tmp_path_factory.mktemp("alone"), dict[str, Any]()

    def of(name: str) -> Any:
        if name not in made_here:
            process = start_brics(*command(name, out), cwd=workspace, CUDA_VISIBLE_DEVICES="")
            said = process.communicate()[1]
            assert process.returncode == EXIT[name], said
            made_here[name] = made(out / COMMANDS[name][-1])
        return made_here[name]

    return of


def made(path: Path) -> Any:
    """What is to be the same."""
    if path.suffix == ".json":
        report = json.loads(path.read_text())
        return [report[name] for name in ("results", "sources", "failures")]
    if path.suffix != ".h5":
        return tree(path)
    with h5py.File(path) as file:
        return {name: np.asarray(file[name]).tobytes() for name in ("codes", "keys", "labels", "shards", "failures")}


def start(name: str, workspace: Path, out: Path, nodes: Nodes, *more: str) -> subprocess.Popen[str]:
    flags = ("--executor", "ray", "--cpus-per-worker", "1", "--ray-address", nodes.cluster.address)
    out.mkdir(exist_ok=True)
    return start_brics(*command(name, out), *flags, *more, cwd=workspace, RAY_ADDRESS="")


def strike(what: str, driver: subprocess.Popen[str], nodes: Nodes, chance: random.Random, *, busy: bool) -> bool:
    """Kill one `what` at a moment by chance after a worker has begun, or is `busy`; False when the command has ended
    before."""
    if not until(lambda: nodes.workers(busy=busy), driver):
        return False
    time.sleep(chance.uniform(0, 3))
    victims = {
        "worker": nodes.workers(busy=busy),
        "raylet": [pid for node in nodes.nodes for pid in node.processes("raylet/raylet")],
        "node": [node.process.pid for node in nodes.nodes],
        "driver": [driver.pid],
    }[what]
    if driver.poll() is not None or not victims:
        return False
    os.kill(chance.choice(victims), signal.SIGKILL)
    return what != "driver" or driver.wait() == -signal.SIGKILL


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("what", ["worker", "raylet", "node", "driver"])
def test_the_output_is_whole_whatever_is_killed_three_times(workspace, nodes, tmp_path, alone, what, name):
    expected, num_strikes, num_runs = alone(name), 0, 0
    chance = random.Random(f"{what} {name}")
    while num_strikes < 3:
        nodes.restore()
        out, num_runs = tmp_path / str(num_runs), num_runs + 1
        driver = start(name, workspace, out, nodes)
        while num_strikes < 3 and strike(what, driver, nodes, chance, busy=num_strikes > 0):
            num_strikes += 1
            if what == "driver":
                until(lambda: not nodes.workers())  # they end with it
                driver = start(name, workspace, out, nodes)
            elif what != "worker":
                nodes.restore()
        said = driver.communicate(timeout=240)[1]
        print("\n".join(line for line in said.splitlines() if "died" in line or "going on" in line or " in " in line))
        assert driver.returncode == EXIT[name], said
        assert made(out / COMMANDS[name][-1]) == expected


def test_images_of_shards_that_are_given_up_are_counted(workspace, nodes, tmp_path):
    nodes.restore()
    driver = start("encode-dataset", workspace, tmp_path, nodes, "--max-retries", "0")
    until(lambda: [*(tmp_path / "codes.h5.parts").glob("*.h5")])
    os.kill(nodes.workers(busy=True)[0], signal.SIGKILL)
    said = driver.communicate(timeout=240)[1]
    store = KeyCodeStore(tmp_path / "codes.h5")
    given_up = [failure for failure in store.failures if failure["reason"].startswith("1 worker died over it")]
    assert driver.returncode == 5 and f"{len(store.failures)} of 1,440 images failed" in said, said
    assert len(store) + len(store.failures) == 1440 and given_up and len(given_up) % PER_SHARD == 0
    assert verify_store(store.path) == []


def test_a_node_that_joins_gets_work(workspace, nodes, tmp_path, alone):
    expected = alone("encode-dataset")
    nodes.restore(1)
    out = tmp_path / "out"
    driver = start("encode-dataset", workspace, out, nodes)
    parts = out / "codes.h5.parts"
    until(lambda: [*parts.glob("*.h5")])
    held = nodes.workers()[0]
    os.kill(held, signal.SIGSTOP)
    num = len([*parts.glob("*.h5")])
    nodes.add()
    until(lambda: len([*parts.glob("*.h5")]) > num + 1)  # one may have been on its way when it was held
    os.kill(held, signal.SIGCONT)
    said = driver.communicate(timeout=240)[1]
    assert driver.returncode == 5 and "2 workers" in said and "died" not in said, said
    assert made(out / "codes.h5") == expected


def test_workers_end_on_ctrl_c(workspace, nodes, tmp_path, alone):
    expected = alone("encode-dataset")
    nodes.restore()
    driver = start("encode-dataset", workspace, tmp_path, nodes)
    until(lambda: [*(tmp_path / "codes.h5.parts").glob("*.h5")])
    driver.send_signal(signal.SIGINT)
    said = driver.communicate(timeout=60)[1]
    assert driver.returncode == 130 and "Go on with: brics encode-dataset" in said, said
    until(lambda: not nodes.workers())
    again = start("encode-dataset", workspace, tmp_path, nodes)
    said = again.communicate(timeout=240)[1]
    assert again.returncode == 5 and "going on: " in said, said
    assert made(tmp_path / "codes.h5") == expected


def test_other_code_on_a_node_is_one_line(workspace, nodes, tmp_path):
    nodes.restore(0)
    own, other = Path(brics_cli.__file__).parent, tmp_path / "brics_cli"
    shutil.copytree(own, other)
    with (other / "errors.py").open("a") as file:
        file.write("\n# another version\n")
    node = nodes.add(f"--bind {other} {own}")
    driver = start("encode-dataset", workspace, tmp_path, nodes)
    said = driver.communicate(timeout=240)[1]
    nodes.remove(node)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert driver.returncode == 6 and len(errors) == 1, said
    assert f"the Ray worker on {node.name} has brics " in errors[0] and "Install on every node" in errors[0]


def test_an_output_that_is_not_shared_is_one_line(workspace, nodes, tmp_path):
    nodes.restore(0)
    out = tmp_path / "codes.h5.parts"
    out.mkdir()
    for folder, what in [(out, f"writes to {out} is not to be seen there"), (tmp_path, f"cannot use {out}")]:
        node = nodes.add(f"-t tmpfs none {folder}")
        driver = start("encode-dataset", workspace, tmp_path, nodes)
        said = driver.communicate(timeout=240)[1]
        nodes.remove(node)
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert driver.returncode == 6 and len(errors) == 1 and f"the Ray worker on {node.name} {what}" in errors[0], (
            said
        )


def test_each_node_fetches_what_it_encodes(workspace, nodes, tmp_path, alone, monkeypatch):
    """DATA and --out are in object storage: what is fetched is the node's own, where it is built is shared."""
    expected, here = alone("encode-dataset"), tmp_path / "here"
    (here / "remote").mkdir(parents=True)
    shutil.copytree(workspace / "shards", tmp_path / "served" / "bucket" / "shards")
    nodes.restore(0)
    with s3_server(tmp_path / "served", host=nodes.cluster.address.partition(":")[0]) as s3:
        own = [nodes.add(f"-t tmpfs none {here / 'remote'}", **s3_environment(s3.url)) for _ in range(2)]
        for name, value in {**s3_environment(s3.url), "BRICS_CACHE": str(here)}.items():
            monkeypatch.setenv(name, value)
        words = ["s3://bucket/shards" if word == "shards" else word for word in COMMANDS["encode-dataset"][:-1]]
        flags = ("--executor", "ray", "--cpus-per-worker", "1", "--ray-address", nodes.cluster.address)
        driver = start_brics(*words, "s3://bucket/codes.h5", *flags, cwd=workspace, BRICS_CACHE=str(here))
        said = driver.communicate(timeout=240)[1]
        assert driver.returncode == 5, said
        num_fetched = s3.num_gets(".tar")
        for node in own:
            nodes.remove(node)
    assert made(tmp_path / "served" / "bucket" / "codes.h5") == expected
    assert num_fetched > NUM_SHARDS
