"""`Hypernetwork`: the in-memory form of a hypernetwork. Bytes come from the source that a `TensorRef` names.

Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/hypernetworks/hypernetwork.py (behavior only).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from hnetkit.text import shorten

if TYPE_CHECKING:
    from torch import Tensor

DType = Literal["fp16", "bf16", "fp32", "fp64"]
ITEM_SIZE: Mapping[DType, int] = {"fp16": 2, "bf16": 2, "fp32": 4, "fp64": 8}
TORCH_NAME: Mapping[DType, str] = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}

FileFormat = Literal["pt-zip", "pt-legacy", "safetensors"]
BaseModel = Literal["sd1", "sd2", "sd1-or-sd2", "sdxl", "sdxl-refiner", "unknown"]

_CROSS: Mapping[int, BaseModel] = {768: "sd1", 1024: "sd2", 2048: "sdxl"}


class ByteSource(Protocol):
    """A source of tensor bytes: an open file, or memory."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Returns exactly `size` bytes at `offset`, in bytes.

        Raises:
            hnetkit.errors.FileChanged: the file changed or shrank since it was opened.
        """
        ...


class SizedSource(ByteSource, Protocol):
    """A source of known length in bytes: an open file."""

    size: int


@dataclass(frozen=True, slots=True)
class MemorySource:
    """Tensor bytes in memory, of a network that was built or trained in this process."""

    data: bytes

    def read_at(self, offset: int, size: int) -> bytes:
        data = self.data[offset : offset + size]
        if len(data) != size:  # a caller would write too few bytes, or those of another tensor
            raise ValueError(f"{size} bytes at {offset} are not in {len(self.data)} bytes of memory")
        return data


@dataclass(frozen=True, slots=True, eq=False)
class TensorRef:
    """A tensor that is not loaded: contiguous little-endian values of `dtype` at `offset` bytes of `file`.

    Two are equal if their bytes are, wherever these are. A pickle holds the bytes, and never the name of a file.
    """

    dtype: DType
    shape: tuple[int, ...]
    file: ByteSource = field(repr=False)
    offset: int

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorRef):
            return NotImplemented
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        return all(own == others for own, others in zip(self.parts(), other.parts(), strict=True))

    def __hash__(self) -> int:
        return hash((self.dtype, self.shape))

    def __reduce__(self) -> tuple[type[TensorRef], tuple[DType, tuple[int, ...], MemorySource, int]]:
        return TensorRef, (self.dtype, self.shape, MemorySource(self.read()), 0)

    def __deepcopy__(self, memo: dict[int, Any]) -> TensorRef:
        """Returns itself: it never changes, and reads its open file by position."""
        return self

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * ITEM_SIZE[self.dtype]

    def read(self) -> bytes:
        """Returns the tensor's bytes, little-endian, row-major."""
        return self.file.read_at(self.offset, self.nbytes)

    def parts(self, step: int = 1 << 20) -> Iterator[bytes]:
        """Yields the tensor's bytes, `step` at a time."""
        for at in range(0, self.nbytes, step):
            yield self.file.read_at(self.offset + at, min(step, self.nbytes - at))

    def blake3(self) -> str:
        """Returns the BLAKE3 of the tensor's bytes, 64 hex digits."""
        from blake3 import blake3

        digest = blake3()
        for part in self.parts():
            digest.update(part)
        return digest.hexdigest()

    def torch(self) -> Tensor:
        """Returns a new CPU tensor of this shape and dtype."""
        import torch

        dtype = getattr(torch, TORCH_NAME[self.dtype])
        if not self.numel:
            return torch.empty(self.shape, dtype=dtype)
        return torch.frombuffer(bytearray(self.read()), dtype=dtype).reshape(self.shape)

    def has_any(self, *, step: int = 1 << 20) -> bool:
        """Whether any of its bytes is not 0; reads `step` bytes at a time."""
        return any(part.count(0) != len(part) for part in self.parts(step))

    @classmethod
    def of(cls, tensor: Tensor) -> TensorRef:
        """Returns a reference to a copy of `tensor`'s values (any device; fp16, bf16, fp32 or fp64)."""
        import torch

        name = str(tensor.dtype).removeprefix("torch.")
        dtype = next((short for short, long in TORCH_NAME.items() if long == name), None)
        if dtype is None:
            raise ValueError(f"a hypernetwork's tensor cannot be {name}")
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        return cls(dtype, tuple(tensor.shape), MemorySource(flat.view(torch.uint8).numpy().tobytes()), 0)


@dataclass(frozen=True, slots=True)
class Checksum:
    """The CRC-32 that a container states for `size` bytes at `offset` of its file."""

    name: str
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Layer normalization over a stage's outputs, eps 1e-5. weight and bias: ``[out]``."""

    weight: TensorRef
    bias: TensorRef


