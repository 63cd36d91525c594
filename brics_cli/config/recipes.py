"""Where recipes are: `recipes/` of a checkout, `brics_cli/_recipes` of an installed wheel, or a user's path."""

from __future__ import annotations

from pathlib import Path

from brics_cli.config.suggestions import did_you_mean
from brics_cli.errors import UsageError


def recipes_root() -> Path:
    """The directory of the recipes that ship with brics."""
    package = Path(__file__).parents[1]
    installed = package / "_recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def list_recipes(kind: str) -> dict[str, Path]:
    """Name -> path of every shipped recipe of `kind` (autoencoder or diffusion), sorted by name.

    A tiny recipe's file is named after its kind (`tiny/autoencoder.yaml`), its name is `tiny`.
    """
    found = {path.stem: path for path in (recipes_root() / kind).glob("*.yaml")}
    tiny = recipes_root() / "tiny" / f"{kind}.yaml"
    if tiny.is_file():
        found["tiny"] = tiny
    return dict(sorted(found.items()))


def is_recipe_path(name_or_path: str) -> bool:
    """Whether it is a path of a user's own recipe, not the name of a shipped one."""
    return name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path


def recipe_path(name_or_path: str, *, kind: str) -> Path:
    """The file of a recipe given by name or by path. Raises UsageError with the nearest name."""
    if is_recipe_path(name_or_path):
        path = Path(name_or_path)
        if not path.is_file():
            raise UsageError(f"no recipe file {path}", next="`brics recipes` lists the shipped ones.")
        return path
    known = list_recipes(kind)
    if name_or_path not in known:
        raise UsageError(
            f"no {kind} recipe {name_or_path!r}{did_you_mean(name_or_path, known)}",
            next="`brics recipes` lists them all.",
        )
    return known[name_or_path]


def default_autoencoder_recipe(median_side: int) -> str:
    """The name of the largest general recipe not above `median_side` pixels (the smallest when all are above).

    The general recipes are those named after their image size alone: `brics-64`, `brics-256`, ...
    """
    sizes = {
        int(name.removeprefix("brics-")): name
        for name in list_recipes("autoencoder")
        if name.removeprefix("brics-").isdigit()
    }
    fitting = [size for size in sizes if size <= median_side]
    return sizes[max(fitting) if fitting else min(sizes)]
