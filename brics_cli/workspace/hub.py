"""Models and key-code stores in repositories of the Hugging Face Hub, through huggingface_hub. No torch.

    hf://[datasets/]user/name[@revision][/folder or store.h5]

is how huggingface_hub's own file system names them. What is downloaded stays in its cache (`$HF_HUB_CACHE`), where a
commit is found again without a network; any other revision is asked for at the Hub (`$HF_ENDPOINT`), and where that
cannot be reached, what the cache has of it is taken, which is said. `$BRICS_OFFLINE` and `$HF_HUB_OFFLINE` forbid the
network. Only files that brics reads are downloaded, and no weights before their config says that brics wrote them.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brics_cli.errors import ArtefactError, MachineError, UsageError, first_line
from brics_cli.wording import count
from brics_cli.workspace.files import PROVENANCE_FILE, read_json
from brics_cli.workspace.hdf5 import open_hdf5
from brics_cli.workspace.naming import CONFIG_NAME, INDEX_NAME, PARTS_FOLDER, STORE_ENDING, WEIGHTS_NAME

if TYPE_CHECKING:
    from brics_cli.runtime.reporting import Reporter

READ = (CONFIG_NAME, "config.yaml", PROVENANCE_FILE, "README.md", ".safetensors", STORE_ENDING)
"""What the files that are downloaded end in."""
AUTOENCODER_FOLDER = "autoencoder"
"""Of a published diffusion model or store, where the autoencoder of its codes is."""
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
TIMEOUT_S = 20.0
A_TOKEN = "with a token of an account that may: `hf auth login`, or HF_TOKEN"

_ADDRESS = re.compile(  # a Path of it has one slash after the colon
    r"hf:/{1,2}(?:(?P<type>datasets|models)/)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/@]+))?(?:/(?P<inside>.+?))?/?"
)
_IN_CACHE = re.compile(
    r".*/(?P<type>datasets|models)--(?P<user>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<revision>[0-9a-f]{40})"
    r"(?:/(?P<inside>.+))?"
)


@dataclass(frozen=True)
class Address:
    """A place on the Hub: in the repository `repo` (`user/name`), at `revision` (None: the newest), what is `inside`:
    a folder or a store; all of it where that is empty."""

    repo: str
    type: str = "models"
    revision: str | None = None
    inside: str = ""

    def __str__(self) -> str:
        parts = ["datasets"] if self.type == "datasets" else []
        parts.append(self.repo if self.revision is None else f"{self.repo}@{self.revision.replace('/', '%2F')}")
        return "hf://" + "/".join([*parts, self.inside] if self.inside else parts)

    @property
    def is_commit(self) -> bool:
        return self.revision is not None and re.fullmatch("[0-9a-f]{40}", self.revision) is not None

    @property
    def folder(self) -> str:
        """The folder of the repository that it is, or is in: empty, or with a slash at its end."""
        folder = self.inside.rpartition("/")[0] if self.inside.endswith(STORE_ENDING) else self.inside
        return f"{folder}/" if folder else ""

    @property
    def repository(self) -> dict[str, Any]:
        """As huggingface_hub's functions take it."""
        return {"repo_id": self.repo, "repo_type": self.type.removesuffix("s")}


def parse_address(text: str | Path) -> Address | None:
    """The place that `hf://...` names; None for what does not begin so. Raises UsageError for what is malformed."""
    text = str(text)
    if not text.startswith("hf:/"):
        return None
    found = _ADDRESS.fullmatch(text)
    if found is None or ".." in (found["inside"] or "").split("/"):
        raise UsageError(f"{text} is no place on the Hub", next="Write hf://user/name or hf://datasets/user/name.")
    revision = found["revision"] and found["revision"].replace("%2F", "/")
    return Address(found["repo"], found["type"] or "models", revision, found["inside"] or "")


def address_in_cache(path: Path) -> Address | None:
    """The place, with its commit, that a path in huggingface_hub's cache comes from; None for other paths."""
    found = _IN_CACHE.fullmatch(path.absolute().as_posix())
    if found is None:
        return None
    return Address(f"{found['user']}/{found['name']}", found["type"], found["revision"], found["inside"] or "")


def fetch(address: Address, *, reporter: Reporter | None = None) -> Path:
    """The folder of the model, or the key-code store, at `address`, downloaded as far as it is not cached.

    `reporter` hears which commit it is. Raises ArtefactError for a repository, revision or folder that is not there or
    not to be read, or that holds nothing of brics; MachineError where a network is needed and not there.
    """
    if address.is_commit and (found := find_cached(address)) is not None:
        return found
    if is_offline():
        return _as_last_seen(address, "BRICS_OFFLINE or HF_HUB_OFFLINE is set", reporter)
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    try:
        with explained(address):
            info: Any = HfApi().repo_info(
                **address.repository, revision=address.revision, files_metadata=True, timeout=TIMEOUT_S
            )
    except MachineError as error:
        return _as_last_seen(address, error.what, reporter)
    commit = replace(address, revision=info.sha)
    sizes = {each.rfilename: each.size or 0 for each in info.siblings or ()}
    main = _main_file(address, sizes)
    how = "in the cache"
    with explained(address):
        if find_cached(commit) is None:
            if main.endswith(WEIGHTS_NAME):
                config = hf_hub_download(
                    **commit.repository,
                    revision=commit.revision,
                    filename=main.removesuffix(WEIGHTS_NAME) + CONFIG_NAME,
                )
                _check_ours(Path(config), address)
            wanted = [name for name in sizes if any(fnmatch(name, pattern) for pattern in _patterns(address))]
            size = sum(sizes[name] for name in wanted) / 1e6
            how = f"downloading {count(len(wanted), 'file')}, {size:.1f} MB"
        if reporter is not None:
            reporter.message(f"{address} is at {commit.revision}, {how}")
        # by the name of the revision: the cache then remembers which commit that was
        snapshot_download(**address.repository, revision=address.revision, allow_patterns=_patterns(address))
    if (found := find_cached(commit)) is None:
        raise MachineError(f"{commit} was not downloaded as a whole", next="Run the same command again.")
    return found


