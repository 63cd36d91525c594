"""`brics sample` on the command line: help without torch, bad input in one line with its exit code."""

from __future__ import annotations

import subprocess
import sys

import pytest

import brics_cli
from brics_cli.cli.app import run
from brics_cli.errors import ExitCode, UsageError
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.sampling.tasks import seed_range


def test_help_names_every_flag_and_needs_no_torch():
    code = (
        "import sys\nfrom brics_cli.cli.app import run\nstatus = run(['sample', '--help'])\n"
        "assert 'torch' not in sys.modules\nsys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"COLUMNS": "200"})
    assert done.returncode == ExitCode.DONE, done.stderr
    for flag in ("--n", "--seeds", "--model", "--out", "--format", "--sampler", "--steps", "--guidance", "--class",
                 "--clip", "--ema", "--guide", "--codes", "--grid", "--interpolate",
                 "--frames", "--batch-size", "--overwrite", "--dry-run", "--json"):  # fmt: skip
        assert flag in done.stdout


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, range(64)),
        ({"num": 5}, range(5)),
        ({"num": 5, "seed": 10}, range(10, 15)),
        ({"seeds": "3-7"}, range(3, 8)),
        ({"seeds": "9"}, range(9, 10)),
        ({"seeds": "0-4", "num": 5}, range(5)),
        ({"seeds": range(3, 8)}, range(3, 8)),
    ],
)
def test_seed_range(given, wanted):
    assert seed_range(**given) == wanted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seeds": "a-b"}, "not a range"),
        ({"seeds": "5-"}, "not a range"),
        ({"seeds": "7-3"}, "empty"),
        ({"seeds": range(-1, 3)}, "not from 0 to 2"),
        ({"seeds": range(0, 9, 2)}, "step"),
        ({"num": 0}, "--n 0 is not at least 1"),
        ({"seeds": "0-9", "num": 5}, "disagree"),
        ({"seeds": "0-9", "seed": 5}, "both"),
        ({"seeds": f"0-{10**23}"}, "not from 0 to 2"),
        ({"seeds": f"0-{10**23}", "num": 5}, "disagree"),
        ({"seed": 2**128}, "not from 0 to 2"),  # a generator would take it for 0
        ({"num": 10**12}, "too many for one run"),
    ],
)
def test_seeds_that_cannot_be_meant(given, said):
    with pytest.raises(UsageError, match=said):
        seed_range(**given)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], ExitCode.ARTEFACT, "brics train-diffusion"),
        (["--model", "nowhere"], ExitCode.ARTEFACT, "nowhere"),
        (["--sampler", "huen"], ExitCode.USAGE, "did you mean 'heun'"),
        (["--seeds", "x"], ExitCode.USAGE, "not a range"),
        (["--n", "0"], ExitCode.USAGE, "--n"),
        (["--format", "jpg"], ExitCode.USAGE, "--format"),
        (["--model", "nowhere", "--device", "abacus"], ExitCode.USAGE, "abacus"),
    ],
)
def test_bad_input_is_one_line(arguments, code, said, tmp_path, capsys):
    assert run(["sample", "--workspace", str(tmp_path), *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    errors = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and said in errors[0]
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    "given",
    [{"num": 0}, {"batch_size": 0}, {"shard_size": 0}, {"steps": 0}, {"format": "jpg"}, {"sampler": "huen"},
     {"seeds": "x"}, {"guidance": float("nan")}],
)  # fmt: skip
def test_what_the_command_refuses_the_function_refuses(given, tmp_path):
    with pytest.raises(UsageError):
        brics_cli.sample(workspace=tmp_path, reporter=SilentReporter(), **given)
