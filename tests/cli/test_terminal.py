"""Nothing that a terminal obeys gets there from names, keys, classes, configs, reports or errors: on a terminal and in
a pipe, through every command that prints them."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shlex
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from diffusion_workspace import make_workspace
from hypothesis import given
from hypothesis import strategies as st
from image_files import noise, write_tar
from store_files import write_store

from brics_cli.cli import app
from brics_cli.cli.output import LiteralConsole
from brics_cli.cli.progress import ConsoleReporter
from brics_cli.evaluation import cache
from brics_cli.runtime.reporting import command_line, printable
from brics_cli.workspace import Artefact, write_provenance

NAMES = (
    *("\x1b[38;5;201mpink", "\x1b]0;title\x07", "\x1b[2J", "\x9b31mC1", "\x90q\x9c", "\u202egnp", "\u2066x\u2069"),
    *("\u061ca", "\u200e\u200f", "line\u2028paragraph\u2029", "zero\u200bwidth", "\ufeffbom", "soft\xadhyphen"),
    *("\x7f", "\b\b\bback", "\rerased", "tab\tbell\x07", "\U000e0041tag", "new\nline", "[red]x[bold]", "[link=http:]y"),
    *("[/]", ":smile:"),
)  # fmt: skip
FILES = tuple("".join(NAMES[start::4]).replace("/", "") for start in range(4))
"""All of them, less `/`, in few names of files."""
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0041]")
STYLES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r\n|\r(?=\x1b)")
"""What rich writes on a terminal; of the names above two would match, and are looked for by themselves."""
MODES = pytest.mark.parametrize("mode", ["terminal", "pipe"])


class Screen:
    """Runs `brics` in this process on a terminal or a pipe of its own, and checks what it wrote."""

    def __init__(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mode, self.monkeypatch = mode, monkeypatch

    def run(self, *arguments: str | Path) -> str:
        """What `brics ARGUMENTS` writes to stdout and stderr, styles taken out."""
        ours, theirs = pty.openpty() if self.mode == "terminal" else os.pipe()
        found = bytearray()

        def read() -> None:
            try:
                while part := os.read(ours, 65536):
                    found.extend(part)
            except OSError:  # the end of a terminal
                pass

        reader = threading.Thread(target=read)
        reader.start()
        with self.monkeypatch.context() as patched:
            for name in ("stdout", "stderr"):
                patched.setattr(sys, name, open(os.dup(theirs), "w", buffering=1, encoding="utf-8"))  # noqa: SIM115, PTH123
            streams = sys.stdout, sys.stderr
            patched.setenv("TERM", "xterm-256color")
            patched.setattr(sys, "argv", ["brics", *map(str, arguments)])
            try:
                app.main()
            except SystemExit as ended:
                self.code = ended.code
            for stream in streams:
                stream.close()
        os.close(theirs)
        reader.join()
        os.close(ours)
        text = found.decode("utf-8")
        assert not any(escape in text for escape in ("\x1b[38;5;201m", "\x1b[2J", "\x1b]"))
        text = STYLES.sub(lambda sequence: "\n" * (sequence[0] == "\r\n"), text) if self.mode == "terminal" else text
        assert RAW.search(text) is None, ascii(text)
        return text


@pytest.fixture
def screen(mode, monkeypatch, tmp_path) -> Screen:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Screen(mode, monkeypatch)


def unwrapped(text: str) -> str:
    """`text` without the line ends that a terminal of 80 columns made."""
    return text.replace("\n", "").replace(" ", "")


def shown(name: str) -> str:
    return printable(name).replace(" ", "")


@MODES
@pytest.mark.parametrize("name", FILES, ids=range(len(FILES)))
def test_a_folder_of_images_and_its_pack(name, screen, tmp_path):
    folder = tmp_path / name
    (folder / name).mkdir(parents=True)
    (folder / name / f"{name}.png").write_bytes(noise(1))
    (folder / name / f"bad{name}.png").write_bytes(b"\x89PNG no image")
    (folder / name / f"else.{name}").write_bytes(b"no image")
    assert shown(name) in unwrapped(screen.run("info", folder))
    text = screen.run("pack", folder, "--out", f"packed{name}", "--size", "16", "--labels", "folder")
    assert screen.code == 5 and shown(name) in unwrapped(text)
    screen.run("info", f"packed{name}")
    assert shown(name) in unwrapped(screen.run("status"))
    screen.run("eval", "--metric", "psnr", "--real", folder, "--fake", f"packed{name}", "--out", f"report{name}.json")
    assert screen.code in (0, 2, 5)  # 2: shards write line ends of names in another way, and no key matches
    if screen.code != 2:
        screen.run("eval", "compare", f"report{name}.json", f"report{name}.json")
        assert screen.code == 0


@MODES
@pytest.mark.parametrize("name", FILES, ids=range(len(FILES)))
def test_tar_members_and_zip_names(name, screen, tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"{name}.png", noise(1)), (f"x{name}.png", b"bad")])
    text = screen.run("pack", path, "--out", "tar", "--size", "16")
    assert screen.code == 5, ascii(text)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(3):
            archive.writestr(f"{name}/{number}.png", noise(number))
        archive.writestr(f"{name}/bad.png", b"\x89PNG bad")
        archive.writestr(f"{name}/else.{name}", b"else")
    text = screen.run("pack", tmp_path / "a.zip", "--out", "zip", "--size", "16")
    assert screen.code == 5, ascii(text)


@MODES
@pytest.mark.parametrize(
    "name", [FILES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in FILES[1:])], ids=range(len(FILES))
)
def test_the_pipeline_in_a_workspace_of_that_name(name, screen, tmp_path, monkeypatch):
    root = make_workspace(tmp_path / name)
    monkeypatch.chdir(root)
    for number, folder in enumerate((name, f"other{name}")):
        (root / "images" / folder).mkdir(parents=True)
        for index in range(3):
            (root / "images" / folder / f"{index}{name}.png").write_bytes(noise(3 * number + index))
    (root / "images" / name / f"bad{name}.png").write_bytes(b"\x89PNG bad")
    codes, other = f"codes{name}.h5", f"other{name}.h5"
    wrong: list[tuple[object, ...]] = []
    for arguments, code in (
        (["encode-dataset", "images", "--labels", "folder", "--out", codes], 5),
        (["encode-dataset", "images", "--labels", "folder", "--out", codes], 5),  # complete
        (["encode-dataset", f"images/other{name}", "--out", other], 0),
        (["info", codes], 0),
        (["info", codes, "--verify"], 0),
        (["info", "runs/autoencoder/a"], 0),
        (["decode", codes, "--out", f"decoded{name}"], 0),
        (["decode", codes, "--out", f"decoded{name}.zip"], 0),
        (["decode", codes, "--out", f"decoded{name}.zip", "--nested"], 2),
        (["export", codes, "--no-flips", "--out", f"latents{name}"], 0),
        (["reconstruct", f"images/{name}/0{name}.png", "--out", f"sheet{name}.png"], 0),
        (["eval", "--metric", "psnr", "--fake", codes, "--out", f"report{name}.json"], 0),
        (["train-diffusion", codes, "--recipe", "tiny", "--dry-run"], 0),
        (["train-ae", "images", "--recipe", "tiny", "--out", f"run{name}", "--dry-run"], 0),
        (["sample", "--n", "2", "--steps", "2", "--out", f"samples{name}"], 0),
        (["sample", "--n", "2", "--steps", "2", "--class", name, "--out", f"samples{name}.zip"], 2),
        (["status"], 0),
    ):
        text = screen.run(*arguments)
        wrong += [(arguments, screen.code, ascii(text))] * (screen.code != code)
    assert not wrong


@pytest.mark.parametrize("name", NAMES)
def test_a_bar_of_progress_names_what_it_does(name):
    written = io.StringIO()
    reporter = ConsoleReporter(LiteralConsole(written, force_terminal=True, width=200))
    with reporter.task(f"do {name}", total=2, unit="img") as task:
        task.advance(note=name)
    text = written.getvalue()
    if RAW.search(name):
        assert name not in text
    assert shown(name) in unwrapped(STYLES.sub("", text))
    assert RAW.search(STYLES.sub("", text.replace("\r", ""))) is None


@MODES
@pytest.mark.parametrize("name", FILES, ids=range(len(FILES)))
def test_arguments_recipes_and_settings(name, screen, tmp_path):
    for arguments in ([name], ["info", name], ["info", f"--{name}"], ["recipes", "show", name], ["merge", name, name],
                      ["eval", "--metric", name], ["eval", "compare", name, name], ["weights", "fetch", name],
                      ["weights", "import", name], ["plot", name], ["train-ae", name], ["decode", name],
                      ["info", "--flops", name], ["cache", "prune", "--unused", name], ["sample", "--model", name],
                      ["train-ae", ".", "--recipe", "tiny", "--set", f"{name}=1"],
                      ["train-ae", ".", "--recipe", "tiny", "--set", f"model.{name}={name}"]):  # fmt: skip
        screen.run(*arguments)
        assert screen.code not in (0, 1), arguments
    recipe = tmp_path / f"{name}.yaml"
    recipe.write_text(json.dumps({"kind": "autoencoder", "about": name, name: name}), encoding="utf-8")
    screen.run("train-ae", tmp_path, "--recipe", recipe)
    assert screen.code == 2
    screen.run("recipes", "show", recipe)


@MODES
@pytest.mark.parametrize("name", FILES, ids=range(len(FILES)))
def test_runs_summaries_and_kinds_of_the_workspace(name, screen, tmp_path):
    path = tmp_path / f"run{name}"
    path.mkdir()
    details = {"summary": name, "size": name}
    write_provenance(Artefact(kind="shards", path=path, created=name, parents=(), details=details))
    text = screen.run("status")
    assert unwrapped(text).count(shown(name)) >= 1
    screen.run("info", path)


@MODES
@pytest.mark.parametrize("name", FILES, ids=range(len(FILES)))
def test_keys_and_failures_of_a_store(name, screen, tmp_path):
    write_store(tmp_path / f"codes{name}.h5", [name], source=name, transform=name)
    text = screen.run("info", f"codes{name}.h5")
    assert shown(name) in unwrapped(text)


@MODES
@pytest.mark.parametrize("name", FILES, ids=range(len(FILES)))
def test_reports_side_by_side(name, screen, tmp_path):
    result = dict.fromkeys(("metric", "title", "real", "fake", "unit", "better", "definition", "note"), name)
    result |= {"value": 1.0, "standard_error": None, "num_real": 2, "num_fake": 2, "comparable": True}
    (tmp_path / "report.json").write_text(json.dumps({"brics_report": 1, "results": [result], "sources": []}))
    text = screen.run("eval", "compare", "report.json", "report.json")
    assert screen.code == 0 and shown(name)[:12] in unwrapped(text)


@MODES
@pytest.mark.parametrize("name", FILES, ids=range(len(FILES)))
def test_the_list_of_cached_features(name, screen, tmp_path, monkeypatch):
    entry = cache.CacheEntry("0", tmp_path, name, name, 1, 1, True, 0.0)
    monkeypatch.setattr(cache, "entries", lambda: [entry])
    assert shown(name)[:6] in unwrapped(screen.run("cache", "list"))


@MODES
@pytest.mark.parametrize("name", FILES, ids=range(len(FILES)))
def test_errors_and_tracebacks(name, screen, monkeypatch):
    def fails(self: object) -> None:
        raise ValueError(name)

    monkeypatch.setattr("brics_cli.workspace.Workspace.artefacts", fails)
    text = screen.run("status", "--traceback")
    assert screen.code == 1 and "Traceback" in text and "ValueError" in text


LIBRARY = """
import logging, sys, warnings
from brics_cli.cli import app
from brics_cli.cli.output import LiteralConsole
from brics_cli.cli.progress import ConsoleReporter
def run(arguments):
    name = arguments[0]
    warnings.warn(name)
    logging.getLogger("library").warning("%s", name)
    print(name)
    print(name, file=sys.stderr)
    raise ValueError(name)
