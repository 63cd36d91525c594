"""What a run differs in from its recipe, and how that is said in few words: `tiny bottleneck.kind=vq seed=1`.

`changed` maps a dotted key to [the recipe's value, the run's]. Loads no pydantic: `brics status` says these words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from brics_cli.errors import UsageError

if TYPE_CHECKING:
    from brics_cli.config.runs import Recipe

Changed = dict[str, list[Any]]

SAME_RUN = (
    *("name", "about", "kind", "data.cache_gib", "training.loggers", "training.log_every", "training.val_every"),
    *("training.snapshot_every", "training.checkpoint_every", "training.keep_checkpoints", "training.store_on_device"),
    "training.fd_samples",
)
"""What two runs of the same results may differ in."""
MAX_NAME = 60
"""Characters of a run's name after its date."""


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def changes(base: Recipe, recipe: Recipe) -> Changed:
    """What `recipe` differs in from `base`. Of a block of another `kind` that, and what differs from its defaults."""
    from brics_cli.config.loading import recipe_from_values

    values, now = base.model_dump(mode="json"), flatten(recipe.model_dump(mode="json"))
    was = flatten(values)
    kinds = {key: [was.get(key), now[key]] for key in now if key.endswith(".kind") and now[key] != was.get(key)}
    if kinds:
        flags = {key.replace(".", "__"): kind for key, (_, kind) in kinds.items()}
        with suppress(UsageError):  # a kind that needs more than its name
            was = flatten(recipe_from_values(values, kind=base.kind, source="", **flags).model_dump(mode="json"))
    return kinds | changes_of_values(was, now)


def changes_of_values(was: Mapping[str, Any], now: Mapping[str, Any]) -> Changed:
    """The same of flat values."""
    return {key: [was.get(key), value] for key, value in now.items() if key not in SAME_RUN and was.get(key) != value}


def label(details: Mapping[str, Any]) -> str:
    """The recipe and what differs from it, of a trained artefact's details; empty where they say no recipe."""
    return " ".join([str(details.get("recipe", "")), *_pairs(read_changed(details))]).strip()


def differences_said(changed: Changed) -> str:
    """`bottleneck.kind=vq seed=1`."""
    return " ".join(_pairs(changed))


def read_changed(details: Mapping[str, Any]) -> Changed:
    """What the details of an artefact say that differs; what is of another form, which nobody of us wrote, is not."""
    changed = details.get("changed")
    pairs = changed.items() if isinstance(changed, dict) else ()
    return {key: pair for key, pair in pairs if isinstance(pair, list) and len(pair) == 2}


def run_name(details: Mapping[str, Any]) -> str:
    """`label` as part of a file's name, at most `MAX_NAME` characters."""
    recipe, *pairs = label(details).split(" ")
    words = [recipe, *(re.sub(r"[^\w.+=,-]", "_", pair, flags=re.ASCII) for pair in pairs)]
    left_out = 0
    while len(words) > 1 and len("-".join(words)) > MAX_NAME:
        words.pop()
        left_out += 1
    return "-".join([*words, *([f"and-{left_out}-more"] if left_out else [])])


def _pairs(changed: Changed) -> list[str]:
    """Keys without the block that says nothing; values without spaces."""
    return [f"{re.sub(r'^(model|training)[.]', '', key)}={_text(value)}" for key, (_, value) in changed.items()]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return re.sub(r"\s", "_", text)
