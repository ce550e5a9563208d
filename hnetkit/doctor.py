"""Checks of an installation: packages, devices, the registry, settings, sites."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from hnetkit import demo, paths, settings
from hnetkit.errors import ANOTHER_HOME, DiskFull, HnetkitError, MissingExtra, failure_of
from hnetkit.files import is_file_at, is_folder_at, stat_at
from hnetkit.text import counted, size_text

NEEDED = ("torch", "safetensors", "sqlite-utils")
EXTRA: Mapping[str, str] = dict.fromkeys(
    ("diffusers", "transformers", "accelerate", "huggingface-hub", "pillow", "matplotlib"), "diffusers"
) | dict.fromkeys(("starlette", "uvicorn"), "web")
"""Package -> the extra that installs it."""

_LEAST_FREE = 1 << 20  # bytes; with less, the registry and its journal have no room to grow


def check_installation() -> list[dict[str, str]]:
    """Returns a row for each check: `check` is its name, `state` ``ok``, ``absent`` or ``failed``, `detail` a line.

    ``absent`` is what an extra would bring.
    """
    return [_run_check(name, check) for name, check in _checks()]


def _checks() -> Iterator[tuple[str, Callable[[], str]]]:
    yield "hnetkit", lambda: importlib.metadata.version("hnetkit")
    yield "python", lambda: f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for package in (*NEEDED, *EXTRA):
        yield package, lambda package=package: importlib.metadata.version(package)  # type: ignore[misc]
    yield "triton", _triton
    yield "devices", _devices
    yield "home", _home
    yield "registry", _registry
    yield "library", _library
    yield "settings", _settings
    yield "sites", _sites
    yield "demo model", _demo_model


def _run_check(name: str, check: Callable[[], str]) -> dict[str, str]:
    try:
        return {"check": name, "state": "ok", "detail": check()}
    except importlib.metadata.PackageNotFoundError:
        if name in EXTRA:
            return {"check": name, "state": "absent", "detail": f'not installed: pip install "hnetkit[{EXTRA[name]}]"'}
        return {"check": name, "state": "failed", "detail": "not installed"}
    except MissingExtra as error:
        return {"check": name, "state": "absent", "detail": f"{error} ({error.command_hint})"}
    except Exception as error:  # one check never stops another
        failure = failure_of(error, name)
        return {
            "check": name,
            "state": "failed",
            "detail": f"{failure}{f' ({failure.command_hint})' if failure.command_hint else ''}",
        }


def _triton() -> str:
    from hnetkit.kernels.gpu import triton_obstacle

    why = triton_obstacle()
    if why is not None:
        raise MissingExtra(f"{why}: plain torch stands in for it", hint='pip install "hnetkit[gpu]"')
    return str(sys.modules["triton"].__version__)  # only kernels.gpu imports it, as the question above made it do


def _devices() -> str:
    import torch

    found = [f"cpu ({os.cpu_count()} cores, {torch.get_num_threads()} threads)"]
    if torch.cuda.is_available():
        found += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return ", ".join(found)


def _home() -> str:
    folder = paths.home()
    existing = _place_of(folder, "HNETKIT_HOME", ANOTHER_HOME)
    return f"{folder}, {size_text(shutil.disk_usage(existing).free)} free"


def _place_of(folder: Path, variable: str, writable: str) -> Path:
    """Returns a folder, or the nearest one around it that is there.

    Args:
        folder: of hnetkit, which may not exist yet.
        variable: that names another one.
        writable: the hint where it cannot be written.

    Raises:
        HnetkitError: nothing can be written there.
        DiskFull: no room is left there.
    """
    from hnetkit.registry.store import broken_link

    if (link := broken_link(folder)) is not None:
        raise HnetkitError(f"{link} leads nowhere: is its disk mounted?", hint=f"set {variable} to a folder of yours")
    existing = next(parent for parent in (folder, *folder.parents) if stat_at(parent) is not None)
    if not is_folder_at(existing):
        raise HnetkitError(f"{existing}: not a folder", hint=f"set {variable} to a folder of yours")
    if not os.access(existing, os.W_OK):
        raise HnetkitError(f"{existing} cannot be written", hint=writable)
    if (free := shutil.disk_usage(existing).free) < _LEAST_FREE:
        hint = f"make room, or set {variable} to a folder on another disk"
        raise DiskFull(f"{existing}: its disk is full, with {size_text(free)} free", hint=hint)
    return existing


def _registry() -> str:
    from hnetkit.registry.store import Registry

    path = paths.registry_file()
    if stat_at(path) is None:
        return "none yet (hnetkit scan DIR makes one)"
    with Registry(path) as registry:
        return f"{path}, {registry.check()}"


def _library() -> str:
    from hnetkit.registry.store import Registry
    from hnetkit.sources.presence import require_library

    folder, registered = paths.library_folder(), paths.registry_file()
    if stat_at(registered) is not None:
        with Registry(registered) as registry:
            require_library(registry, folder)
    _place_of(folder, "HNETKIT_LIBRARY", "make it writable, or set HNETKIT_LIBRARY to a folder of yours")
    return f"{folder}{'' if is_folder_at(folder) else ', which the first download makes'}"


def _settings() -> str:
    stored = settings.load()
    faults = [*settings.faults(stored), *_lost_networks(stored)]
    if faults:
        raise HnetkitError("; ".join(map(str, faults)), hint=faults[0].command_hint)
    unread = dict.fromkeys(stored.keys() - settings.KEYS.keys(), f" ({settings.UNREAD})")
    return ", ".join(f"{key}={value}{unread.get(key, '')}" for key, value in sorted(stored.items())) or "none made"


def _lost_networks(stored: Mapping[str, str]) -> Iterator[HnetkitError]:
    """Yields why a network of the settings cannot be read."""
    from hnetkit.library.resolve import find_network, opened_when_needed, read_found
    from hnetkit.prompts.tags import split_tags

    with opened_when_needed() as library:
        for tag in split_tags(stored.get("hypernetworks", "")).tags:
            try:
                found = find_network(tag.name, None, library, demo.comes_with(stored.get("model")))
                read_found(found, tag.name)
            except HnetkitError as error:
                error.args = (f"hypernetworks: {error}",)
                yield error


def _sites() -> str:
    """Returns the sites' addresses and whether a token is set; sends no request."""
    from hnetkit.hub import hub_token
    from hnetkit.sources.civarchive import civarchive_base
    from hnetkit.sources.civitai import civitai_base, civitai_token

    archive = civarchive_base() or "not asked"
    civitai = "token set" if civitai_token() else "no token"
    try:
        hub = "token set" if hub_token() else "no token"
    except ModuleNotFoundError:
        hub = 'needs "hnetkit[diffusers]"'
    return f"{civitai_base()} ({civitai}), Hugging Face ({hub}), CivArchive ({archive})"


def _demo_model() -> str:
    if not is_file_at(demo.model_folder() / "model_index.json"):
        raise HnetkitError("the bundled model is missing", hint="install hnetkit again")
    return counted(len(demo.networks()), "hypernetwork")
