"""One vocabulary of options: the same thing has the same name in every command, and every page looks alike."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import brics, environment, error_line
from option_table import as_markdown, commands, option_table

from brics_cli.cli.options import DRAWING
from brics_cli.cli.pages import Old, Row, sections, spellings

EVERY = dict(commands())

NO_NETWORK_TO_CHOOSE_FOR = {"demo", "bench eval", "bench codecs"}
"""Commands with --device whose precision is not a choice: what they show must repeat, quality is float32."""


def options_of(command: Any) -> dict[str, Any]:
    """The options that a command's help page shows, by their first spelling."""
    options = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
    return {spellings(each)[0]: each for each in options}


def takers(option: str) -> set[str]:
    return {name for name, command in EVERY.items() if option in options_of(command)}


def rows(name: str) -> list[Row]:
    """What a command's help page lists."""
    command = EVERY[name]
    context = command.context_class(command, info_name=f"brics {name}", help_option_names=["-h", "--help"])
    return [row for panel in sections(command, context).values() for row in panel]


def page(name: str) -> str:
    return "\n".join(f"{row}  {row.help}" for row in rows(name))


ELSEWHERE_CALLED = {
    r"--num($|-)|--(count|samples|images|rows)$": "--n",
    r"--(output|outdir|out-dir|results|save.*|dest)$": "--out",
    r"--(learning-rate)$": "--lr",
    r"--(bs|batch|batchsize|bsz)$": "--batch-size",
    r"--(precision|.*-dtype)$": "--dtype",
    r"--(num-workers|threads|jobs)$": "--workers",
    r"--(encoding|image-format|.*-codec)$": "--codec",
    r"--(iterations|iters|num-steps)$": "--steps",
    r"--(random-seed|rng)$": "--seed",
    r"--(split)$": "--subset",
    r"--(figure|curves|picture|contact-sheet)$": "--plot or --sheet",
}


def test_no_option_goes_by_another_name() -> None:
    for name, command in EVERY.items():
        for option in options_of(command):
            wrong = [ours for theirs, ours in ELSEWHERE_CALLED.items() if re.match(theirs, option)]
            assert not wrong, f"brics {name} {option} is called {wrong[0]} elsewhere"


def test_an_option_is_everywhere_where_it_means_something() -> None:
    assert takers("--device") - NO_NETWORK_TO_CHOOSE_FOR <= takers("--dtype")
    assert {"train-ae", "train-diffusion", "bench bottlenecks"} <= takers("--steps") & takers("--batch-size")
    assert {"train-ae", "train-diffusion", "bench bottlenecks"} <= takers("--lr") & takers("--set") & takers("--seed")
    assert {"sample", "eval"} <= takers("--n") & takers("--seeds") & takers("--seed") & takers("--workers")
    assert takers("--data") <= takers("--image-field") <= takers("--subset")
    assert takers("--image-field") - {"info", "bench train"} <= takers("--workers")
    without = {"demo", "runs rm", "models push"}  # which is on the Hub
    assert takers("--dry-run") - without <= takers("--out") <= takers("--quiet") | {"recipes show"}


def test_eval_draws_with_everything_that_sample_takes_about_a_model() -> None:
    drawn = {option for option, each in options_of(EVERY["sample"]).items() if each.rich_help_panel == DRAWING}
    assert {"--sampler", "--guidance", "--ema", "--class", "--seeds"} <= drawn
    assert drawn | {"--ae", "--dtype"} <= options_of(EVERY["eval"]).keys() | {"--model"}  # --fake is the model


def test_outputs_are_spelt_alike() -> None:
    for name, command in EVERY.items():
        for option, each in options_of(command).items():
            assert (option == "--out") == ("-o" in each.opts), (name, each.opts)
            if option in ("--plot", "--sheet"):
                assert each.metavar == ("FILE" if option == "--plot" else "PNG"), (name, each.metavar)


OF_THE_COMMAND = {"--out", "--format", "--guide"}
"""Options whose values are more or fewer from command to command: `sample` writes stores, too."""


@pytest.mark.parametrize(
    "option", sorted({each for name in EVERY for each in options_of(EVERY[name])} - OF_THE_COMMAND)
)
def test_an_option_takes_the_same_values_everywhere(option: str) -> None:
    each_kind = {str(options_of(EVERY[name])[option].type_descriptor.choices) for name in takers(option)}
    assert len(each_kind) == 1
    shown = {value for name in takers(option) for words, value, _ in rows(name) if option in words.split(", ")}
    assert len(shown) == 1, shown


