"""`brics info` on the command line, and the help of the batch commands without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from PIL import Image

from brics_cli.cli.app import run


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("pack", ["--out", "--size", "--transform", "--shard-size", "--format", "--workers", "--max-failures"]),
        ("encode-dataset", ["--out", "--ae", "--quantisation", "--dtype", "--flips", "--limit", "--batch-size"]),
        ("decode", ["--out", "--ae", "--batch-size", "--overwrite", "--format", "--workspace"]),
        ("info", ["--verify", "--flops", "--json"]),
    ],
)  # fmt: skip
def test_help_names_every_flag_and_needs_no_torch(command, flags):
    code = (
        f"import sys\nfrom brics_cli.cli.app import run\nstatus = run([{command!r}, '--help'])\n"
        "assert 'torch' not in sys.modules\nsys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    assert [flag for flag in flags if flag not in done.stdout] == []


def test_a_collection(tmp_path, capfd):
    for number in range(3):
        Image.new("RGB", (10, 8 + number)).save(tmp_path / f"{number}.png")
    assert run(["info", str(tmp_path), "--json"]) == 0
    described = json.loads(capfd.readouterr().out)
    assert described["what"] == "collection"
    assert (described["facts"]["images"], described["facts"]["median_side"]) == (3, 9)
    assert run(["info", str(tmp_path)]) == 0
    assert "images" in capfd.readouterr().out


def test_a_subset(tmp_path, capfd):
    for name in ("train/0.png", "val/0.png", "val/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert run(["info", str(tmp_path), "--subset", "val", "--json"]) == 0
    described = json.loads(capfd.readouterr().out)
    assert described["facts"]["images"] == 2 and described["path"] == str(tmp_path / "val")


def test_flops_of_a_recipe(capfd):
    assert run(["info", "--flops", "tiny", "--json"]) == 0
    rows = {row["part"]: row for row in json.loads(capfd.readouterr().out)}
    parts = sum(rows[part]["gflop"] for part in ("retrieval", "feature MLP", "decoder"))
    assert rows["codes to pixels"]["gflop"] == pytest.approx(parts) and parts > 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "either a PATH or --flops"),
        (["x.h5", "--flops", "tiny"], 2, "either a PATH or --flops"),
        (["nowhere"], 2, "no such file or folder"),
        (["nowhere.h5"], 3, "is missing"),
        (["nowhere.h5", "--verify"], 3, "is missing"),
        (["nowhere", "--verify"], 2, "--verify checks key-code stores"),
        (["nowhere", "--verify", "--subset", "train"], 2, "--verify checks key-code stores"),
        (["nowhere.h5", "--subset", "train"], 2, "no such file or folder"),
        (["--flops", "tiny", "--subset", "train"], 2, "--subset goes with a PATH"),
        (["--flops", "nope"], 2, "no recipe 'nope'"),
    ],
)
def test_bad_arguments(arguments, code, said, capfd):
    assert run(["info", *arguments]) == code
    assert said in capfd.readouterr().err.strip().splitlines()[-1]
