"""What is written beside an installed network: Civitai's own record of it, A1111's settings, a preview picture."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hnetkit.errors import RemoteError
from hnetkit.library import sidecars
from hnetkit.registry.catalogue import Catalogue
from hnetkit.registry.columns import Row
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.sources.pace import Stopped
from hnetkit.sources.retry import persevere
from hnetkit.sources.web import Answer, Web

MOST_PICTURE = 16 << 20  # bytes
WHOLE_S = 30.0
"""Seconds until a picture must be here."""
MOST_MISSED = 3
"""Pictures in a row that did not come: no further one is asked for then."""
_OBEYED_S = 5.0  # a network is not held back for its picture
SAFE = 3  # the site's bits for PG and PG-13
_SD_VERSIONS = (("SD 1", "SD1"), ("SD 2", "SD2"), ("SDXL", "SDXL"), ("Pony", "SDXL"))
_MODEL_KEYS = ("name", "type", "nsfw", "poi", "mode")


@dataclass(frozen=True, slots=True)
class Beside:
    """Writes sidecars and previews.

    Attributes:
        registry: knows what the site says.
        images: the way to the site's pictures; no token goes there. None fetches none.
        nsfw: whether pictures above PG-13 may be fetched.
        missed: the addresses of the last pictures that did not come.
    """

    registry: Registry
    images: Web | None
    nsfw: bool = False
    missed: list[str] = field(default_factory=list, init=False)

    def write(self, job: Job, path: Path) -> None:
        """Writes what is known beside `path`; what a person made stays, and a picture that fails is left out."""
        if job.source != "civitai" or job.remote_file_id is None:
            return
        with self.registry.write():
            row = self.registry.catalogue.file(job.remote_file_id)
            catalogue = self.registry.catalogue
            pictures = catalogue.images(catalogue.version_row(job.remote_file_id))
        written: list[tuple[Path | None, str]] = []
        with _left_out():
            version = site_version(catalogue, row)
            if version is not None:
                written.append((sidecars.write_info(path, version), "sidecar"))
        with _left_out():
            written.append((sidecars.merge_a1111(path, a1111_values(row)), "sidecar"))
        with _left_out():
            written.append((self._preview(path, pictures), "preview"))
        with self.registry.write():
            for file, kind in written:
                if file is not None:
                    self.registry.jobs.add_install(str(file), job.id, kind, None)

    def _preview(self, path: Path, pictures: list[Row]) -> Path | None:
        web = self.images
        shown = [p for p in pictures if p["type"] == "image" and (self.nsfw or (p["nsfw_level"] or 0) & ~SAFE == 0)]
        if web is None or not shown or len(self.missed) >= MOST_MISSED or sidecars.read(path).preview is not None:
            return None
        url = str(shown[0]["url"]).replace("/original=true/", "/width=450/")

        def ask() -> bytes:
            with web.open(url, whole_s=WHOLE_S) as answer:
                return _body(answer) if answer.status == 200 else b""

        try:
            data = persevere(ask, "a preview picture", clock=web.clock, pace=web.pace, attempts=2, obeyed_s=_OBEYED_S)
        except RemoteError:
            self.missed.append(url)
            raise
        self.missed.clear()
        return sidecars.write_preview(path, data)


@contextlib.contextmanager
def _left_out() -> Iterator[None]:
    """What stands beside a network is left out where it cannot be had, whatever the reason: the network is here."""
    try:
        yield
    except Stopped:
        raise
    except Exception:
        return


def _body(answer: Answer) -> bytes:
    data = bytearray()
    for chunk in answer.chunks():
        data += chunk
        if len(data) > MOST_PICTURE:
            return b""
    return bytes(data)


def site_version(catalogue: Catalogue, row: Row) -> dict[str, Any] | None:
    """Returns the site's record of a file's version as its by-hash answer has it: with the model's name inside."""
    model = catalogue.raw(row["source"], row["model_id"]) or {}
    for version in model.get("modelVersions") or []:
        if isinstance(version, dict) and str(version.get("id")) == row["version_id"]:
            about = {key: model[key] for key in _MODEL_KEYS if key in model}
            return {**version, "modelId": model.get("id"), "model": about}
    return None


def a1111_values(row: Row) -> dict[str, Any]:
    """Returns what A1111's own `<stem>.json` can say of a file that a site lists; only what is known."""
    base = row["site_base_model"] or ""
    values = {
        "description": row["description"],
        "activation text": ", ".join(row["trained_words"] or ()),
        "preferred weight": row["strength"],
        "sd version": next((short for start, short in _SD_VERSIONS if base.startswith(start)), "Unknown"),
    }
    return {key: value for key, value in values.items() if value}