def find_cached(address: Address) -> Path | None:
    """What `address` leads to as far as that is cached, without the network; None where it is not, or not whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with suppress(LocalEntryNotFoundError, ArtefactError):
        snapshot = Path(
            snapshot_download(
                **address.repository,
                revision=address.revision,
                allow_patterns=_patterns(address),
                local_files_only=True,
            )
        )
        names = [str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()]
        main = _main_file(address, names)
        if not main.endswith(INDEX_NAME):
            return snapshot / (main if main.endswith(STORE_ENDING) else address.inside)
        folder = (snapshot / main).parent
        with suppress(OSError, KeyError, ValueError), open_hdf5(folder / INDEX_NAME) as index:
            parts = [folder / PARTS_FOLDER / os.fsdecode(name) for name in index["parts"][()]["file"]]
            return folder if all(part.exists() for part in parts) else None
    return None


def is_offline() -> bool:
    """Whether the environment forbids the network."""
    from huggingface_hub import constants

    return os.environ.get("BRICS_OFFLINE", "") not in {"", "0"} or bool(constants.HF_HUB_OFFLINE)


@contextmanager
def explained(address: Address, *, doing: str = "read") -> Iterator[None]:
    """What huggingface_hub raises in the block, which tries to be `doing` something at `address`, is an ArtefactError
    for what is not there, a MachineError for what is forbidden or out of reach."""
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # these two would write into our own messages
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    hub = constants.ENDPOINT
    try:
        yield
    except errors.RevisionNotFoundError:
        raise ArtefactError(
            f"{hub} has no revision {address.revision} of {replace(address, revision=None)}",
            next="Leave @REVISION out for the newest.",
        ) from None
    except errors.RepositoryNotFoundError:
        raise ArtefactError(
            f"{address} is not on {hub}, or is private or gated", next=f"Check the name, or read it {A_TOKEN}"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise MachineError(f"{hub} does not let you {doing} {address} ({status})", next=f"Try {A_TOKEN}") from None
        raise _out_of_reach(hub, error) from None
    except (errors.HTTPError, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        raise _out_of_reach(hub, error.__cause__ or error) from None


def _out_of_reach(hub: str, error: BaseException) -> MachineError:
    return MachineError(f"{hub} cannot be reached ({first_line(error)})", next="Check the network.")


def _as_last_seen(address: Address, why: str, reporter: Reporter | None) -> Path:
    found = find_cached(address)
    if found is None:
        raise MachineError(f"{address} is not in the cache, and {why}", next="Run it once with a network.")
    if reporter is not None:
        commit = address_in_cache(found)
        reporter.warning(f"{why}: {address} as it was last seen, {commit and commit.revision}")
    return found


def _patterns(address: Address) -> list[str]:
    return [f"{glob.escape(address.folder)}*{ending}" for ending in READ]


def _main_file(address: Address, names: Collection[str]) -> str:
    """Of the files of a repository, the one that `address` is about: the weights of a model, or a key-code store.

    Raises ArtefactError when there is none, or more than one store.
    """
    folder = address.folder
    if address.inside.endswith(STORE_ENDING) and address.inside in names:
        return address.inside
    if f"{folder}{INDEX_NAME}" in names:
        return f"{folder}{INDEX_NAME}"
    for where in (folder, f"{folder}model/"):
        if {where + CONFIG_NAME, where + WEIGHTS_NAME} <= {*names}:
            return where + WEIGHTS_NAME
    here = [name for name in names if name.startswith(folder)]
    stores = sorted(name for name in here if name.endswith(STORE_ENDING) and "/" not in name.removeprefix(folder))
    if len(stores) == 1 and not address.inside.endswith(STORE_ENDING):
        return stores[0]
    if stores:
        one = replace(address, inside=stores[0])
        raise ArtefactError(f"{address} is none of the {count(len(stores), 'store')} there", next=f"Name one: {one}")
    pickles = sorted(name for name in here if name.endswith(PICKLES))
    neither = f" (no {CONFIG_NAME} and {WEIGHTS_NAME})"
    why = f": {pickles[0]} is a pickle, and brics opens none" if pickles else neither
    raise ArtefactError(f"{address} holds no model and no key-code store of brics{why}")


def _check_ours(config: Path, address: Address) -> None:
    """Raise ArtefactError when the config of a model is not one of brics."""
    values = read_json(config, what=str(address))
    if not isinstance(values, dict) or not {"format_version", "kind"} <= values.keys():
        raise ArtefactError(f"{address} holds no model of brics (its {CONFIG_NAME} is of something else)")
