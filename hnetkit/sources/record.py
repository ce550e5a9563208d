"""What Civitai says of a model, into the registry's catalogue."""

from __future__ import annotations

from hnetkit.registry.store import Registry
from hnetkit.sources.shapes import Model, Version

SOURCE = "civitai"
_MODEL = (
    *("name", "type", "creator", "description", "tags", "nsfw_level", "availability", "commercial_use"),
    *("allow_no_credit", "allow_derivatives", "allow_different_license", "downloads", "state"),
)
_VERSION = (
    *("name", "base_model", "published_at", "early_access_until", "availability", "usage", "nsfw_level"),
    *("trained_words", "strength"),
)
_FILE = ("name", "type", "size_bytes", "format", "fp", "scan", "is_primary", "sha256", "hashes")
_IMAGE = ("url", "type", "nsfw_level", "width", "height")


def record(registry: Registry, model: Model, *, whole: bool = False) -> None:
    """Stores a model with its versions and files; call it inside of `registry.write()`.

    Args:
        registry: gets it.
        model: as an answer had it.
        whole: the answer holds all versions that there are (a listing leaves some out): others are marked gone.
    """
    row = registry.catalogue.put_model(SOURCE, str(model.id), {key: getattr(model, key) for key in _MODEL}, model.raw)
    for version in model.versions:
        _record_version(registry, row, version)
    if whole and model.versions and not model.left_out:  # an empty list is a known fault of the site, no statement
        registry.catalogue.mark_gone(row, keep_versions=[str(version.id) for version in model.versions])


def _record_version(registry: Registry, model: int, version: Version) -> None:
    row = registry.catalogue.put_version(model, str(version.id), {key: getattr(version, key) for key in _VERSION})
    registry.catalogue.put_images(row, [{key: getattr(image, key) for key in _IMAGE} for image in version.images])
    for file in version.files:
        registry.catalogue.put_file(row, str(file.id), {key: getattr(file, key) for key in _FILE})
