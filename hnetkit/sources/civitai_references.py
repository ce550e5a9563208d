"""The model and the files of Civitai that a reference means; the site is asked for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from hnetkit.errors import Archived, Gone, NetworkFailed, NotAHypernetwork, UsageError
from hnetkit.registry.store import Registry
from hnetkit.sources.civitai import Civitai, Failed
from hnetkit.sources.civitai_models import CivitaiModel, CivitaiVersion, parts_left_out
from hnetkit.sources.plans import FetchItem
from hnetkit.sources.references import Reference
from hnetkit.sources.sync import other_kind, plan_items
from hnetkit.text import argument

_FULL_FILE = (10, 64)  # digits of hashes of whole files; other hashes cover a part, or are weak


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
    items = plan_items(registry, civitai, model, all_versions=all_versions, only=version.id if version else None)
    if ref.kind == "hash":
        files = [file for version in model.versions for file in version.files]
        having = {file.id for file in files if any(digits.startswith(ref.digits) for digits in file.hashes.values())}
        listed, items = len(items), [item for item in items if item.file_id in having]
        if listed and not items:
            raise NetworkFailed(f"{ref.text}: the site lists no file of {model.name} with this hash")
    if ref.file is not None:
        items = [item for item in items if item.file_id == ref.file]
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


def _model_of(civitai: Civitai, ref: Reference) -> tuple[CivitaiModel, CivitaiVersion | None]:
    """Returns the model that a reference means, and the version if it means one.

    Raises:
        Gone: the site has none; a number alone may be one of the other kind.
        UsageError: the version belongs to another model than the reference states.
    """
    if ref.kind == "model":
        with _number_of(ref, "model", "version"):
            return civitai.model(ref.id), None
    if ref.model is not None:  # the model lists its versions, also where the version's own page is gone
        model = civitai.model(ref.model)
        version = next((version for version in model.versions if version.id == ref.id), None)
        if version is not None:
            return model, version
    if ref.kind == "hash":
        version = civitai.version_by_hash(ref.digits)
    else:
        with _number_of(ref, "version", "model"):
            version = civitai.version(ref.id)
    if ref.model not in (None, version.model_id):
        hint = "use one of the two: model:ID or version:ID"
        raise UsageError(
            f"{ref.text}: version {version.id} belongs to model {version.model_id}, not to {ref.model}", hint=hint
        )
    if version.model_id is None:
        raise Gone(f"{ref.text}: the site does not state its model")
    return civitai.model(version.model_id), version


@contextmanager
def _number_of(ref: Reference, what: str, instead: str) -> Iterator[None]:
    """Says of a lone number that the site does not have that it may be one of the other kind: they look alike."""
    try:
        yield
    except Gone as error:
        if ref.model is not None or isinstance(error, Archived):
            raise
        said = f"{ref.text}: the site has no {what} {ref.id}; the number may be a {instead}'s"
        raise Gone(said, hint=f"hnetkit pull {argument(f'{instead}:{ref.id}')}") from error


def _retry_skipped(item: FetchItem) -> FetchItem:
    """Returns an item that was named explicitly with its earlier failure ignored: the site says who may have it."""
    return replace(item, action="fetch", code=None, reason=None) if item.action == "skip" else item
