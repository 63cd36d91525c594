"""From a recipe's YAML and `--set` overrides to a validated recipe: defaults < recipe < --set in order < flags.

Recipes are in `recipes/` of a checkout, in `brics_cli/_recipes` of an installed wheel, or at a user's path.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml

from brics_cli.config.names import RecipeKind
from brics_cli.config.suggestions import did_you_mean
from brics_cli.errors import ArtefactError, UsageError
from brics_cli.parsing import read_text

if TYPE_CHECKING:
    from brics_cli.config.runs import Recipe

KINDS: tuple[str, ...] = get_args(RecipeKind)

_TRAINS = {"autoencoder": "train-ae", "diffusion": "train-diffusion"}
"""Kind of recipe -> the command that trains it."""
_SPELLINGS = {"optimizer": "optimiser", "normalize": "normalise"}
"""American spellings of keys, accepted wherever ours are."""
MOST_YAML_BYTES = 1 << 20
MOST_VALUES = 100_000


class _Loader(yaml.SafeLoader):
    """YAML with `1e-4` a number (YAML 1.1 wants `1.0e-4`), a key written twice an error, and JSON's pairs of escapes
    one character."""

    def construct_scalar(self, node: Any) -> Any:
        text = super().construct_scalar(node)
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise ValueError("it holds one half of a pair of escapes, which is no character") from None

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str, *, source: str) -> Any:
    """The value of a YAML text. Raises UsageError with the line of a syntax error."""
    try:
        loader = _Loader(text)  # a SafeLoader
        try:
            node = loader.get_single_node()
            _count(node, {}, source=source)
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UsageError(f"{source}{where}: {problem}") from None
    except RecursionError:
        raise UsageError(f"{source}: it is nested too deeply") from None
    except (ValueError, TypeError) as error:  # an impossible date, a list as a key
        raise UsageError(f"{source}: {error}") from None


def _count(node: yaml.Node | None, known: dict[int, int], *, source: str) -> int:
    """The number of values of a node, its aliases written out. Raises UsageError for more than MOST_VALUES."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = MOST_VALUES  # until it is known: an alias to what it is part of has no end
        below = (part for item in node.value for part in (item if isinstance(item, tuple) else (item,)))
        known[id(node)] = 1 + sum(_count(part, known, source=source) for part in below)
    if known[id(node)] > MOST_VALUES:
        raise UsageError(f"{source}: with its aliases written out it has more than {MOST_VALUES:,} values")
    return known[id(node)]


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping. Raises UsageError (syntax, not a mapping), ArtefactError (missing)."""
    try:
        text = read_text(path, most=MOST_YAML_BYTES)
    except FileNotFoundError:
        raise ArtefactError(f"{path} is missing") from None
    except (ValueError, IsADirectoryError) as error:
        why = "a folder" if isinstance(error, IsADirectoryError) else error
        raise UsageError(f"{path} is not a YAML file ({why})") from None
    values = parse_yaml(text, source=str(path))
    if not isinstance(values, dict):
        raise UsageError(f"{path}: a recipe is a mapping of keys to values")
    return values


def load_recipe(name_or_path: str, *, kind: str, overrides: Sequence[str] = (), **flags: Any) -> Recipe:
    """The recipe `name_or_path` with `overrides` (`a.b=c`) and `flags` (dotted key, `__` for the dot) applied.

    A flag of None is one that was not given. Raises UsageError for an unknown recipe, a misspelt key or a wrong
    value, with the nearest right one.
    """
    path = recipe_path(name_or_path, kind=kind)
    return recipe_from_values(load_yaml(path), kind=kind, overrides=overrides, source=str(path), **flags)


def recipe_files(name_or_path: str) -> dict[str, Path]:
    """The recipes of that name by kind (an autoencoder's and a diffusion model's may share one), or the one at a path.

    Raises UsageError when there is no such recipe, with the nearest name of either kind.
    """
    if is_recipe_path(name_or_path):
        path = recipe_path(name_or_path, kind="autoencoder")
        kind = str(load_yaml(path).get("kind"))
        if kind not in KINDS:
            raise UsageError(f"{name_or_path}: {kind!r} is not a kind of recipe{did_you_mean(kind, KINDS)}")
        return {kind: path}
    known = {name for kind in KINDS for name in list_recipes(kind)}
    if name_or_path not in known:
        raise UsageError(
            f"no recipe {name_or_path!r}{did_you_mean(name_or_path, sorted(known))}",
            next="`brics recipes` lists them all.",
        )
    return {kind: files[name_or_path] for kind in KINDS if name_or_path in (files := list_recipes(kind))}


def recipe_from_values(
    values: dict[str, Any], *, kind: str, overrides: Sequence[str] = (), source: str, **flags: Any
) -> Recipe:
    """As `load_recipe`, from a mapping already read."""
    from brics_cli.config.base import validate  # pydantic takes .3 s, which listing recipes does without
    from brics_cli.config.runs import AutoencoderRecipe, DiffusionRecipe

    recipe_type: type[AutoencoderRecipe] | type[DiffusionRecipe]
    recipe_type = AutoencoderRecipe if kind == "autoencoder" else DiffusionRecipe
    values = _spelt(values, source=source)
    found = values.get("kind")
    if found != kind:
        known = did_you_mean(str(found), KINDS) if found not in KINDS else ""
        raise UsageError(f"{source} is a recipe of kind {found!r}, and this command trains kind {kind!r}{known}")
    base = validate(recipe_type, values, source=source)
    if not overrides and all(value is None for value in flags.values()):
        return base
    changed = apply_overrides(base.model_dump(mode="json"), overrides)  # complete, so that every block has its kind
    for key, value in flags.items():
        if value is not None:
            _assign(changed, key.split("__"), value)
    return validate(recipe_type, changed, source="--set" if overrides else source)


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`values` with each `a.b=c` applied in order. Setting a block's `kind` to another empties the block first."""
    result = copy.deepcopy(dict(values))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {override!r} is not KEY=VALUE", next="Example: --set optimiser.lr=1e-4")
        _assign(result, key_of(override).split("."), parse_yaml(text, source=f"--set {key}"))
    return result