@dataclass(frozen=True, slots=True)
class Stage:
    """Linear, then activation, then layer norm, then dropout (identity at inference), always in this order.

    Attributes:
        weight: ``[out, in]``.
        bias: ``[out]``, or None.
        activation: A1111's name in lower case (``"relu"``, ``"swish"`` = hardswish, ...), or None.
        slope: PReLU's learned slope ``[1]`` (or ``[out]``), None for every other activation.
        norm: the layer norm after the activation, or None.
        dropout: the probability during training.
    """

    weight: TensorRef
    bias: TensorRef | None = None
    activation: str | None = None
    slope: TensorRef | None = None
    norm: LayerNorm | None = None
    dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class ResidualMLP:
    """The `MLP` of ``y = x + strength * MLP(x)`` for one width and one side.

    Attributes:
        stages: in order of application; the first takes ``[..., width]``, the last gives ``[..., width]``.
        tensors: the same tensors under A1111's names (``linear.{i}.weight``, i = index in its Sequential), in the
            order of application, which ComfyUI relies on.
    """

    stages: tuple[Stage, ...]
    tensors: Mapping[str, TensorRef] = field(repr=False)

    @property
    def width(self) -> int:
        return self.stages[0].weight.shape[1]

    @property
    def is_affine(self) -> bool:
        """Whether ``MLP(x) = A x + c``: no activation and no layer norm anywhere."""
        return all(stage.activation is None and stage.norm is None for stage in self.stages)


class MLPPair(NamedTuple):
    """The two MLPs of one width: they change the input of ``to_k`` and of ``to_v``."""

    key: ResidualMLP
    value: ResidualMLP


