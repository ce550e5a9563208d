"""hnetkit's safetensors convention: tensor names and header metadata.

Tensors are ``{width}.{k|v}.linear.{i}.{weight|bias}``. The header holds each of A1111's keys as JSON text (a tuple as
``{"tuple": [...]}``, a dict as ``{"dict": [[key, value], ...]}``, so that types survive). For readers that know no
defaults it also spells out the derived topology.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hnetkit.errors import DamagedFile, FileRefused, UnsupportedNetwork
from hnetkit.formats.a1111 import build_network, refuse_more_widths
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.pickle_reader import set_item
from hnetkit.formats.safetensors_file import SafetensorsFile
from hnetkit.limits import json_size, parse_json
from hnetkit.network import Hypernetwork, TensorRef
from hnetkit.text import shorten

FORMAT = "hnetkit.hypernetwork"
FORMAT_VERSION = "1"

_NAME = re.compile(r"([1-9][0-9]{0,5})\.([kv])\.(linear\..+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RESERVED = ("format", "format_version", "topology", "base_model", "source_sha256")
_PREFIX = "a1111."  # for keys of the file that collide with the reserved ones


def is_hypernetwork(source: SafetensorsFile) -> bool:
    """Whether a safetensors file holds a hypernetwork of this convention."""
    return source.metadata.get("format") == FORMAT


def header_metadata(net: Hypernetwork, source_sha256: str | None) -> dict[str, str]:
    """Returns the header metadata of a network that is to be saved."""
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "base_model": net.base_model}
    if source_sha256:
        header["source_sha256"] = source_sha256
    header["topology"] = json.dumps(topology(net))
    for key, value in a1111_metadata(net).items():
        header[f"{_PREFIX}{key}" if _is_taken(key) else key] = json.dumps(_to_json(value))
    return header


def _is_taken(key: str) -> bool:
    return key in _RESERVED or key.startswith(_PREFIX)


def topology(net: Hypernetwork) -> dict[str, Any]:
    """Returns the structure of a network, from its tensors and its file, with nothing left to a default."""
    return {
        "layer_structure": net.layer_structure,
        "activation": net.activation or "linear",
        "activate_output": net.activate_output,
        "layer_norm": net.layer_norm,
        "dropout": net.dropout,
    }


def a1111_metadata(net: Hypernetwork) -> dict[str, Any]:
    """Returns A1111's keys: the file's own, unchanged, or derived ones for a network made in this process."""
    if net.format is not None:
        return dict(net.metadata)
    dropout = net.dropout
    derived = {
        "layer_structure": net.layer_structure,
        "activation_func": net.activation or "linear",
        "is_layer_norm": net.layer_norm,
        "activate_output": net.activate_output,
        "use_dropout": any(dropout),
        "last_layer_dropout": len(dropout) > 2 and dropout[-2] != 0,
        "dropout_structure": dropout,
    }
    return derived | dict(net.metadata)


def read_hypernetwork(source: SafetensorsFile) -> Hypernetwork:
    """Returns the network of a safetensors file of this convention.

    Raises:
        FileRefused: see `hnetkit.formats.load`.
    """
    path = source.file.path
    version = source.metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise UnsupportedNetwork(f"{path}: version {shorten(version)} of hnetkit's format; {FORMAT_VERSION} is read")
    value: dict[Any, Any] = {}
    for name in source.entries:
        match = _NAME.fullmatch(name)
        if match is None:
            raise DamagedFile(f"{path}: {shorten(name)} is not the name of a hypernetwork's tensor")
        sides: tuple[dict[str, TensorRef], dict[str, TensorRef]] = value.setdefault(int(match[1]), ({}, {}))
        sides["kv".index(match[2])][match[3]] = source.tensor(name)
        refuse_more_widths(len(value), path)
    if not value:
        raise DamagedFile(f"{path}: a hypernetwork without tensors")
    metadata: dict[str, Any] = {}
    for key, text in source.metadata.items():
        if key not in _RESERVED:
            own_key = key.removeprefix(_PREFIX)
            if own_key in metadata:
                raise DamagedFile(f"{path}: its header states {shorten(own_key)} twice")
            metadata[own_key] = _value(text, source.file)
    stated = _parse(source.metadata.get("topology", "{}"), source.file)

    def built(keys: Mapping[str, Any]) -> Hypernetwork:
        return build_network({**value, **keys}, lambda tensor, _: tensor, format="safetensors", file=source.file)

    defaults = {key: item for key, item in _defaults(stated).items() if key not in metadata}
    net = built({**defaults, **metadata})
    # a .pt has no topology in its header: what the network needs of it must become keys
    known = metadata if not defaults or _is_same(net, built, metadata) else {**defaults, **metadata}
    own = {key: net.metadata[key] for key in known if key in net.metadata}
    contradictions = _contradictions(stated, net)
    stated_hash = source.metadata.get("source_sha256", "")
    return replace(
        net,
        metadata=own,
        source_sha256=stated_hash if _SHA256.fullmatch(stated_hash) else None,
        warnings=(*net.warnings, *contradictions),
    )


def _is_same(net: Hypernetwork, built: Callable[[Mapping[str, Any]], Hypernetwork], keys: Mapping[str, Any]) -> bool:
    """Whether these keys alone give a network of the same structure."""
    try:
        return topology(built(keys)) == topology(net)
    except FileRefused:
        return False


def _contradictions(stated: Any, net: Hypernetwork) -> list[str]:
    """Warnings where the header's topology, which other readers rely on, differs from the network's."""
    real = topology(net)
    others = [
        key for key in ("activation", "activate_output", "layer_norm") if isinstance(stated, dict) and key in stated
    ]
    return [
        f"its header's topology says {key} {shorten(stated[key])}; it is {shorten(real[key])}"
        for key in others
        if stated[key] != real[key]
    ]


def _defaults(stated: Any) -> dict[str, Any]:
    """The topology as A1111's keys, for files whose header has none of its own."""
    if not isinstance(stated, dict):
        return {}
    names = {"activation_func": "activation", "activate_output": "activate_output", "dropout_structure": "dropout"}
    return {key: stated[name] for key, name in names.items() if name in stated}


def _value(text: str, file: OpenFile) -> Any:
    """Returns the value of a key: JSON as we write it, or a plain text, such as a title, as other programs add it."""
    try:
        return _parse(text, file)
    except DamagedFile as error:
        if isinstance(error.__cause__, json.JSONDecodeError):
            return text
        raise


def _parse(text: str, file: OpenFile) -> Any:
    file.budget.make(json_size(text))
    try:
        return _from_json(parse_json(text))
    except FileRefused as error:
        raise file.refusal(error) from None
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{file.path}: header metadata that is not JSON") from error


def _to_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return {"tuple": [_to_json(item) for item in value]}
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {"dict": [[key, _to_json(item)] for key, item in value.items()]}
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if isinstance(value, dict):
        if isinstance(value.get("tuple"), list):
            return tuple(_from_json(item) for item in value["tuple"])
        pairs = value.get("dict")
        if isinstance(pairs, list) and all(isinstance(p, list) and len(p) == 2 for p in pairs):
            made: dict[Any, Any] = {}
            for key, item in pairs:
                if isinstance(key, str | int):
                    set_item(made, key, _from_json(item))
            return made
    return value
