"""Where a model or a key-code store is that a user, or a lineage, names. No torch.

A path; the name of an embedded model (`brics-mini`); a place on the Hugging Face Hub (`hf://user/name`); or any URL
that fsspec knows (`s3://bucket/codes.h5`). `locate` turns each of them into a path on this machine, and `reference`
turns that back into what a lineage says.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from brics_cli.errors import ArtefactError
from brics_cli.workspace.embedded import embedded_at
from brics_cli.workspace.hub import address_in_cache, fetch, find_cached, parse_address
from brics_cli.workspace.mirrors import as_urls, cached_copy, fetch_and_hold
from brics_cli.workspace.naming import INDEX_NAME, is_store
from brics_cli.workspace.remote import as_url, is_remote, is_there

if TYPE_CHECKING:
    from brics_cli.runtime.reporting import Reporter


def locate(named: str | Path, *, reporter: Reporter | None = None) -> Path:
    """The path of what is `named`: a directory or file of the package, of a cache, or the path that it is.

    What is not here is downloaded, and `reporter` hears of it. Raises ArtefactError for an embedded model of another
    sha256 than brics was released with, and what `fetch` and `fetch_and_hold` raise.
    """
    if (address := parse_address(named)) is not None:
        return fetch(address, reporter=reporter)
    if is_remote(named):
        return fetch_and_hold(as_url(named), reporter=reporter)
    if (model := embedded_at(named)) is not None:
        model.check()
        return model.directory
    return Path(named)


def locate_unless_images(named: str | Path, *, reporter: Reporter | None = None) -> str | Path:
    """As `locate`, of what may be a collection of images too: a URL of one stays as it is, since its files are fetched
    one by one."""
    address = parse_address(named)
    if address is None:
        is_one = is_remote(named) and (is_store(named) or is_there(f"{as_url(named).rstrip('/')}/{INDEX_NAME}"))
        return locate(named, reporter=reporter) if is_one else named
    try:
        return fetch(address, reporter=reporter)
    except ArtefactError:
        if address.type == "datasets" and not is_store(address.inside):
            return named
        raise


def at_hand(named: str | Path) -> Path:
    """As `locate`, without the network and without a check: what is not here is a path where nothing is."""
    if (address := parse_address(named)) is not None:
        return find_cached(address) or Path(named)
    if is_remote(named):
        return cached_copy(as_url(named)) or Path(named)
    model = embedded_at(named)
    return Path(named) if model is None else model.directory


def reference(path: Path) -> str:
    """What a lineage calls the model or store at `path`: an embedded model by its name, what the Hub's cache holds by
    its address and commit, what was fetched from elsewhere by its URL, anything else by its absolute path."""
    if (address := address_in_cache(path)) is not None:
        return str(address)
    model = embedded_at(path)
    return as_urls(str(path.resolve())) if model is None else model.name