app.run = run
app.main()
"""


@pytest.mark.parametrize("name", [*FILES, "\udcff"], ids=range(len(FILES) + 1))
def test_what_libraries_print_warn_and_log(name):
    found = subprocess.run([sys.executable, "-c", LIBRARY, name], capture_output=True, check=False)
    text = (found.stdout + found.stderr).decode("utf-8")
    assert RAW.search(text) is None, ascii(text)
    assert text.count(printable(name).split("\\n")[0]) >= 5


@MODES
def test_json_is_exact_and_ascii(screen, tmp_path):
    for number, name in enumerate(NAMES):
        (tmp_path / f"{number}").mkdir()
        details = {"summary": name}
        path = tmp_path / f"{number}"
        write_provenance(Artefact(kind="shards", path=path, created=f"{number:02}", parents=(), details=details))
    text = screen.run("status", "--json")
    assert text.isascii()
    assert {record["details"]["summary"] for record in json.loads(text)} == set(NAMES)


@given(st.text())
def test_printable_text_has_nothing_raw_and_stays_as_it_is(text):
    found = printable(text)
    assert RAW.search(found) is None and "\n" not in found
    assert printable(found) == found
    if text.isprintable() and "\xad" not in text:
        assert found == text


def test_what_is_written_out_can_be_told():
    assert printable("a\x1b[31m\u202e\n\udcff") == r"a\x1b[31m\u202e\n\xff"
    assert printable("a\nb\x85", keep="\n") == "a\nb\\x85"


@pytest.mark.parametrize("name", [*NAMES, "plain", "two words", "it's", "\udcff", "back\\slash\x1b"])
def test_a_command_line_works_as_printed(name, tmp_path):
    line = command_line("printf", "%s", name)
    assert RAW.search(line) is None
    found = subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout
    assert found == os.fsencode(name)
    if printable(name) == name:
        assert line == shlex.join(["printf", "%s", name])