def key_of(override: str) -> str:
    """The dotted key of `a.b=c`, in our spelling."""
    return ".".join(_SPELLINGS.get(part, part) for part in override.partition("=")[0].strip().split("."))


def _assign(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    block = values
    for depth, part in enumerate(path[:-1]):
        below = block.setdefault(part, {})
        if not isinstance(below, dict):
            raise UsageError(f"--set {'.'.join(path)}: {'.'.join(path[: depth + 1])} is a value, not a block")
        block = below
    if path[-1] == "kind" and len(path) > 1 and block.get("kind") != value:
        block.clear()
    block[path[-1]] = value


def _spelt(values: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """`values` with our spelling of every key. Raises UsageError for a key that is there in both spellings."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        ours = _SPELLINGS.get(key, key)
        if ours in result:
            raise UsageError(f"{source}: {ours!r} appears twice, in both spellings")
        result[ours] = _spelt(value, source=source) if isinstance(value, Mapping) else value
    return result


def dump_yaml(recipe: Recipe) -> str:
    """The recipe, complete with defaults, as YAML that `load_recipe` reads back to the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


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
        for other in {*KINDS} - {kind}:
            if name_or_path in list_recipes(other):
                raise UsageError(
                    f"{name_or_path!r} is a recipe of kind {other!r}, and this command takes kind {kind!r}",
                    next=f"`brics {_TRAINS[other]} --recipe {name_or_path}` trains it.",
                )
        raise UsageError(
            f"no {kind} recipe {name_or_path!r}{did_you_mean(name_or_path, known)}",
            next="`brics recipes` lists them all.",
        )
    return known[name_or_path]


def default_autoencoder_recipe(median_side: int) -> str:
    """The name of the largest general recipe not above `median_side` pixels (the smallest when all are above)."""
    sizes = general_autoencoder_recipes()
    fitting = [size for size in sizes if size <= median_side]
    return sizes[max(fitting) if fitting else min(sizes)]


def general_autoencoder_recipes() -> dict[int, str]:
    """Those named after their image size in pixels alone: `brics-64`, `brics-256`, ..."""
    return {
        int(name.removeprefix("brics-")): name
        for name in list_recipes("autoencoder")
        if name.removeprefix("brics-").isdigit()
    }
