"""The model and the files of Civitai that a reference means; the site is asked for them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from hnetkit.errors import Archived, Gone, NetworkFailed, NotAHypernetwork, UsageError
from hnetkit.registry.store import Registry
from hnetkit.sources.civitai import Civitai, Failed
from hnetkit.sources.civitai_models import CivitaiModel, CivitaiVersion, parse_model, parts_left_out
from hnetkit.sources.plans import FetchItem
from hnetkit.sources.references import Reference, format_of
from hnetkit.sources.sync import model_files, other_kind, plan_items
from hnetkit.text import argument

_FULL_FILE = (10, 64)  # digits of hashes of whole files; other hashes cover a part, or are weak
_MOST_NAMED = 5  # versions or files in a message


def resolve_civitai(
    registry: Registry, civitai: Civitai, ref: Reference, *, all_versions: bool, failed: Failed
) -> tuple[CivitaiModel, list[FetchItem]]:
    """Returns the model that a reference means, and those of its files that are wanted.

    Args:
        registry: of the library; says what is here already.
        all_versions: of the model, where the reference means no single one.
        failed: called with what cannot be used of the site's answer.

    Raises:
        RemoteError: the site does not have it, or does not serve it.
        NotAHypernetwork: the site calls it something else, which may have gigabytes.
        UsageError: the version belongs to another model than the reference states.
    """
    model, version = _model_of(civitai, ref)
    if (other := other_kind(model)) is not None:
        raise NotAHypernetwork(f"{ref.text}: {other}", kind=other.kind, hint=other.command_hint)
    any_version = all_versions or ref.file is not None
    items = plan_items(registry, civitai, model, all_versions=any_version, only=version.id if version else None)
    chosen = _chosen(model, ref)
    listed, items = len(items), [item for item in items if item.file_id in chosen]
    if listed and not items and ref.kind == "hash":
        raise NetworkFailed(f"{ref.text}: the site lists no file of {model.name} with this hash")
    if listed and not items and ref.file is None:
        files = (file.name for v in model.versions if version is None or v.id == version.id for file in model_files(v))
        hint = f"hnetkit pull {argument(f'version:{version.id}' if version else f'model:{model.id}')} fetches all"
        raise Gone(f"{ref.text}: {model.name} has no {ref.format} file; it has {_few(files)}", hint=hint)
    asked = model if version is None else next((v for v in model.versions if v.id == version.id), version)
    left_out = list(parts_left_out(asked))
    if not items:
        if left_out:
            raise NetworkFailed(f"{ref.text}: {left_out[0].reason}")
        if model.state == "archived":
            raise Archived(f"{ref.text}: {model.name} is archived; the site no longer serves its files")
        which = "" if ref.file is None else f" with the number {ref.file}"
        raise Gone(f"{ref.text}: {model.name} has no file{which} that may be a network")
    for part in left_out:
        failed(part)
    digits = ref.digits if len(ref.digits) in _FULL_FILE else ""
    return model, [replace(_retry_skipped(item), digits=digits) for item in items]


# --- files that a reference chooses


def _chosen(model: CivitaiModel, ref: Reference) -> set[int]:
    """Returns the numbers of the files that a hash, a number or a format chooses; all where there is none of these.

    A format chooses among several files of a version, and leaves a single one.
    """
    chosen: set[int] = set()
    for version in model.versions:
        files = model_files(version)
        if ref.kind == "hash":
            files = [file for file in files if any(h.startswith(ref.digits) for h in file.hashes.values())]
        elif ref.file is not None:
            files = [file for file in files if file.id == ref.file]
        elif ref.format is not None and len(files) > 1:
            files = [file for file in files if format_of(file.format, file.name) == ref.format]
        chosen.update(file.id for file in files)
    return chosen


def _few(names: Iterable[str]) -> str:
    listed = list(dict.fromkeys(names))
    return ", ".join(listed[:_MOST_NAMED]) + (", ..." if len(listed) > _MOST_NAMED else "")


# --- numbers of models and versions


def _model_of(civitai: Civitai, ref: Reference) -> tuple[CivitaiModel, CivitaiVersion | None]:
    """Returns the model that a reference means, and the version if it means one.

    Either of the two records may be gone: a model lists its versions, and a version names its model.

    Raises:
        Gone: the site has none; a number alone may be one of the other kind.
        UsageError: the version belongs to another model than the reference states.
    """
    if ref.kind == "model":
        with _number_of(ref, "model", "version"):
            return civitai.model(ref.id), None
    model = None if ref.model is None else _if_there(civitai, ref.model)
    version = next((version for version in model.versions if version.id == ref.id), None) if model else None
    if model is not None and version is not None:
        return model, version
    try:
        version = _version_of(civitai, ref)
    except Gone as error:
        if isinstance(error, Archived):
            raise
        if model is not None:
            has = f"it has {_few(f'{v.name} ({v.id})' for v in model.versions)}" if model.versions else "it has none"
            hint = f"hnetkit pull {argument(f'model:{model.id}')}"
            raise Gone(f"{ref.text}: {model.name} has no version {ref.id}; {has}", hint=hint) from error
        if ref.may_be_model and (model := _if_there(civitai, ref.id)) is not None and other_kind(model) is None:
            warnings.warn(f"{ref.text}: no version has this number; fetches the model {model.name}", stacklevel=3)
            return model, None
        raise
    if ref.model not in (None, version.model_id):
        hint = "use one of the two: model:ID or version:ID"
        raise UsageError(
            f"{ref.text}: version {version.id} belongs to model {version.model_id}, not to {ref.model}", hint=hint
        )
    if version.model_id is None:
        raise Gone(f"{ref.text}: the site does not state its model")
    if ref.model is None:
        model = _if_there(civitai, version.model_id)
    if model is None:
        return _model_around(version, version.model_id), version
    if all(listed.id != version.id for listed in model.versions):
        model = replace(model, versions=(*model.versions, version))
    return model, version


def _if_there(civitai: Civitai, id: int) -> CivitaiModel | None:
    try:
        return civitai.model(id)
    except Archived:
        raise
    except Gone:
        return None


def _version_of(civitai: Civitai, ref: Reference) -> CivitaiVersion:
    if ref.kind == "hash":
        return civitai.version_by_hash(ref.digits)
    with _number_of(ref, "version", "model"):
        return civitai.version(ref.id)


def _model_around(version: CivitaiVersion, id: int) -> CivitaiModel:
    """Returns what the record of a version tells of its model, which has none of its own any more."""
    told = version.raw.get("model")
    model = parse_model({**(told if isinstance(told, dict) else {}), "id": id, "modelVersions": [version.raw]})
    assert model is not None  # it has a number
    return model


@contextmanager
def _number_of(ref: Reference, what: str, instead: str) -> Iterator[None]:
    """Says of a lone number that the site does not have that it may be one of the other kind: they look alike."""
    try:
        yield
    except Gone as error:
        if isinstance(error, Archived):
            raise
        if ref.model is not None:
            raise Gone(f"{ref.text}: the site has neither version {ref.id} nor model {ref.model}") from error
        said = f"{ref.text}: the site has no {what} {ref.id}; the number may be a {instead}'s"
        raise Gone(said, hint=f"hnetkit pull {argument(f'{instead}:{ref.id}')}") from error


def _retry_skipped(item: FetchItem) -> FetchItem:
    """Returns an item that was named explicitly with its earlier failure ignored: the site says who may have it."""
    return replace(item, action="fetch", code=None, reason=None) if item.action == "skip" else item