@dataclass(frozen=True, eq=False, repr=False)
class Hypernetwork:
    """A hypernetwork: `{width: (key MLP, value MLP)}` and the metadata of its file.

    Two are equal if their `content_hash` is, in whatever file and under whatever name; the first comparison reads both.
    A pickle holds the tensors' bytes, so it needs no file later, and opens none.

    Attributes:
        mlps: by context width, ascending.
        metadata: the file's own string keys with their values and types (tuples stay tuples), nothing added.
        format: the container that it was read from; None for a network made in this process.
        path: the file that it was read from, as given; None for a network made in this process.
        size_bytes: of that file; 0 without one.
        activate_output: whether the last stage of each MLP has its activation (A1111: missing means True).
        warnings: oddities of the file, one line each; a disagreement names both sides.
        not_carried: names of content that saving drops, such as an optimizer's state.
        checksums: of the file's parts, if its container states them.
        source: the open file that it was read from; None for a network made in this process.
        source_sha256: of the file that this one was converted from, if the file states it.
    """

    mlps: Mapping[int, MLPPair]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    format: FileFormat | None = None
    path: str | None = None
    size_bytes: int = 0
    activate_output: bool = True
    warnings: tuple[str, ...] = ()
    not_carried: tuple[str, ...] = ()
    checksums: tuple[Checksum, ...] = field(default=(), repr=False, compare=False)
    source: SizedSource | None = field(default=None, repr=False, compare=False)
    source_sha256: str | None = None

    def __repr__(self) -> str:
        """One line, from what is in memory: no byte of the file is read."""
        widths = ", ".join(map(str, self.widths))
        structure = "x".join(f"{number:g}" for number in self.layer_structure)
        build = f"{structure} {self.activation or 'linear'}, {self.dtype}"
        return f"<Hypernetwork {shorten(self.name)!r}: {shorten(widths)}; {shorten(build)}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Hypernetwork):
            return NotImplemented
        return self is other or self.content_hash == other.content_hash

    def __hash__(self) -> int:
        return hash(self.content_hash)

    def __copy__(self) -> Hypernetwork:
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hypernetwork:
        """Returns a network with containers of its own; tensors, which never change, read the same open file."""
        return replace(self, mlps=deepcopy(self.mlps, memo), metadata=deepcopy(self.metadata, memo))

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a pickle holds: the file's hash, by which others know the network, in place of the open file."""
        state = {own.name: getattr(self, own.name) for own in fields(self)}
        known = self.source_sha256 or (_sha256_of(self.source) if self.source else None)
        return {**state, "source": None, "checksums": (), "source_sha256": known}

    @property
    def name(self) -> str:
        """The file's own name, else its stem, else ``"unnamed"``."""
        own = self.metadata.get("name")
        if isinstance(own, str) and own:
            return own
        return _stem(self.path) if self.path else "unnamed"

    @property
    def widths(self) -> list[int]:
        """Context widths, ascending."""
        return sorted(self.mlps)

    def each_mlp(self) -> Iterator[tuple[int, Literal["k", "v"], ResidualMLP]]:
        """Yields (width, side, MLP) in ascending width, K before V."""
        for width in self.widths:
            yield width, "k", self.mlps[width].key
            yield width, "v", self.mlps[width].value

    def each_tensor(self) -> Iterator[tuple[int, Literal["k", "v"], str, TensorRef]]:
        """Yields (width, side, A1111's tensor name, tensor) for every tensor."""
        for width, side, mlp in self.each_mlp():
            for key, tensor in mlp.tensors.items():
                yield width, side, key, tensor

    @property
    def _first(self) -> ResidualMLP:
        return self.mlps[self.widths[0]].key

    @property
    def layer_structure(self) -> list[float]:
        """Stage widths as multiples of the context width, from the tensors; the file's own numbers if they agree."""
        stated = self.metadata.get("layer_structure")
        if isinstance(stated, list | tuple) and all(self._has_structure(mlp, stated) for _, _, mlp in self.each_mlp()):
            return list(stated)
        widest = self.mlps[self.widths[-1]].key
        ratios = [stage.weight.shape[0] / widest.width for stage in widest.stages]
        return [int(r) if r == int(r) else r for r in [1.0, *ratios]]

    @staticmethod
    def _has_structure(mlp: ResidualMLP, structure: list[float] | tuple[float, ...]) -> bool:
        shapes = [mlp.width, *(stage.weight.shape[0] for stage in mlp.stages)]
        if len(shapes) != len(structure) or not all(isinstance(s, int | float) and 0 <= s < 1e6 for s in structure):
            return False
        return shapes == [int(mlp.width * s) for s in structure]

    @property
    def activation(self) -> str | None:
        """The activation's A1111 name in lower case; None without one."""
        return self._first.stages[0].activation

    @property
    def layer_norm(self) -> bool:
        return self._first.stages[0].norm is not None

    @property
    def dropout(self) -> list[float]:
        """Dropout probability after each entry of `layer_structure` (A1111's ``dropout_structure``; first is 0)."""
        return [0.0, *(stage.dropout for stage in self._first.stages)]

    @property
    def is_affine(self) -> bool:
        return all(mlp.is_affine for _, _, mlp in self.each_mlp())

    @property
    def dtype(self) -> str:
        """``"fp16"``, ``"bf16"``, ``"fp32"``, ``"fp64"``, or ``"mixed"``."""
        dtypes = {tensor.dtype for _, _, _, tensor in self.each_tensor()}
        return dtypes.pop() if len(dtypes) == 1 else "mixed"

    @property
    def parameters(self) -> int:
        return sum(tensor.numel for _, _, _, tensor in self.each_tensor())

    @property
    def step(self) -> int | None:
        """Training steps; None if the file states none, or no plausible number."""
        step = self.metadata.get("step")
        return step if isinstance(step, int) and abs(step) < 1 << 63 else None

    @cached_property
    def base_model(self) -> BaseModel:
        """The Stable Diffusion that it was made for.

        The cross-attention width decides (768 SD 1, 1024 SD 2, 2048 SDXL). If there are several, the one that was
        trained decides: every tool starts with biases of exactly 0, which stay 0 at widths that training does not
        reach.
        """
        widths = set(self.mlps)
        cross = [width for width in _CROSS if width in widths]
        if len(cross) > 1:
            cross = [width for width in cross if self.is_trained(width)] or cross
        if cross == [768] and 1536 in widths:
            return "sdxl-refiner"
        if len(cross) == 1:
            return _CROSS[cross[0]]
        if not cross and 1536 in widths:
            return "sdxl-refiner"
        return "sd1-or-sd2" if not cross and widths and widths <= {320, 640, 1280} else "unknown"

    def is_trained(self, width: int) -> bool:
        """Whether training reached the MLPs of a width: a bias of a linear layer is not 0, or there are no biases."""
        biases = [stage.bias for mlp in self.mlps[width] for stage in mlp.stages if stage.bias is not None]
        return not biases or any(bias.has_any() for bias in biases)

    @cached_property
    def content_hash(self) -> str:
        """``"h1:" + 64 hex digits`` of tensors and topology, whatever the container and the name."""
        return self.content_hash_from(TensorRef.blake3)

    def content_hash_from(self, digest_of: Callable[[TensorRef], str]) -> str:
        """Returns the content hash.

        It is the sha256 of one line for each tensor, sorted by width, side and name (``width side name dtype shape
        blake3-of-its-bytes``), and of one line with the topology of each MLP. Name, step, dropout and container do not
        matter.

        Args:
            digest_of: returns the BLAKE3 of a tensor's bytes, in hex digits.
        """
        lines = [
            f"{width} {side} {key} {ref.dtype} {','.join(map(str, ref.shape))} {digest_of(ref)}"
            for width, side, key, ref in sorted(self.each_tensor(), key=lambda item: item[:3])
        ]
        lines += [f"{width} {side} {_topology_of(mlp)}" for width, side, mlp in self.each_mlp()]
        return "h1:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _sha256_of(file: SizedSource, step: int = 1 << 20) -> str:
    digest = hashlib.sha256()
    for at in range(0, file.size, step):
        digest.update(file.read_at(at, min(step, file.size - at)))
    return digest.hexdigest()


def _topology_of(mlp: ResidualMLP) -> str:
    return " ".join(f"{stage.activation or 'linear'}{'+norm' if stage.norm else ''}" for stage in mlp.stages)


def _stem(path: str) -> str:
    from pathlib import PurePath

    return PurePath(path).stem
