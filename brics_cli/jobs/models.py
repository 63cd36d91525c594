"""`brics models`: the models that are embedded in brics, and those that the workspace has trained. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from brics_cli.config.loading import parse_yaml, recipes_root
from brics_cli.errors import BricsError, UsageError
from brics_cli.parsing import read_text
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace import Artefact, Workspace, embedded
from brics_cli.workspace.artefacts import TRAINED, of_embedded
from brics_cli.workspace.files import read_json
from brics_cli.workspace.naming import CONFIG_NAME, WEIGHTS_NAME, model_directory
from brics_cli.workspace.places import reference

CARD_FILE = "README.md"
"""Of a model that was published."""
SCORES = ("val/psnr", "val/ssim", "val/fd-random")
"""Of what a run has measured on its validation images, what a list has room for."""


@dataclass(frozen=True)
class ModelEntry:
    """A model: `num_bytes` of its weights, the shape (C, h, w) of its codes, their `downsampling` where images may be
    of any multiple of that, `quality` by metric as its run measured it in validation, and the `licence` that its card
    states."""

    name: str
    kind: str
    num_bytes: int
    code_shape: tuple[int, ...]
    downsampling: int | None
    quality: dict[str, float]
    licence: str | None
    is_embedded: bool


def list_models(workspace: Workspace, *, reporter: Reporter) -> list[ModelEntry]:
    """The embedded models, then those of `workspace`, newest first; `reporter` hears of those that cannot be read."""
    shipped = [of_embedded(model) for model in embedded.MODELS]
    trained = [each for each in workspace.artefacts() if each.kind in TRAINED and each.usable]
    for path, reason in workspace.passed_over.items():
        reporter.warning(f"{path} is passed over: {reason}")
    entries = []
    for number, artefact in enumerate([*shipped, *trained]):
        try:
            if number < len(shipped):
                embedded.MODELS[number].check()
            entries.append(_entry(artefact, is_embedded=number < len(shipped)))
        except BricsError as error:
            reporter.warning(f"{artefact.path} is passed over: {error.what}")
    return entries


def _entry(artefact: Artefact, *, is_embedded: bool) -> ModelEntry:
    directory = model_directory(artefact.path)
    config = read_json(directory / CONFIG_NAME, what=f"{artefact.kind} model")
    downsampling = None
    if "model" in config:
        from brics_cli.config import AutoencoderConfig, validate  # with pydantic, which `brics info` does without

        model = validate(AutoencoderConfig, config["model"], source=str(directory / CONFIG_NAME))
        shape, downsampling = model.code_shape, None if model.tied_to_size else model.downsampling
    else:
        shape = tuple(config.get("code_shape", ()))
    measured = {**config, **artefact.details}
    return ModelEntry(
        name=reference(artefact.path) if is_embedded else str(artefact.path),
        kind=artefact.kind,
        num_bytes=(directory / WEIGHTS_NAME).stat().st_size,
        code_shape=shape,
        downsampling=downsampling,
        quality={name: measured[name] for name in SCORES if isinstance(measured.get(name), float)},
        licence=licence_of(card_of(artefact)),
        is_embedded=is_embedded,
    )


def card_of(artefact: Artefact) -> str | None:
    """The card of a model: of an embedded one what ships with it, else what was published with it; None: neither."""
    if artefact.kind not in TRAINED:
        return None
    model = embedded.embedded_at(artefact.path)
    path = artefact.path / CARD_FILE if model is None else recipes_root() / "models" / f"{model.name}.md"
    return read_text(path) if path.is_file() else None


def licence_of(card: str | None) -> str | None:
    """What the metadata of a card say, `cc-by-4.0` say; None where they say nothing."""
    if card is None or not card.startswith("---\n"):
        return None
    metadata: Any = None
    try:
        metadata = parse_yaml(card.split("---\n")[1], source="the card")
    except UsageError:
        return None
    licence = metadata.get("license") if isinstance(metadata, dict) else None
    return str(licence) if licence else None
