"""The weights of a checkpoint file by name, read one by one: ``.safetensors``, and torch's ``.ckpt`` and ``.pt``.

Trainers left more than weights in a ``.ckpt``: numbers, settings, objects of their own. hnetkit's reader makes none of
it; which classes a file may ask for is a short list all the same, and every other name refuses the file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hnetkit.errors import ModelNotUsable, UnsafeFile
from hnetkit.formats import pickle_reader
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.reading import TITLES, kind_of_bytes, refuse_sparse
from hnetkit.formats.safetensors_file import SafetensorsFile, read_safetensors
from hnetkit.formats.torch_file import LEGACY_MAGIC, TorchFile, read_torch_legacy, read_torch_zip
from hnetkit.text import shorten

if TYPE_CHECKING:
    from torch import Tensor

# what trainers leave beside the weights; none of it is made, whatever stands here
HARMLESS = {
    *("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", "torch.Size", "torch.device"),
    *("pytorch_lightning.callbacks.early_stopping.EarlyStopping", "pytorch_lightning.utilities.parsing.AttributeDict"),
    *("numpy.ndarray", "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.nodes.AnyNode"),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "typing.Any", "argparse.Namespace"),
    *("collections.defaultdict", "collections.Counter", "pathlib.PosixPath"),
    *("torch.float16", "torch.bfloat16", "torch.float32", "torch.float64"),
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "dict", "list", "int")),
}
MAX_TENSORS = 5000
"""Of one part of a model; SDXL's UNet has 1680."""

_FLOATS: Mapping[str, int] = {"FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "DoubleStorage": 8}
_SAFETENSORS_FLOATS = ("F16", "BF16", "F32", "F64")
_SMALL_FLOATS: Mapping[str, str] = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}


@dataclass(frozen=True)
class StateDict:
    """The floating-point tensors of one file, none of them loaded.

    Attributes:
        shapes: of each tensor, by name.
        metadata: what the file says of itself: a safetensors header's.
    """

    path: str
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    _read: Callable[[str], Tensor] = field(repr=False)

    def part(self, prefixes: str | tuple[str, ...], dtype: Any) -> dict[str, Tensor]:
        """Returns the tensors whose names begin so, on the CPU in `dtype`: at most one is in its own dtype at a time.

        Raises:
            UnsafeFile: there are too many.
            FileRefused: one of them cannot be read; the message names it.
        """
        names = [name for name in self.shapes if name.startswith(prefixes)]
        if len(names) > MAX_TENSORS:
            raise UnsafeFile(f"{self.path}: {len(names)} tensors in one part of it; no such model has so many")
        return {name: self._read(name).to(dtype) for name in names}


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Reads a file's structure; each tensor when it is asked for. The suffix is not looked at.

    Raises:
        ModelNotUsable: neither safetensors nor a torch file.
        UnsafeFile: the pickle asks for something that is not on the list of the harmless.
        FileRefused: it is damaged, or contradicts itself.
    """
    file = OpenFile(path)
    refuse_sparse(file)
    head = file.read_at(0, min(file.size, 4096))
    if head.startswith(LEGACY_MAGIC):
        return _of_torch(read_torch_legacy(file))
    if head.startswith(b"PK\3\4"):
        source = read_torch_zip(file)
        if source is not None:
            return _of_torch(source)
    if len(head) > 8 and head[8:9] == b"{":
        return _of_safetensors(read_safetensors(file))
    kind = "zip" if head.startswith(b"PK") else kind_of_bytes(head)
    raise ModelNotUsable(f"{file.path}: {TITLES[kind]}, no Stable Diffusion checkpoint", hint="get the file again")


def _of_safetensors(source: SafetensorsFile) -> StateDict:
    import torch

    def read(name: str) -> Tensor:
        entry = source.entries[name]
        if entry.dtype not in _SMALL_FLOATS:
            return source.tensor(name).torch()
        data = bytearray(source.file.read_at(entry.offset, math.prod(entry.shape)))
        return torch.frombuffer(data, dtype=getattr(torch, _SMALL_FLOATS[entry.dtype])).reshape(entry.shape)

    known = (*_SAFETENSORS_FLOATS, *_SMALL_FLOATS)
    shapes = {name: entry.shape for name, entry in source.entries.items() if entry.dtype in known}
    return StateDict(source.file.path, shapes, source.metadata, read)


def _of_torch(source: TorchFile) -> StateDict:
    path = source.file.path
    for name in source.foreign:
        if name not in HARMLESS:
            raise UnsafeFile(
                f"{path}: asks for {shorten(name, 80)}, which no checkpoint needs",
                hint="do not load this file with any program; get it again from its source, best as .safetensors",
            )
    value = source.value
    inner = value.get("state_dict", value) if isinstance(value, dict) else value
    if not isinstance(inner, dict):
        raise ModelNotUsable(f"{path}: holds no state dict, so no Stable Diffusion checkpoint", hint="get it again")
    stubs = {
        name: item
        for name, item in inner.items()
        if isinstance(name, str) and isinstance(item, pickle_reader.TensorStub) and item.storage.type.name in _FLOATS
    }
    refuse_more_than_the_file(source.file, (_bytes_read(stub) for stub in stubs.values()))
    shapes = {name: stub.shape for name, stub in stubs.items()}
    return StateDict(path, shapes, {}, lambda name: _read_torch(source, stubs[name], name))


def refuse_more_than_the_file(file: OpenFile, sizes: Iterable[int]) -> None:
    """Looks whether tensors that may share their bytes are together far larger than the file.

    Args:
        sizes: bytes that are read or made for each tensor.

    Raises:
        UnsafeFile: they are.
    """
    together = sum(sizes)
    if together > 2 * file.size:
        raise UnsafeFile(f"{file.path}: its tensors together ({shorten(together)} bytes) are larger than the file")


def _bytes_read(stub: pickle_reader.TensorStub) -> int:
    return max(math.prod(stub.shape), _span(stub)) * _FLOATS[stub.storage.type.name]


def _span(stub: pickle_reader.TensorStub) -> int:
    """How many values of its storage a tensor reaches over."""
    return 1 + sum((length - 1) * stride for length, stride in zip(stub.shape, stub.stride, strict=True))


def _read_torch(source: TorchFile, stub: pickle_reader.TensorStub, name: str) -> Tensor:
    """Reads a tensor that may be stored in another order than row by row, as trainers' channels-last weights are."""
    import torch

    numel, span = math.prod(stub.shape), _span(stub)
    if not numel or numel > span:  # empty, or one value seen many times
        return source.tensor(stub, name).torch()
    flat = source.tensor(replace(stub, shape=(span,), stride=(1,)), name).torch()
    strided = flat.as_strided(stub.shape, stub.stride)
    # strides must be the usual ones also where a length of 1 leaves them open: kernels are chosen by them
    return flat.view(stub.shape) if strided.is_contiguous() else strided.clone(memory_format=torch.contiguous_format)
