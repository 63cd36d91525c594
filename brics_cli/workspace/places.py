"""Where a model or a key-code store is that a user, or a lineage, names. No torch.

A path; the name of an embedded model (`brics-mini`); or a place on the Hugging Face Hub (`hf://user/name`). `locate`
turns any of them into a path on this machine, and `reference` turns that back into what a lineage says.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from brics_cli.workspace.embedded import embedded_at
from brics_cli.workspace.hub import address_in_cache, fetch, find_cached, parse_address

if TYPE_CHECKING:
    from brics_cli.runtime.reporting import Reporter


def locate(named: str | Path, *, reporter: Reporter | None = None) -> Path:
    """The path of what is `named`: a directory or file of the package, of the Hub's cache, or the path that it is.

    What is on the Hub and not here is downloaded, and `reporter` hears of it. Raises ArtefactError for an embedded
    model of another sha256 than brics was released with, and what `fetch` raises.
    """
    if (address := parse_address(named)) is not None:
        return fetch(address, reporter=reporter)
    if (model := embedded_at(named)) is not None:
        model.check()
        return model.directory
    return Path(named)


def at_hand(named: str | Path) -> Path:
    """As `locate`, without the network and without a check: what is not here is a path where nothing is."""
    if (address := parse_address(named)) is not None:
        return find_cached(address) or Path(named)
    model = embedded_at(named)
    return Path(named) if model is None else model.directory


def reference(path: Path) -> str:
    """What a lineage calls the model or store at `path`: an embedded model by its name, what the Hub's cache holds by
    its address and commit, anything else by its absolute path."""
    if (address := address_in_cache(path)) is not None:
        return str(address)
    model = embedded_at(path)
    return str(path.resolve()) if model is None else model.name
