"""A hub on loopback that `huggingface_hub` and `modelscope-hub` take for their own: models and data sets, in memory.

    with hub() as found:
        found.put("models/some/name", {"config.json": b"{}"})
        ...                                    # HF_ENDPOINT or MODELSCOPE_ENDPOINT = found.url
        found.asked                            # what was called: ("PUT", "/upload/…")

It speaks the calls that these clients make, no more, and can be told to go wrong (`Hub.faults`). For uploads by
huggingface_hub set HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Hub:
    """What the hub holds, what it was asked, and how it goes wrong."""

    url: str = ""
    token: str = ""  # asked for, where it is not empty
    repos: dict[str, Files] = field(default_factory=dict)  # "models/owner/name" -> files
    cards: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # what Hugging Face reads in a README's head
    private: set[str] = field(default_factory=set)
    blobs: Files = field(default_factory=dict)  # by their SHA-256
    commits: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def put(self, repo: str, files: Files) -> None:
        """`repo` is "models/owner/name" or "datasets/owner/name"."""
        self.repos.setdefault(repo, {}).update(files)
        self.commits[repo] = self.commits.get(repo, 0) + 1

    def uploads(self) -> list[str]:
        """Blobs that were sent, by hash."""
        return [path.rpartition("/")[2] for method, path in self.asked if method == "PUT"]


@dataclass
class Fault:
    """An answer other than the right one, to calls whose method and path fit, `times` times.

    `status`: this one is sent. `cut`: so many bytes of the right body are sent, then the connection is closed.
    `garble`: the right body with its last byte changed.
    """

    path: str  # regular expression
    method: str = "GET"
    status: int = 0
    cut: int | None = None
    garble: bool = False
    times: int = 1_000_000
    headers: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def hub(token: str = "") -> Iterator[Hub]:
    found = Hub(token=token)

    class Handler(_Handler):
        hub = found

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _take(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.body = self._read_body()
        self.hub.asked.append((self.command, path))
        self.fault = self._fault(path)
        if self.fault is not None and self.fault.status:
            self._send(self.fault.status, b"{}", self.fault.headers)
            return
        signed = path.startswith("/upload/")  # its address is the permission
        if self.hub.token and not signed and self.headers.get("authorization") != f"Bearer {self.hub.token}":
            self._json({"error": "Unauthorized", "Message": "Unauthorized"}, 401)
            return
        for method, pattern, answer in _ROUTES:
            found = re.fullmatch(pattern, path) if method in (self.command, "") else None
            if found:
                answer(self, **found.groupdict())
                return
        self._json({"error": f"nothing at {path}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _take  # noqa: N815

    def _read_body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _fault(self, path: str) -> Fault | None:
        for fault in self.hub.faults:
            if fault.times and fault.method == self.command and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None

    # --- answers

    def _json(self, told: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(told).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        fault = self.fault
        if fault is not None and fault.garble and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is not None and fault.cut is not None:
            self.wfile.write(body[: fault.cut])
            self.close_connection = True
            return
        self.wfile.write(body)

    def _files(self, repo: str) -> Files | None:
        found = self.hub.repos.get(repo)
        if found is None:
            self._json(
                {"error": "Repository not found", "Code": 10010205001, "Message": "record not found"},
                404,
                {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository Not Found"},
            )
        return found

    def _file(self, repo: str, path: str) -> None:
        files = self._files(repo)
        if files is None:
            return
        if path not in files:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        body, status = files[path], 200
        headers = {
            "ETag": f'"{_sha256(body)}"',
            "X-Linked-ETag": f'"{_sha256(body)}"',
            "X-Linked-Size": str(len(body)),
            "X-Repo-Commit": self._commit(repo),
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if wanted:
            first, last = int(wanted[1]), int(wanted[2] or len(body) - 1)
            if first >= len(body):
                self._send(416, b"", {"Content-Range": f"bytes */{len(body)}"})
                return
            headers["Content-Range"] = f"bytes {first}-{min(last, len(body) - 1)}/{len(body)}"
            body, status = body[first : last + 1], 206
        headers["Content-Length"] = str(len(body))
        self._send(status, body, headers)

    def _commit(self, repo: str) -> str:
        return hashlib.sha1(f"{repo} {self.hub.commits.get(repo, 0)}".encode()).hexdigest()

    def _create(self, kind: str, name: str, private: bool) -> bool:
        repo = f"{kind}/{name}"
        if repo in self.hub.repos:
            return False
        self.hub.repos[repo] = {}
        self.hub.private |= {repo} if private else set()
        return True

    # --- Hugging Face

    def hf_create(self) -> None:
        told = json.loads(self.body)
        name = "/".join(filter(None, (told.get("organization") or "someone", told["name"])))
        private = bool(told.get("private")) or told.get("visibility") == "private"
        new = self._create(f"{told.get('type') or 'model'}s", name, private)
        self._json({"url": f"{self.hub.url}/{name}", "id": name}, 200 if new else 409)

    def hf_whoami(self) -> None:
        self._json(
            {"type": "user", "name": "someone", "orgs": [], "auth": {"accessToken": {"role": "write"}}}
        )

    def hf_preupload(self, kind: str, repo: str, rev: str) -> None:
        files = self._files(f"{kind}/{repo}")
        if files is None:
            return
        asked = json.loads(self.body)["files"]
        told = [
            {
                "path": file["path"],
                "uploadMode": "lfs"
                if file["path"].endswith((".safetensors", ".comfyloop", ".gguf"))
                else "regular",
                "shouldIgnore": False,
                "oid": _git_hash(files[file["path"]]) if file["path"] in files else None,
            }
            for file in asked
        ]
        self._json({"files": told, "commitOid": self._commit(f"{kind}/{repo}")})

    def hf_info(self, kind: str, repo: str, rev: str = "main") -> None:
        files = self._files(f"{kind}/{repo}")
        if files is not None:
            whole = f"{kind}/{repo}"
            siblings = [{"rfilename": path, "size": len(data)} for path, data in files.items()]
            told = {
                "_id": whole,
                "id": repo,
                "sha": self._commit(whole),
                "private": whole in self.hub.private,
                "cardData": self.hub.cards.get(whole),
            }
            self._json({**told, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings})

    def hf_tree(self, kind: str, repo: str, rev: str) -> None:
        files = self._files(f"{kind}/{repo}")
        if files is not None:
            self._json([_entry(path, data) for path, data in files.items()])

    def hf_paths(self, kind: str, repo: str, rev: str) -> None:
        files = self._files(f"{kind}/{repo}")
        if files is None:
            return
        if self.headers.get("content-type", "").startswith("application/json"):
            wanted = json.loads(self.body)["paths"]
        else:
            wanted = parse_qs(self.body.decode()).get("paths", [])
        self._json([_entry(path, files[path]) for path in wanted if path in files])

    def hf_commit(self, kind: str, repo: str, rev: str) -> None:
        files = self._files(f"{kind}/{repo}")
        if files is None:
            return
        for line in map(json.loads, self.body.splitlines()):
            told = line["value"]
            if line["key"] == "file":
                files[told["path"]] = base64.b64decode(told["content"])
            elif line["key"] == "lfsFile":
                files[told["path"]] = self.hub.blobs[told["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(told["path"], None)
        self.hub.put(f"{kind}/{repo}", {})
        oid = self._commit(f"{kind}/{repo}")
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}"})

    def lfs_batch(self, repo: str, kind: str = "models") -> None:
        told = []
        for thing in json.loads(self.body)["objects"]:
            action = {"upload": {"href": f"{self.hub.url}/upload/{thing['oid']}", "header": {}}}
            known = thing["oid"] in self.hub.blobs
            told.append({**thing, "authenticated": True, **({} if known else {"actions": action})})
        answer = {"transfer": "basic", "objects": told}
        is_modelscope = urlsplit(self.path).path.startswith("/api/v1/")
        self._json({"Code": 200, "Success": True, "Data": answer} if is_modelscope else answer)

    def upload(self, oid: str) -> None:
        if _sha256(self.body) != oid:
            self._json(
                {"error": "the hash does not fit", "Code": 400, "Message": "the hash does not fit"}, 400
            )
            return
        self.hub.blobs[oid] = self.body
        self._json({"Code": 200, "Success": True})

    def hf_file(self, repo: str, rev: str, path: str, kind: str = "models/") -> None:
        self._file(kind + repo, path)

    # --- ModelScope

    def ms_create(self, kind: str) -> None:
        told = _body_of(self)
        owner = told.get("Path") or told.get("Owner") or "someone"
        name = f"{owner}/{told.get('Name')}"
        new = self._create(kind, name, str(told.get("Visibility")) in ("1", "3"))
        if new:
            self._json({"Code": 200, "Success": True, "Data": {"Path": owner, "Name": told.get("Name")}})
        else:
            self._json({"Code": 10010101003, "Success": False, "Message": "record already exists"}, 409)

    def ms_info(self, kind: str, repo: str) -> None:
        if self._files(f"{kind}/{repo}") is not None:
            owner, name = repo.split("/")
            self._json({"Code": 200, "Success": True, "Data": {"Id": 1, "Path": owner, "Name": name}})

    def ms_files(self, kind: str, repo: str) -> None:
        files = self._files(f"{kind}/{repo}")
        if files is None:
            return
        told = [
            {
                "Path": path,
                "Name": path.rpartition("/")[2],
                "Type": "blob",
                "Size": len(data),
                "Sha256": _sha256(data),
                "Revision": self._commit(f"{kind}/{repo}"),
            }
            for path, data in files.items()
        ]
        if int(self.query.get("PageNumber", 1)) > 1:
            told = []
        self._json({"Code": 200, "Success": True, "Data": {"Files": told, "TotalCount": len(files)}})

    def ms_file(self, kind: str, repo: str) -> None:
        self._file(f"{kind}/{repo}", self.query["FilePath"])

    def ms_revisions(self, kind: str, repo: str) -> None:
        branch = {"Revision": "master"}
        self._json(
            {"Code": 200, "Success": True, "Data": {"RevisionMap": {"Branches": [branch], "Tags": []}}}
        )

    def ms_commit(self, kind: str, repo: str, rev: str) -> None:
        files = self._files(f"{kind}/{repo}")
        if files is None:
            return
        for action in json.loads(self.body)["actions"]:
            if action["action"] == "delete":
                files.pop(action["path"], None)
            elif action["type"] == "lfs":
                files[action["path"]] = self.hub.blobs[action["sha256"]]
            else:
                files[action["path"]] = base64.b64decode(action["content"])
        self.hub.put(f"{kind}/{repo}", {})
        self._json({"Code": 200, "Success": True, "Data": {"oid": self._commit(f"{kind}/{repo}")}})


def _body_of(handler: _Handler) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(handler.body)
        return told
    except ValueError:
        form = parse_qs(handler.body.decode("latin-1"))
        parts = re.findall(rb'name="(\w+)"\r\n\r\n([^\r]*)', handler.body)
        return {name: values[0] for name, values in form.items()} | {
            name.decode(): value.decode() for name, value in parts
        }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, object]:
    lfs = {"oid": _sha256(data), "size": len(data), "pointerSize": 100}
    more = {"lfs": lfs} if path.endswith((".safetensors", ".comfyloop", ".gguf")) else {}
    return {"type": "file", "path": path, "size": len(data), "oid": _git_hash(data), **more}


_KIND, _REPO, _REV = r"(?P<kind>models|datasets)", r"(?P<repo>[\w.-]+/[\w.-]+)", r"(?P<rev>[\w.-]+)"
_Answer = Callable[..., None]
_ROUTES: list[tuple[str, str, _Answer]] = [
    ("POST", r"/api/repos/create", _Handler.hf_create),
    ("GET", r"/api/whoami-v2", _Handler.hf_whoami),
    ("POST", r"/api/validate-yaml", lambda self: self._json({"errors": [], "warnings": []})),
    ("POST", rf"/api/{_KIND}/{_REPO}/preupload/{_REV}", _Handler.hf_preupload),
    ("POST", rf"/api/{_KIND}/{_REPO}/commit/{_REV}", _Handler.hf_commit),
    ("POST", rf"/api/{_KIND}/{_REPO}/paths-info/{_REV}", _Handler.hf_paths),
    ("GET", rf"/api/{_KIND}/{_REPO}/tree/{_REV}/?", _Handler.hf_tree),
    ("GET", rf"/api/{_KIND}/{_REPO}/revision/(?P<rev>.+)", _Handler.hf_info),
    ("GET", rf"/api/{_KIND}/{_REPO}", _Handler.hf_info),
    ("POST", rf"/(?:datasets/)?{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/upload/(?P<oid>[0-9a-f]{64})", _Handler.upload),
    ("POST", rf"/api/v1/{_KIND}", _Handler.ms_create),
    ("POST", rf"/api/v1/repos/{_KIND}/{_REPO}/info/lfs/objects/batch", _Handler.lfs_batch),
    ("POST", rf"/api/v1/repos/{_KIND}/{_REPO}/commit/{_REV}", _Handler.ms_commit),
    ("GET", rf"/api/v1/{_KIND}/{_REPO}/repo/(?:files|tree)", _Handler.ms_files),
    ("", rf"/api/v1/{_KIND}/{_REPO}/repo", _Handler.ms_file),
    ("GET", rf"/api/v1/{_KIND}/{_REPO}/revisions", _Handler.ms_revisions),
    ("GET", rf"/api/v1/{_KIND}/{_REPO}", _Handler.ms_info),
    ("", rf"/(?P<kind>datasets/){_REPO}/resolve/{_REV}/(?P<path>.+)", _Handler.hf_file),
    ("", rf"/{_REPO}/resolve/{_REV}/(?P<path>.+)", _Handler.hf_file),
]
