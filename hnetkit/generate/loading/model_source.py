"""The source of a model, a path or a hub id: checks before the hub is asked, and hints for a mistyped one."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hnetkit.errors import HnetkitError, ModelNotUsable, NotFound
from hnetkit.files import MODEL_SUFFIXES, is_model_name
from hnetkit.hub import REPO, fault_of_endpoint
from hnetkit.text import argument


def require_hub_id(source: str) -> None:
    """Accepts a source that can be a hub id (``"org/name"``).

    Raises:
        NotFound: it can only be a path that does not exist; the hint has the nearest names.
    """
    scheme, separator, _ = source.partition("://")
    if separator:  # a URL may hold a password or a signature, so it is not shown
        raise NotFound(
            f"{scheme}{separator}...: an address, which no model is loaded from",
            hint="download it, and give its folder or file; or give a hub id: org/name",
        )
    if not re.fullmatch(REPO, source) or source.lower().endswith(MODEL_SUFFIXES):
        raise NotFound(
            f"{source}: no such file or folder",
            hint=_nearest(source) or "give a diffusers folder, a .safetensors or .ckpt file, or a hub id",
        )


def require_safe_hub(hub_id: str) -> None:
    """Accepts a hub to which a token may be sent, and whose address holds no secret.

    Raises:
        ModelNotUsable: see `hnetkit.hub.fault_of_endpoint`.
    """
    from huggingface_hub import constants

    if fault := fault_of_endpoint(constants.ENDPOINT):
        raise ModelNotUsable(f"{hub_id}: {fault}", hint="give HF_ENDPOINT an https address")


@contextmanager
def hub_request(hub_id: str) -> Iterator[None]:
    """Translates the errors of a request to the hub and its cache inside the block.

    Raises:
        NotFound: the hub has no such model.
        ModelNotUsable: as `require_safe_hub`; or the model is not in the cache, and the hub is out of reach or does
            not give its files.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    require_safe_hub(hub_id)
    try:
        yield
    except HnetkitError:
        raise
    except RepositoryNotFoundError as error:
        raise NotFound(f"{hub_id}: neither a folder here nor a model of the hub", hint=_nearest(hub_id)) from error
    except Exception as error:
        near = _nearest(hub_id)
        raise ModelNotUsable(
            f"{hub_id}: no folder here, and the hub gave no model of this name ({type(error).__name__})",
            hint=f"{near + ' Or ' if near else ''}go online once so that it is cached, or give the model's folder",
        ) from error


def _nearest(source: str) -> str | None:
    """Returns a hint with the models beside a path, and the hub ids in the cache, that have similar names."""
    known = {**{name.split("/")[1].casefold(): name for name in _cached_ids()}, **_models_beside(Path(source))}
    # up to three names, while `did_you_mean` gives one: a folder of models often has several alike
    near = difflib.get_close_matches(_folded_stem(source), known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(argument(known[name]) for name in near)}?" if near else None


def _folded_stem(name: str) -> str:
    name = Path(name).name
    return next((name.removesuffix(suffix) for suffix in MODEL_SUFFIXES if name.endswith(suffix)), name).casefold()


def _models_beside(path: Path) -> dict[str, str]:
    around = [path.parent / name for name in _names_in(path.parent)]
    models = [item for item in around if is_model_name(item.name) or os.path.isfile(item / "model_index.json")]
    return {_folded_stem(item.name): str(item) for item in models}


def file_in_cache(hub_id: str, name: str) -> Path | None:
    """Returns a file of a hub model in the local cache; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, name)
    return Path(found) if isinstance(found, str) else None


def _cached_ids() -> list[str]:
    from huggingface_hub import constants

    names = (name.removeprefix("models--") for name in _names_in(constants.HF_HUB_CACHE) if name.startswith("models--"))
    return [name.replace("--", "/", 1) for name in names if "--" in name]


def _names_in(folder: str | os.PathLike[str]) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:  # then without a hint
        return []
