"""`brics info`: what a path is and holds: a key-code store, anything else that brics made, or a collection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from brics_cli.errors import UsageError
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace import Artefact, provenance_at
from brics_cli.workspace.artefacts import TRAINED
from brics_cli.workspace.embedded import embedded_at
from brics_cli.workspace.files import read_json
from brics_cli.workspace.hub import address_in_cache, parse_address
from brics_cli.workspace.naming import CONFIG_NAME, is_store, model_directory
from brics_cli.workspace.places import locate_unless_images
from brics_cli.workspace.remote import as_url, is_remote, shown

MAX_LISTED_FAILURES = 20
KINDS = ("autoencoder", "diffusion")
"""Of recipes."""


@dataclass(frozen=True)
class Description:
    """`facts` in the order in which they are shown. `broken`: invariants that a store breaks; None: not verified.
    `card`: the model card, of an embedded model or one of the Hub."""

    what: str
    path: Path | str
    facts: dict[str, Any] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    broken: list[str] | None = None
    card: str | None = None


def describe(
    path: str,
    *,
    verify: bool = False,
    subset: str | None = None,
    image_field: str | None = None,
    reporter: Reporter | None = None,
) -> Description:
    """Look at `path`, or at a `subset` of the collections there, or its images `image_field`.

    What is on the Hub is downloaded, which `reporter` hears. `verify` checks every invariant of a store, in a child
    process with a time limit.

    Raises UsageError and ArtefactError as `open_collection` and `KeyCodeStore`; UsageError for `verify` on anything
    but a store.
    """
    if (subset is not None or image_field is not None) and not verify:
        return _describe_collection(path, subset, image_field)
    named, path = path, str(locate_unless_images(path, reporter=reporter))
    if is_store(path):
        described = _describe_store(Path(path), verify=verify, reporter=reporter)
        is_fetched = is_remote(named) and parse_address(named) is None
        return replace(described, path=shown(as_url(named))) if is_fetched else described
    if verify:
        raise UsageError(
            f"--verify checks key-code stores, and {path} is not one", next="Give a .h5 file, or the folder of one."
        )
    if (shipped := embedded_at(path)) is not None:
        shipped.check()
    artefact = provenance_at(path)
    if artefact is not None:
        return _describe_artefact(artefact)
    return _describe_collection(path, None, None)


def _describe_store(path: Path, *, verify: bool, reporter: Reporter | None) -> Description:
    from brics_cli import codes  # NumPy takes .2 s, which runs do without

    broken = codes.verify_store_in_child(path, reporter=reporter) if verify else None
    if broken:  # what is broken may be the header: nothing else can be said for sure
        return Description("key-code store", path, broken=broken)
    store = codes.KeyCodeStore(path)
    header, made_by, num_bytes = store.header, store.artefact.parent("autoencoder"), store.num_bytes
    chosen = {"part": header.part, "selection": header.selection[:12], "labels": header.labels}  # where it is not all
    facts: dict[str, Any] = {
        **_hub_address(path),
        "images": len(store),
        "failed": len(store.failures),
        "code_shape": list(store.code_shape),
        "image_size": store.image_size,
        "quantisation": store.quantisation,
        "flipped": store.has_flipped,
        **({"parts": len(store.shards)} if store.is_folder else {}),
        "bytes": num_bytes,
        "bytes_per_image": round(num_bytes / len(store), 1),
        "transform": f"{store.transform}/{store.transform_version}",
        "precision": store.precision,
        "shards": len(store.shards),
        "labelled": int((store.labels >= 0).sum()),
        **_classes(Counter(store.labels[store.labels >= 0].tolist()), store.class_names),
        "mean": [round(float(value), 4) for value in store.mean],
        "std": [round(float(value), 4) for value in store.std],
        "source": store.source,
        **{name: value for name, value in chosen.items() if value},
        "autoencoder": made_by.path if made_by is not None else None,
        "autoencoder_sha256": store.autoencoder["sha256"],
        "sha256": store.sha256,
        "created": store.created,
        "brics_version": store.brics_version,
    }
    return Description("key-code store", path, facts, store.failures, broken)


def _classes(counts: Mapping[int, int], names: Sequence[str]) -> dict[str, Any]:
    """How many images each class has, by its name, for those that have any."""
    named = dict(enumerate(names))
    classes = {named.get(label, str(label)): counts[label] for label in sorted(counts) if counts[label]}
    return {"classes": classes} if classes else {}


def _hub_address(path: Path) -> dict[str, str]:
    address = address_in_cache(path)
    return {} if address is None else {"from": str(address)}


def _describe_artefact(artefact: Artefact) -> Description:
    facts: dict[str, Any] = {"created": artefact.created, "complete": artefact.complete} if artefact.created else {}
    facts |= _hub_address(artefact.path)
    for parent in artefact.parents:
        facts[f"made from {parent.kind}"] = f"{parent.path} ({parent.sha256[:12]})"
    facts |= {name: value for name, value in artefact.details.items() if name != "settings" and value != []}
    facts |= artefact.details.get("settings", {})
    if artefact.kind == "diffusion" and artefact.usable:
        config = read_json(model_directory(artefact.path) / CONFIG_NAME, what="the model's config")
        facts |= _classes(dict(enumerate(config.get("class_counts", []))), config.get("class_names", []))
    card = None
    if artefact.kind in TRAINED and model_directory(artefact.path) == artefact.path:  # no run of the user's
        from brics_cli.jobs.models import card_of

        card = card_of(artefact)
    return Description(artefact.kind, artefact.path, facts, card=card)


def _describe_collection(path: str, subset: str | None, image_field: str | None) -> Description:
    from brics_cli.images import median_side, open_collection
    from brics_cli.images.fingerprints import known_fingerprint

    collection = open_collection(path, subset=subset, image_field=image_field)
    facts: dict[str, Any] = {
        "images": len(collection),
        "format": collection.kind,
        "shards": len(collection.shards),
        "bytes": sum(shard.size_bytes for shard in collection.shards),
        "median_side": median_side(collection),
        "fingerprint": known_fingerprint(collection),
        "description": collection.describe(),
    }
    if collection.class_names:
        facts["class_names"] = list(collection.class_names)
    if collection.remark:
        facts["remark"] = collection.remark
    facts["not_read"] = collection.passed_over.to_json()
    is_named = subset is None and not is_remote(path)
    return Description("collection", Path(path) if is_named else collection.path, facts)


@dataclass(frozen=True)
class FlopCount:
    """`rows`: those of `autoencoder.flops.count` and `diffusion.flops.count`, with the recipe's name and kind.
    `code_shape` (C, h, w): what its diffusion recipes were counted on; None where there is none."""

    rows: list[dict[str, Any]]
    code_shape: tuple[int, int, int] | None


def count_flops(name: str, *, code_shape: tuple[int, int, int] | None = None) -> FlopCount:
    """Every recipe of that name or path, or all of the kind `name` (autoencoder or diffusion), counted.

    `code_shape` is what diffusion recipes are counted on, `diffusion.flops.DEFAULT_CODE_SHAPE` if it is None. Raises
    UsageError for a name that is no recipe, with the nearest one, for codes that the recipe does not fit, and for a
    `code_shape` with no diffusion recipe to count on it.
    """
    from brics_cli.autoencoder import flops as autoencoders
    from brics_cli.config import DiffusionRecipe, list_recipes, load_recipe, recipe_files
    from brics_cli.diffusion import flops as denoisers

    if name in KINDS:
        recipes = [load_recipe(recipe, kind=name) for recipe in list_recipes(name)]
    else:
        recipes = [load_recipe(str(path), kind=kind) for kind, path in recipe_files(name).items()]
    if not any(recipe.kind == "diffusion" for recipe in recipes):
        if code_shape is not None:
            raise UsageError(f"--code-shape is for diffusion recipes, and {name} is of kind autoencoder")
    elif code_shape is None:
        code_shape = denoisers.DEFAULT_CODE_SHAPE
    rows = []
    for recipe in recipes:
        if isinstance(recipe, DiffusionRecipe):
            counted = denoisers.count(recipe, code_shape=code_shape)
        else:
            counted = autoencoders.count(recipe)
        rows += [{"recipe": recipe.name, "kind": recipe.kind, **row._asdict()} for row in counted]
    return FlopCount(rows, code_shape)
