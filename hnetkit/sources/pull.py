"""From what a person typed to jobs."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import unquote, urlsplit

from hnetkit.errors import Archived, Gone, HnetkitError, NetworkFailed, UsageError
from hnetkit.sources import hub
from hnetkit.sources.civitai import Failed, ignored
from hnetkit.sources.desk import Desk
from hnetkit.sources.here import again_unless_here
from hnetkit.sources.names import safe_stem, split_name
from hnetkit.sources.origins import Origin, Trust, redacted
from hnetkit.sources.pages import parts_left_out
from hnetkit.sources.plan import Item, enqueue, items_of
from hnetkit.sources.refs import Ref
from hnetkit.sources.sync import store

_WHOLE = (10, 64)  # digits of a hash that can be held against any file; others stand for parts of some, or are weak


def jobs_for(
    desk: Desk, ref: Ref, *, sha256: str | None, all_versions: bool, failed: Failed = ignored
) -> tuple[list[int], list[Item]]:
    """Returns the jobs that fetch what is meant, and what of it is here already or cannot be had.

    Args:
        failed: told what of the site's record cannot be used.

    Raises:
        RemoteError: the site does not have it, or does not give it.
        UsageError: a plain address without its sha256.
    """
    if ref.kind == "hub":
        files = hub.Hub(desk.clock).files(ref, failed=failed)
        with desk.registry.write():
            return [job.id for job in hub.enqueue(desk.registry, desk.folder, files)], []
    if ref.kind == "url":
        return [_plain_job(desk, ref, sha256)], []
    return _civitai_jobs(desk, ref, all_versions, failed)


def _civitai_jobs(desk: Desk, ref: Ref, all_versions: bool, failed: Failed) -> tuple[list[int], list[Item]]:
    version = None
    if ref.kind == "hash":
        version = desk.civitai.version_by_hash(ref.digits)
    elif ref.kind == "version":
        version = desk.civitai.version(ref.id)
    model_id = ref.id if version is None else version.model_id
    if version is not None and ref.model not in (None, model_id):
        hint = "say which of the two is meant: model:ID or version:ID"
        raise UsageError(f"{ref.text}: version {version.id} is one of model {model_id}, not of {ref.model}", hint=hint)
    if model_id is None:
        raise Gone(f"{ref.text}: the site does not say which model it belongs to")
    model = desk.civitai.model(model_id)
    for bad in store(desk.registry, [model]):
        raise NetworkFailed(f"{ref.text}: {bad.reason}")
    items = items_of(desk.registry, model, all_versions=all_versions, only=version.id if version else None)
    if ref.kind == "hash":
        listed = len(items)
        items = [item for item in items if any(h.startswith(ref.digits) for h in item.file.hashes.values())]
        if listed and not items:
            raise NetworkFailed(f"{ref.text}: of no file of {model.name} does the site say this hash")
    if ref.file is not None:
        items = [item for item in items if item.file.id == ref.file]
    asked = model if version is None else next((v for v in model.versions if v.id == version.id), version)
    left_out = list(parts_left_out(asked))
    if not items:
        if left_out:
            raise NetworkFailed(f"{ref.text}: {left_out[0].reason}")
        if model.state == "archived":
            raise Archived(f"{ref.text}: {model.name} is archived; the site keeps it and gives no file")
        which = "" if ref.file is None else f" of the number {ref.file}"
        raise Gone(f"{ref.text}: {model.name} has no file{which} that may be a network")
    for part in left_out:
        failed(part)
    with desk.registry.write():
        jobs = [job.id for job in enqueue(desk.registry, desk.civitai, desk.folder, _again(items), failed)]
    if len(ref.digits) in _WHOLE:
        desk.asked |= dict.fromkeys(jobs, ref.digits)
    return jobs, [item for item in _again(items) if item.action != "fetch"]


def _again(items: list[Item]) -> list[Item]:
    """Somebody asks for just this: what was refused or failed once is tried again."""
    return [Item(i.model, i.version, i.file, "fetch") if i.action == "skip" and not i.not_before else i for i in items]


def _plain_job(desk: Desk, ref: Ref, sha256: str | None) -> int:
    if sha256 is None or not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UsageError(f"{ref.text}: nobody says what this file must be", hint="add --sha256 with its 64 digits")
    try:
        Trust(Origin.of(ref.url), settled=False).check(ref.url)
    except HnetkitError as error:
        raise UsageError(str(error), hint=error.hint or "use an https address") from error
    stem, suffix = split_name(unquote(urlsplit(ref.url).path))
    shown = redacted(ref.url)  # signatures change and are secrets: neither kept, nor part of what the job is
    place = shown.removesuffix("?...")
    key = f"url:{hashlib.sha256(place.encode()).hexdigest()[:16]}:{sha256.lower()}"
    values = {
        **{"source": "url", "url": shown, "name": safe_stem(stem, "network"), "suffix": suffix},
        **{"folder": str(desk.folder), "remote_file_id": None, "sha256": sha256.lower(), "size_bytes": None},
    }
    with desk.registry.write():
        job = again_unless_here(desk.registry, desk.registry.jobs.add(key, values))
    desk.addresses[job.id] = ref.url
    return job.id
