"""The card of what is published on the Hub: metadata that its search reads, then what it is, how to use it, what was
measured, and what it was made from. Nothing is said that no file of the run says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import brics_cli
from brics_cli.autoencoder.autoencoder import Autoencoder
from brics_cli.codes import KeyCodeStore
from brics_cli.config import load_yaml
from brics_cli.diffusion.denoisers import Denoiser
from brics_cli.runtime.reporting import printable
from brics_cli.wording import count
from brics_cli.workspace import Artefact
from brics_cli.workspace.embedded import embedded_at
from brics_cli.workspace.files import read_json
from brics_cli.workspace.hub import parse_address

PAPER = "[BRICS](https://arxiv.org/abs/2305.18601)"
TASKS = {"autoencoder": "image-feature-extraction", "diffusion": "unconditional-image-generation"}
METRICS = {
    "val/psnr": ("psnr", "PSNR, dB"),
    "val/ssim": ("ssim", "SSIM"),
    "val/usage": ("usage", "share of table entries in use"),
    "val/fd-random": ("fd-random", "FD-random (comparable within brics alone)"),
}
"""What of a run's scores goes into a card: the Hub's name of it, and ours."""
CAPTIONS = {
    "reconstructions": "Validation images, and their reconstructions below them.",
    "samples": "Samples, drawn at the end of training.",
    "decoded": "Images from all of the store, decoded from their codes.",
    "curves": "The training run.",
}


@dataclass(frozen=True)
class Card:
    """`use`, `python`: how to use it, with `{address}` for where it is; `facts`, `training`: rows of tables;
    `measured`: scores by their names in a run, on images called `measured_on`; `name`: of the repository."""

    kind: str
    about: str
    use: Sequence[str]
    python: Sequence[str]
    facts: Mapping[str, object]
    training: Mapping[str, object] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)
    measured_on: str = ""
    tags: Sequence[str] = ()
    address: str = ""
    name: str = ""
    licence: str | None = None
    pictures: Sequence[str] = ()

    def text(self) -> str:
        """The Markdown, metadata first."""
        shown = {name: value for name, value in self.measured.items() if name in METRICS}
        parts = [
            f"---\n{self._metadata(shown)}---",
            f"# {self.name}",
            f"{self.about} Made with brics {brics_cli.__version__} (`pip install brics-cli`), after {PAPER}.",
            "## Use",
            "```sh\n" + "\n".join(self.use).format(address=self.address) + "\n```",
            "```python\n" + "\n".join(self.python).format(address=self.address) + "\n```",
            "## What it is",
            _table(self.facts),
        ]
        if shown:
            scores = {METRICS[name][1]: f"{value:.4g}" for name, value in shown.items()}
            parts += ["## Measured", f"By the run itself, on {_plain(self.measured_on)}:", _table(scores)]
        for picture in self.pictures:
            caption = CAPTIONS[Path(picture).stem]
            parts += [f"![{caption}]({picture})", caption]
        if self.training:
            parts += ["## Made from", _table(self.training)]
        parts += ["## Licence", self.licence or "None is stated."]
        return "\n\n".join(parts) + "\n"

    def _metadata(self, scores: Mapping[str, float]) -> str:
        from huggingface_hub import DatasetCardData, EvalResult, ModelCardData

        tags = ["brics", *self.tags]
        if self.kind == "store":
            return _yaml(DatasetCardData(license=self.licence, tags=tags, pretty_name=self.name))
        results = [
            EvalResult(
                task_type=TASKS[self.kind],
                dataset_type="validation",
                dataset_name=_plain(self.measured_on),
                metric_type=METRICS[name][0],
                metric_name=METRICS[name][1],
                metric_value=round(value, 4),
            )
            for name, value in scores.items()
        ]
        return _yaml(
            ModelCardData(
                license=self.licence,
                library_name="brics-cli",
                pipeline_tag=TASKS[self.kind],
                tags=tags,
                model_name=self.name if results else None,
                eval_results=results or None,
            )
        )


def card_of_autoencoder(artefact: Artefact, model: Autoencoder) -> Card:
    """The card of a trained autoencoder."""
    config = model.config
    size, shape = config.image_size, config.code_shape
    others = f" (or of other multiples of {config.downsampling})" if config.tied_to_size is None else ""
    codes = "codes in [0, 1]" if config.code_kind == "bounded" else "codes"
    return Card(
        kind="autoencoder",
        about=f"An autoencoder: images of {size} px{others} to {codes} of {_shape(shape)}, and back.",
        use=[
            "brics reconstruct photo.jpg --ae {address}",
            "brics encode-dataset IMAGES --ae {address} --out codes.h5",
        ],
        python=[
            "from brics_cli import load_autoencoder",
            "",
            'autoencoder = load_autoencoder("{address}")',
            f"codes = autoencoder.encode(images)  # (B, 3, {size}, {size}) in [-1, 1] -> (B, {_commas(shape)})",
            "images = autoencoder.decode(codes)",
        ],
        facts={
            "codes": f"{_shape(shape)}, {config.pixels_per_code:g} pixel values per number",
            "bottleneck": config.bottleneck.kind,
            "parameters": _parameters(model),
            "transform": model.transform,
            "sha256 of the weights": model.weights_sha256,
        },
        training=_training(artefact),
        measured=_scores(artefact),
        measured_on=_validation(artefact),
        tags=["image-tokenizer", "autoencoder"],
    )


def card_of_diffusion(artefact: Artefact, denoiser: Denoiser, decoder: Autoencoder) -> Card:
    """The card of a trained diffusion model, whose codes `decoder` decodes."""
    classes = count(denoiser.num_classes, "class") if denoiser.num_classes else "no classes"
    return Card(
        kind="diffusion",
        about=f"A diffusion model on key codes; it draws images of {decoder.config.image_size} px.",
        use=["brics sample --model {address} --grid 4x8 --out grid.png", "brics sample --model {address} --n 1000"],
        python=[
            "import brics_cli",
            "",
            'brics_cli.sample("{address}", num=64, out="samples")',
        ],
        facts={
            "network": denoiser.config.kind,
            "parameters": _parameters(denoiser),
            "objective": f"{denoiser.diffusion.objective}, {denoiser.diffusion.schedule}",
            "codes": _shape(denoiser.code_shape),
            "classes": f"{classes}{': ' if denoiser.class_names else ''}{', '.join(denoiser.class_names[:10])}",
            "autoencoder": f"`autoencoder/`, sha256 {decoder.weights_sha256}",
            "sha256 of the weights": denoiser.weights_sha256,
        },
        training=_training(artefact),
        measured=_scores(artefact),
        measured_on="decoded codes of its store",
        tags=["diffusion"],
    )


def card_of_store(artefact: Artefact, store: KeyCodeStore, decoder: Autoencoder) -> Card:
    """The card of a key-code store, whose codes `decoder` decodes."""
    labels = int((store.labels >= 0).sum())
    form = "one HDF5 file, `codes.h5`"
    if store.is_folder:
        form = f"{count(len(store.part_paths), 'part')}, of which `index.h5` makes one array for any HDF5 reader"
    return Card(
        kind="store",
        about=f"The key codes of {count(len(store), 'image')} of {store.image_size} px, in {form}.",
        use=["brics train-diffusion {address}", "brics decode {address} --out images"],
        python=[
            "from brics_cli import KeyCodeStore",
            "",
            'store = KeyCodeStore("{address}")',
            f"codes = store.batch([0, 1])  # (2, {_commas(store.code_shape)}) float32",
        ],
        facts={
            "images": f"{len(store):,}, {len(store.failures):,} more could not be read",
            "codes": f"{_shape(store.code_shape)}, {store.quantisation}",
            "flipped images": "also encoded" if store.has_flipped else "not encoded",
            "labels": f"{labels:,} images, {count(len(store.class_names), 'name')} of classes",
            "transform": store.transform,
            "autoencoder": f"`autoencoder/`, sha256 {decoder.weights_sha256}",
            "sha256 of the rows": store.sha256,
        },
        training=_parents(artefact),
        tags=["key-codes"],
    )


def _training(artefact: Artefact) -> dict[str, object]:
    """What the files of the run say of its making."""
    rows: dict[str, object] = {}
    if (artefact.path / "config.yaml").is_file():
        recipe = load_yaml(artefact.path / "config.yaml")
        training = recipe["training"]
        rows["recipe"] = f"`config.yaml` ({recipe['name']})"
        rows["steps"] = f"{artefact.details.get('step', 0):,} of {training['batch_size']:,}, seed {training['seed']}"
    rows |= _parents(artefact)
    if (artefact.path / "environment.json").is_file():
        made_on = read_json(artefact.path / "environment.json", what="the run")
        rows["device"] = f"{made_on['device']}, {count(made_on['num_cpus'], 'core')}"
        rows["software"] = f"brics {made_on['brics']}, torch {made_on['packages']['torch']}, Python {made_on['python']}"
    return rows


def _parents(artefact: Artefact) -> dict[str, object]:
    return {parent.kind: f"{published_name(parent.path)}, sha256 {parent.sha256}" for parent in artefact.parents}


def published_name(path: str) -> str:
    """What is published of the path of a parent: where others find it, or its name alone."""
    is_public = parse_address(path) is not None or embedded_at(path) is not None
    return path if is_public else f"{Path(path).name} (not published)"


def _scores(artefact: Artefact) -> dict[str, float]:
    return {name: value for name, value in artefact.details.items() if isinstance(value, float)}


def _validation(artefact: Artefact) -> str:
    own = artefact.parent("validation")
    return f"{Path(own.path).name}" if own is not None else "images held out of its own data, by hash of their key"


def _table(rows: Mapping[str, object]) -> str:
    lines = [f"| {name} | {_plain(str(value))} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _plain(text: str) -> str:
    """Text of names, in one line of Markdown or a cell of a table."""
    return printable(text).replace("|", "\\|")


def _yaml(metadata: Any) -> str:
    return f"{metadata.to_yaml()}\n"


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _commas(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))


def _parameters(model: Any) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f} M"
