"""A1111's dict as a Hypernetwork: every variant that was ever written, and what is odd about it.

Source: AUTOMATIC1111 1.10, modules/hypernetworks/hypernetwork.py, and its history (behaviour only).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hnetkit.errors import DamagedFile, FileRefused, UnsafeFile, UnsupportedNetwork, printable
from hnetkit.formats import pickle_reader, pickle_values
from hnetkit.formats.activations import activation_name
from hnetkit.formats.source import OpenFile
from hnetkit.formats.topology import build_mlp, canonical_key, expected_indices, linear_indices
from hnetkit.network import FileFormat, Hypernetwork, MLPPair, ResidualMLP, TensorRef

KNOWN_WIDTHS = frozenset({320, 640, 768, 1024, 1280, 1536, 2048})
MAX_METADATA = 10_000  # values, counted through all nesting
MAX_INTEGER_BITS = 8 * pickle_reader.MAX_INTEGER_BYTES - 1

TensorOf = Callable[[Any, str], TensorRef]


def is_network_dict(value: Any) -> bool:
    """Whether a dict looks like A1111's: a width leading to two dicts of ``linear...`` tensors."""
    return isinstance(value, dict) and any(_width(key) is not None and _is_pair(item) for key, item in value.items())


def _width(key: Any) -> int | None:
    if isinstance(key, int) and not isinstance(key, bool) and key > 0:
        return key
    return int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and 0 < len(key) < 6 else None


def _is_pair(item: Any) -> bool:
    return (
        isinstance(item, list | tuple)
        and len(item) == 2
        and all(isinstance(side, dict) for side in item)
        and any(str(key).startswith("linear") for side in item for key in side)
    )


def build_network(value: Mapping[Any, Any], tensor_of: TensorOf, *, format: FileFormat, file: OpenFile) -> Hypernetwork:
    """Returns the network that A1111's dict describes.

    Args:
        value: widths -> (K tensors, V tensors), and text keys; may be wrapped in ``state_dict``.
        tensor_of: makes a TensorRef of one tensor of `value`, given its name for messages.
        format, file: the container and the open file that it came from.

    Raises:
        FileRefused: what is in the dict cannot be computed faithfully; the message names the file.
    """
    try:
        return _Builder(file, tensor_of).build(value, format)
    except FileRefused as error:
        if str(error).startswith(printable(file.path)):
            raise
        raise type(error)(f"{file.path}: {error}", hint=error.hint) from error


