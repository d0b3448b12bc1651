"""A server of the Hugging Face Hub's interface for models: commits, downloads, and uploads, also by LFS."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants, hf_api

MAIN = "main"


class Repository:
    """A model: its files at each commit, oldest first, and at branches and tags."""

    def __init__(self, private=False):
        self.private, self.is_gated = private, False
        self.commits = {}
        self.refs = {}

    def commit(self, files):
        """Makes a commit, the newest of the main branch; returns its name."""
        name = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[name], self.refs[MAIN] = dict(files), name
        return name

    def at(self, revision):
        """Returns (commit, files) of a branch, tag or commit. Raises KeyError."""
        commit = self.refs.get(revision, revision)
        return commit, self.commits[commit]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.log.append((self.command, path))
        repository = next((r for name, r in self.server.repositories.items() if f"/{name}/" in f"{path}/"), None)
        if repository is None or (repository.private and not self._token()):
            return self._fail(404 if self._token() else 401, "RepoNotFound")
        try:
            self._answer_get(path, repository)
        except KeyError:
            self._fail(404, "RevisionNotFound")

    do_HEAD = do_GET

    def _answer_get(self, path, repository):
        """Answers a request about a repository. Raises KeyError for an unknown revision."""
        if match := re.fullmatch(r"/api/models/[^/]+/[^/]+/tree/([^/]+)", path):
            _, files = repository.at(match[1])
            return self._json(
                [
                    {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                    for n, d in files.items()
                ]
            )
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            commit, files = repository.at(match[2] or MAIN) if repository.commits else ("0" * 40, {})
            siblings = [{"rfilename": name} for name in files]
            return self._json({"id": match[1], "sha": commit, "private": repository.private, "siblings": siblings})
        if match := re.fullmatch(r"/[^/]+/[^/]+/resolve/([^/]+)/(.+)", path):
            if repository.is_gated and not self._token():
                return self._fail(401, "GatedRepo")
            commit, files = repository.at(match[1])
            if match[2] not in files:
                return self._fail(404, "EntryNotFound", {"X-Repo-Commit": commit})
            data = files[match[2]]
            return self._send(200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit})
        self._fail(404, "EntryNotFound")

    def do_POST(self):
        path, body = unquote(urlsplit(self.path).path), self._body()
        self.server.log.append((self.command, path))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if not self._token():
            return self._fail(401, "RepoNotFound")
        if self.server.read_only:
            return self._fail(403, "")
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}" if given.get("organization") else given["name"]
            if name in self.server.repositories:
                return self._json({"url": f"{self.server.url}/{name}"}, 409)
            private = bool(given.get("private")) or given.get("visibility") == "private"
            self.server.repositories[name] = Repository(private)
            self.server.repositories[name].commit({".gitattributes": b""})  # as the Hub begins each
            return self._json({"url": f"{self.server.url}/{name}", "id": name})
        name = re.search(r"/(?:api/models/)?([^/]+/[^/]+?)(?:\.git)?/(?:preupload|info|commit)/", path)[1]
        repository = self.server.repositories[name]
        if "/preupload/" in path:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {f: "lfs" if f.endswith((".safetensors", ".png")) else "regular" for f in files}
            return self._json(
                {"files": [{"path": f, "uploadMode": mode, "shouldIgnore": False} for f, mode in modes.items()]}
            )
        if path.endswith("/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.server.url}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        return self._commit(name, repository, [json.loads(line) for line in body.splitlines()])

    def _commit(self, name, repository, lines):
        """Makes a commit of the operations of a request."""
        files = dict(repository.at(MAIN)[1]) if repository.commits else {}
        for value in ({"key": line["key"], **line["value"]} for line in lines):
            if value["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif value["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif value["key"] == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(files)
        self._json({"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit})

    def do_PUT(self):
        data, oid = self._body(), self.path.rpartition("/")[2]
        self.server.log.append((self.command, self.path))
        if hashlib.sha256(data).hexdigest() != oid:
            return self._fail(400, "")
        self.server.objects[oid] = data
        self._send(200, b"", {})

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _token(self):
        return self.headers.get("Authorization", "").removeprefix("Bearer ").startswith("hf_")

    def _json(self, value, status=200):
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(self, status, code, headers=None):
        self._send(status, b"", {"X-Error-Code": code, **(headers or {})})

    def _send(self, status, data, headers):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


class Hub(http.server.ThreadingHTTPServer):
    """The server.

    Attributes:
        url: its address.
        repositories: by name.
        objects: uploaded by LFS, by checksum.
        log: (method, path) of the requests so far.
        read_only: whether tokens may not write.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories, self.objects, self.log, self.read_only = {}, {}, [], False

    def add(self, name, folder, **changes):
        """Adds a commit with a folder's files, and others by their paths; None removes one. Returns its name."""
        files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        files = {key: data for key, data in {**files, **changes}.items() if data is not None}
        return self.repositories.setdefault(name, Repository()).commit(files)

    def downloaded(self):
        """Returns the files whose contents were asked for."""
        return {path.partition("/resolve/")[2].partition("/")[2] for method, path in self.log if method == "GET"} - {""}


@contextlib.contextmanager
def serve():
    """Serves a Hub without models."""
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub without models, and an empty cache."""
    with serve() as server:
        # what $HF_ENDPOINT and $HF_HOME set when the library is imported
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hf_api.api, "endpoint", server.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server takes uploads by LFS alone
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
        yield server
