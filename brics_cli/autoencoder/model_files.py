"""A trained model on disk: `config.json` and `model.safetensors`, read with one clear line for each way to fail.

Other averages of the same weights may be there as `ema-NAME.safetensors`, listed in the config.

`path` in what follows is a run directory (which holds `model/`), the model directory itself, or what else
`workspace.places.locate` finds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

import brics_cli
from brics_cli.config.suggestions import did_you_mean
from brics_cli.errors import ArtefactError, machine_error
from brics_cli.runtime.device import place
from brics_cli.workspace import atomic_path, sha256_of_file
from brics_cli.workspace.embedded import MODELS
from brics_cli.workspace.files import read_json
from brics_cli.workspace.naming import CONFIG_NAME, WEIGHTS_NAME, model_directory
from brics_cli.workspace.places import locate

FORMAT_VERSION = 1
HEADER = ("format_version", "kind", "brics_version")
"""What every config begins with."""
TRAIN_COMMANDS = {"autoencoder": "train-ae", "diffusion": "train-diffusion"}
"""Kind of model -> the command that trains it."""


def average_name(width: float) -> str:
    """What the average of relative width `width` is called: `0.05`."""
    return repr(float(width))


def average_file(name: str) -> str:
    """The file of the average `name`, in a model directory and in a checkpoint."""
    return f"ema-{name}.safetensors"


def save_model(
    directory: Path,
    *,
    kind: str,
    config: dict[str, Any],
    state: dict[str, Tensor],
    averages: Mapping[str, dict[str, Tensor]] | None = None,
) -> str:
    """Write `directory` atomically and return the sha256 of its weights file.

    `config` must hold all that is needed to rebuild the model; `kind`, the format and brics' version are added, and
    `averages`, the file and sha256 of each by name, when there are any.
    """
    with atomic_path(directory) as temporary:
        temporary.mkdir()
        header = dict(zip(HEADER, (FORMAT_VERSION, kind, brics_cli.__version__), strict=True))
        listed = {}
        for name, tensors in (averages or {}).items():
            file = average_file(name)
            write_tensors(temporary / file, tensors)
            listed[name] = {"file": file, "sha256": sha256_of_file(temporary / file)}
        values = header | config | ({"averages": listed} if listed else {})
        text = json.dumps(values, indent=2, ensure_ascii=False)
        (temporary / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
        write_tensors(temporary / WEIGHTS_NAME, state)
        return sha256_of_file(temporary / WEIGHTS_NAME)


def read_model_config(path: str | Path, *, kind: str) -> tuple[dict[str, Any], Path]:
    """What the config of the model at `path` holds besides its header, and its model directory.

    Raises ArtefactError when it is not found, damaged, of another kind, or of a newer format, and for an embedded
    model of another sha256 than brics was released with.
    """
    path = locate(path)
    directory = model_directory(path)
    printed = "Give the directory that the training command printed."
    if not directory.is_dir():
        named = did_you_mean(str(path), [each.name for each in MODELS if each.kind == kind])
        raise ArtefactError(f"no {kind} run at {path}{named}", next=printed)
    if not (directory / CONFIG_NAME).is_file():
        resume = f"brics {TRAIN_COMMANDS[kind]} --resume {path}"
        go_on = f"It writes its first model at its first checkpoint; go on with it: {resume}"
        raise ArtefactError(
            f"{path} holds no trained {kind} (no {directory / CONFIG_NAME})",
            next=go_on if (path / "config.yaml").is_file() else printed,
        )
    config = read_json(directory / CONFIG_NAME, what=f"{kind} model")
    if not isinstance(config, dict) or "format_version" not in config or "kind" not in config:
        raise ArtefactError(f"{directory / CONFIG_NAME} is not the config of a brics model")
    if config["kind"] != kind:
        raise ArtefactError(f"{path} is a model of kind {config['kind']!r}, and kind {kind!r} is needed here")
    if config["format_version"] != FORMAT_VERSION:
        raise ArtefactError(
            f"{path} has model format {config['format_version']}, this brics reads {FORMAT_VERSION}",
            next=f"It was written by brics {config.get('brics_version', '?')}: pip install -U brics-cli",
        )
    return {name: value for name, value in config.items() if name not in HEADER}, directory


def load_weights(model: nn.Module, directory: Path, *, device: torch.device | str, file: str = WEIGHTS_NAME) -> str:
    """Load the weights `file` of `directory` into `model`, move it to `device`, and return the sha256 of that file.

    Raises ArtefactError when the file is missing, truncated, or does not fit the model.
    """
    weights = directory / file
    state = read_tensors(weights)
    expected = model.state_dict()
    misfits = [
        name
        for name in sorted(expected.keys() | state.keys())
        if name not in expected or name not in state or expected[name].shape != state[name].shape
    ]
    if misfits:
        raise ArtefactError(f"{weights} does not fit its config.json ({len(misfits)} tensors, first {misfits[0]!r})")
    model.load_state_dict(state)
    place(model, device)
    return sha256_of_file(weights)


def write_tensors(path: Path, state: dict[str, Tensor]) -> None:
    """Write tensors as safetensors. Raises OSError when the disk is full, which `save_file` would hide."""
    path.write_bytes(save({name: tensor.detach().to("cpu").contiguous() for name, tensor in state.items()}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises ArtefactError when it is missing or damaged."""
    with damage_explained(path):
        tensors = load_file(path)
        odd = next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), None)
    if odd is not None:
        raise ArtefactError(f"{path} holds values that are not finite (NaN or infinity), first in {odd!r}")
    return tensors


@contextmanager
def damage_explained(weights: Path) -> Iterator[None]:
    """Reading the safetensors file `weights` in the block raises ArtefactError, or MachineError for what it was."""
    try:
        yield
    except FileNotFoundError:
        raise ArtefactError(f"{weights} is missing") from None
    except (SafetensorError, OSError, RuntimeError, MemoryError) as error:
        if (said := machine_error(error, where=weights)) is not None:
            raise said from None
        raise ArtefactError(f"{weights} is damaged or truncated ({error})") from None
