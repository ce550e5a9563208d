"""A1111's dict of a hypernetwork: every variant that was ever written becomes a `Hypernetwork`, with warnings.

Source: AUTOMATIC1111 1.10, modules/hypernetworks/hypernetwork.py, and its history (behavior only).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from hnetkit.errors import DamagedFile, FileRefused, UnsafeFile, UnsupportedNetwork, UsageError
from hnetkit.formats import pickle_reader
from hnetkit.formats.activations import activation_name
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.topology import build_mlp, canonical_key, expected_indices, linear_indices
from hnetkit.limits import Budget
from hnetkit.network import FileFormat, Hypernetwork, MLPPair, ResidualMLP, TensorRef
from hnetkit.text import counted, is_text, shorten

KNOWN_WIDTHS = frozenset({320, 640, 768, 1024, 1280, 1536, 2048})
MAX_WIDTH = 999_999  # of a context; the largest real one is 2048
MAX_WIDTHS = 100  # a network of every kind at once has 7
MAX_METADATA = 10_000  # values, counted through all nesting
MAX_METADATA_TEXT = 256 << 10  # characters, counted at every mention: ten thousand entries may share one text
MAX_NAMES = 20  # names of dropped content that a message lists
_STEPS_OF_A_TENSOR = 10  # of the budget for reading one file
OUT_OF_ORDER = "its layers are stored out of order: ComfyUI would apply them differently (hnetkit convert fixes it)"
MAX_INTEGER_BITS = 8 * pickle_reader.MAX_INTEGER_BYTES - 1

TensorOf = Callable[[Any, str], TensorRef]


_WIDTH = re.compile(r"[1-9][0-9]{0,4}")


def refuse_more_widths(number: int, path: str) -> None:
    """Raises UnsafeFile for more widths than any network has."""
    if number > MAX_WIDTHS:
        raise UnsafeFile(f"{path}: more than {MAX_WIDTHS} widths; a network has at most a handful")


def is_network_dict(value: Any, budget: Budget) -> bool:
    """Whether a dict looks like A1111's: a width maps to two dicts of ``linear...`` tensors."""
    return isinstance(value, dict) and any(
        _width(key) is not None and _is_pair(item, budget) for key, item in value.items()
    )


def _width(key: Any) -> int | None:
    if isinstance(key, int) and not isinstance(key, bool) and key > 0:
        return key
    return int(key) if isinstance(key, str) and _WIDTH.fullmatch(key) else None


def _is_pair(item: Any, budget: Budget) -> bool:
    if not isinstance(item, list | tuple) or len(item) != 2 or not all(isinstance(side, dict) for side in item):
        return False
    budget.work(len(item[0]) + len(item[1]))  # any number of keys may share one large dict
    return any(isinstance(key, str) and key.startswith("linear") for side in item for key in side)


def build_network(value: Mapping[Any, Any], tensor_of: TensorOf, *, format: FileFormat, file: OpenFile) -> Hypernetwork:
    """Builds the network that A1111's dict describes.

    Args:
        value: width -> (K tensors, V tensors), beside text keys; may be wrapped in ``state_dict``.
        tensor_of: makes a TensorRef of one tensor of `value`; takes its name for messages.
        format, file: container and open file that `value` was read from.

    Raises:
        FileRefused: the network cannot be computed faithfully; the message names the file.
    """
    try:
        return _Builder(file, tensor_of).build(value, format)
    except FileRefused as error:
        raise file.refusal(error) from None


