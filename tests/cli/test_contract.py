"""The contract of the command line (DESIGN section 8): help, streams, exit codes, and what bad input prints."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from commands import brics, environment, error_line, parse
from store_files import write_store

from brics_cli.cli.app import COMMANDS, app
from brics_cli.workspace import Artefact, write_provenance

ROOT = Path(__file__).parents[2]
HELP_CPU_S = 0.3
GROUP = typer.main.get_command(app)


def test_top_level_help_is_fast_and_imports_no_torch() -> None:
    code = "import sys; from brics_cli.cli.app import run; run(['--help']); sys.exit('torch' in sys.modules)"
    seconds: list[float] = []
    while min(seconds, default=1) >= HELP_CPU_S and len(seconds) < 40:  # a core whose sibling is busy counts more
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert finished.returncode == 0, "torch was imported"
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert all(name in finished.stdout for name in COMMANDS)
    assert min(seconds) < HELP_CPU_S, seconds


def test_no_help_page_imports_torch() -> None:
    """Nor the classes of recipes, which take .2 s, but for the two that list bottlenecks by them."""
    code = "\n".join(
        [
            "import sys",
            "from brics_cli.cli.app import COMMANDS, run",
            "listing = {'encode-dataset', 'bench'}",
            "for name in COMMANDS.keys() - listing: assert run([name, '--help']) == 0, name",
            "assert 'brics_cli.config.base' not in sys.modules",
            "for name in listing: assert run([name, '--help']) == 0, name",
            "sys.exit('torch' in sys.modules)",
        ]
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert finished.returncode == 0, finished.stderr or "torch was imported"


LIGHT = {
    "recipes": {"torch", "numpy", "pydantic", "h5py"},
    "recipes show tiny": {"torch", "numpy", "pydantic", "h5py"},
    "status": {"torch", "numpy", "pydantic", "h5py"},
    "info run": {"torch", "numpy", "pydantic", "h5py"},
    "info codes.h5": {"torch", "pydantic", "h5py", "PIL"},
    "pack photographs --out shards --size 16": {"torch", "webdataset", "torchvision"},
    "doctor": {"torchvision"},
}
"""What commands do without: importing torch takes seconds, torchvision more, the others tenths of one."""


@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=pytest.mark.slow) if name == "doctor" else name for name in LIGHT]
)
def test_commands_load_no_more_than_they_need(command: str, tmp_path: Path, photographs: Path) -> None:
    (tmp_path / "photographs").symlink_to(photographs)
    (tmp_path / "run").mkdir()
    write_provenance(Artefact("autoencoder", tmp_path / "run", "2026-01-01T00:00:00"))
    write_store(tmp_path / "codes.h5", ["a"])
    code = f"import sys; from brics_cli.cli.app import run; run({command.split()!r}); sys.exit(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), cwd=tmp_path)
    assert "error: " not in done.stderr and done.stdout
    assert LIGHT[command] & {*done.stderr.splitlines()[-1].split()} == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_starts_its_help_with_its_line_in_the_list(name: str, tmp_path: Path) -> None:
    page = brics(name, "--help", cwd=tmp_path, check=0).stdout
    said = " ".join(page.split())
    assert COMMANDS[name].help.rstrip(".") in said
    assert "--help" in page


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("weights", "bench", "cache")])
def test_every_command_with_a_result_has_json(name: str, tmp_path: Path) -> None:
    assert "--json" in brics(name, "--help", cwd=tmp_path, check=0).stdout


LONG = ["demo", "pack", "train-ae", "encode-dataset", "decode", "train-diffusion", "sample", "eval"]


@pytest.mark.parametrize("name", LONG)
def test_long_commands_have_a_dry_run(name: str, tmp_path: Path) -> None:
    assert "--dry-run" in brics(name, "--help", cwd=tmp_path, check=0).stdout


def test_the_version_is_the_packages(tmp_path: Path) -> None:
    import brics_cli

    assert brics("--version", cwd=tmp_path, check=0).stdout == f"brics {brics_cli.__version__}\n"


USAGE = [
    (("trian-ae",), "no command 'trian-ae'; did you mean 'train-ae'?"),
    (("pack",), "missing argument"),
    (
        ("sample", "--out", "s.npz/"),
        "--out s.npz/ ends like a folder and is named like a .npz file. Write --out s.npz.",
    ),
    (("pack", "x", "--out", ""), "--out is empty"),
    (("eval", "x", "y", "--out="), "--out is empty"),
    (("decode", "--out", "-"), "--out - is not a file"),
    (("pack", "x", "--sise", "3"), "no such option: --sise"),
    (("sample", "--n", "many"), "should be a valid integer"),
    (("pack", "x", "--out", "y", "--codec", "gif"), "invalid value for '--codec': 'gif' is not one of 'png'"),
    (("sample", "--n", "0"), "should be greater than or equal to 1"),
    (("decode", "--format", "jpg"), "invalid value for '--format': 'jpg' is not one of 'png', "),
    (("eval", "--metric", "pnsr"), "did you mean 'psnr'?"),
    (("info",), "give either a PATH or --flops RECIPE"),
    (("info", "--flops", "brics-265"), "did you mean 'brics-256'?"),
    (("recipes", "show", "brics"), "no recipe 'brics'"),
    (("train-ae", ".", "--device", "gpu"), "'gpu' is not a device"),
    (("train-ae", ".", "--recipe", "tiny"), "no images"),
]


@pytest.mark.parametrize(("arguments", "said"), USAGE, ids=[" ".join(arguments) for arguments, _ in USAGE])
def test_wrong_usage_is_one_line_and_exit_2(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    finished = brics(*arguments, cwd=tmp_path, check=2)
    assert said in error_line(finished)
    assert finished.stdout == ""


NOTHING_THERE = [
    ("train-ae",),
    ("decode",),
    ("train-diffusion",),
    ("sample",),
    ("eval", "--metric", "psnr"),
]


@pytest.mark.parametrize("arguments", NOTHING_THERE, ids=" ".join)
def test_an_empty_workspace_is_exit_3_and_the_command_that_helps(
    arguments: tuple[str, ...], tmp_path: Path, photographs: Path
) -> None:
    (tmp_path / "photographs").symlink_to(photographs)
    line = error_line(brics(*arguments, cwd=tmp_path, check=3))
    assert "in the workspace" in line and "brics " in line


def test_bad_images_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").write_text("no image")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.jpg").write_text("this is no JPEG")
    for data, code, said in (
        ("nowhere", 2, "no such file or folder"),
        ("empty", 2, "is empty"),
        ("none", 2, "no images in the folder"),
        ("text", 2, "0 usable images are too few"),
    ):
        finished = brics("train-ae", data, "--recipe", "tiny", cwd=tmp_path, check=code)
        assert said in error_line(finished)
        assert not (tmp_path / "runs").exists(), "a run was made before its input was looked at"


def test_json_is_all_there_is_on_stdout(tmp_path: Path) -> None:
    for arguments in (("recipes",), ("recipes", "show", "tiny"), ("status",), ("doctor",), ("info", "--flops", "tiny")):
        finished = brics(*arguments, "--json", cwd=tmp_path, check=0)
        json.loads(finished.stdout)


def test_precedence_is_defaults_recipe_set_flags(tmp_path: Path, photographs: Path) -> None:
    def config(*extra: object) -> dict:
        return json.loads(
            brics("train-ae", photographs, *extra, "--print-config", "--json", cwd=tmp_path, check=0).stdout
        )

    base = config("--recipe", "tiny")
    assert base["optimiser"]["weight_decay"] == 0.0  # a default
    assert base["optimiser"]["lr"] == 2e-3  # the recipe's
    changed = config("--recipe", "tiny", "--set", "training.steps=5", "--set", "optimiser.lr=1e-4", "--steps", 7)
    assert changed["optimiser"]["lr"] == 1e-4 and changed["training"]["steps"] == 7


def test_without_a_recipe_a_cpu_takes_the_small_one_and_says_what_a_gpu_would(
    tmp_path: Path, photographs: Path
) -> None:
    chosen = brics("train-ae", photographs, "--device", "cpu", "--print-config", cwd=tmp_path, check=0)
    assert "name: tiny" in chosen.stdout
    said = re.search(
        r"--recipe not given: using tiny, about (.+) on this CPU\. On a GPU it would be brics-64 \(the median image "
        r"side is 64 px\): about (.+) on an RTX 3090, (.+) here",
        chosen.stderr,
    )
    assert said is not None and said[1].endswith(" s") and said[3].endswith((" days", " min")), chosen.stderr


def test_a_dry_run_touches_nothing(tmp_path: Path, photographs: Path) -> None:
    finished = brics("train-ae", photographs, "--recipe", "tiny", "--dry-run", "--json", cwd=tmp_path, check=0)
    said = json.loads(finished.stdout)
    assert said["num_samples"] == 48 and said["code_shape"] == [16, 8, 8]
    assert said["num_parameters"] > 3e5 and said["checkpoint_bytes"] == 16 * said["num_parameters"]
    assert said["seconds"] == pytest.approx(said["seconds_per_step"] * said["steps"]) and said["seconds"] > 0
    assert said["is_timed"] and [each["name"] for each in said["gpus"]] == ["RTX 3090", "RTX 4090", "A100", "H100"]
    assert not list(tmp_path.iterdir())


def test_an_output_is_never_overwritten_unasked(tmp_path: Path, photographs: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    tiny = ("--recipe", "tiny", "--steps", 1)
    for overwrite in ((), ("--overwrite",)):
        finished = brics("train-ae", photographs, *tiny, "--out", "mine", *overwrite, cwd=tmp_path, check=4)
        assert "mine" in error_line(finished)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    brics("demo", "--out", "mine", cwd=tmp_path, check=4)


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("file/x", "there is a file where a directory is needed"),
        ("x" * 300, "the name is too long"),
        (".", "is already there"),
    ],
)
def test_outputs_that_cannot_be(tmp_path: Path, photographs: Path, out: str, said: str) -> None:
    (tmp_path / "file").write_text("x")
    for command in (("pack", photographs), ("train-ae", photographs, "--recipe", "tiny", "--steps", 1)):
        finished = brics(*command, "--out", out, cwd=tmp_path)
        assert finished.returncode in (2, 4) and said in error_line(finished), (command, finished.stderr)
    assert (tmp_path / "file").read_text() == "x"


def test_an_empty_path_is_not_the_current_directory(tmp_path: Path, photographs: Path) -> None:
    for command in (("pack", "", "--out", "x"), ("train-ae", "", "--recipe", "tiny")):
        assert "is empty" in error_line(brics(*command, cwd=photographs, check=2))


def test_a_workspace_named_like_markup_is_shown_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "n[/y] m[red]x"
    (folder / "[b]samples").mkdir(parents=True)
    write_provenance(Artefact("samples", folder / "[b]samples", "2026-01-01T00:00:00", details={"summary": "[/u]"}))
    shown = "".join(brics("status", cwd=folder, check=0).stdout.split())
    for text in ("n[/y]m[red]x", "[b]samples", "[/u]"):
        assert text in shown


@pytest.fixture
def mounted(tmp_path: Path, request: pytest.FixtureRequest):
    """A small tmpfs (2 MiB), mounted with the options of the test; skipped where mounting is not allowed."""
    where = tmp_path / "mounted"
    where.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(where)], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_full_disk_is_exit_6(tmp_path: Path, photographs: Path, mounted: Path) -> None:
    finished = brics("train-ae", photographs, "--recipe", "tiny", "--steps", 2, "--out", mounted / "run", cwd=tmp_path)
    assert finished.returncode == 6
    assert f"no space left on the device: {mounted / 'run'}" in error_line(finished)
    packed = brics("pack", photographs, "--out", mounted / "s", "--size", 256, cwd=tmp_path, check=6)
    assert "no space left on the device" in error_line(packed)
    assert not [path for path in mounted.rglob("*.tar") if not path.name.startswith(".")]


def test_a_read_only_disk_is_exit_6(tmp_path: Path, photographs: Path, mounted: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    for arguments in (
        ("train-ae", photographs, "--recipe", "tiny", "--steps", 2, "--out", mounted / "run"),
        ("pack", photographs, "--out", mounted / "s", "--size", 16),
        ("demo", "--out", mounted / "demo"),
    ):
        assert "the file system is read-only" in error_line(brics(*arguments, cwd=tmp_path, check=6))


def readme_commands() -> list[str]:
    """Every `brics ...` command line of the README: in code blocks, and in the first column of the tables."""
    text = (ROOT / "README.md").read_text()
    lines = re.findall(r"^(?: {4})?(brics [a-z].*)$", text, flags=re.MULTILINE)
    lines += [
        command
        for row in re.findall(r"^\| (`brics.*?) \|", text, flags=re.MULTILINE)
        for command in re.findall(r"`(.+?)`", row)
    ]
    return [re.split(r"  | #| \|", line)[0].strip() for line in lines]


def test_the_readme_has_commands() -> None:
    names = {line.split()[1] for line in readme_commands()}
    assert names == set(COMMANDS)


@pytest.mark.parametrize("line", readme_commands())
def test_readme_commands_parse(line: str) -> None:
    parse(line)