class _Builder:
    """Collects what is odd about one file while its network is built."""

    def __init__(self, file: OpenFile, tensor_of: TensorOf) -> None:
        self.file = file
        self.tensor_of = tensor_of
        self.warnings: list[str] = []
        self.not_carried: list[str] = []

    def build(self, value: Mapping[Any, Any], format: FileFormat) -> Hypernetwork:
        if not is_network_dict(value) and is_network_dict(value.get("state_dict")):
            value = value["state_dict"]
            self.warnings.append("wrapped in a state_dict")
        metadata = self._metadata(value)
        if metadata.get("skip_connection"):
            raise UnsupportedNetwork("built with skip connections inside, which only one extension could run")
        activation = activation_name(metadata.get("activation_func"))
        stated_output = metadata.get("activate_output")
        activate_output = True if stated_output is None else bool(stated_output)
        sides = self._sides(value)
        self._check_size(sides)
        depth = max(sum(len(t.shape) == 2 for t in side.values()) for pair in sides.values() for side in pair)
        dropout = self._dropout(metadata, depth)
        mlps = {
            width: MLPPair(
                *(
                    build_mlp(
                        tensors,
                        width,
                        activation=activation,
                        activate_output=activate_output,
                        dropout=dropout,
                        where=f"{width}.{side}",
                    )
                    for side, tensors in zip("kv", pair, strict=True)
                )
            )
            for width, pair in sorted(sides.items())
        }
        first = next(iter(mlps.values())).key
        self._compare(mlps, first, metadata, activation, activate_output, dropout)
        shown = first.stages[-1].activation is not None if activation else activate_output
        return Hypernetwork(
            mlps=mlps,
            metadata=metadata,
            format=format,
            path=self.file.path,
            size_bytes=self.file.size,
            source=self.file,
            activate_output=shown,
            warnings=tuple(self.warnings),
            not_carried=tuple(self.not_carried),
        )

    def _sides(self, value: Mapping[Any, Any]) -> dict[int, tuple[dict[str, TensorRef], dict[str, TensorRef]]]:
        sides = {}
        for key, item in value.items():
            width = _width(key)
            if width is None or (isinstance(key, str) and not _is_pair(item)):
                continue
            if isinstance(key, str):
                self.warnings.append(f"the width {width} is written as text")
            if not isinstance(item, list | tuple) or len(item) != 2 or not all(isinstance(s, dict) for s in item):
                raise DamagedFile(f"the width {width} does not hold two MLPs")
            if width in sides:
                raise DamagedFile(f"the width {width} stands twice")
            k, v = (self._tensors(side, f"{width}.{letter}") for side, letter in zip(item, "kv", strict=True))
            sides[width] = (k, v)
        return sides

    def _tensors(self, side: Mapping[Any, Any], where: str) -> dict[str, TensorRef]:
        tensors: dict[str, TensorRef] = {}
        for key, stub in side.items():
            name = canonical_key(str(key))
            if name in tensors:
                raise DamagedFile(f"{where}.{name} stands twice")
            if not isinstance(stub, pickle_values.Tensor | TensorRef):
                raise DamagedFile(f"{where}.{str(key)[:60]} is not a tensor")
            tensors[name] = self.tensor_of(stub, f"{where}.{name}")
        return tensors

    def _check_size(self, sides: Mapping[int, tuple[dict[str, TensorRef], dict[str, TensorRef]]]) -> None:
        """K and V may be one tensor; many views of the same bytes would cost far more than the file's size."""
        size = sum(tensor.nbytes for pair in sides.values() for side in pair for tensor in side.values())
        if size > 2 * self.file.size:
            raise UnsafeFile(f"its tensors claim {size} bytes of a file of {self.file.size}")

    def _metadata(self, value: Mapping[Any, Any]) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        budget = [MAX_METADATA]
        for key, item in value.items():
            if _width(key) is not None and not (isinstance(key, str) and not _is_pair(item)):
                continue
            if isinstance(key, str) and key != "optimizer_state_dict" and _is_plain(item, budget):
                metadata[key] = item
            else:
                self.not_carried.append("optimizer_state_dict" if key == "optimizer_state_dict" else str(key)[:60])
        return metadata

    def _dropout(self, metadata: Mapping[str, Any], depth: int) -> list[float]:
        """Dropout probability per stage, by the newer key or A1111's conversion of the older ones."""
        structure = metadata.get("dropout_structure")
        if isinstance(structure, list | tuple) and structure:
            if len(structure) == depth + 1 and all(isinstance(p, int | float) and 0 <= p <= 1 for p in structure):
                return [float(p) for p in structure[1:]]
            self.warnings.append(f"dropout_structure is {str(list(structure))[:80]}, the tensors have {depth} layers")
        if not metadata.get("use_dropout"):
            return [0.0] * depth
        last = 0.3 if metadata.get("last_layer_dropout") else 0.0
        return [*[0.3] * (depth - 2), last, 0.0][-depth:]

    def _compare(
        self,
        mlps: Mapping[int, MLPPair],
        first: ResidualMLP,
        metadata: Mapping[str, Any],
        activation: str | None,
        activate_output: bool,
        dropout: list[float],
    ) -> None:
        """Warns where metadata and tensors disagree; the tensors are what is computed."""
        unusual = [width for width in mlps if width not in KNOWN_WIDTHS]
        if unusual:
            self.warnings.append(f"no Stable Diffusion model has contexts of width {', '.join(map(str, unusual))}")
        has_norm = first.stages[0].norm is not None
        if "is_layer_norm" in metadata and bool(metadata["is_layer_norm"]) != has_norm:
            self.warnings.append(f"is_layer_norm is {metadata['is_layer_norm']}, the tensors say {has_norm}")
        self._compare_structure(mlps, metadata)
        if activation and metadata.get("activate_output") is None and not has_norm:
            self.warnings.append("activate_output is missing: taken as True, as AUTOMATIC1111 does")
        if activation and first.stages[0].activation is None:
            self.warnings.append(f"activation_func is {activation}, the tensors leave no room for it")
        if activation != "prelu" and first.stages[0].slope is not None:
            self.warnings.append(f"activation_func is {activation or 'linear'}, the tensors are those of prelu")
        arguments = {"activation": bool(activation), "norm": has_norm, "activate_output": activate_output}
        expected = expected_indices(len(first.stages), dropout=dropout, **arguments)
        found = linear_indices(first)
        if activation != "prelu" and found != expected:
            self.warnings.append(f"its layers stand at {found}, its metadata would put them at {expected}")
        shapes = {(len(m.stages), m.stages[0].activation, m.stages[0].norm is None) for p in mlps.values() for m in p}
        if len(shapes) > 1:
            self.warnings.append("its MLPs are not all of one build")

    def _compare_structure(self, mlps: Mapping[int, MLPPair], metadata: Mapping[str, Any]) -> None:
        stated = metadata.get("layer_structure")
        if stated is None:
            return
        derived = Hypernetwork(mlps, metadata).layer_structure
        if list(stated) != derived if isinstance(stated, list | tuple) else True:
            self.warnings.append(f"layer_structure is {str(stated)[:80]}, the tensors are {derived}")


def _is_plain(value: Any, budget: list[int], depth: int = 0) -> bool:
    """Whether a metadata value is made of text, numbers and containers only.

    Raises:
        UnsafeFile: it is nested or repeated more than any metadata is.
    """
    budget[0] -= 1
    if budget[0] < 0 or depth > 8:
        raise UnsafeFile("metadata without end")
    if isinstance(value, list | tuple):
        return all(_is_plain(item, budget, depth + 1) for item in value)
    if isinstance(value, dict):
        keys_are_plain = all(isinstance(key, str | int) and _is_plain(key, budget, depth + 1) for key in value)
        return keys_are_plain and all(_is_plain(item, budget, depth + 1) for item in value.values())
    if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
        raise UnsafeFile(f"an integer of {value.bit_length()} bits in its metadata")
    return value is None or isinstance(value, int | float | str)