class _Builder:
    """Builds one network and collects warnings about its file."""

    def __init__(self, file: OpenFile, tensor_of: TensorOf) -> None:
        self.file = file
        self.tensor_of = tensor_of
        self.warnings: list[str] = []
        self.not_carried: list[str] = []

    def build(self, value: Mapping[Any, Any], format: FileFormat) -> Hypernetwork:
        budget = self.file.budget
        if not is_network_dict(value, budget) and is_network_dict(value.get("state_dict"), budget):
            around = {key: item for key, item in value.items() if key != "state_dict"}
            self.not_carried += [shorten(key) for key in around if key in value["state_dict"]][:MAX_NAMES]
            value = {**around, **value["state_dict"]}  # how it is built and trained may stand around it
            self.warnings.append("wrapped in a state_dict")
        widths, others = self._split_keys(value)
        metadata = self._metadata(others)
        if metadata.get("skip_connection"):
            raise UnsupportedNetwork("built with skip connections inside, which only one extension could run")
        activation = activation_name(metadata.get("activation_func"))
        activate_output = bool(metadata.get("activate_output", True))
        sides = self._sides(widths)
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
        if format != "safetensors" and not _is_in_order(sides, mlps):
            self.warnings.append(OUT_OF_ORDER)
        first = next(iter(mlps.values())).key
        self._compare(mlps, first, metadata, activation, activate_output, dropout)
        last = [mlp.stages[-1] for pair in mlps.values() for mlp in pair]
        # only a stage without layer norm leaves it open whether the output is activated
        open_stage = next((stage for stage in last if stage.norm is None), last[0])
        return Hypernetwork(
            mlps=mlps,
            metadata=metadata,
            format=format,
            path=self.file.path,
            size_bytes=self.file.size,
            source=self.file,
            activate_output=open_stage.activation is not None if activation else activate_output,
            warnings=tuple(self.warnings),
            not_carried=tuple(self.not_carried),
        )

    def _split_keys(self, value: Mapping[Any, Any]) -> tuple[dict[Any, Any], dict[Any, Any]]:
        """Splits the entries of widths from all others."""
        widths: dict[Any, Any] = {}
        others: dict[Any, Any] = {}
        for key, item in value.items():
            if isinstance(key, str) and not _is_pair(item, self.file.budget):
                others[key] = item
            elif _width(key) is not None:
                widths[key] = item
            elif _is_number(key):
                raise DamagedFile(
                    f"{shorten(key)} is not a valid width: other programs would read it differently, or not at all"
                )
            else:
                others[key] = item
        refuse_more_widths(len(widths), self.file.path)
        return widths, others

    def _sides(self, widths: Mapping[Any, Any]) -> dict[int, tuple[dict[str, TensorRef], dict[str, TensorRef]]]:
        sides = {}
        for key, item in widths.items():
            width = int(key)
            if width > MAX_WIDTH:
                raise DamagedFile(f"no network has the width {shorten(key)}")
            if type(key) is not int:  # A1111 does not recognize these as widths
                kind = "text" if isinstance(key, str) else "a numpy number"
                self.warnings.append(f"the width {width} is written as {kind}")
            if not isinstance(item, list | tuple) or len(item) != 2 or not all(isinstance(s, dict) for s in item):
                raise DamagedFile(f"the width {width} does not hold two MLPs")
            if width in sides:
                raise DamagedFile(f"the width {width} appears twice")
            k, v = (self._tensors(side, f"{width}.{letter}") for side, letter in zip(item, "kv", strict=True))
            sides[width] = (k, v)
        return sides

    def _tensors(self, side: Mapping[Any, Any], where: str) -> dict[str, TensorRef]:
        self.file.budget.work(_STEPS_OF_A_TENSOR * len(side))
        tensors: dict[str, TensorRef] = {}
        for key, stub in side.items():
            if not isinstance(stub, pickle_reader.TensorStub | TensorRef) or not isinstance(key, str):
                raise DamagedFile(f"{where}.{shorten(key)} is not a tensor")
            name = canonical_key(key)
            if name in tensors:
                raise DamagedFile(f"{where}.{shorten(name)} appears twice")
            tensors[name] = self.tensor_of(stub, f"{where}.{shorten(name)}")
        return tensors

    def _check_size(self, sides: Mapping[int, tuple[dict[str, TensorRef], dict[str, TensorRef]]]) -> None:
        """K and V may share one tensor, but many views of the same bytes would cost far more than the file's size."""
        size = sum(tensor.nbytes for pair in sides.values() for side in pair for tensor in side.values())
        if size > 2 * self.file.size:
            raise UnsafeFile(f"its tensors claim {size} bytes of a file of {self.file.size}")

    def _metadata(self, others: Mapping[Any, Any]) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        plain = _PlainValues()
        left_out: dict[str, None] = {}
        for key, item in others.items():
            if _is_key(key) and plain.has(key) and plain.has(item):
                metadata[key] = item
            elif len(left_out) <= MAX_NAMES:
                left_out[shorten(key)] = None
        self.not_carried += [*left_out][:MAX_NAMES]
        if len(left_out) > MAX_NAMES:
            self.not_carried.append("and more")
        return metadata

    def _dropout(self, metadata: Mapping[str, Any], depth: int) -> list[float]:
        """Dropout probability per stage: from the newer key, else from the older ones as A1111 converts them."""
        structure = metadata.get("dropout_structure")
        if isinstance(structure, list | tuple) and structure:
            if len(structure) == depth + 1 and all(isinstance(p, int | float) and 0 <= p <= 1 for p in structure):
                return [float(p) for p in structure[1:]]
            self.warnings.append(
                f"dropout_structure is {shorten(list(structure), 80)}, the tensors have {counted(depth, 'layer')}"
            )
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
        """Adds a warning wherever metadata and tensors disagree. The tensors are what is computed."""
        unusual = [width for width in mlps if width not in KNOWN_WIDTHS]
        if unusual:
            self.warnings.append(f"no Stable Diffusion model has contexts of width {', '.join(map(shorten, unusual))}")
        has_norm = first.stages[0].norm is not None
        if "is_layer_norm" in metadata and bool(metadata["is_layer_norm"]) != has_norm:
            self.warnings.append(f"is_layer_norm is {shorten(metadata['is_layer_norm'])}, the tensors say {has_norm}")
        self._compare_structure(mlps, metadata)
        if activation and "activate_output" not in metadata and not has_norm:
            self.warnings.append("activate_output is missing: taken as True, as AUTOMATIC1111 does")
        if activation and first.stages[0].activation is None:
            self.warnings.append(f"activation_func is {activation}, but the tensors have no place for it")
        if activation != "prelu" and first.stages[0].slope is not None:
            self.warnings.append(f"activation_func is {activation or 'linear'}, but the tensors are those of prelu")
        arguments = {"activation": bool(activation), "norm": has_norm, "activate_output": activate_output}
        expected = expected_indices(len(first.stages), dropout=dropout, **arguments)
        found = linear_indices(first)
        if activation != "prelu" and found != expected:
            self.warnings.append(
                f"its layers are at {shorten(found)}, its metadata would put them at {shorten(expected)}"
            )
        shapes = {(len(m.stages), m.stages[0].activation, m.stages[0].norm is None) for p in mlps.values() for m in p}
        if len(shapes) > 1:
            self.warnings.append("its MLPs do not all have one structure")

    def _compare_structure(self, mlps: Mapping[int, MLPPair], metadata: Mapping[str, Any]) -> None:
        stated = metadata.get("layer_structure")
        if stated is None:
            return
        derived = Hypernetwork(mlps, metadata).layer_structure
        if not isinstance(stated, list | tuple) or list(stated) != derived:
            self.warnings.append(f"layer_structure is {shorten(stated, 80)}, the tensors are {shorten(derived, 80)}")


