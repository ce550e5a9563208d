"""Write what a site tells of an installed network beside it: its record, A1111's settings, a preview picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hnetkit.errors import NetworkFailed, OutputExists, RemoteError, failure_of
from hnetkit.library import sidecar_writing, sidecars
from hnetkit.library.scan import read_sidecars_again
from hnetkit.ratings import is_adult
from hnetkit.registry.catalogue import Catalogue
from hnetkit.registry.columns import Row
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.sources.http import HttpClient, HttpResponse, Stopped, retry

BARE = "sidecars"
"""Code of a job whose network is here without all of its sidecars; a later run writes them."""
MOST_PICTURE = 16 << 20  # bytes
WHOLE_S = 30.0
"""Seconds until a picture must be complete."""
MOST_MISSED = 3
"""Failures in a row after which no further picture is requested."""
_OBEYED_S = 5.0  # longest pause for a picture: a network does not wait for it
_SD_VERSIONS = (("SD 1", "SD1"), ("SD 2", "SD2"), ("SDXL", "SDXL"), ("Pony", "SDXL"))
_MODEL_KEYS = ("name", "type", "nsfw", "poi", "mode")


@dataclass(frozen=True, slots=True)
class SidecarWriter:
    """Writes sidecars and previews beside installed networks.

    Attributes:
        registry: holds the site's records.
        images: client for the site's pictures, without a token; None fetches none.
        nsfw: whether pictures above PG-13 may be fetched.
        missed: URLs of the last pictures in a row that failed.
    """

    registry: Registry
    images: HttpClient | None
    nsfw: bool = False
    missed: list[str] = field(default_factory=list, init=False)

    def write(self, job: Job, path: Path) -> list[str]:
        """Writes what is known beside `path`, where the user's own files are kept, and stores what they say.

        Returns:
            What failed, in words.
        """
        if job.source != "civitai" or job.remote_file_id is None:
            return []
        with self.registry.write():
            row = self.registry.catalogue.file(job.remote_file_id)
            catalogue = self.registry.catalogue
            pictures = catalogue.images(catalogue.version_row(job.remote_file_id))
        steps: tuple[tuple[str, str, Callable[[], Path | None]], ...] = (
            ("the site's record", "sidecar", lambda: self._info(path, row)),
            ("A1111's settings", "sidecar", lambda: sidecar_writing.merge_a1111(path, a1111_values(row))),
            ("preview", "preview", lambda: self._preview(path, pictures)),
        )
        failed: list[str] = []
        for what, kind, step in steps:
            try:
                file = step()
            except Stopped:
                raise
            except OutputExists:  # the user's own
                continue
            except Exception as error:  # a sidecar is optional, and the network is installed
                failed.append(str(failure_of(error, what)))
                continue
            if file is not None:
                with self.registry.write():
                    self.registry.jobs.add_install(str(file), job.id, kind, None)
        read_sidecars_again(self.registry, path)
        return failed

    def _info(self, path: Path, row: Row) -> Path | None:
        version = site_version(self.registry.catalogue, row)
        return None if version is None else sidecar_writing.write_info(path, version)

    def _preview(self, path: Path, pictures: list[Row]) -> Path | None:
        client = self.images
        shown = [p for p in pictures if p["type"] == "image" and (self.nsfw or not is_adult(p["nsfw_level"]))]
        if client is None or not shown or sidecars.read(path).preview is not None:
            return None
        if len(self.missed) >= MOST_MISSED:
            raise NetworkFailed(f"preview: not requested, after {MOST_MISSED} in a row failed")
        url = str(shown[0]["url"]).replace("/original=true/", "/width=450/")

        def ask() -> bytes:
            with client.open(url, whole_s=WHOLE_S) as answer:
                return _body(answer) if answer.status == 200 else b""

        try:
            data = retry(ask, "preview", clock=client.clock, limiter=client.limiter, attempts=2, obeyed_s=_OBEYED_S)
        except RemoteError:
            self.missed.append(url)
            raise
        self.missed.clear()
        return sidecar_writing.write_preview(path, data)


def _body(answer: HttpResponse) -> bytes:
    data = bytearray()
    for chunk in answer.chunks():
        data += chunk
        if len(data) > MOST_PICTURE:
            return b""
    return bytes(data)


def site_version(catalogue: Catalogue, row: Row) -> dict[str, Any] | None:
    """Returns the site's record of a file's version in the form of its by-hash answer, which names the model."""
    model = catalogue.raw(row["source"], row["model_id"]) or {}
    for version in model.get("modelVersions") or []:
        if isinstance(version, dict) and str(version.get("id")) == row["version_id"]:
            about = {key: model[key] for key in _MODEL_KEYS if key in model}
            return {**version, "modelId": model.get("id"), "model": about}
    return None


def a1111_values(row: Row) -> dict[str, Any]:
    """Returns the known values of A1111's own ``<stem>.json`` for a file that a site lists."""
    base = row["site_base_model"] or ""
    values = {
        "description": row["description"],
        "activation text": ", ".join(row["trained_words"] or ()),
        "preferred weight": row["strength"],
        "sd version": next((short for start, short in _SD_VERSIONS if base.startswith(start)), "Unknown"),
    }
    return {key: value for key, value in values.items() if value}
