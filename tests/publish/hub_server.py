"""A small Hub on loopback: the protocol that huggingface_hub speaks, with faults on demand."""

import base64
import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_of_the_test"
LARGE = (".safetensors", ".png", ".parquet")


@dataclass
class Fault:
    """What happens to the next requests of a method whose path matches: a status, or a cut."""

    method: str
    path: str
    status: int | None = None
    times: int = 1


@dataclass
class Repository:
    """Files of the newest commit by path, and the messages of all commits."""

    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        return hashlib.sha1(repr((len(self.commits), sorted(self.files))).encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """The server's state: repositories, large files by SHA-256, faults to come, requests seen."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests.append(f"{method} {path}")
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def handle_error(self, *_: Any) -> None:
        """Clients that are cut off are part of the tests."""


@contextmanager
def serve_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


def hash_blob(content: bytes) -> str:
    """Return git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        method = self.command
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        fault = self.server.take_fault(method, path)
        if fault is not None and fault.status is None:
            self.close_connection = True
            self.connection.close()
            return
        body = self._read_body()
        if fault is not None:
            self._send(fault.status, {"error": "as the test asked"})
            return
        # An upload's address stands for itself; downloads of public models need nobody.
        private = method == "POST" or path == "/api/whoami-v2"
        if private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            message = "Invalid credentials in Authorization header"
            self._send(401, {"error": message}, {"X-Error-Message": message})
            return
        for pattern, name in ROUTES:
            found = re.fullmatch(pattern, f"{method} {path}")
            if found:
                getattr(self, name)(*found.groups(), body)
                return
        self._send(404, {"error": "not found"}, {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_POST = do_PUT = do_GET

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(
        self, status: int, content: Any = None, headers: dict[str, str] | None = None
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def whoami(self, _: bytes) -> None:
        self._send(200, {"type": "user", "name": "tester", "orgs": [{"name": "garden"}]})

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        name = f"{wanted.get('organization') or 'tester'}/{wanted['name']}"
        url = f"{self.server.endpoint}/{name}"
        if name in self.server.repositories:
            self._send(409, {"error": "You already created this model repo", "url": url})
            return
        self.server.repositories[name] = Repository()
        self._send(200, {"url": url, "name": name})

    def validate(self, body: bytes) -> None:
        """Refuse a card without the metadata that the Hub lists models by."""
        data = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
        assert {"pipeline_tag", "model-index"} <= set(data)
        self._send(200, {"errors": [], "warnings": []})

    def preupload(self, name: str, body: bytes) -> None:
        repository = self.server.repositories[name]
        files = []
        for wanted in json.loads(body)["files"]:
            large = wanted["path"].endswith(LARGE)
            entry = {"path": wanted["path"], "shouldIgnore": False}
            entry["uploadMode"] = "lfs" if large else "regular"
            present = repository.files.get(wanted["path"])
            if present is not None:
                sha = hashlib.sha256(present).hexdigest()
                entry["oid"] = sha if large else hash_blob(present)
            files.append(entry)
        self._send(200, {"files": files})

    def batch(self, name: str, body: bytes) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            entry: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.large:
                href = f"{self.server.endpoint}/lfs/{wanted['oid']}"
                entry["actions"] = {"upload": {"href": href}}
            objects.append(entry)
        self._send(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str, body: bytes) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.large[oid] = body
        self._send(200, {})

    def commit(self, name: str, body: bytes) -> None:
        repository = self.server.repositories[name]
        files = dict(repository.files)
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                repository.commits.append(value["summary"])
            elif item["key"] == "deletedFile":
                files.pop(value["path"], None)
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        repository.files = files
        head = repository.head
        url = f"{self.server.endpoint}/{name}/commit/{head}"
        self._send(200, {"success": True, "commitOid": head, "commitUrl": url})

    def info(self, name: str, _: str | None, __: bytes) -> None:
        repository = self.server.repositories.get(name)
        if repository is None:
            self._send(404, {"error": "no such model"}, {"X-Error-Code": "RepoNotFound"})
            return
        siblings = [{"rfilename": path} for path in sorted(repository.files)]
        known = {"id": name, "sha": repository.head, "siblings": siblings, "tags": []}
        self._send(200, {**known, "private": False, "downloads": 0, "likes": 0})

    def tree(self, name: str, folder: str | None, __: bytes) -> None:
        if folder:
            self._send(404, {"error": "no such folder"}, {"X-Error-Code": "EntryNotFound"})
            return
        files = sorted(self.server.repositories[name].files.items())
        rows = [{"type": "file", "path": p, "size": len(d), "oid": hash_blob(d)} for p, d in files]
        self._send(200, rows)

    def resolve(self, name: str, path: str, _: bytes) -> None:
        repository = self.server.repositories[name]
        headers = {"X-Repo-Commit": repository.head}
        if path not in repository.files:
            headers["X-Error-Code"] = "EntryNotFound"
            self._send(404, {"error": "no such file"}, headers)
            return
        data = repository.files[path]
        large = path.endswith(LARGE)
        headers["ETag"] = f'"{hashlib.sha256(data).hexdigest() if large else hash_blob(data)}"'
        self._send(200, data, headers)


_ID = "([^/]+/[^/]+)"
ROUTES = (
    ("GET /api/whoami-v2", "whoami"),
    ("POST /api/repos/create", "create"),
    ("POST /api/validate-yaml", "validate"),
    (f"POST /api/models/{_ID}/preupload/main", "preupload"),
    (f"POST /{_ID}\\.git/info/lfs/objects/batch", "batch"),
    ("PUT /lfs/([0-9a-f]{64})", "upload"),
    (f"POST /api/models/{_ID}/commit/main", "commit"),
    (f"GET /api/models/{_ID}/tree/[^/]+(/.+)?", "tree"),
    (f"GET /api/models/{_ID}(/revision/[^/]+)?", "info"),
    (f"(?:GET|HEAD) /{_ID}/resolve/[^/]+/(.+)", "resolve"),
)
