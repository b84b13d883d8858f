"""A model hub on loopback, as the clients of Hugging Face and ModelScope ask one.

A folder is the only model it has. Used by the tests of downloads. `Hub.requests` lists what was
asked; `cut_after` breaks the first transfer of weights off, as a bad line does.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "1234567890abcdef1234567890abcdef12345678"


@dataclass
class Hub:
    """What the handler knows and notes."""

    folder: Path
    model: str = "tiny/vlm"
    revisions: tuple[str, ...] = ("main", "v1", COMMIT)
    gated: bool = False
    cut_after: int = 0
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    address: str = ""

    def files(self) -> list[Path]:
        return [path for path in sorted(self.folder.iterdir()) if path.is_file()]


@contextmanager
def serve_hub(hub: Hub) -> Iterator[Hub]:
    """Serve it until the block ends."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        if hub.gated:
            return self._error(403, "GatedRepo")
        api, file = f"/api/models/{hub.model}", f"/{hub.model}/resolve/"
        if path == api:
            return self._json({"id": hub.model, "sha": COMMIT, "siblings": []})
        if path.startswith(f"{api}/revision/"):
            if path.rpartition("/")[2] not in hub.revisions:
                return self._error(404, "RevisionNotFound")
            return self._json({"id": hub.model, "sha": COMMIT, "siblings": []})
        if path.startswith(f"{api}/tree/"):
            return self._json([self._entry(each) for each in hub.files()])
        if path.startswith(file):
            return self._file(hub.folder / path.rpartition("/")[2], body)
        if path.startswith(f"/api/v1/models/{hub.model}/repo"):
            return self._modelscope(body)
        return self._error(404, "RepoNotFound")

    def _modelscope(self, body: bool) -> None:
        """ModelScope's two questions: which files there are, and one of them."""
        asked = parse_qs(urlsplit(self.path).query)
        if "FilePath" in asked:
            return self._file(self.hub.folder / asked["FilePath"][0], body)
        files = [
            {
                "Type": "blob",
                "Path": each.name,
                "Name": each.name,
                "Size": each.stat().st_size,
                "Sha256": hashlib.sha256(each.read_bytes()).hexdigest(),
            }
            for each in self.hub.files()
        ]
        return self._json({"Code": 200, "Success": True, "Data": {"Files": files}})

    def _entry(self, path: Path) -> dict[str, object]:
        size = path.stat().st_size
        return {"type": "file", "path": path.name, "size": size, "oid": _digest(path)}

    def _json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self._head(200, {"content-type": "application/json", "content-length": str(len(data))})
        self.wfile.write(data)

    def _error(self, status: int, code: str) -> None:
        self._head(status, {"x-error-code": code, "x-error-message": code, "content-length": "0"})

    def _file(self, path: Path, body: bool) -> None:
        if not path.is_file():
            return self._error(404, "EntryNotFound")
        data, start, status = path.read_bytes(), 0, 200
        told = {"etag": f'"{_digest(path)}"', "x-repo-commit": COMMIT, "accept-ranges": "bytes"}
        if asked := self.headers.get("range"):
            self.hub.ranges.append(asked)
            start, status = int(asked.removeprefix("bytes=").split("-")[0]), 206
            told["content-range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._head(status, told | {"content-length": str(len(data) - start)})
        if not body:
            return
        if self.hub.cut_after and path.suffix == ".safetensors":
            self.wfile.write(data[: self.hub.cut_after])
            self.hub.cut_after, self.close_connection = 0, True
            return
        self.wfile.write(data[start:])

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