@pytest.mark.parametrize("name", EVERY)
def test_a_page_has_no_types_one_form_of_default_and_an_example(name: str) -> None:
    listed = page(name)
    assert not re.search(r"<\w+|\[default|\[required|list\[|x>=", listed)
    assert not re.search(r"(?<!Default): None|default[s]? to|\(default|Default: \d{4}", listed, flags=re.I)
    for row in listed.splitlines():
        assert row.count("Default: ") <= 1 and ("Default: " not in row or row.endswith((".", ")"))), row
    for option, each in options_of(EVERY[name]).items():
        assert each.help, f"brics {name} {option} has no help"
        if each.default not in (None, False, (), []) and not callable(each.default):
            assert "Default: " in next(row for row in listed.splitlines() if option in row.split("  ")[0]), option
    example = re.search(rf"^Example: (brics {name}.*)$", EVERY[name].help, flags=re.M)
    assert example is not None, f"brics {name} has no example"
    command, words = EVERY[name], shlex.split(example[1])[len(name.split()) + 1 :]
    command.make_context(name, words)


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("pack", "--format png", "--codec"),
        ("eval", "--num-samples 4", "--n"),
        ("bench encode", "--num-images 100", "--n"),
        ("bench encode", "--format jpeg", "--codec"),
        ("bench eval", "--num-images 32", "--n"),
        ("bench store", "--num-rows 1000", "--n"),
        ("bench bottlenecks", "--results rows.json", "--out"),
        ("bench retrieval", "--tables-dtype bf16", "--dtype"),
    ],
)
def test_old_spellings_are_taken_and_not_shown(
    command: str, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    required = ["images", "--out", "x"] if command == "pack" else []
    context = EVERY[command].make_context(command, [*required, *old.split()])
    option, value = old.split()
    dest = next(each.name for each in EVERY[command].params if option in each.opts)
    assert str(context.params[dest]) == value
    assert f"warning: {option} is called {new} now" in capsys.readouterr().err
    assert option not in page(command).split() and f"({option} for {new})" in as_markdown(option_table())


def test_every_old_spelling_is_tested() -> None:
    old = {str(word) for command in EVERY.values() for each in command.params for word in each.opts
           if isinstance(word, Old)}  # fmt: skip
    assert old == {"--format", "--num-samples", "--num-images", "--num-rows", "--results", "--tables-dtype"}


def test_h_is_help(tmp_path: Path) -> None:
    assert brics("-h", cwd=tmp_path, check=0).stdout == brics("--help", cwd=tmp_path, check=0).stdout
    short, long = (brics("bench", "store", word, cwd=tmp_path, check=0).stdout for word in ("-h", "--help"))
    assert short == long and "-h, --help" in short


MEANT = [
    (("encode",), "no command 'encode'; did you mean 'encode-dataset'?"),
    (("train",), "no command 'train'; did you mean 'train-ae' or 'train-diffusion'?"),
    (("Eval",), "no command 'Eval'; did you mean 'eval'?"),
    (("bench", "smaple"), "no command 'smaple'; did you mean 'sample'?"),
    (("eval", "--metric", "FID"), "no metric 'FID'; did you mean 'fid'?"),
    (("sample", "--sampelr", "ddim"), "no such option: --sampelr; did you mean '--sampler'"),
    (("pack", "x", "--formt", "png"), "no such option: --formt"),
]


@pytest.mark.parametrize(("words", "said"), MEANT, ids=lambda each: " ".join(each) if isinstance(each, tuple) else "")
def test_did_you_mean(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    assert said in error_line(brics(*words, cwd=tmp_path, check=2))


def test_a_recipe_of_the_other_kind_is_named(tmp_path: Path, photographs: Path) -> None:
    line = error_line(brics("train-ae", photographs, "--recipe", "brics-dit-s", cwd=tmp_path, check=2))
    assert "'brics-dit-s' is a recipe of kind 'diffusion'" in line and "brics train-diffusion --recipe" in line


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("brics enc", ["encode-dataset"]),
        ("brics train-ae --recipe brics-2", ["brics-256", "brics-256-fast"]),
        ("brics train-diffusion --recipe brics-dit-s", ["brics-dit-s"]),
        ("brics sample --sampler d", ["dpmpp-2m", "ddim", "ddpm"]),
        ("brics eval --metric clip", ["clip-fid"]),
        ("brics train-ae --set optimiser.w", ["optimiser.weight_decay=", "optimiser.warmup_steps="]),
        ("brics train-ae --dtype b", ["bf16"]),
        ("brics sample --cla", ["--class", "--class-balance"]),
        ("brics sample --model runs/", ["runs/diffusion/mine"]),
    ],
)
def test_the_shell_completes(line: str, offered: list[str], tmp_path: Path) -> None:
    from brics_cli.workspace import Artefact, write_provenance

    (tmp_path / "runs/diffusion/mine").mkdir(parents=True)
    write_provenance(Artefact("diffusion", tmp_path / "runs/diffusion/mine", "2026-01-01T00:00:00"))
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1), "_BRICS_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-m", "brics_cli"], cwd=tmp_path, env=environment(**words), capture_output=True, text=True
    )
    assert done.stdout.split() == offered and not done.stderr and [each.name for each in tmp_path.iterdir()] == ["runs"]
