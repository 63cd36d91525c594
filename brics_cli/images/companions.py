"""What stands beside shards of ours so that others' tools open them: an index for wids, a card for Hugging Face.

`wids.ShardListDataset("shards/wids.json")` reads images in any order. `datasets.load_dataset("shards")` goes by the
card's YAML: without it the library takes the most frequent extension in a folder for its form, which in a small one is
JSON, and refuses shards whose images do not all have the same sidecars. The bytes of both depend on the shards alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from brics_cli.images.sources.process_cache import Descriptor
from brics_cli.images.sources.tar_index import index_tar
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace import write_json_atomically, write_text_atomically

INDEX, CARD = "wids.json", "README.md"
MAX_NAME_BYTES = 100
"""Of a name in a tar's header; longer ones, and those that are not ASCII, stand in a record before it."""


def write_companions(folder: Path, *, extension: str, class_names: Sequence[str] = (), reporter: Reporter) -> None:
    """Write both for the shards in `folder`, whose images are files `*.extension`; labels are of `class_names`.

    wids takes names from the headers alone, where only ASCII of 100 bytes is as it is: others would be mixed up in
    silence, so that there is no index then, which the `reporter` hears.
    """
    shards, others, num_beyond = [], set(), 0
    for tar in sorted(folder.glob("*.tar")):
        names = list(index_tar(tar, Descriptor.of(tar)).names)
        num_beyond += sum(not name.isascii() or len(name) > MAX_NAME_BYTES for name in names)
        extensions = [name.rpartition(".")[2] for name in names]
        others |= {*extensions} - {extension}
        if num_images := extensions.count(extension):
            shards.append({"url": tar.name, "nsamples": num_images, "filesize": tar.stat().st_size})
    if num_beyond:
        (folder / INDEX).unlink(missing_ok=True)
        reporter.warning(
            f"no {INDEX} in {folder}: {num_beyond:,} names of files are not ASCII of at most {MAX_NAME_BYTES} bytes, "
            "which is all that wids reads"
        )
    else:
        _write_index(folder, shards)
    write_text_atomically(folder / CARD, _card(extension, others, class_names))


def _write_index(folder: Path, shards: Sequence[dict[str, Any]]) -> None:
    index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": shards}
    write_json_atomically(folder / INDEX, index)


def _card(extension: str, others: set[str], class_names: Sequence[str]) -> str:
    features: list[dict[str, Any]] = [{"name": extension, "dtype": "image"}]
    if "cls" in others:
        features.append({"name": "cls", "dtype": _label_type(class_names)})
    if "json" in others:
        features.append({"name": "json", "dtype": "json"})
    features += [{"name": name, "dtype": "string"} for name in ("__key__", "__url__")]
    shards = {"config_name": "default", "data_files": [{"split": "train", "path": "*.tar"}]}
    header = yaml.safe_dump({"configs": [shards], "dataset_info": {"features": features}}, sort_keys=False)
    return f"---\n{header}---\n{_TEXT}"


def _label_type(class_names: Sequence[str]) -> str | dict[str, Any]:
    if not class_names or len(set(class_names)) < len(class_names):
        return "int64"
    return {"class_label": {"names": {str(number): name for number, name in enumerate(class_names)}}}


_TEXT = """
WebDataset shards, written by brics.

    brics info .
    datasets.load_dataset("shards")["train"]
    wids.ShardListDataset("shards/wids.json")
    webdataset.WebDataset("shards/{00000..00009}.tar")

`shards` stands for this folder. A dot in the name of an image is written %2E in its `__key__`.
"""
