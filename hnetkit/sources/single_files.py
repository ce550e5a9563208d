"""Jobs for single files: at a plain address, or by the reference that an import holds for a file that is not here."""

from __future__ import annotations

import glob
import hashlib
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from hnetkit.errors import HnetkitError, UsageError
from hnetkit.registry.catalogue import repo_of
from hnetkit.registry.imported import ImportedFile
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.sources import hub_plans
from hnetkit.sources.civitai import SOURCE, Civitai
from hnetkit.sources.huggingface import SOURCE as HUB
from hnetkit.sources.huggingface import HubFile
from hnetkit.sources.install import split_name
from hnetkit.sources.lost import plan_by_hash
from hnetkit.sources.mirrors import without_query
from hnetkit.sources.plans import FetchItem, add_job
from hnetkit.sources.presence import requeue_unless_here
from hnetkit.sources.references import Reference, parse_reference
from hnetkit.sources.sync import job_key
from hnetkit.sources.trust import Origin, SitePolicy
from hnetkit.text import argument

Row = dict[str, Any]
_ESCAPED = re.compile(r"\[([*?[])\]")  # by `glob.escape`


def plan_plain(ref: Reference, sha256: str | None) -> FetchItem:
    """Returns the file at a plain address, which is to be fetched.

    Args:
        ref: with a `url`, whose query may hold a secret.
        sha256: that the file must have; None takes that of the address.

    Raises:
        UsageError: there is no sha256, or two, or the address is none that may be requested.
    """
    if sha256 is not None and ref.sha256 not in (None, sha256.lower()):
        raise UsageError(f"{ref.text}: two different sha256", hint="leave out --sha256, or what follows the #")
    sha256 = sha256 or ref.sha256
    if sha256 is None or not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UsageError(f"{ref.text}: a plain address needs --sha256", hint="add --sha256 with its 64 digits")
    try:
        SitePolicy(Origin.of(ref.url), settled=False).check(ref.url)
    except HnetkitError as error:
        raise UsageError(str(error), hint=error.command_hint or "use an https address") from error
    address = without_query(ref.url)  # signatures change and are secrets: no part of the key
    key = f"url:{hashlib.sha256(address.encode()).hexdigest()[:16]}:{sha256.lower()}"
    name = "".join(split_name(unquote(urlsplit(ref.url).path)))
    return FetchItem("url", key, ref.url, name, sha256=sha256.lower())


def enqueue_imported(registry: Registry, civitai: Civitai, folder: Path, file: ImportedFile) -> Job:
    """Makes the job that fetches a file that an import told of, by its reference alone: no site is asked.

    Raises:
        UsageError: the reference names no single file, or an address that only its user may name.
    """
    ref = parse_reference(file.reference or "")
    if ref.url:
        _require_public(ref, civitai)
        item = plan_plain(ref, file.reference_sha256)
        with registry.write():
            return requeue_unless_here(registry, add_job(registry, folder, item, None))
    if ref.kind == "hub" and ref.pattern and re.fullmatch(r"[0-9a-f]{40}", ref.revision or ""):
        repo = hub_plans.repo_at(registry, ref.repo, str(ref.revision))
        path = _ESCAPED.sub(r"\1", ref.pattern)
        item = hub_plans.hub_item(repo, HubFile(path, _size(file), file.reference_sha256))
        with registry.write():
            placed = hub_plans.store_items(registry, repo, [item], is_told=True)[path]
            return requeue_unless_here(registry, add_job(registry, folder, item, placed))
    if ref.kind == "hash" and len(ref.digits) == 64:
        item = plan_by_hash(ref.digits, name=file.name, size_bytes=_size(file))
        with registry.write():
            return requeue_unless_here(registry, add_job(registry, folder, item, None))
    if ref.kind != "version" or ref.file is None:
        raise UsageError(f"{ref.text}: names no single file", hint=f"hnetkit pull {argument(ref.text)}")
    with registry.write():
        row = registry.catalogue.file_numbered(SOURCE, str(ref.id), str(ref.file))
        listed = row or {"file_name": file.name, "remote_file_id": None, "size_bytes": _size(file)}
        item = FetchItem(
            SOURCE,
            job_key(ref.file),
            civitai.download_url(ref.id, ref.file),
            listed["file_name"],
            version_id=ref.id,
            file_id=ref.file,
            sha256=file.reference_sha256,
            size_bytes=listed["size_bytes"],
        )
        job = add_job(registry, folder, item, listed["remote_file_id"])
        registry.jobs.requeue(job.id)
        return registry.jobs.get(job.id)


def _require_public(ref: Reference, civitai: Civitai) -> None:
    """Refuses an address of one's own machine or network: an import may be a stranger's."""
    try:
        civitai.client.policy.check(ref.url)
    except HnetkitError as error:
        hint = f"if that is your own: hnetkit pull {argument(ref.text)} --sha256 SHA256"
        raise UsageError(f"{error}; an import names it", hint=hint) from error


def _size(file: ImportedFile) -> int | None:
    """Returns the size of what the reference gives, where that is the file itself."""
    return file.size_bytes if file.reference_sha256 == file.sha256 else None


# --- for an export


class References:
    """Where the files of a library came from, for all of them at once.

    Args:
        registry: of the library.
    """

    def __init__(self, registry: Registry) -> None:
        self._of_row: dict[int, tuple[str, str | None]] = {}
        self._of_sha256: dict[str, str] = {}
        for id, source, model, version, name, sha256 in registry.catalogue.numbers():
            reference = _reference(source, model, version, name)
            self._of_row[id] = reference, sha256
            if sha256 is not None:
                self._of_sha256.setdefault(sha256, reference)
        jobs = {job.id: job for job in registry.jobs.rows()}
        installs = registry.jobs.installs(kind="network")
        self._fetched = {row["sha256"]: jobs[row["job_id"]] for row in installs if row["job_id"] in jobs}

    def of(self, file: Row) -> tuple[str | None, str | None]:
        """Returns what `pull` takes to fetch a file of the registry, and the sha256 of the bytes that this gives.

        Both are None where no job fetched it and no site lists its bytes, or those that it was converted from.
        """
        job = self._fetched.get(file["sha256"])
        if job is not None:
            of_file = None if job.suffix == ".zip" else file["sha256"]
            if job.remote_file_id in self._of_row:
                reference, listed = self._of_row[job.remote_file_id]
                return reference, job.sha256 or listed or of_file
            if job.source == "url":
                return job.url, job.sha256
        for sha256 in (file["sha256"], file["source_sha256"]):
            if (listed_as := self.by_sha256(sha256)) is not None:
                return listed_as, sha256
        return None, None

    def by_sha256(self, sha256: str | None) -> str | None:
        """Returns what `pull` takes to fetch a file with these bytes; None where no site lists it."""
        return self._of_sha256.get(sha256 or "")


def _reference(source: str, model: str, version: str, file: str) -> str:
    """Returns the reference to a file by the numbers, or the names, that its site gives it."""
    if source == HUB:
        return f"hf:{repo_of(model)}@{version}:{glob.escape(file)}"
    return f"https://civitai.com/api/download/models/{version}?fileId={file}"
