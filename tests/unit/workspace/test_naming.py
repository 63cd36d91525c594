"""What an output's name says, and the names of files in a flat folder: one for every key, and back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brics_cli.errors import UsageError
from brics_cli.workspace.naming import FOLDER, STORE, check_written, ending_of, flat_name, form_of_output, key_of_name

FORMS = {"png": (FOLDER,), "wds": (FOLDER, ".tar"), "zip": (".zip",), "npz": (".npz",)}
KEYS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40)
AWKWARD = st.text("/%2Ff.a\\:~ \n", min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("name", "ending"),
    [("out", ""), ("run-1.5", ""), ("v1.0", ""), ("a.b/out", ""), ("s.npz", ".npz"), ("S.NPZ", ".npz"),
     ("x.tar.gz", ".tar.gz"), ("x.tar", ".tar"), ("four.png", ".png"), ("codes.h5", ".h5"), ("tar", "")],
)  # fmt: skip
def test_endings(name, ending):
    assert ending_of(Path(name)) == ending


@pytest.mark.parametrize(
    ("name", "asked", "form"),
    [("out", None, "png"), ("out", "wds", "wds"), ("x.tar", None, "wds"), ("x.zip", None, "zip"),
     ("x.zip", "zip", "zip"), ("s.npz", None, "npz"), ("run-1.5", None, "png")],
)  # fmt: skip
def test_the_form_is_asked_for_or_in_the_ending(name, asked, form):
    assert form_of_output(Path(name), FORMS, asked=asked, default="png") == form


@pytest.mark.parametrize(
    ("name", "asked", "said"),
    [
        ("s.npz", "png", "--out s.npz does not go with --format png. It writes png: a folder."),
        ("x.zip", "npz", "--out x.zip does not go with --format npz. It writes npz: x.npz."),
        ("out", "zip", "--out out does not go with --format zip. It writes zip: x.zip."),
        ("four.png", None, "--out four.png is named like a .png file, which this command does not write."),
        ("x.tar.gz", None, "--out x.tar.gz is named like a .tar.gz file"),
        ("codes.h5", None, "named like a .h5 file"),
        ("S.NPZ", None, "--out S.NPZ: write its ending as .npz"),
    ],
)
def test_what_cannot_be_meant_is_refused(name, asked, said):
    with pytest.raises(UsageError) as caught:
        form_of_output(Path(name), FORMS, asked=asked, default="png")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "--out is empty. Is a shell variable unset?"),
        (" ", "--out is empty"),
        ("-", "--out - is not a file: outputs never go to stdout. Give a file or a folder by its name."),
        ("s.npz/", "--out s.npz/ ends like a folder and is named like a .npz file. Write --out s.npz."),
        ("a/S.H5//", "named like a .h5 file. Write --out a/S.H5."),
        ("x.tar.gz/./", "named like a .tar.gz file. Write --out x.tar.gz."),
    ],
)
def test_what_is_typed_and_names_no_output(text, said):
    with pytest.raises(UsageError) as caught:
        check_written(text)
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["out", "out/", "s.npz", "run-1.5/", "./-", "s.zip/out", "/", ".", "..", "./"])
def test_what_is_typed_and_names_an_output(text):
    check_written(text)


def test_an_output_of_one_form(tmp_path):
    assert form_of_output(tmp_path / "c.h5", STORE) == "a key-code store"
    assert form_of_output(tmp_path / "c", STORE) == "a key-code store"  # a folder
    for name in ("c.txt", "c.zip"):
        with pytest.raises(
            UsageError, match=f"{name} is named like a {name[1:]} file, .* a key-code store: x.h5 or a "
        ):
            form_of_output(tmp_path / name, STORE)
    (tmp_path / "c.h5").mkdir()
    with pytest.raises(UsageError, match="is a folder, not a file"):
        form_of_output(tmp_path / "c.h5", STORE)


@pytest.mark.parametrize(
    ("key", "name"),
    [("00000/cat", "00000%2Fcat"), ("a b-c_d.1", "a b-c_d.1"), ("猫/ß", "猫%2Fß"), ("100%", "100%"),
     ("a%2Fb", "a%252Fb"), (".hidden", "%2Ehidden"), ("a\nb", "a%0Ab"), ("x\x1b[31m", "x%1B[31m"),
     ("a:b*?", "a%3Ab%2A%3F"), ("\u202egpj", "%E2%80%AEgpj")],
)  # fmt: skip
def test_names_of_keys(key, name):
    assert flat_name(key) == name and key_of_name(name) == key


@given(st.lists(KEYS | AWKWARD, unique=True, max_size=20))
def test_every_key_has_a_file_of_its_own_and_comes_back(keys):
    names = [flat_name(key) for key in keys]
    assert len(set(names)) == len(keys)
    for key, name in zip(keys, names, strict=True):
        assert "/" not in name and not name.startswith(".")
        assert len(f".{name}.png.tmp".encode()) <= 255
        if len(key.encode()) < 80:
            assert key_of_name(name) == key


def test_a_name_that_is_too_long_ends_in_a_digest(tmp_path):
    keys = [f"{'é' * 300}/{number}" for number in range(3)]
    names = [flat_name(key) for key in keys]
    assert len(set(names)) == 3
    for name in names:
        (tmp_path / f".{name}.png.tmp").write_bytes(b"")
