"""Files called like modules and programs, planted where commands run: none of them is ever imported or executed.

Every command that starts a process is run; each planted file would leave a mark in `marks`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from commands import environment
from diffusion_workspace import make_workspace
from PIL import Image
from store_files import write_store

MODULES = (
    *("h5py", "numpy", "torch", "PIL", "brics_cli", "yaml", "pydantic", "matplotlib", "torchvision", "scale_works"),
    *("json", "typing", "random", "struct", "pickle", "signal", "multiprocessing", "sitecustomize", "usercustomize"),
    *("importlib", "threading", "sysconfig", "pathlib", "contextlib", "selectors", "tempfile", "resource"),
)
PROGRAMS = ("git", "nvidia-smi", "gcc", "cc", "fc-list", "ldconfig", "uname", "python", "python3")
BRICS = Path(sys.executable).with_name("brics")


def plant(folder: Path) -> Path:
    """Every module and program, marking itself when it is run, and settings that run them; the folder of marks."""
    marks = folder / "marks"
    marks.mkdir()
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"open({str(marks / name)!r}, 'w').close()\nraise ImportError('PLANTED')\n")
    for name in PROGRAMS:
        (folder / name).write_text(f"#!/bin/sh\n: > {marks}/{name}\nexit 1\n")
        (folder / name).chmod(0o755)
    git = folder / ".git"
    git.mkdir()
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "config").write_text(f"[core]\n\tfsmonitor = touch {marks}/fsmonitor #\n")
    (folder / "matplotlibrc").write_text("backend: module://random\n")
    return marks


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with models, and 600 images (decoded in processes), in which all of it is planted."""
    folder = tmp_path_factory.mktemp("workspace")
    make_workspace(folder)
    (folder / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (600, 16, 16, 3), np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "images" / f"{number:04d}.png")
    plant(folder)
    return folder


SHORT = (
    "encode-dataset images --out codes.h5 --verify --workers 2 --device cpu",
    "info codes.h5 --verify",
    "pack images --out shards --size 16 --workers 2",
    "status",
)
LONG = (
    "encode-dataset images --out two.h5 --verify --device cpu,cpu",
    "encode-dataset images --out cluster.h5 --executor ray --device cpu",
    "decode codes.h5 --out decoded.zip",
    "train-ae images --recipe tiny --steps 1 --set training.batch_size=2 --out ae",
    "train-diffusion codes.h5 --recipe tiny --steps 1 --set training.batch_size=2 --out diffusion",
    "sample --n 4 --steps 2 --out samples",
    "plot ae --out curves.png",
    "eval --real images --fake decoded.zip --metric psnr",
    "doctor",
)


def run_all(folder: Path, commands: Iterable[str]) -> None:
    """Run each, with `.` on PATH too, where the console script and whatever it starts look for programs."""
    for command in commands:
        env = environment(PATH=f".:{os.environ['PATH']}:")
        done = subprocess.run([BRICS, *command.split()], cwd=folder, env=env, capture_output=True, text=True)
        assert "PLANTED" not in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert done.returncode == 0, (command, done.stderr)
        assert sorted(path.name for path in (folder / "marks").iterdir()) == [], command


def test_nothing_planted_in_the_cwd_is_run(planted):
    run_all(planted, SHORT)


@pytest.mark.slow
def test_nothing_planted_in_the_cwd_is_run_by_any_command(planted):
    run_all(planted, (*SHORT, *LONG))


def test_the_marks_are_left_where_something_is_run(tmp_path):
    """The test's own test: what `python -m` does of itself, and a program on a PATH with a dot."""
    marks = plant(tmp_path)
    subprocess.run([sys.executable, "-m", "json.tool", "x"], cwd=tmp_path, capture_output=True, check=False)
    subprocess.run("git", cwd=tmp_path, env={"PATH": "."}, check=False)
    assert {"importlib", "git"} <= {path.name for path in marks.iterdir()}


def test_processes_of_the_api_do_not_inherit_the_cwd(planted, tmp_path):
    """A script that imported all it needs, and then went where things are planted; nor is it run again itself."""
    write_store(planted / "three.h5", ["s0"])
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "from brics_cli.codes import KeyCodeStore, verify_store_in_child\n"
        "from brics_cli.runtime.executors import LocalExecutor\n"
        "from scale_works import Squares\n"
        f"os.chdir({str(planted)!r})\n"
        "sys.path[:0] = ['', '.', os.getcwd()]\n"
        "print(verify_store_in_child('three.h5'), len(KeyCodeStore('three.h5')))\n"
        "print(sorted(told.value for told in LocalExecutor(['a', 'b']).run(Squares(), [1, 2, 3])))\n"
    )
    env = environment(PYTHONPATH=str(Path(__file__).parents[1]))
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[] 3\n[1, 4, 9]\n"
    assert list((planted / "marks").iterdir()) == []


def test_the_packages_that_a_user_has_on_the_path_stay_there(tmp_path, monkeypatch):
    from brics_cli.isolation import child_environment, import_path

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), ".", "mine", *sys.path, "../" + tmp_path.name])
    found = import_path()
    assert found[0] == str(tmp_path / "mine") and not {"", ".", str(tmp_path)} & set(found)
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}.{os.pathsep}/elsewhere")
    env = child_environment(X="1")
    assert env["PYTHONPATH"].split(os.pathsep) == found and env["PYTHONSAFEPATH"] == "1" and env["X"] == "1"


def test_a_checkout_that_is_the_cwd_is_still_imported_from(monkeypatch):
    import brics_cli
    from brics_cli.isolation import import_path

    checkout = Path(brics_cli.__file__).parents[1]
    monkeypatch.chdir(checkout)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert import_path()[-1] == str(checkout)
