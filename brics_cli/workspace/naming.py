"""Names of outputs: what the ending of one says, and the file that an image of some key goes to.

One rule for every command: `--out s.npz` is never a folder of that name, and `--out s.zip --format png` no zip. And the
names of a model's files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import unquote

from brics_cli.errors import UsageError
from brics_cli.workspace.remote import is_remote, shown

FOLDER = ""
"""The ending of a folder's name: none, or one that is no file's (`run-1.5`)."""
_OF_FILES = tuple(
    ending
    for endings in (
        ".zip .tar .tar.gz .tgz .tar.bz2 .tar.xz .tar.zst .gz .bz2 .xz .zst .7z .rar",
        ".npz .npy .h5 .hdf5 .parquet .arrow .lmdb .mdb .tfrecord .safetensors .pt .pth .ckpt .bin .pkl",
        ".png .jpg .jpeg .webp .bmp .gif .tif .tiff .ppm .pgm .avif .heic .svg .pdf .mp4 .webm .avi",
        ".json .jsonl .csv .tsv .txt .md .yaml .yml .toml .html .xml .log .py",
    )
    for ending in endings.split()
)

STORE_ENDING = ".h5"
STORE = {"a key-code store": (STORE_ENDING, FOLDER)}
INDEX_NAME, PARTS_FOLDER = "index.h5", "parts"
"""In a key-code store that is a folder: the file that makes one store of the parts, and where these are."""
IDENTITY_NAME = "identity.json"
"""Beside parts: what they are parts of."""
PICTURE = {"a picture": (".png",)}
CURVES = {"a picture": (".png", ".svg", ".pdf")}
REPORT = {"a report": (".json", FOLDER)}
PAGE = {"a page": (".html",)}
RUN = {"a run": (FOLDER,)}
"""Outputs that have one form."""

ImageFormat = Literal["png", "wds", "zip", "npz"]
IMAGE_FORMATS: dict[ImageFormat, tuple[str, ...]] = {
    "png": (FOLDER,),
    "wds": (FOLDER, ".tar"),
    "zip": (".zip",),
    "npz": (".npz",),
}
"""Formats of images, which `images.sinks` writes: what --out ends in."""
IMAGE_TITLES: dict[ImageFormat, str] = {
    "png": "PNG files",
    "wds": "WebDataset shards",
    "zip": "EDM's zip",
    "npz": "ADM's npz",
}
Codec = Literal["png", "jpeg", "webp"]
"""How images are encoded in shards."""

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
"""The files of a model."""

Form = TypeVar("Form", bound=str)


def is_store(path: str | Path) -> bool:
    """Whether `path` is named like a key-code store, or is a folder that is one, finished or begun."""
    return Path(path).suffix == STORE_ENDING or is_store_folder(Path(path))


def is_store_folder(path: Path) -> bool:
    """Whether `path` is a folder with a key-code store in it, finished or begun."""
    return (path / INDEX_NAME).is_file() or (path / PARTS_FOLDER / IDENTITY_NAME).is_file()


def store_path(path: Path) -> Path:
    """The store that `path` names: of its index, the folder that this is in."""
    return path.parent if path.name == INDEX_NAME and is_store_folder(path.parent) else path


def store_file(path: Path) -> Path:
    """The HDF5 file that says what the store `path` is: itself, or what is in the folder."""
    return path / INDEX_NAME if path.suffix != STORE_ENDING else path


def model_directory(path: Path) -> Path:
    """Where the files of the model at `path` are: in the `model/` of a run, else in `path` itself."""
    inside = path / "model"
    return inside if inside.is_dir() else path


def is_picture(path: Path | None) -> bool:
    """Whether `path` is named like one picture."""
    return path is not None and ending_of(path) in PICTURE["a picture"]


def ending_of(path: Path) -> str:
    """The ending that says `path` is a file, in lower case; `FOLDER` when its name says nothing of the kind."""
    name = path.name.lower()
    return max((ending for ending in _OF_FILES if name.endswith(ending)), key=len, default=FOLDER)


def check_written(text: str, *, option: str = "--out", to_urls: bool = False) -> None:
    """Raise UsageError where `text`, as it was typed, is no name of an output: nothing, stdout, `s.npz/`; a URL unless
    outputs go `to_urls`."""
    if is_remote(text) and not to_urls:
        raise UsageError(
            f"{option} {shown(text)} is a URL, and this command writes to files of this machine",
            next="Write it here, and copy it.",
        )
    if not text.strip():
        raise UsageError(f"{option} is empty", next="Is a shell variable unset?")
    if text == "-":
        raise UsageError(
            f"{option} - is not a file: outputs never go to stdout", next="Give a file or a folder by its name."
        )
    name = re.sub(r"(/+\.?)+$", "", text)
    if name != text and (ending := ending_of(Path(name))) != FOLDER:
        raise UsageError(
            f"{option} {text} ends like a folder and is named like a {ending} file", next=f"Write {option} {name}."
        )


def form_of_output(
    out: Path,
    forms: Mapping[Form, Sequence[str]],
    *,
    asked: str | None = None,
    default: Form | None = None,
    option: str = "--out",
) -> Form:
    """The form that `out` is to have: the one that was `asked` for, or that its ending names; `default` for a folder.

    `forms` maps each form to its endings, `FOLDER` for a folder. Raises UsageError when the ending is of another
    form than the one asked for or of none of `forms`, and for a file where a folder is.
    """
    ending = ending_of(out)
    if not out.name.endswith(ending):
        raise UsageError(f"{option} {out}: write its ending as {ending}")
    fitting = [form for form, endings in forms.items() if ending in endings]
    if asked is not None:
        fitting = [form for form in fitting if form == asked]
    elif ending == FOLDER and default is not None:
        fitting = [default]
    if not fitting:
        possible = [each for endings in forms.values() for each in endings]
        if asked is not None:
            wrong = f"does not go with --format {asked}"
        elif FOLDER in possible:
            wrong = f"is named like a {ending} file, which this command does not write"
        else:
            wrong = f"does not end in {_either(possible)}"
        written = [
            f"{form}: {_either(['a folder' if each == FOLDER else f'x{each}' for each in endings])}"
            for form, endings in forms.items()
            if asked in (None, form)
        ]
        raise UsageError(f"{option} {out} {wrong}", next=f"It writes {'; '.join(written)}.")
    if ending != FOLDER and out.is_dir():
        raise UsageError(f"{option} {out} is a folder, not a file", next=f"Give another {option}.")
    return fitting[0]


def metavar_of(forms: Mapping[Form, Sequence[str]]) -> str:
    """The outputs of `forms` for the help of a command: `DIR|x.tar`."""
    endings = dict.fromkeys(ending for of_form in forms.values() for ending in of_form)
    return "|".join("DIR" if ending == FOLDER else f"x{ending}" for ending in endings)


def _either(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


MAX_STEM_BYTES = 240
"""A file name has 255 at most, of which `.`, `.png` and `.tmp` take some while it is written."""
_NOT_IN_NAMES = re.compile(
    r'^\.|[/\\<>:"|?*\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]|%(?=[0-9A-Fa-f]{2})'
)


def flat_name(key: str) -> str:
    """A file name without extension for the image `key`, another one for every key: `shard/cat` is `shard%2Fcat`.

    What file systems, shells' patterns and terminals trip over is percent-encoded, and so is a dot in front, which
    would hide the file. A name that is too long ends in a digest of the key instead.
    """
    name = _NOT_IN_NAMES.sub(lambda found: "".join(f"%{byte:02X}" for byte in _encode(found[0])), key)
    encoded = _encode(name)
    if len(encoded) <= MAX_STEM_BYTES:
        return name
    digest = hashlib.sha256(_encode(key)).hexdigest()[:16]
    return encoded[: MAX_STEM_BYTES - len(digest) - 1].decode("utf-8", "ignore") + "~" + digest


def key_of_name(name: str) -> str:
    """The key that `flat_name` made `name` of, unless it was too long."""
    return unquote(name)


def webdataset_stem(key: str) -> str:
    """The member stem of `key`: the dots of its last part are written %2E, since webdataset splits at the first dot;
    line ends %0A, since it passes over names with one."""
    folder, slash, name = key.rpartition("/")
    if "." in name:
        name = name.replace("%", "%25").replace(".", "%2E")
    return (folder + slash + name).replace("\n", "%0A")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
