"""What codes and images were made from: from any artefact along its parents to the autoencoder and the collection."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from brics_cli.autoencoder.model_files import read_model_config
from brics_cli.codes.reader import KeyCodeStore
from brics_cli.config import load_yaml
from brics_cli.errors import ArtefactError, BricsError, UsageError
from brics_cli.images.opening import collection_exists
from brics_cli.runtime.reporting import command_line
from brics_cli.workspace import Artefact, Kind, Parent, Workspace, provenance_at
from brics_cli.workspace.artefacts import Split, split
from brics_cli.workspace.embedded import embedded_at
from brics_cli.workspace.places import at_hand, locate, locate_unless_images
from brics_cli.workspace.remote import is_remote

if TYPE_CHECKING:
    import torch

    from brics_cli.autoencoder.autoencoder import Autoencoder
    from brics_cli.runtime.reporting import Reporter

Compares = Literal["pairs", "sets"]
"""`pairs` (PSNR, SSIM, LPIPS, rFID): codes with what was encoded. `sets` (FID, ...): samples with the training data."""

ENCODED = "the collection that its key codes were encoded from"
TRAINED_ON = "the collection that its autoencoder was trained on"


def load_store_autoencoder(
    store: KeyCodeStore,
    *,
    workspace: Workspace,
    reporter: Reporter | None = None,
    ae_path: Path | str | None = None,
    device: torch.device | str = "cpu",
) -> Autoencoder:
    """The autoencoder whose weights made `store`, as `load_autoencoder_of` finds it."""
    recorded = store.artefact.parent("autoencoder")
    return load_autoencoder_of(
        store.path,
        made_by="store",
        sha256=store.autoencoder["sha256"],
        recorded=recorded.path if recorded is not None else None,
        workspace=workspace,
        reporter=reporter,
        ae_path=ae_path,
        device=device,
    )


def load_autoencoder_of(
    codes_of: Path | str,
    *,
    made_by: str,
    sha256: str,
    recorded: Path | str | None,
    workspace: Workspace,
    reporter: Reporter | None = None,
    ae_path: Path | str | None = None,
    device: torch.device | str = "cpu",
) -> Autoencoder:
    """The autoencoder with weights `sha256`, in eval mode on `device`: the one behind the codes of `codes_of`.

    `made_by` is what `codes_of` is, in a word (store, model). Looked for at `ae_path` when given, else where it was
    `recorded` to be, else in `workspace` by its sha256 (it may have moved), among the embedded models, and on the Hub
    where it was recorded of it; `reporter` hears of these two. At `ae_path` there may be another one with the same
    encoder (`training.freeze_encoder`): codes are the same to both. Raises ArtefactError when it is not found, or when
    `ae_path` holds another encoder, or others' weights while the one of the codes is not found.
    """
    from brics_cli.autoencoder.autoencoder import load_autoencoder

    if ae_path is not None:
        autoencoder = load_autoencoder(locate(ae_path, reporter=reporter), device=device)
        if autoencoder.weights_sha256 == sha256:
            return autoencoder
        with suppress(ArtefactError):
            made_with = load_autoencoder_of(
                codes_of, made_by=made_by, sha256=sha256, recorded=recorded, workspace=workspace, device=device
            )
            if _has_encoder_of(autoencoder, made_with):
                return autoencoder
        raise ArtefactError(
            f"{codes_of} is a {made_by} of another autoencoder (sha256 {sha256[:12]}) than {ae_path} "
            f"(sha256 {autoencoder.weights_sha256[:12]})",
            next="Leave --ae out to use the one it was made with, or encode again with this one.",
        )
    shipped = None if recorded is None else embedded_at(recorded)
    if recorded is not None and shipped is None and at_hand(recorded).exists():
        with suppress(ArtefactError):  # what is at that path now may be damaged or something else
            autoencoder = load_autoencoder(at_hand(recorded), device=device)
            if autoencoder.weights_sha256 == sha256:
                return autoencoder
    if (moved := workspace.with_sha256("autoencoder", sha256)) is not None:
        autoencoder = load_autoencoder(moved.path, device=device)
        if autoencoder.weights_sha256 == sha256:
            if reporter is not None and embedded_at(moved.path) is not None:
                reporter.message(
                    f"the codes of {codes_of} are those of {autoencoder.reference}, which is embedded in brics "
                    f"(sha256 {sha256[:12]})"
                )
            return autoencoder
    if shipped is not None:
        raise ArtefactError(
            f"the codes of {codes_of} are those of the {shipped.name} of another brics (sha256 {sha256[:12]}), and "
            f"that of this one has sha256 {shipped.sha256[:12]}",
            next=f"Install the version that made the {made_by}, or encode the collection again.",
        )
    if recorded is not None and is_remote(recorded):
        autoencoder = load_autoencoder(locate(recorded, reporter=reporter), device=device)
        if autoencoder.weights_sha256 == sha256:
            return autoencoder
    was_at = f", which was at {recorded}," if recorded is not None else ""
    raise ArtefactError(
        f"the autoencoder of {codes_of} (sha256 {sha256[:12]}){was_at} was not found",
        next="Give it with --ae RUN, or encode the collection again.",
    )


def _has_encoder_of(autoencoder: Autoencoder, other: Autoencoder) -> bool:
    """Whether both make the same codes of an image: their encoders are equal bit for bit, and so is what bounds
    codes."""
    mine, theirs = autoencoder.encoder.state_dict(), other.encoder.state_dict()
    kinds = {type(each.bottleneck) for each in (autoencoder, other)}
    return len(kinds) == 1 and mine.keys() == theirs.keys() and all(mine[name].equal(theirs[name]) for name in mine)


@dataclass(frozen=True)
class Origin:
    """The path of a collection, and the square that something made of its images: `transform`, `size` in pixels.
    `role` is what it was to it, in words."""

    collection: str
    transform: str
    size: int
    role: str


def origin_of(artefact: Artefact, compares: Compares, *, workspace: Workspace) -> Origin | None:
    """The collection that images of `artefact` are to be compared with; None when it leads to none.

    Of a store, and of what was decoded from one, that is what was encoded, whatever is compared: FID of these is
    reconstruction FID. Of samples it is what their autoencoder was trained on, or, where that is not known (of an
    embedded one), what was encoded; they have no `pairs`. Raises ArtefactError when the files on the way are damaged.
    """
    made_of = workspace.ancestor(artefact, "store")
    if artefact.kind in {"store", "reconstructions"}:
        if made_of is None:
            return None
        store = KeyCodeStore(made_of.path)
        transform, size = store.transform, store.image_size
    else:
        autoencoder = workspace.ancestor(artefact, "autoencoder") if compares == "sets" else None
        if autoencoder is None:
            return None
        config, directory = read_model_config(autoencoder.path, kind="autoencoder")
        try:
            square = {"image_size": config["model"]["image_size"], **config, **(made_of.details if made_of else {})}
            transform, size = str(square["transform"]), int(square["image_size"])
        except (KeyError, TypeError, ValueError):
            raise ArtefactError(f"{directory / 'config.json'} does not say the transform and the image size") from None
        if (collection := _collection_of(autoencoder)) is not None:
            return Origin(workspace.collection_path(collection), transform, size, TRAINED_ON)
    collection = None if made_of is None else _collection_of(made_of)
    return None if collection is None else Origin(workspace.collection_path(collection), transform, size, ENCODED)


def _collection_of(artefact: Artefact) -> Parent | None:
    return artefact.parent("collection") or artefact.parent("shards")


@dataclass(frozen=True)
class ComparisonInputs:
    """The two paths to read, and how a collection becomes square: None where nothing says so (taken as it is).

    `held_out`: of a store of training images only those are meant that the autoencoder held out, this share of them, by
    hash of the key; None: all.
    """

    real: str
    fake: str
    transform: str | None
    size: int | None
    held_out: float | None = None


def comparison_inputs(
    compares: Compares,
    *,
    workspace: Workspace,
    reporter: Reporter,
    real: str | Path | None = None,
    fake: str | Path | None = None,
) -> ComparisonInputs:
    """The inputs of one kind of comparison; what was left out is looked up, and `reporter` hears what was found.

    `fake` is by default the newest store (`pairs`) or samples (`sets`), `real` what `origin_of` that says. The
    transform and the size that made the codes apply to `real` too, so that both sides show the same square. Raises
    UsageError for a path that is not there, ArtefactError when the workspace holds nothing to take or when `fake`
    does not say where it is from.
    """
    real, fake = (path if path is None else locate_unless_images(path, reporter=reporter) for path in (real, fake))
    for path in (real, fake):
        if path is not None and not collection_exists(path):
            raise UsageError(f"no such file or folder: {path}")
    only_held_out = False
    if fake is None:
        kind: Kind = "store" if compares == "pairs" else "samples"
        fake = workspace.resolve(kind, argument="--fake", wanted="held-out", reporter=reporter)
        only_held_out = real is None and compares == "pairs"
    made, held_out = provenance_at(fake), None
    if real is not None:
        # a foreign `fake`: perhaps `real` is ours and says which square it shows
        origin = _known_origin(made, workspace) or _known_origin(provenance_at(real), workspace)
    else:
        if made is not None and made.kind in {"samples", "diffusion"} and compares == "pairs":
            raise ArtefactError(
                f"{fake} holds samples, which have no originals to be paired with"
                if made.kind == "samples"
                else f"{fake} is a diffusion run, and what is drawn from it has no originals to be paired with",
                next="Measure them with --metric fid or --metric clip-fid, or give --fake CODES.",
            )
        origin = None if made is None else origin_of(made, compares, workspace=workspace)
        if origin is None:
            raise ArtefactError(f"{fake} does not say what it was made from", next="Give --real PATH.")
        real = origin.collection
        if not collection_exists(real):
            raise ArtefactError(
                f"{real}, {origin.role}, is not there any more", next="Give --real PATH where it is now."
            )
        reporter.message(f"--real not given: using {real}, {origin.role}")
        if only_held_out and made is not None and (held_out := _share_held_out(made, workspace)) is not None:
            reporter.message(
                f"measuring the images of {fake} that its autoencoder held out, {held_out:.0%} by hash of their key; "
                f"--fake {command_line(fake)} measures all"
            )
    transform, size = (origin.transform, origin.size) if origin is not None else (None, None)
    return ComparisonInputs(str(real), str(fake), transform, size, held_out)


def _share_held_out(store: Artefact, workspace: Workspace) -> float | None:
    """What share of the images of `store` its autoencoder held out of its training; None where it did not train on
    them, or was validated on others, or does not say."""
    autoencoder = workspace.ancestor(store, "autoencoder")
    if autoencoder is None or autoencoder.parent("validation") or store.shortcoming:
        return None
    if workspace.split_of(store) != "training":
        return None
    with suppress(BricsError, KeyError, TypeError, ValueError):
        return float(load_yaml(autoencoder.path / "config.yaml")["data"]["val_fraction"])
    return None


def split_behind(path: str, *, other: str, workspace: Workspace) -> Split | None:
    """What the images at `path` were to the autoencoder behind them, or behind the `other` side of a comparison.

    None where there is no autoencoder, and for images that a model drew.
    """
    made = provenance_at(path)
    if made is not None and made.kind not in {"store", "reconstructions", "shards"}:
        return None
    behind = (workspace.ancestor(each, "autoencoder") for each in (made, provenance_at(other)) if each is not None)
    autoencoder = next((each for each in behind if each is not None), None)
    images: Parent | None = Parent("collection", path, "")
    if made is not None:
        shards = Parent("shards", path, str(made.details.get("sha256", "")))
        images = shards if made.kind == "shards" else made.parent("collection")
    return None if autoencoder is None or images is None else split(images, autoencoder)


def _known_origin(artefact: Artefact | None, workspace: Workspace) -> Origin | None:
    with suppress(ArtefactError):
        return None if artefact is None else origin_of(artefact, "sets", workspace=workspace)
    return None
