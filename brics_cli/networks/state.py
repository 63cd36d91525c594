"""Reading a state dict from a file that somebody else wrote: tensors only, one clear line for anything else."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from brics_cli.errors import ArtefactError, machine_error


def read_state(path: Path, *, what: str) -> dict[str, Tensor]:
    """The tensors in `path`, by name, on the CPU. Raises ArtefactError, naming `what` it should be."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        if (said := machine_error(error, where=path)) is not None:
            raise said from None
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise ArtefactError(f"{path} is not {what} ({first_line})") from None
    if not isinstance(state, dict):
        raise ArtefactError(f"{path} is not {what} (it holds a {type(state).__name__})")
    return state
