"""`brics info` on the command line, and the help of the batch commands without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from PIL import Image

from brics_cli.cli.app import run
from brics_cli.config import list_recipes


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("pack", ["--out", "--size", "--transform", "--shard-size", "--codec", "--workers", "--max-failures"]),
        ("encode-dataset", ["--out", "--ae", "--quantisation", "--dtype", "--flips", "--limit", "--batch-size"]),
        ("decode", ["--out", "--ae", "--batch-size", "--overwrite", "--format", "--workspace"]),
        ("info", ["--verify", "--flops", "--code-shape", "--json"]),
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


def test_flops_of_a_denoiser_are_counted_on_codes_that_are_said(capfd):
    assert run(["info", "--flops", "brics-dit-s", "--json"]) == 0
    output = capfd.readouterr()
    (row,) = json.loads(output.out)
    assert row["recipe"] == "brics-dit-s" and row["gflop"] == pytest.approx(12.1, rel=0.01)
    assert "--code-shape not given: counting on codes of 16,16,16" in output.err
    assert run(["info", "--flops", "brics-dit-s", "--code-shape", "16,32,16", "--json"]) == 0
    output = capfd.readouterr()
    (longer,) = json.loads(output.out)
    assert longer["part"] == "denoiser, codes 16 x 32 x 16" and longer["gflop"] > 2 * row["gflop"]
    assert longer["params_m"] == row["params_m"] and "--code-shape" not in output.err


def test_flops_of_all_recipes_of_a_kind(capfd):
    assert run(["info", "--flops", "diffusion", "--code-shape", "4,8,8"]) == 0
    lines = capfd.readouterr().out.splitlines()
    for name in list_recipes("diffusion"):
        assert sum(f"{name}: denoiser, codes 4 x 8 x 8" in line for line in lines) == 1


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
        (["--flops", "diffusio"], 2, "no recipe 'diffusio'"),
        (["--flops", "brics-dit-s", "--code-shape", "16,16"], 2, "'16,16' is not C,h,w"),
        (["--flops", "brics-dit-s", "--code-shape", "16,0,16"], 2, "'16,0,16' is not C,h,w"),
        (["--flops", "brics-dit-s", "--code-shape", "16,-1,16"], 2, "'16,-1,16' is not C,h,w"),
        (["--flops", "brics-dit-s", "--code-shape", "16,99999,16"], 2, "three whole numbers from 1 to 4,096"),
        (["--flops", "brics-256", "--code-shape", "16,16,16"], 2, "brics-256 is of kind autoencoder"),
        (["x.h5", "--code-shape", "16,16,16"], 2, "--code-shape goes with --flops"),
    ],
)
def test_bad_arguments(arguments, code, said, capfd):
    assert run(["info", *arguments]) == code
    assert said in capfd.readouterr().err.strip().splitlines()[-1]
