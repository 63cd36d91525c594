"""The site: its commands parse, the messages that it explains are messages of brics, and its links lead somewhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from commands import parse

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs/pages").glob("*.md"))


def commands_of(path: Path) -> list[str]:
    """Every command line in the shell blocks of a page, without its comment; those of pip and Ray are not ours."""
    blocks = re.findall(r"^```sh\n(.*?)^```", path.read_text(), flags=re.M | re.S)
    lines = [re.split(r"  #| \| ", line)[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(("pip install ", "ray start "))]


COMMANDS = [(path.name, line) for path in PAGES for line in commands_of(path)]


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_every_command_parses(page: str, line: str) -> None:
    parse(re.sub(r"^torchrun .* -m brics_cli ", "brics ", line))


def test_there_are_commands_on_the_pages_that_show_how() -> None:
    assert {"tutorial.md", "scaling.md", "metrics.md", "index.md"} <= {page for page, _ in COMMANDS}


@cache
def messages() -> list[str]:
    """Every text in the package, `…` for what is put into it; of a call `Error(what, next=...)` both as one."""

    def text(node: ast.expr | None) -> str:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        if isinstance(node, ast.JoinedStr):
            return "".join(text(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
        return "…"

    found = []
    for path in (ROOT / "brics_cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args:
                after = next((text(each.value) for each in node.keywords if each.arg == "next"), "")
                found.append(f"{text(node.args[0])} {after}".strip())
            elif isinstance(node, ast.JoinedStr):
                found.append(text(node))
    return found


@pytest.mark.parametrize("quoted", re.findall(r"^> (.+)$", (ROOT / "docs/pages/faq.md").read_text(), flags=re.M))
def test_every_message_that_is_explained_is_one(quoted: str) -> None:
    words = [re.escape(part.strip(" .…")) for part in quoted.split("…") if part.strip(" .…")]
    pattern = re.compile(".*".join(part.replace(r"\.\ ", r"\.?\ ") for part in words))
    assert any(pattern.search(message) for message in messages()), quoted


def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", "docs/mkdocs.yml", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "commands/sample.html").read_text()
    assert "<code>--guidance</code>" in page and "dpmpp-2m" in page
    assert "https://fonts" not in page  # opens with no network
