"""Some of a collection: by keys, by shards."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_files import grey, write_tar

from brics_cli.errors import UsageError
from brics_cli.images import Collection, load_shards, open_collection
from brics_cli.images.selection import every_nth_shard, select_keys


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    """Three shards of 4; the image's grey value is 10 * shard + index."""
    for shard in range(3):
        members = [(f"{index}.png", grey(10 * shard + index)) for index in range(4)]
        write_tar(tmp_path / f"{shard}.tar", members)
    return open_collection(tmp_path)


def values(chosen: Collection) -> list[int]:
    return [int(image[0, 0, 0]) for batch in load_shards(chosen, transform="crop-bicubic", size=4)
            for image in batch.images]  # fmt: skip


def test_keys_are_taken_in_the_collections_order(collection):
    chosen = select_keys(collection, ["2/3", "0/1", "2/0", "0/1"])
    assert [(shard.name, shard.num_images) for shard in chosen.shards] == [("0", 1), ("2", 2)]
    assert chosen.shards[1].layout == collection.shards[2].layout
    assert values(chosen) == [1, 20, 23] and chosen.key(1, 1) == "2/3"
    raw = chosen.read(1, 1)
    assert (raw.key, raw.shard_index, raw.index) == ("2/3", 1, 1)
    assert values(chosen.first(2)) == [1, 20] and chosen.describe().startswith("3 of 12 images")


def test_parts_are_disjoint_and_whole(collection):
    parts = [every_nth_shard(collection, part=part, num_parts=2) for part in (1, 2)]
    assert [values(part) for part in parts] == [[0, 1, 2, 3, 20, 21, 22, 23], [10, 11, 12, 13]]
    assert values(every_nth_shard(collection.first(6), part=2, num_parts=2)) == [10, 11]
    with pytest.raises(UsageError, match="nothing in part 4/4"):
        every_nth_shard(collection, part=4, num_parts=4)


def test_keys_that_are_not_there(collection):
    with pytest.raises(UsageError, match=r"1 of 2 keys are not in .*, first '9/9'\. Its keys look like '0/0'"):
        select_keys(collection, ["0/0", "9/9"])
    with pytest.raises(UsageError, match="empty"):
        select_keys(collection, [])
