"""A small Hugging Face hub on this machine: the routes by which a model gets there, and a check of all that arrives."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import yaml

TOKEN = "hf_secret-of-the-test"
LICENSES = {"apache-2.0", "mit"}
MODEL = r"/api/models/(?P<repo>[^/]+/[^/]+)"


@dataclass
class Repository:
    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    messages: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """fail: the status with which requests are answered whose method and path match, as in {"POST /api/repos": 500}."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # large files, by their sha256
    fail: dict[str, int] = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)  # files that a .gitignore of the repository leaves out
    asked: list[str] = field(default_factory=list)  # method and path of every request

    def put(self, sha256: str, content: bytes) -> None:
        assert hashlib.sha256(content).hexdigest() == sha256, "a large file has arrived as another one"
        self.stored[sha256] = content


@dataclass
class Asked:
    hub: Hub
    body: bytes


class Refusal(Exception):
    def __init__(self, status: int, message: str, url: str = "") -> None:
        super().__init__(message)
        self.status, self.url = status, url


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield hub
    server.shutdown()
    server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None: ...

    def _answer(self) -> None:
        request = f"{self.command} {unquote(self.path.partition('?')[0])}"
        self.hub.asked.append(request)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        try:
            if status := next((status for part, status in self.hub.fail.items() if request.startswith(part)), None):
                raise Refusal(status, "as the test says")
            if (
                "/lfs/" not in request and "validate-yaml" not in request
            ):  # a signed address, and who asks does not matter
                self._let_in()
            for pattern, answer in ROUTES.items():
                if match := re.fullmatch(pattern, request):
                    return self._send(200, answer(Asked(self.hub, body), **match.groupdict()))
            raise Refusal(404, f"{request} is no route of a hub")
        except Refusal as refusal:
            told = {"error": str(refusal), "errors": [{"message": str(refusal)}], "url": refusal.url}
            self._send(refusal.status, told)

    do_GET = do_POST = do_PUT = _answer

    def _chunk(self) -> bytes:
        content = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return content

    def _let_in(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refusal(401, "Invalid credentials in Authorization header")

    def _send(self, status: int, answer: Any) -> None:
        plain = self.headers.get("Accept") == "text/plain"  # in which huggingface_hub asks about a card
        content = str(answer.get("error", "")).encode() if plain else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _validate(asked: Asked) -> Any:
    card = json.loads(asked.body)["content"]
    data = yaml.safe_load(card.split("---\n")[1])
    if data.get("license", "mit") not in LICENSES:
        raise Refusal(400, '"license" must be one of a list')
    for model in data.get("model-index", []):
        for result in model["results"]:
            assert {"type", "name", "split"} <= result["dataset"].keys()
            assert all({"type", "value"} <= metric.keys() for metric in result["metrics"])
    return {"errors": [], "warnings": []}


def _create(asked: Asked) -> Any:
    wanted = json.loads(asked.body)
    name = f"{wanted['organization']}/{wanted['name']}"
    if wanted["organization"] != "me":
        raise Refusal(403, "You don't have the rights to create a model under this namespace")
    if name in asked.hub.repositories:
        raise Refusal(409, "You already created this model repo", f"{asked.hub.address}/{name}")
    asked.hub.repositories[name] = Repository(wanted["visibility"] == "private")
    return {"url": f"{asked.hub.address}/{name}"}


def _files(hub: Hub, repo: str, revision: str) -> dict[str, bytes]:
    if repo not in hub.repositories or revision not in hub.repositories[repo].branches:
        raise Refusal(404, "Repository or revision not found")
    return hub.repositories[repo].branches[revision]


def _info(asked: Asked, repo: str, revision: str = "main") -> Any:
    siblings = [{"rfilename": name} for name in _files(asked.hub, repo, revision)]
    return {
        "id": repo,
        "sha": "0" * 40,
        "private": asked.hub.repositories[repo].private,
        "siblings": siblings,
        "tags": [],
    }


def _branch(asked: Asked, repo: str, revision: str) -> Any:
    branches = asked.hub.repositories[repo].branches
    if revision in branches:
        raise Refusal(409, "Reference already exists")
    branches[revision] = dict(branches["main"])
    return {}


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def _preupload(asked: Asked, repo: str, revision: str) -> Any:
    there, answers = _files(asked.hub, repo, revision), []
    for file in json.loads(asked.body)["files"]:
        large, oid = _is_large(file["path"]), None
        if (content := there.get(file["path"])) is not None:
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            oid = hashlib.sha256(content).hexdigest() if large else git
        mode = "lfs" if large else "regular"
        ignored = file["path"] in asked.hub.ignored
        answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": ignored, "oid": oid})
    return {"files": answers}


def _batch(asked: Asked, repo: str) -> Any:
    def told(item: dict[str, Any]) -> dict[str, Any]:
        if item["oid"] in asked.hub.stored:
            return item
        place = f"{asked.hub.address}/lfs/{item['oid']}"
        return item | {"actions": {"upload": {"href": place}, "verify": {"href": f"{place}/verify"}}}

    _files(asked.hub, repo, "main")
    return {"transfer": "basic", "objects": [told(item) for item in json.loads(asked.body)["objects"]]}


def _put(asked: Asked, sha256: str) -> Any:
    asked.hub.put(sha256, asked.body)
    return {}


def _verify(asked: Asked, sha256: str) -> Any:
    assert json.loads(asked.body) == {"oid": sha256, "size": len(asked.hub.stored[sha256])}
    return {}


def _commit(asked: Asked, repo: str, revision: str) -> Any:
    header, *operations = map(json.loads, asked.body.splitlines())
    files = _files(asked.hub, repo, revision)
    for operation in operations:
        value = operation["value"]
        match operation["key"]:
            case "file":
                assert not _is_large(value["path"])
                files[value["path"]] = base64.b64decode(value["content"])
            case "lfsFile":
                files[value["path"]] = asked.hub.stored[value["oid"]]
                assert len(files[value["path"]]) == value["size"]
            case "deletedFile":
                del files[value["path"]]
            case other:
                raise Refusal(400, f"{other} is no operation of a commit")
    asked.hub.repositories[repo].messages.append(header["value"]["summary"])
    return {"commitOid": "1" * 40, "commitUrl": f"{asked.hub.address}/{repo}/commit/{'1' * 40}"}


ROUTES = {
    "POST /api/validate-yaml": _validate,
    "POST /api/repos/create": _create,
    f"GET {MODEL}": _info,
    f"GET {MODEL}/revision/(?P<revision>.+)": _info,
    f"POST {MODEL}/branch/(?P<revision>.+)": _branch,
    f"POST {MODEL}/preupload/(?P<revision>.+)": _preupload,
    f"POST {MODEL}/commit/(?P<revision>.+)": _commit,
    r"POST /(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch": _batch,
    "PUT /lfs/(?P<sha256>[0-9a-f]{64})": _put,
    "POST /lfs/(?P<sha256>[0-9a-f]{64})/verify": _verify,
}
