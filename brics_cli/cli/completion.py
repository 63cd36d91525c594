"""What a shell offers for a value that is half written: recipes, runs, samplers, metrics, keys of recipes.

`brics --install-completion` teaches the shell to ask. Nothing here may fail or print: no offer is made then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

Complete = Callable[[Any, list[str], str], list[str]]
"""typer's: (context, arguments, what is written so far) -> what it may become."""

_KINDS = {"train-ae": "autoencoder", "bottlenecks": "autoencoder", "encode": "autoencoder", "train": "autoencoder",
          "train-diffusion": "diffusion", "sample": "diffusion"}  # fmt: skip
"""Command -> the kind of its recipes and runs."""


def recipes(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Recipes of the command's kind; of both where it takes both."""
    from brics_cli.config.loading import list_recipes
    from brics_cli.config.names import RecipeKind

    kinds = [_KINDS[ctx.command.name]] if ctx.command.name in _KINDS else get_args(RecipeKind)
    return _matching(incomplete, (name for kind in kinds for name in list_recipes(kind)))


def runs(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Runs in the workspace of the kind that the command trains."""
    return _runs(ctx, incomplete, _KINDS.get(ctx.command.name))


def autoencoders(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Runs of autoencoders."""
    return _runs(ctx, incomplete, "autoencoder")


def denoisers(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Runs of diffusion models."""
    return _runs(ctx, incomplete, "diffusion")


def samplers(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Samplers."""
    from brics_cli.diffusion.samplers import SAMPLERS

    return _matching(incomplete, SAMPLERS)


def metrics(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Metrics of `brics eval`."""
    from brics_cli.evaluation.registry import ALL, GROUPS, REGISTRY

    return _matching(incomplete, [*REGISTRY, *GROUPS, ALL])


def recipe_keys(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Dotted keys of the recipe that was named (tiny's without one), with `=`."""
    from brics_cli.config.loading import load_recipe

    recipe = load_recipe(ctx.params.get("recipe") or "tiny", kind=_KINDS[ctx.command.name])
    return _matching(incomplete, (f"{key}=" for key in _keys(recipe.model_dump(mode="json"))))


def _keys(values: dict[str, Any], before: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _keys(value, f"{before}{name}.")
        elif before:  # not kind, name and about
            yield before + name


def _runs(ctx: Any, incomplete: str, kind: str | None) -> list[str]:
    from brics_cli.workspace import Workspace, embedded
    from brics_cli.workspace.artefacts import TRAINED

    workspace = Workspace(Path(ctx.params.get("workspace") or "."))
    kinds = TRAINED if kind is None else {kind}
    found = [str(each.path) for each in workspace.artefacts() if each.kind in kinds]
    return _matching(incomplete, [*found, *(model.name for model in embedded.MODELS if model.kind in kinds)])


def _matching(incomplete: str, names: Any) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