def _is_in_order(
    sides: Mapping[int, tuple[dict[str, TensorRef], dict[str, TensorRef]]], mlps: Mapping[int, MLPPair]
) -> bool:
    """Whether the file stores the layers in the order in which they are applied."""
    return all(
        [key for key in tensors if key.endswith(".weight")] == [key for key in mlp.tensors if key.endswith(".weight")]
        for width, pair in sides.items()
        for tensors, mlp in zip(pair, mlps[width], strict=True)
    )


class _PlainValues:
    """Recognizes metadata of text, numbers and containers only, and counts all the values that it was given."""

    def __init__(self) -> None:
        self.values_left, self.characters_left = MAX_METADATA, MAX_METADATA_TEXT

    def has(self, value: Any, depth: int = 0) -> bool:
        """Whether a value is plain.

        Raises:
            UnsafeFile: it is nested or repeated more than any real metadata.
        """
        self.values_left -= 1
        self.characters_left -= len(value) if isinstance(value, str) else 0
        if self.values_left < 0 or self.characters_left < 0 or depth > 8:
            raise UnsafeFile("metadata too large, or nested too deeply")
        if isinstance(value, list | tuple):
            return all(self.has(item, depth + 1) for item in value)
        if isinstance(value, dict):
            return all(
                isinstance(key, str | int) and self.has(key, depth + 1) and self.has(item, depth + 1)
                for key, item in value.items()
            )
        if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
            raise UnsafeFile(f"an integer of {value.bit_length()} bits in its metadata")
        return value is None or isinstance(value, int | float | str)


def require_metadata(metadata: Mapping[Any, Any]) -> None:
    """Raises UsageError for metadata that no file could give back, FileRefused for more than is read again."""
    plain = _PlainValues()
    for key, item in metadata.items():
        try:
            is_fit = _is_key(key) and plain.has(key) and plain.has(item)
        except UnsafeFile as error:
            raise FileRefused(
                f"its metadata, up to {shorten(key)}, is more than hnetkit reads: {error}", hint="keep less of it"
            ) from error
        if not is_fit:
            raise UsageError(f"its metadata {shorten(key)}: no file can store it", hint="use text, numbers and lists")


def _is_key(key: Any) -> bool:
    """Whether a key can be carried over: text that every container can store (a lone surrogate is not)."""
    return isinstance(key, str) and key != "optimizer_state_dict" and is_text(key)


def _is_number(key: Any) -> bool:
    """Whether Python reads a text as a whole number: ``"02"``, ``" 2"``, ``"\u0662"``."""
    try:
        return isinstance(key, str) and len(key) < 100 and int(key) is not None
    except ValueError:
        return False
