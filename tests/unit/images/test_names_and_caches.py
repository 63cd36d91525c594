"""The two small structures that collections are built of."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import holds_in_child

from brics_cli.images.sources.memory import Descriptor, Names, ProcessCache


@given(st.lists(st.text(max_size=6) | st.just("caf\udce9")))
def test_names_are_the_list_they_were_made_of(names):
    try:
        kept = Names(names)
    except UnicodeEncodeError:  # a surrogate that no file name can hold
        return
    assert list(kept) == names and len(kept) == len(names)
    assert kept[1:] == names[1:] and (not names or kept[-1] == names[-1])
    with pytest.raises(IndexError):
        kept[len(names)]


def test_names_take_less_memory_than_a_list():
    names = Names(f"00000/img{number:08d}.png" for number in range(1000))
    assert len(pickle.dumps(names)) < 40 * 1000


class Made:
    """Counts what is made; `key` comes back doubled."""

    def __init__(self) -> None:
        self.keys: list[int] = []

    def __call__(self, key: int) -> int:
        self.keys.append(key)
        return 2 * key


def test_a_cache_keeps_the_values_used_last():
    made = Made()
    cache = ProcessCache(made, limit=2)
    assert [cache[key] for key in (1, 2, 1, 3, 1, 2)] == [2, 4, 2, 6, 2, 4]
    assert made.keys == [1, 2, 3, 2]  # 2 was used longest ago when 3 came


def test_threads_share_and_processes_do_not():
    made = Made()
    cache = ProcessCache(made, limit=4)
    barrier = threading.Barrier(4)

    def use(_: int) -> int:
        barrier.wait(timeout=10)
        return cache[7]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(use, range(4))) == [14] * 4
    assert made.keys == [7]
    cache._lock.acquire()  # as another thread may hold it at the moment of a fork
    try:
        assert holds_in_child(lambda: cache[7] == 14 and made.keys == [7, 7])
    finally:
        cache._lock.release()
    assert pickle.loads(pickle.dumps(cache))[7] == 14


def test_a_descriptor_outlives_its_place_in_the_cache(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name * 10)
    cache = ProcessCache(Descriptor.of, limit=1)
    first = cache[tmp_path / "a"]
    assert cache[tmp_path / "b"].read(0, 3) == b"bbb"
    assert first.read(4, 100) == b"aaaaaa" and first.read(50, 1) == b""
