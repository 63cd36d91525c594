"""`brics recipes`: list them, or show one."""

from __future__ import annotations

from typing import Annotated, Any, get_args

import typer

from brics_cli.cli import completion, options
from brics_cli.cli.output import Session, plain_table
from brics_cli.config.names import RecipeKind

app = options.command_app(invoke_without_command=True)


@app.callback()
def recipes(context: typer.Context, as_json: options.Json = False) -> None:
    """List the recipes, or show one.

    A recipe is a YAML file that fully determines a training run. Give its name or a path of your own to --recipe, and
    change single values with --set.

    Example: brics recipes show brics-256 --full
    """
    if context.invoked_subcommand is not None:
        return
    from brics_cli.config import list_recipes, load_yaml

    found = [
        {"kind": kind, "name": name, "about": load_yaml(path)["about"]}
        for kind in get_args(RecipeKind)
        for name, path in list_recipes(kind).items()
    ]
    table = plain_table("recipe", "kind", "about")
    for column in table.columns:
        column.justify = "left"
    for row in found:
        table.add_row(row["name"], row["kind"], row["about"])
    session = Session(as_json=as_json)
    session.result(found, table)
    session.next_step("brics", "recipes", "show", "tiny")


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|PATH", autocompletion=completion.recipes, help="A shipped recipe, or a YAML file."
        ),
    ],
    kind: Annotated[
        RecipeKind | None, typer.Option("--kind", help="Only this one, where both kinds have a recipe of that name.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="With every default written out.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show a recipe as it is written, or complete with every default.

    Example: brics recipes show tiny --kind diffusion
    """
    from brics_cli.config import dump_yaml, load_recipe, recipe_files

    found = {of: path for of, path in recipe_files(name).items() if kind in (None, of)}
    values: list[Any] = []
    if full or as_json:
        recipes = [load_recipe(str(path), kind=of) for of, path in found.items()]
        texts = [dump_yaml(recipe) for recipe in recipes]
        values = [recipe.model_dump(mode="json") for recipe in recipes]
    else:
        texts = [path.read_text("utf-8") for path in found.values()]
    text = "\n\n".join(each.rstrip() for each in texts)
    Session(as_json=as_json).result(values[0] if len(values) == 1 else values, text.split("\n"))
