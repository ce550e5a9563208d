"""A fake Hugging Face hub, as far as `huggingface_hub` needs it to look at repositories and fetch files.

As at the real one, the record of a repository names its files, of many only some; the tree of a revision lists them in
pages, whose `Link` headers name the next; a renamed repository redirects, and a gated one shows all but its contents.
Large files are in LFS, which gives their sha256; what lies in a folder `git` is in git itself, whatever its suffix.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote

from support.fake_sites.listing import Refused
from support.fake_sites.messages import Request, Response, json_response
from support.fake_sites.storage import Signer, Storage, ranged

Files = Mapping[str, bytes]
_LFS = (".pt", ".ckpt", ".bin", ".safetensors", ".zip", ".png", ".jpg")
_REPO = r"([^/]+/[^/]+)"
_KINDS = (("/api/models/", "/"), ("/api/datasets/", "/datasets/"))


@dataclass
class Repo:
    """One repository: commit -> files, and what each branch points at.

    `admitted` says whether the holder of the good token may read the files of a gated one.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    admitted: bool = False


class Hub:
    """Answers requests to the hub origin."""

    def __init__(self, storage: Storage, signer: Signer, token: str) -> None:
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}  # former name -> name
        self.most_siblings = 1_000_000  # files that the record of a repository names at most
        self.token = token
        self.page_size = 1000
        self._storage = storage
        self._signer = signer
        self._routes: list[tuple[str, str, Callable[..., Response]]] = [("GET", r"/api/models", self._search)]
        for api, files in _KINDS:
            kind = files.strip("/")
            prefix = f"{kind}/" if kind else ""
            named = self._by_name(prefix)
            self._routes += [
                ("GET", rf"{api}{_REPO}", named(self._info)),
                ("GET", rf"{api}{_REPO}/revision/(.+)", named(self._info)),
                ("GET", rf"{api}{_REPO}/auth-check", named(self._auth_check)),
                ("GET", rf"{api}{_REPO}/tree/([^/]+)(?:/(.+))?", named(self._tree)),
                ("POST", rf"{api}{_REPO}/paths-info/(.+)", named(self._paths_info)),
                ("GET", rf"{files}{_REPO}/resolve/([^/]+)/(.+)", named(self._resolve)),
            ]

    def _by_name(self, prefix: str) -> Callable[[Callable[..., Response]], Callable[..., Response]]:
        """Makes handlers of repositories of one kind, whose names begin with `prefix`; a former name redirects."""

        def named(handler: Callable[..., Response]) -> Callable[..., Response]:
            def handled(request: Request, name: str, *rest: str | None) -> Response:
                now = self.renamed.get(prefix + name)
                if now is None:
                    return handler(request, prefix + name, *rest)
                target = request.target.replace(name, now.removeprefix(prefix), 1)
                return Response(307, {"Location": target, "Content-Type": "text/plain"}, b"Temporary Redirect")

            return handled

        return named

    def add(self, name: str, files: Files, *, gated: bool = False, private: bool = False) -> str:
        """Creates a repository `owner/name`; returns its first commit."""
        self.repos[name] = Repo(gated=gated, private=private)
        return self.commit(name, files)

    def commit(self, name: str, files: Files, branch: str = "main") -> str:
        """Makes these the files of a branch; older commits stay. Returns the commit."""
        repo = self.repos[name]
        digest = hashlib.sha1(f"{name} {branch} {len(repo.commits)}".encode())
        for path, content in sorted(files.items()):
            digest.update(path.encode() + content)
            if _is_lfs(path):
                self._storage.blobs[hashlib.sha256(content).hexdigest()] = content
        commit = digest.hexdigest()
        repo.commits[commit] = dict(files)
        repo.branches[branch] = commit
        return commit

    def rename(self, name: str, to: str) -> None:
        """Moves a repository to another name; requests for the former one are redirected."""
        self.repos[to] = self.repos.pop(name)
        self.renamed[name] = to

    def answer(self, request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        for wanted, pattern, handler in self._routes:
            match = re.fullmatch(pattern, request.path)
            if match and wanted == method:
                try:
                    return handler(request, *match.groups())
                except Refused as refused:
                    return refused.response
        return _refused(404, None, "Sorry, we can't find the page you are looking for.").response

    def _at(self, request: Request, name: str, revision: str | None) -> tuple[Repo, str, dict[str, bytes]]:
        repo = self.repos.get(name)
        known = request.token == self.token
        if repo is None or (repo.private and not known):
            raise _refused(404 if known else 401, "RepoNotFound", "Repository not found")
        revision = revision or "main"
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            raise _refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, commit, repo.commits[commit]

    def _search(self, request: Request) -> Response:
        text, author = (request.one("search") or "").lower(), request.one("author")
        names = [name for name, repo in self.repos.items() if text in name.lower() and not repo.private]
        names = [name for name in names if author in (None, name.partition("/")[0])]
        limit = int(request.one("limit") or self.page_size)
        return json_response([{"_id": name, "id": name, "modelId": name, "tags": []} for name in names[:limit]])

    def _auth_check(self, request: Request, name: str) -> Response:
        repo, _, _ = self._at(request, name, None)
        self._require_admitted(request, name, repo)
        return json_response({})

    def _require_admitted(self, request: Request, name: str, repo: Repo) -> None:
        is_known = request.token == self.token
        if repo.gated and not (is_known and repo.admitted):
            message = f"Access to model {name} is restricted."
            raise _refused(403 if is_known else 401, "GatedRepo", message)

    def _info(self, request: Request, name: str, revision: str | None = None) -> Response:
        repo, commit, files = self._at(request, name, revision)
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(files)[: self.most_siblings]]
        if (request.one("blobs") or "").lower() in ("true", "1"):
            for sibling in siblings:
                entry = _entry(sibling["rfilename"], files[sibling["rfilename"]])
                sibling |= {"size": entry["size"], "blobId": entry["oid"]}
                if "lfs" in entry:
                    lfs = entry["lfs"]
                    sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
        info = {
            "_id": hashlib.md5(name.encode()).hexdigest()[:24],
            "id": name.removeprefix("datasets/"),
            "modelId": name,
            "author": name.removeprefix("datasets/").partition("/")[0],
            "sha": commit,
            "lastModified": "2023-02-10T18:00:00.000Z",
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
            "disabled": False,
            "downloads": 12,
            "likes": 1,
            "tags": [],
            "siblings": siblings,
        }
        return json_response(info, X_Repo_Commit=commit)

    def _tree(self, request: Request, name: str, revision: str, folder: str | None = None) -> Response:
        _, commit, files = self._at(request, name, revision)
        prefix = f"{folder.rstrip('/')}/" if folder else ""
        inside = {path: content for path, content in sorted(files.items()) if path.startswith(prefix)}
        if prefix and not inside:
            raise _refused(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        recursive = (request.one("recursive") or "").lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for path, content in inside.items():
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts)):
                parent = prefix + "/".join(parts[:depth])
                if recursive or depth == 1:
                    entries.setdefault(parent, _folder(parent))
            if recursive or len(parts) == 1:
                entries[path] = _entry(path, content)
        start = int(request.one("cursor") or 0)
        limit = min(int(request.one("limit") or self.page_size), self.page_size)
        stop = start + limit
        answer = json_response(list(entries.values())[start:stop], X_Repo_Commit=commit)
        if stop < len(entries):
            host = request.headers.get("host", "")
            query = f"recursive={recursive}&limit={limit}&cursor={stop}"
            answer.headers["Link"] = f'<http://{host}{quote(request.path)}?{query}>; rel="next"'
        return answer

    def _paths_info(self, request: Request, name: str, revision: str) -> Response:
        _, commit, files = self._at(request, name, revision)
        if "json" in request.headers.get("content-type", ""):
            paths = json.loads(request.body)["paths"]
        else:
            paths = parse_qs(request.body.decode()).get("paths", [])
        entries = []
        for path in paths:
            if path in files:
                entries.append(_entry(path, files[path]))
            elif any(each.startswith(f"{path}/") for each in files):
                entries.append(_folder(path))
        return json_response(entries, X_Repo_Commit=commit)

    def _resolve(self, request: Request, name: str, revision: str, path: str) -> Response:
        repo, commit, files = self._at(request, name, revision)
        self._require_admitted(request, name, repo)
        if path not in files:
            refusal = _refused(404, "EntryNotFound", "Entry not found")
            refusal.response.headers["X-Repo-Commit"] = commit
            raise refusal
        entry = _entry(path, files[path])
        headers = {"X-Repo-Commit": commit, "Content-Type": "application/octet-stream"}
        if "lfs" not in entry:
            return ranged(request, files[path], {**headers, "ETag": f'"{entry["oid"]}"'})
        sha256 = entry["lfs"]["oid"]
        file_name = path.rpartition("/")[2]
        headers |= {
            "X-Linked-Size": str(entry["size"]),
            "X-Linked-Etag": f'"{sha256}"',
            "Location": self._signer.sign(f"/blobs/{sha256}", 3600, f'inline; filename="{file_name}";'),
        }
        return Response(302, headers)


def _is_lfs(path: str) -> bool:
    return path.lower().endswith(_LFS) and not path.startswith("git/")


def _entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as the tree routes describe it; `oid` is the git blob, of the pointer for LFS."""
    if not _is_lfs(path):
        return {"type": "file", "oid": git_blob(content), "size": len(content), "path": path}
    sha256 = hashlib.sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
    lfs = {"oid": sha256, "size": len(content), "pointerSize": len(pointer)}
    return {"type": "file", "oid": git_blob(pointer), "size": len(content), "lfs": lfs, "path": path}


def git_blob(content: bytes) -> str:
    """Git's id of a blob: the ETag of small files."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}


def _refused(status: int, code: str | None, message: str) -> Refused:
    response = json_response({"error": message}, status, X_Error_Message=message)
    if code:
        response.headers["X-Error-Code"] = code
    return Refused(response)
