"""`brics models push`: a trained run or a key-code store -> a repository of the Hugging Face Hub, in one commit.

Of a model: `config.json`, its safetensors, `config.yaml` (the recipe), `brics.json` (the provenance), `README.md` (its
card) and `pictures/`; of a diffusion model or store also `autoencoder/`, without which its codes are no images. Paths
of this machine stay here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from brics_cli.autoencoder.autoencoder import Autoencoder, load_autoencoder, to_uint8
from brics_cli.autoencoder.model_files import read_model_config
from brics_cli.codes import KeyCodeStore
from brics_cli.codes.lineage import load_autoencoder_of, load_store_autoencoder
from brics_cli.diffusion.denoisers import load_denoiser
from brics_cli.errors import ArtefactError, MachineError, UsageError, WouldOverwriteError
from brics_cli.images import contact_sheet
from brics_cli.images.selection import spread
from brics_cli.jobs.model_card import Card, card_of_autoencoder, card_of_diffusion, card_of_store, published_name
from brics_cli.jobs.models import CARD_FILE
from brics_cli.jobs.plot import plot_runs
from brics_cli.runtime.reporting import Reporter
from brics_cli.wording import count
from brics_cli.workspace import Artefact, Parent, Workspace, provenance_at
from brics_cli.workspace.files import PROVENANCE_FILE
from brics_cli.workspace.hub import (
    AUTOENCODER_FOLDER,
    READ,
    Address,
    explained,
    is_offline,
    parse_address,
)
from brics_cli.workspace.naming import CONFIG_NAME, INDEX_NAME, PARTS_FOLDER, WEIGHTS_NAME, store_file

STORE_FILE = "codes.h5"
PICTURES = "pictures/"
SHEET_ROWS, SHEET_COLUMNS = 2, 8
Files = dict[str, Path | bytes]
"""What a repository is filled with, by name."""


@dataclass(frozen=True)
class PushResult:
    """`address` is of the commit that was made (of the repository, where nothing was pushed), `files` are bytes by
    name, and `card` is the text of its README.md."""

    address: str
    kind: str
    files: dict[str, int]
    card: str
    pushed: bool


def push(
    run: str | Path,
    to: str,
    *,
    autoencoder: str | Path | None = None,
    licence: str | None = None,
    private: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    workspace: Workspace,
    reporter: Reporter,
) -> PushResult:
    """Publish `run`, a trained run, a model directory or a key-code store, at `to` (`hf://user/name`).

    `autoencoder` is that of a diffusion model's or a store's codes; None: found by their own record. `licence` is an
    identifier of the Hub's (`cc-by-4.0`) for the card. The repository is made, `private` if that is said, when it is
    not there. Everything is loaded before anything is sent. Raises UsageError for another `to`, ArtefactError for what
    cannot be loaded, WouldOverwriteError for a repository with files in it unless `overwrite` (what is replaced stays
    in its history), MachineError without a network or the permission to write.
    """
    address = parse_address(to)
    if address is None or address.inside or address.is_commit:
        raise UsageError(f"{to} is no repository to push to", next="Write hf://user/name.")
    with TemporaryDirectory(prefix="brics-push-") as made:
        files, card = _collect(run, Path(made), autoencoder, workspace, reporter)
        pictures = [name for name in files if name.startswith(PICTURES)]
        name = address.repo.rpartition("/")[2]
        text = replace(card, address=str(address), name=name, licence=licence, pictures=pictures).text()
        files[CARD_FILE] = text.encode()
        sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
        if licence is None:
            reporter.warning("no licence is stated, so nobody may use it: give --licence, such as cc-by-4.0")
        result = PushResult(str(address), card.kind, sizes, text, pushed=False)
        if dry_run:
            return result
        commit = _upload(address, files, sizes, private=private, overwrite=overwrite, reporter=reporter)
    return replace(result, address=str(commit), pushed=True)


def _collect(
    run: str | Path, made: Path, autoencoder: str | Path | None, workspace: Workspace, reporter: Reporter
) -> tuple[Files, Card]:
    """The files of a publication, but for its card, which is told what it is about. Pictures are drawn in `made`."""
    artefact = provenance_at(run)
    if artefact is None or artefact.kind not in ("autoencoder", "diffusion", "store"):
        what = "was not made by brics" if artefact is None else f"is of kind {artefact.kind!r}"
        raise ArtefactError(
            f"{run} {what}, and a trained run or a key-code store is needed", next="`brics models` lists the models."
        )
    if artefact.kind == "store":
        return _collect_store(artefact, made, autoencoder, workspace, reporter)
    if autoencoder is not None and artefact.kind == "autoencoder":
        raise UsageError(f"--ae goes with diffusion models and stores, and {run} is an autoencoder")
    if not artefact.complete:
        reporter.warning(f"{run} is unfinished ({artefact.details.get('summary', 'no summary')})")
    path = artefact.path
    files = _model_files(artefact)
    if (path / "config.yaml").is_file():
        files["config.yaml"] = path / "config.yaml"
    if sheets := sorted((path / "images").glob("step-*.png")):
        shown = "reconstructions" if artefact.kind == "autoencoder" else "samples"
        files[f"{PICTURES}{shown}.png"] = sheets[-1]
    if (path / "metrics.jsonl").is_file():
        curves = plot_runs([path], out=made / "curves.png", workspace=workspace, reporter=reporter)
        files[f"{PICTURES}curves.png"] = curves.path
    if artefact.kind == "autoencoder":
        return files, card_of_autoencoder(artefact, load_autoencoder(path))
    denoiser = load_denoiser(path)
    recorded = artefact.parent("autoencoder")
    decoder = load_autoencoder_of(
        path,
        made_by="model",
        sha256=denoiser.lineage["autoencoder_sha256"],
        recorded=recorded.path if recorded is not None else None,
        workspace=workspace,
        reporter=reporter,
        ae_path=autoencoder,
    )
    if recorded is None:  # so that it is looked for beside the model
        named = Parent("autoencoder", decoder.reference, decoder.weights_sha256)
        files |= _model_files(replace(artefact, parents=(*artefact.parents, named)))
    return files | _decoder_files(decoder), card_of_diffusion(artefact, denoiser, decoder)


def _collect_store(
    artefact: Artefact, made: Path, autoencoder: str | Path | None, workspace: Workspace, reporter: Reporter
) -> tuple[Files, Card]:
    store = KeyCodeStore(artefact.path)
    decoder = load_store_autoencoder(store, workspace=workspace, reporter=reporter, ae_path=autoencoder)
    reporter.warning(f"{store.path} names its images, their metadata and {store.source}: that is published with it")
    files: Files = {STORE_FILE: store.path}
    if store.is_folder:
        files = {f"{PARTS_FOLDER}/{part.name}": part for part in store.part_paths}
        files[INDEX_NAME] = store_file(store.path)
    files |= _decoder_files(decoder)
    if shown := spread(len(store), SHEET_ROWS * SHEET_COLUMNS):
        with torch.inference_mode():
            images = to_uint8(decoder.decode(torch.from_numpy(store.batch(shown))))  # (B, H, W, 3)
        rows = [list(images[first : first + SHEET_COLUMNS]) for first in range(0, len(shown), SHEET_COLUMNS)]
        files[f"{PICTURES}decoded.png"] = contact_sheet(rows, path=made / "decoded.png")
    return files, card_of_store(artefact, store, decoder)


def _decoder_files(decoder: Autoencoder) -> Files:
    artefact = provenance_at(decoder.path) or Artefact("autoencoder", decoder.path, "")
    return {f"{AUTOENCODER_FOLDER}/{name}": file for name, file in _model_files(artefact).items()}


def _model_files(artefact: Artefact) -> Files:
    """The config and the weights of a model, and its provenance, without the paths of this machine."""
    values, directory = read_model_config(artefact.path, kind=artefact.kind)
    config = json.loads((directory / CONFIG_NAME).read_bytes())
    if "lineage" in config:
        config["lineage"]["store_path"] = published_name(config["lineage"]["store_path"])
    weights = [WEIGHTS_NAME, *(average["file"] for average in values.get("averages", {}).values())]
    parents = [replace(parent, path=published_name(parent.path)) for parent in artefact.parents]
    record = replace(artefact, parents=tuple(parents)).to_json()
    return {CONFIG_NAME: _json(config), PROVENANCE_FILE: _json(record), **{name: directory / name for name in weights}}


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _upload(
    address: Address,
    files: Files,
    sizes: Mapping[str, int],
    *,
    private: bool,
    overwrite: bool,
    reporter: Reporter,
) -> Address:
    """Commit `files` to the repository at `address`, made where it is not there; the address of the commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    if is_offline():
        raise MachineError("BRICS_OFFLINE or HF_HUB_OFFLINE is set, and a push needs the network", next="Unset it.")
    api, where = HfApi(), address.repository
    with explained(address, doing="write to"):
        api.create_repo(**where, private=private or None, exist_ok=True)
        there = {*api.list_repo_files(**where, revision=address.revision)} - {".gitattributes"}
        if there and not overwrite:
            raise WouldOverwriteError(
                f"{address} holds {count(len(there), 'file')} already",
                next="Push elsewhere, or give --overwrite: what is replaced stays in its history.",
            )
        gone = [name for name in sorted(there - files.keys()) if name.startswith(PICTURES) or name.endswith(READ)]
        reporter.message(f"uploading {count(len(files), 'file')}, {sum(sizes.values()) / 1e6:.1f} MB, to {address}")
        commit = api.create_commit(
            **where,
            revision=address.revision,
            operations=[
                *(CommitOperationDelete(name) for name in gone),
                *(CommitOperationAdd(name, file) for name, file in files.items()),
            ],
            commit_message="brics models push",
        )
    return replace(address, revision=commit.oid)
