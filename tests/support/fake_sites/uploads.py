"""The part of the fake hub that takes uploads: accounts, new repositories, the check of cards, large files, commits.

Source: huggingface_hub 2.4 (what it sends and reads), huggingface/hub-docs, modelcard.md and repositories-licenses.md
(which fields are checked), git-lfs docs/api/batch.md.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from support.fake_sites.hub import Hub, git_blob
from support.fake_sites.listing import Refused
from support.fake_sites.messages import Request, Response, json_response, xml_error
from support.fake_sites.server import Answer
from support.fake_sites.storage import Signer, Storage

_REPO = r"([^/]+/[^/]+)"
_LARGE = (".pt", ".ckpt", ".bin", ".safetensors", ".zip", ".png", ".jpg")
_CARD = re.compile(r"^(\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(\r\n|\n|$))")  # as the hub finds it
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
LICENSES = ("apache-2.0", "cc-by-4.0", "cc-by-nc-4.0", "cc0-1.0", "creativeml-openrail-m", "mit", "other", "unknown")
"""Those of the hub's license ids that tests state."""


@dataclass
class Account:
    """Who a token belongs to, and what it may do: ``"write"`` or ``"read"``."""

    name: str
    orgs: tuple[str, ...] = ()
    role: str = "write"


@dataclass
class Uploads:
    """Answers what writes to the hub; everything else is left to the hub and the storage.

    Attributes:
        accounts: by token.
        room: bytes of large files that may still come; None for any number.
        instead: part of a path -> what is answered to a request for it, of which nothing is done.
        taken: sha256 of every large file whose bytes came, in the order in which they did.
    """

    hub: Hub
    storage: Storage
    signer: Signer
    accounts: dict[str, Account]
    room: int | None = None
    instead: dict[str, Response] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)

    def before(self, answer: Answer) -> Answer:
        """Returns what answers requests to the hub."""
        routes: tuple[tuple[str, str, Callable[..., Response]], ...] = (
            ("GET", r"/api/whoami-v2", self._whoami),
            ("POST", r"/api/repos/create", self._create),
            ("POST", r"/api/validate-yaml", self._validate),
            ("POST", rf"/api/models/{_REPO}/preupload/(.+)", self._preupload),
            ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", self._batch),
            ("POST", rf"/{_REPO}\.git/info/lfs/verify", self._verify),
            ("POST", rf"/api/models/{_REPO}/commit/(.+)", self._commit),
        )

        def answered(request: Request) -> Response:
            for part, response in self.instead.items():
                if part in request.path:
                    return response
            for method, pattern, handler in routes:
                if request.method == method and (match := re.fullmatch(pattern, request.path)):
                    try:
                        return handler(request, *match.groups())
                    except Refused as refused:
                        return refused.response
            return answer(request)

        return answered

    def before_storage(self, answer: Answer) -> Answer:
        """Returns what answers requests to the storage."""

        def answered(request: Request) -> Response:
            if request.method != "PUT":
                return answer(request)
            if "authorization" in request.headers:
                return xml_error(400, "InvalidRequest", "Missing x-amz-content-sha256")
            sha256 = request.path.rpartition("/")[2]
            if hashlib.sha256(request.body).hexdigest() != sha256:
                return xml_error(400, "BadDigest", "The Content-MD5 you specified did not match what we received")
            self.storage.blobs[sha256] = request.body
            self.taken.append(sha256)
            return Response(200, {"ETag": f'"{sha256[:32]}"'})

        return answered

    def _account(self, request: Request) -> Account:
        account = self.accounts.get(request.token or "")
        if account is None:
            raise _refused(401, "Invalid credentials in Authorization header")
        return account

    def _require_writable(self, request: Request, name: str) -> None:
        account, owner = self._account(request), name.partition("/")[0]
        if account.role == "read":
            raise _refused(403, "Forbidden: you must use a write token to upload to a repository.")
        if owner not in (account.name, *account.orgs):
            raise _refused(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')

    def _whoami(self, request: Request) -> Response:
        account = self._account(request)
        orgs = [{"type": "org", "name": name, "roleInOrg": "write"} for name in account.orgs]
        token = {"displayName": "test", "role": account.role, "createdAt": "2026-01-01T00:00:00.000Z"}
        me = {"type": "user", "id": "1", "name": account.name, "fullname": account.name, "isPro": False, "orgs": orgs}
        return json_response({**me, "auth": {"type": "access_token", "accessToken": token}})

    def _create(self, request: Request) -> Response:
        asked = json.loads(request.body)
        name = f"{asked['organization'] or self._account(request).name}/{asked['name']}"
        self._require_writable(request, name)
        url = f"http://{request.headers['host']}/{name}"
        if name in self.hub.repos:
            raise _refused(409, "You already created this model repo", url=url)
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.add(name, {".gitattributes": b"*.pt filter=lfs\n"}, private=private)
        return json_response({"url": url, "name": name, "id": "2"})

    def _validate(self, request: Request) -> Response:
        errors = list(card_errors(json.loads(request.body)["content"]))
        said = {"errors": [{"message": message} for message in errors], "warnings": []}
        return json_response({**said, "error": "Invalid metadata"} if errors else said, 400 if errors else 200)

    def _preupload(self, request: Request, name: str, revision: str) -> Response:
        self._require_writable(request, name)
        there, files = self._files(name), []
        for file in json.loads(request.body)["files"]:
            is_large = file["path"].endswith(_LARGE)
            answer: dict[str, Any] = {"path": file["path"], "uploadMode": "lfs" if is_large else "regular"}
            if (content := there.get(file["path"])) is not None:
                answer["oid"] = hashlib.sha256(content).hexdigest() if is_large else git_blob(content)
            files.append({**answer, "shouldIgnore": False})
        return json_response({"files": files})

    def _batch(self, request: Request, name: str) -> Response:
        self._require_writable(request, name)
        objects = []
        for wanted in json.loads(request.body)["objects"]:
            if self.room is not None and wanted["size"] > self.room:
                raise _refused(403, "Storage limit reached, please upgrade your plan to increase your storage limit")
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.storage.blobs:
                verify = f"http://{request.headers['host']}/{name}.git/info/lfs/verify"
                upload = self.signer.sign(f"/uploads/{wanted['oid']}")
                answer["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
            objects.append(answer)
        return json_response({"transfer": "basic", "objects": objects})

    def _verify(self, request: Request, name: str) -> Response:
        self._require_writable(request, name)
        known = json.loads(request.body)["oid"] in self.storage.blobs
        return json_response({"success": known}, 200 if known else 404)

    def _commit(self, request: Request, name: str, revision: str) -> Response:
        self._require_writable(request, name)
        files = dict(self._files(name))
        for line in request.body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            elif item["key"] == "lfsFile":
                files[item["value"]["path"]] = self.storage.blobs[item["value"]["oid"]]
        commit = self.hub.commit(name, files)
        url = f"http://{request.headers['host']}/{name}/commit/{commit}"
        return json_response({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def _files(self, name: str) -> dict[str, bytes]:
        repo = self.hub.repos.get(name)
        if repo is None:
            raise _refused(404, "Repository not found", code="RepoNotFound")
        return repo.commits[repo.branches["main"]]


def card_errors(content: str) -> Iterator[str]:
    """Yields what the hub does not accept of a model card."""
    found = _CARD.search(content)
    fields = yaml.safe_load(found[2]) if found else {}
    if not isinstance(fields, dict):
        yield '"metadata" must be an object'
        return
    for key in ("license", "library_name", "pipeline_tag", "instance_prompt", "license_name", "license_link"):
        if key in fields and not (isinstance(fields[key], str) and fields[key]):
            yield f'"{key}" must be a string'
    if fields.get("license", "mit") not in LICENSES:
        yield f'"license" must be one of [{", ".join(LICENSES)}]'
    if fields.get("license") == "other" and not fields.get("license_name"):
        yield '"license_name" is required'
    tags = fields.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) and tag for tag in tags):
        yield '"tags" must be an array of strings'
    bases = fields.get("base_model", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not all(isinstance(base, str) and _HUB_ID.fullmatch(base) for base in bases):
        yield '"base_model" with value is not valid. Use a model id from https://hf.co/models.'
    if fields.get("base_model_relation", "adapter") not in ("finetune", "adapter", "merge", "quantized"):
        yield '"base_model_relation" must be one of [finetune, adapter, merge, quantized]'
    for number, example in enumerate(fields.get("widget", [])):
        output = example.get("output", {})
        if not isinstance(example.get("text"), str) or not isinstance(output.get("url"), str):
            yield f'"widget[{number}]" does not match any of the allowed types'


def _refused(status: int, message: str, *, code: str | None = None, **more: Any) -> Refused:
    response = json_response({"error": message, **more}, status, X_Error_Message=message)
    if code:
        response.headers["X-Error-Code"] = code
    return Refused(response)
