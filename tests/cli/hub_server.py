"""What of the Hugging Face hub its client asks to upload a folder and to fetch files, on loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml


class Hub(ThreadingHTTPServer):
    """``repos``: by name, files by name; ``private``, names; ``broken``, whether every request fails."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.asked: list[str] = []
        self.broken = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, content: bytes | dict | str, **headers: str) -> None:
        data = content if isinstance(content, bytes) else (
            content.encode() if isinstance(content, str) else json.dumps(content).encode()
        )  # fmt: skip
        self.send_response(status)
        kind = "application/json" if isinstance(content, dict) else "application/octet-stream"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(f"POST {self.path}")
        if self.server.broken:
            return self.answer(500, "out of order")
        if self.path == "/api/validate-yaml":
            try:
                head = yaml.safe_load(json.loads(body)["content"].split("---")[1])
            except yaml.YAMLError as error:
                return self.answer(400, str(error))
            return self.answer(200, "{}") if isinstance(head, dict) else self.answer(400, "no metadata")
        if self.headers.get("Authorization") != "Bearer hf_right":
            return self.answer(401, {"error": "Invalid user token"})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.server.repos.setdefault(name, {})
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            return self.answer(200, {"url": f"{self.server.address}/{name}", "name": name})
        if match := re.match(r"/api/models/(.+?)/preupload/", self.path):
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if match := re.match(r"/api/models/(.+?)/commit/", self.path):
            files = self.server.repos[match[1]]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    files.pop(line["value"]["path"])
            url = f"{self.server.address}/{match[1]}/commit/{'c' * 40}"
            return self.answer(200, {"commitUrl": url, "commitOid": "c" * 40, "hookOutput": ""})
        return self.answer(404, {"error": "unknown"})

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if self.server.broken:
            return self.answer(500, "out of order")
        if match := re.match(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?$", path):
            files = self.server.repos.get(match[1])
            if files is None:
                return self.answer(404, {"error": "not found"}, **{"X-Error-Code": "RepoNotFound"})
            siblings = [{"rfilename": name} for name in files]
            return self.answer(200, {"id": match[1], "modelId": match[1], "sha": "c" * 40, "siblings": siblings})
        if match := re.match(r"/api/models/([^/]+/[^/]+)/tree/", path):
            content = json.dumps(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                    for name, data in self.server.repos[match[1]].items()
                ]
            )
            return self.answer(200, content.encode(), **{"Content-Type": "application/json"})
        if match := re.match(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)$", path):
            data = self.server.repos.get(match[1], {}).get(match[2])
            if data is None:
                return self.answer(404, "no such file", **{"X-Error-Code": "EntryNotFound"})
            tag = hashlib.sha256(data).hexdigest()
            return self.answer(200, data, **{"ETag": f'"{tag}"', "X-Repo-Commit": "c" * 40})
        return self.answer(404, {"error": "unknown"})

    do_HEAD = do_GET
