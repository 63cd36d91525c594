"""Pages of the site that are made when it is built: from the commands, the registries, and the repository's files.

mkdocs calls `on_files`. So nothing that the program knows is written a second time.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the site of this tree, whatever is installed

import typer  # noqa: E402
from mkdocs.config.defaults import MkDocsConfig  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402

import brics_cli.api  # noqa: E402
from brics_cli.cli.app import COMMANDS, NEXT_STEP, TAGLINE, app  # noqa: E402
from brics_cli.cli.pages import sections  # noqa: E402
from brics_cli.config.loading import list_recipes  # noqa: E402
from brics_cli.evaluation.registry import PRESETS, REGISTRY  # noqa: E402
from brics_cli.networks.registry import NETWORKS  # noqa: E402

COPIES = {"extending.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md", "measured.md": "recipes/README.md",
          "brics-mini.md": "recipes/models/brics-mini.md", "scale.md": "recipes/scale.md"}  # fmt: skip
"""Page -> file of the repository that it shows."""
PICTURES = ("recipes/samples-emoji-32px.png",)
"""What those files show."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, text in {**dict(command_pages()), **{page: copied(path) for page, path in COPIES.items()}}.items():
        files.append(File.generated(config, name, content=text))
    for path in PICTURES:
        files.append(File.generated(config, Path(path).name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page with its marks replaced by what the program says of itself."""
    made = {"recipes": recipes_table, "metrics": metrics_table, "presets": presets_table, "api": api_reference}
    return re.sub(r"<!-- (\w+) -->", lambda mark: made[mark[1]]() if mark[1] in made else mark[0], markdown)


def copied(path: str) -> str:
    """The text of a repository's file; links to files that the site does not hold become their words."""
    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)[^)]+\)", r"\1", (ROOT / path).read_text())


def command_pages() -> Iterator[tuple[str, str]]:
    """(path, Markdown) of the list of commands and of a page for each."""
    group: Any = typer.main.get_command(app)
    panels: dict[str, list[str]] = {}
    for name, entry in COMMANDS.items():
        command = group.get_command(None, name)
        panels.setdefault(entry.panel, []).append(f"| [`brics {name}`]({name}.md) | {entry.help} |")
        parts = [f"# brics {name}\n", *described(command, f"brics {name}")]
        for sub_name, sub in getattr(command, "commands", {}).items():
            parts += [f"## brics {name} {sub_name}\n", *described(sub, f"brics {name} {sub_name}")]
        yield f"commands/{name}.md", "\n".join(parts)
    tables = [f"## {panel}\n\n| command | |\n|---|---|\n" + "\n".join(rows) + "\n" for panel, rows in panels.items()]
    yield "commands/index.md", "\n".join(["# Commands\n", TAGLINE, f"\n{NEXT_STEP}\n".replace("    ", " "), *tables])


def described(command: Any, path: str) -> Iterator[str]:
    """The help of a command: what it does, its example, its arguments and options."""
    text, _, example = inspect.cleandoc(command.help or "").partition("Example: ")
    yield escaped(text).strip() + "\n"
    if example:
        yield f"```sh\n{example.strip()}\n```\n"
    context = command.context_class(command, info_name=path)
    for title, rows in sections(command, context).items():
        yield f"**{title}**\n\n| | | default |\n|---|---|---|"
        for row in rows:
            help_text, _, default = row.help.partition("Default: ")
            words = [
                f"<code>{row.names}</code> {cell(row.value)}",
                cell(help_text.strip()),
                cell(default.removesuffix(".")),
            ]
            yield f"| {' | '.join(words)} |"
        yield ""


def cell(text: str) -> str:
    return escaped(text).replace("|", "\\|").replace("\n", " ")


def escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def recipes_table() -> str:
    """Every shipped recipe: what its header says."""
    rows = []
    for kind in ("autoencoder", "diffusion"):
        for name, path in sorted(list_recipes(kind).items()):
            header = path.read_text()
            about = re.search(r"^about: (.*)$", header, re.MULTILINE)
            needs = re.search(r"^# Needs: +(.*(?:\n# {10,}.*)*)", header, re.MULTILINE)
            needed = re.sub(r"\n# +", " ", needs[1]) if needs else ""
            rows.append(f"| `{name}` | {kind} | {cell(about[1] if about else '')} | {cell(needed)} |")
    return "\n".join(["| recipe | trains | | needs |", "|---|---|---|---|", *rows])


def metrics_table() -> str:
    """Every metric: what it compares, its definition, and the weights it needs."""
    rows = []
    for each in REGISTRY.values():
        network = "chosen by --mode or --preset" if callable(each.network) else each.network
        weights = NETWORKS[each.network].weights if isinstance(each.network, str) else None
        definition = each.definition.format(
            features="its features", preset="--preset", sign="within the", normalise="--normalise"
        )
        better = {"higher": "↑", "lower": "↓", "": ""}[each.better]
        needs = weights or ("" if each.network in (None, "random-conv") else network)
        rows.append(f"| `{each.name}` {better} | {each.compares} | {cell(definition)} | {cell(needs or 'none')} |")
    return "\n".join(["| metric | compares | definition | weights |", "|---|---|---|---|", *rows])


def presets_table() -> str:
    rows = [f"| `{name}` | {cell(each.describe())} | {cell(each.source)} |" for name, each in PRESETS.items()]
    return "\n".join(["| `--preset` | | as in |", "|---|---|---|", *rows])


def api_reference() -> str:
    """The functions of the public API, as `help()` shows them."""
    parts = []
    for name in ("train_autoencoder", "encode", "decode", "train_diffusion", "sample", "evaluate"):
        function = getattr(brics_cli.api, name)
        signature = re.sub(r"(?<=[(,]) ?(?=[a-z*])", "\n    ", str(inspect.signature(function)))
        parts += [f"## {name}\n", f"```python\n{name}{signature}\n```\n"]
        parts += [f"```text\n{inspect.getdoc(function)}\n```\n"]
    return "\n".join(parts)
