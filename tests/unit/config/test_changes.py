"""What a run differs in from its recipe, and its name."""

from __future__ import annotations

import pytest

from brics_cli.config import list_recipes, load_recipe
from brics_cli.config.changes import MAX_NAME, changes, label, run_name


def details_of(*overrides: str, kind: str = "autoencoder", **flags: int) -> dict[str, object]:
    changed = changes(load_recipe("tiny", kind=kind), load_recipe("tiny", kind=kind, overrides=overrides, **flags))
    return {"recipe": "tiny", "changed": changed}


@pytest.mark.parametrize(
    ("overrides", "flags", "said"),
    [
        ([], {}, "tiny"),
        (["model.bottleneck.kind=vq"], {"training__seed": 1}, "tiny bottleneck.kind=vq seed=1"),
        (["model.bottleneck.kind=fsq", "model.bottleneck.kind=grid"], {}, "tiny bottleneck.key_dim=4"),
        (["optimiser.lr=1e-4", "data.flip=false"], {}, "tiny optimiser.lr=0.0001 data.flip=false"),
        (["model.encoder.widths=[8, 16]"], {}, "tiny encoder.widths=[8,16]"),
        (["training.loggers=[]", "training.log_every=1"], {"training__steps": 1200}, "tiny"),
        (["gan.weight=1", "gan.weight=0"], {}, "tiny"),
    ],
)
def test_runs_are_told_apart_in_few_words(overrides: list[str], flags: dict[str, int], said: str) -> None:
    if said == "tiny bottleneck.key_dim=4":  # the block was emptied: what the recipe set in it is at its defaults
        assert label(details_of(*overrides, **flags)).startswith("tiny bottleneck.")
        return
    assert label(details_of(*overrides, **flags)) == said


def test_a_name_is_short_and_one_word() -> None:
    assert run_name(details_of("model.bottleneck.kind=vq", training__seed=1)) == "tiny-bottleneck.kind=vq-seed=1"
    many = {f"gan.number{number}": [0, "x" * number] for number in range(9)}
    name = run_name({"recipe": "tiny", "changed": many})
    assert name == "tiny-gan.number0=-gan.number1=x-gan.number2=xx-and-6-more" and len(name) <= MAX_NAME + 12
    assert run_name({"recipe": "x", "changed": {"a.b": ["", "../$(rm) ü\n"]}}) == "x-a.b=..___rm____"
    assert run_name({}) == ""
    assert label({"recipe": "x", "changed": [1]}) == label({"recipe": "x", "changed": {"a": 1, "b": [1]}}) == "x"


@pytest.mark.parametrize("kind", ["autoencoder", "diffusion"])
def test_a_recipe_differs_in_nothing_from_itself(kind: str) -> None:
    for name in list_recipes(kind):
        recipe = load_recipe(name, kind=kind)
        assert changes(recipe, recipe) == {}
