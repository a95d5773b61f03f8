"""Servers that speak as the two hubs do, as far as their clients ask for data sets; with faults that can be ordered."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "1" * 40


@dataclass
class HubServer:
    files: dict[str, bytes]
    id: str = "ada/mugs"
    token: str = ""
    faults: list[str] = field(default_factory=list)  # of the next downloads: "429", "500", "cut"
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *args: Any) -> None:
        pass

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, parts = self.hub, urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        hub.asked.append((self.command, path, self.headers.get("range", "")))
        if hub.token and hub.token not in str(self.headers.get("authorization")):
            self._json(
                {"error": "no"}, 401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found"
            )
        elif path == f"/api/datasets/{hub.id}" or path.startswith(f"/api/datasets/{hub.id}/revision/"):
            siblings = [
                {"rfilename": name, "size": len(data), "blobId": "0"} for name, data in hub.files.items()
            ]
            self._json(
                {"id": hub.id, "sha": COMMIT, "siblings": siblings, "cardData": {"license": "cc0-1.0"}}
            )
        elif path.startswith(f"/datasets/{hub.id}/resolve/"):
            self._file(path.split("/resolve/", 1)[1].partition("/")[2])
        elif path == f"/api/v1/datasets/{hub.id}/repo/tree":
            listed = [
                {
                    "Path": name,
                    "Name": name,
                    "Type": "blob",
                    "Size": len(data),
                    "Sha256": hashlib.sha256(data).hexdigest(),
                }
                for name, data in hub.files.items()
            ]
            self._json({"Code": 200, "Success": True, "Data": {"Files": listed, "TotalCount": len(listed)}})
        elif path == f"/api/v1/datasets/{hub.id}/repo":
            self._file(query["FilePath"][0])
        else:
            self._json({"Code": 404, "error": "not found"}, 404, X_Error_Code="RepoNotFound")

    def _file(self, name: str) -> None:
        hub = self.hub
        data = hub.files.get(name)
        if data is None:
            self._json({"error": "no such file"}, 404, X_Error_Code="EntryNotFound")
            return
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X_Repo_Commit": COMMIT,
            "Accept_Ranges": "bytes",
        }
        if self.command == "HEAD":
            self._send(200, data, **headers)
            return
        fault = hub.faults.pop(0) if hub.faults else ""
        if fault.isdigit():
            self._json({"error": "later"}, int(fault), Retry_After="0")
            return
        begin = int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        body = data[begin:]
        if fault == "cut":
            self.send_response(206 if begin else 200)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        if begin:
            headers["Content_Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        self._send(206 if begin else 200, body, **headers)


@contextmanager
def serving(hub: HubServer) -> Iterator[HubServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
