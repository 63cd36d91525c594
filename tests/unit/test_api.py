"""The Python API: the whole pipeline on tiny random images, and what its documentation says of its signatures."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import brics_cli
from brics_cli import api
from brics_cli.config import load_recipe
from brics_cli.errors import ArtefactError, UsageError, WouldOverwriteError
from brics_cli.runtime.reporting import SilentReporter

NAMES = ["train_autoencoder", "encode", "decode", "train_diffusion", "sample", "evaluate"]
FEW = ["training.steps=3", "training.batch_size=4", "training.val_every=3", "training.checkpoint_every=3"]
SMALL = ["model.encoder.widths=[8, 8]", "model.decoder.widths=[8]", "model.features.hidden_dim=8"]
QUIET = SilentReporter()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Random images, and all that the first five functions make of them, by left-out arguments wherever they can be."""
    root = tmp_path_factory.mktemp("api")
    (root / "images").mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{number:02d}.png")
    common = {"workspace": root, "device": "cpu", "reporter": QUIET}
    made = {
        "trained": brics_cli.train_autoencoder(
            root / "images", recipe="tiny", overrides=[*FEW, *SMALL], num_workers=1, **common
        ),
        "encoded": brics_cli.encode(**common),
        "decoded": brics_cli.decode(**common),
        "model": brics_cli.train_diffusion(
            recipe=load_recipe("tiny", kind="diffusion"), steps=3, overrides=["denoiser.depth=1"], **common
        ),
        "drawn": brics_cli.sample(num=4, steps=2, **common),
        "report": brics_cli.evaluate(["psnr", "ssim"], **common),
    }
    return root, made


def test_each_function_runs_and_says_what_it_made(workspace):
    root, made = workspace
    assert made["trained"].step == 3 and made["trained"].run.parent == root / "runs" / "autoencoder"
    assert made["encoded"].path == root / "codes.h5" and made["encoded"].num_images == 12
    assert made["decoded"].path == root / "reconstructions" and made["decoded"].format == "png"
    assert len(list((root / "reconstructions").glob("*.png"))) == 12
    assert made["model"].run.parent == root / "runs" / "diffusion" and made["model"].step == 3
    assert made["drawn"].num_images == 4 and made["drawn"].sheet.is_file()
    assert 0 < made["report"].value("psnr") < 60 and made["report"].num_pairs == 1, "the one that training held out"


def test_paths_may_be_text(workspace, tmp_path):
    root, made = workspace
    common = {"workspace": str(root), "device": "cpu", "reporter": QUIET}
    run = str(made["trained"].run)
    store = brics_cli.encode(
        str(root / "images"), autoencoder=run, out=str(tmp_path / "c.h5"), limit=5, flips=True, **common
    )
    assert store.num_images == 5 and store.path == tmp_path / "c.h5"
    images = brics_cli.decode(str(store.path), autoencoder=run, out=str(tmp_path / "x.zip"), **common)
    assert images.format == "zip" and images.num_images == 5
    drawn = brics_cli.sample(
        str(made["model"].run), seeds=range(7, 9), steps=1, out=str(tmp_path / "s"), format="png", **common
    )
    assert sorted(path.name for path in drawn.path.glob("*.png")) == ["00000007.png", "00000008.png"]
    report = brics_cli.evaluate(
        ["psnr"], real=str(root / "images"), fake=str(store.path), out=str(tmp_path / "r.json"), **common
    )
    assert (tmp_path / "r.json").is_file() and report.num_pairs == 5


def test_the_same_call_again_does_nothing_and_another_one_overwrites_only_if_told(workspace):
    root, _ = workspace
    common = {"workspace": root, "device": "cpu", "reporter": QUIET}
    assert brics_cli.encode(**common).already_complete
    assert brics_cli.decode(**common).already_complete
    with pytest.raises((ArtefactError, WouldOverwriteError)):
        brics_cli.encode(flips=True, **common)


def test_what_is_left_out_is_said_on_stderr_and_errors_are_raised(workspace, tmp_path, capsys):
    root, _ = workspace
    brics_cli.decode(workspace=root, device="cpu")
    captured = capsys.readouterr()
    assert f"using {root / 'codes.h5'}" in captured.err and not captured.out
    with pytest.raises(ArtefactError, match="no key-code store"):
        brics_cli.decode(workspace=tmp_path, reporter=QUIET)
    with pytest.raises(UsageError, match="nosuch"):
        brics_cli.train_diffusion(root / "codes.h5", recipe="nosuch", workspace=tmp_path, reporter=QUIET)


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("encode", {"quantisation": "int8"}, "--quantisation 'int8' is not a quantisation; did you mean 'uint8'?"),
        ("encode", {"precision": "fp16"}, "--dtype 'fp16' is not a precision; did you mean 'bf16'?"),
        ("decode", {"format": "jpg"}, "--format 'jpg' is not a format; did you mean 'png'?"),
        ("sample", {"format": "jpg"}, "--format 'jpg' is not a format; did you mean 'png'?"),
        ("sample", {"sampler": "huen"}, "--sampler 'huen' is not a sampler; did you mean 'heun'?"),
    ],
)
def test_a_wrong_name_is_said_with_the_nearest(workspace, name, wrong, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        getattr(brics_cli, name)(**wrong, workspace=workspace[0], reporter=QUIET)


@pytest.mark.parametrize("name", NAMES)
def test_the_package_exports_it(name):
    assert name in brics_cli.__all__ and name in dir(brics_cli)
    assert getattr(brics_cli, name) is getattr(api, name)
    assert not (Path(brics_cli.__file__).parent / name).exists(), "a room of that name would hide it"


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_documented_and_given_by_name(name):
    function = getattr(api, name)
    first, *others = inspect.signature(function).parameters.values()
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in others)
    documented = {
        each.strip()
        for line in inspect.getdoc(function).splitlines()
        if (found := re.match(r"([a-z_, ]+): ", line))
        for each in found[1].split(",")
    }
    assert documented >= {parameter.name for parameter in [first, *others]}
    assert documented <= {parameter.name for parameter in [first, *others]}, "documented, and not there"
    assert ">>> brics_cli." + name in function.__doc__


def test_the_functions_are_all_there_are():
    assert api.__all__ == sorted(NAMES)


def test_rooms_can_still_be_imported_by_their_names():
    for room in ("sampling", "evaluation", "codes", "images", "jobs.sample", "jobs.evaluate", "jobs.decode"):
        assert import_module(f"brics_cli.{room}").__name__ == f"brics_cli.{room}"
    assert callable(brics_cli.sample) and callable(brics_cli.evaluate)


def test_importing_the_api_loads_no_torch():
    loaded = "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    code = f"import sys, brics_cli; brics_cli.sample, brics_cli.api; {loaded}"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
