"""Reading of hypernetwork files, and recognition of files that are something else.

The format is decided from the same bytes that are parsed. Other kinds of files are recognized by the key names that
their own tools write.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from hnetkit.errors import (
    DamagedFile,
    FileChanged,
    FileRefused,
    HnetkitError,
    NotAHypernetwork,
    UnreadableFile,
    UnsafeFile,
    UnsupportedNetwork,
    failure_of,
)
from hnetkit.files import is_model_name
from hnetkit.formats import pickle_reader
from hnetkit.formats.a1111 import build_network, is_network_dict
from hnetkit.formats.archive_kinds import archive_kind
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.pickle_globals import MAX_LISTED, globals_of, is_data
from hnetkit.formats.safetensors_file import read_safetensors
from hnetkit.formats.safetensors_schema import is_hypernetwork, read_hypernetwork
from hnetkit.formats.torch_file import LEGACY_MAGIC, TorchFile, read_torch_legacy, read_torch_zip
from hnetkit.formats.torch_zip import listed_names, torch_root
from hnetkit.network import Hypernetwork
from hnetkit.text import counted, shorten

# kind -> its name in messages
TITLES: Mapping[str, str] = {
    "hypernetwork": "a hypernetwork",
    "lora": "a LoRA",
    "lycoris": "a LyCORIS network",
    "diff": "full differences of a model's weights",
    "textual-inversion": "a textual inversion embedding",
    "vae": "a VAE",
    "checkpoint": "a model checkpoint",
    "sam": "a Segment Anything model",
    "aesthetic-gradient": "an aesthetic gradient",
    "optimizer": "the state of an optimizer",
    "training-state": "a checkpoint of a training, which `hnetkit train` goes on from",
    "torchscript": "a TorchScript program",
    "html": "a web page, probably what a site sent instead of the file",
    "network-mix": "a mix of networks by name for aria1th's extension (stack them: -n NAME:STRENGTH)",
    "json": "a JSON text",
    "text": "a text",
    "image": "a picture",
    "zip": "a zip archive of other things",
    "archive": "an archive",
    "git-lfs": "a Git LFS pointer, not the file itself",
    "gguf": "a GGUF model",
    "empty": "an empty file",
    "zeros": "a file that begins with nothing but zeros, as one does whose download or copy failed",
    "unknown": "not a file that hnetkit knows",
}
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image"),
    (b"\xff\xd8\xff", "image"),
    (b"GIF8", "image"),
    (b"GGUF", "gguf"),
    (b"version https://git-lfs", "git-lfs"),
)

_QUOTED = ("text", "json", "html")  # kinds of which the first words are said
_ATTACK = "do not load this file with any program; get it again from its source"

# what every version of A1111's own check lets through; modules/safe.py of AUTOMATIC1111 (behavior only)
_A1111_MEMBER = re.compile(r"data/[0-9]+|version|data\.pkl")
_ALLOWED_THERE = """
collections.OrderedDict torch._utils._rebuild_tensor_v2 torch._utils._rebuild_parameter
torch._utils._rebuild_device_tensor_from_numpy torch.FloatStorage torch.HalfStorage torch.IntStorage
torch.LongStorage torch.DoubleStorage torch.ByteStorage torch.BFloat16Storage torch.float32
torch.nn.modules.container.ParameterDict numpy.core.multiarray.scalar numpy.core.multiarray._reconstruct
numpy.dtype numpy.ndarray _codecs.encode __builtin__.set
"""
_A1111_GLOBALS = frozenset(_ALLOWED_THERE.split())

READER_VERSION = 5
"""Increased when files are read differently, so that the next scan reads them again."""
MIX_SUFFIX = ".hns"
"""Of texts such as ``[("ink", 0.2), ("wash", 0.4)]``, of aria1th/Hypernetwork-MonkeyPatch-Extension (behavior only)."""

MAX_FILE = 4 << 30
"""Bytes; the largest real hypernetwork has 0.6 GB."""


def load(path: str | os.PathLike[str]) -> Hypernetwork:
    """Reads a hypernetwork: its structure now, each tensor when it is needed.

    Args:
        path: a ``.pt``, ``.ckpt``, ``.bin`` or ``.safetensors`` file; its suffix is ignored.

    Returns:
        The network. Its file stays open as long as anything refers to it.

    Raises:
        NotFound: no such file.
        NotAHypernetwork: the file is something else; the message says what.
        UnsafeFile, DamagedFile, UnsupportedNetwork: it cannot be read safely or computed faithfully.
        UnreadableFile: reading it raised an unexpected exception.
    """
    return read_network(OpenFile(path))


def read_unquoted(path: str | os.PathLike[str]) -> Hypernetwork:
    """Reads a hypernetwork, as `load`, from a path that a stranger's file may name: no word of a text there is said."""
    try:
        return load(path)
    except NotAHypernetwork as error:
        if error.kind not in _QUOTED:
            raise
        refused = NotAHypernetwork(f"{os.fspath(path)}: {TITLES[error.kind]}, not a hypernetwork", kind=error.kind)
    raise refused


def read_network(file: OpenFile) -> Hypernetwork:
    """Reads a hypernetwork from a file that is already open; see `load`."""
    with translating_unforeseen(file):
        return _read(file)


def loads_in_a1111(net: Hypernetwork) -> bool:
    """Whether A1111 loads the torch file that a network was read from: its check passes it, and sees its widths."""
    file = net.source
    if not isinstance(file, OpenFile) or net.format == "safetensors":
        return False
    if net.format == "pt-legacy":
        source = read_torch_legacy(file)
    else:
        names, found = listed_names(file), read_torch_zip(file)
        root = torch_root(names) or ""
        if found is None or not all(_A1111_MEMBER.fullmatch(name.removeprefix(root)) for name in names):
            return False
        source = found
    widths = sorted(key for key in source.value if type(key) is int) if isinstance(source.value, dict) else []
    return widths == list(net.widths) and _A1111_GLOBALS.issuperset(source.named)


@contextmanager
def translating_unforeseen(file: OpenFile) -> Iterator[None]:
    """Turns unexpected exceptions from reading one file into a refusal of that file.

    Errors of the disk and of memory are not the file's fault, and pass unchanged.

    Raises:
        UnreadableFile: for every other exception that is not an HnetkitError.
    """
    try:
        yield
    except (HnetkitError, OSError, MemoryError):
        raise
    except Exception as error:
        failure = failure_of(error, file.path)
        raise UnreadableFile(str(failure), hint=failure.command_hint) from error


def _read(file: OpenFile) -> Hypernetwork:
    refuse_sparse(file)
    head = file.read_at(0, min(file.size, 4096))
    if head.startswith(b"PK\3\4"):
        torch_file = read_torch_zip(file)
        if torch_file is None:
            raise _other_zip(file)
        return _from_torch(torch_file)
    if head.startswith(LEGACY_MAGIC):
        return _from_torch(read_torch_legacy(file))
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return _from_safetensors(file)
    kind = kind_of_bytes(head)
    if head[:1] == b"\x80" or kind in ("text", "unknown"):
        _refuse_bare_pickle(file)
    if kind in ("json", "text") and file.path.lower().endswith(MIX_SUFFIX):
        kind = "network-mix"
    if kind == "unknown" and any(head.startswith(start) for start in (b"PK\5\6", b"PK\7\10", b"\x80")):
        raise DamagedFile(f"{file.path}: damaged at its beginning")
    raise _other(file, kind)


def _other_zip(file: OpenFile) -> NotAHypernetwork:
    """The refusal of a zip that is no torch file. One with models inside is told from others: it wants unpacking."""
    inside = [name for name in listed_names(file) if is_model_name(name.replace("\\", "/"))]
    if not inside:
        return _other(file, "zip")
    more = f" and {counted(len(inside) - 1, 'more model')}" if len(inside) > 1 else ""
    return NotAHypernetwork(
        f"{file.path}: a zip archive with {shorten(inside[0])}{more} inside; unpack it and scan that", kind="zip"
    )


def is_sparse(file: OpenFile) -> bool:
    """Whether a file is larger than any network and consists of little but holes: reading it would take hours."""
    return file.size > MAX_FILE and file.bytes_on_disk() < file.size


def refuse_sparse(file: OpenFile) -> None:
    """Raises DamagedFile for a sparse file. Call it before reading a whole file."""
    if is_sparse(file):
        raise DamagedFile(
            f"{file.path}: a sparse file: {file.bytes_on_disk():,} bytes of {file.size:,} are on the disk"
        )


def _refuse_bare_pickle(file: OpenFile) -> None:
    """Raises UnsafeFile for a pickle outside torch's containers, which no program needs."""
    data = file.read_at(0, min(file.size, MAX_LISTED))
    names, is_whole = globals_of(data)
    if data[:1] != b"\x80" and not (names and is_whole):
        return
    name = next((name for name in names if not is_data(name)), None)
    if name is not None:
        raise UnsafeFile(f"{file.path}: a bare pickle that asks for {shorten(name, 80)}", hint=_ATTACK)
    if data[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        raise UnsafeFile(f"{file.path}: a bare pickle, not a torch file", hint="get the file again from its source")


def _refuse_globals(file: OpenFile, names: Sequence[str]) -> None:
    """Raises UnsafeFile for a network with globals that none needs; an attack is named where there may be one."""
    for name in names:
        if not is_data(name):
            raise UnsafeFile(f"{file.path}: asks for {shorten(name, 80)}, which no hypernetwork needs", hint=_ATTACK)
    if names:
        raise UnsafeFile(
            f"{file.path}: holds an object of {shorten(names[0], 80)}, which no hypernetwork needs",
            hint="save it again with nothing but tensors, numbers and text in it",
        )


def _from_torch(source: TorchFile) -> Hypernetwork:
    value = source.value
    inner = value.get("state_dict") if isinstance(value, dict) else None
    is_network = any(is_network_dict(item, source.file.budget) for item in (value, inner))
    kind = "hypernetwork" if is_network else kind_of_value(value)
    if kind in ("hypernetwork", "unknown"):
        _refuse_globals(source.file, source.foreign)
    if source.file.size > MAX_FILE:
        raise _other(source.file, kind if kind != "hypernetwork" else "checkpoint")
    if kind != "hypernetwork":
        raise _other(source.file, kind, asks_for=source.foreign)
    network = build_network(value, source.tensor, format=source.format, file=source.file)
    return replace(network, checksums=source.checksums)


def _from_safetensors(file: OpenFile) -> Hypernetwork:
    source = read_safetensors(file)
    if not is_hypernetwork(source):
        raise _other(file, kind_of_names(source.entries.keys()))
    return read_hypernetwork(source)


def _other(file: OpenFile, kind: str, *, asks_for: Sequence[str] = ()) -> NotAHypernetwork:
    attack = next((name for name in asks_for if not is_data(name)), None)
    is_link = os.path.islink(file.path)
    more = f"; it asks for {shorten(attack, 80)}" if attack else ""
    if kind in _QUOTED:
        # a stranger's link may lead to a private file, and what is said here is kept, listed and shown
        more = "; it is a link, so nothing of it is quoted" if is_link else f": {shorten(_first_words(file), 80)}"
    archive = archive_kind(file.read_at(0, min(file.size, 4096))) if kind == "archive" else None
    title = f"{file.path}: {archive.title if archive else TITLES[kind]}, not a hypernetwork{more}"
    hint = _ATTACK if attack else "extract it, then: hnetkit scan FOLDER" if archive else None
    return NotAHypernetwork(title, kind=kind, hint=hint)


def _first_words(file: OpenFile) -> str:
    """The words at the beginning of a text, without tags: often what a site said instead of sending the file."""
    text = file.read_at(0, min(file.size, 4096)).decode("utf-8", "replace").removeprefix("\ufeff")
    return " ".join(re.sub(r"<style.*?</style>|<script.*?</script>|<[^>]*>", " ", text, flags=re.DOTALL).split())


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """The network in a file, or the reason why there is none."""

    network: Hypernetwork | None
    refusal: FileRefused | None

    @property
    def kind(self) -> str:
        """A key of `TITLES`; a hypernetwork that cannot be computed counts as one."""
        if self.network is not None or isinstance(self.refusal, UnsupportedNetwork):
            return "hypernetwork"
        return self.refusal.kind if isinstance(self.refusal, NotAHypernetwork) else "unknown"


def identify(file: OpenFile) -> FileIdentity:
    """Reads an open file; whatever it holds is a result and not an exception.

    Raises:
        FileChanged: the file changed meanwhile.
    """
    try:
        return FileIdentity(read_network(file), None)
    except FileChanged:
        raise
    except FileRefused as refusal:
        return FileIdentity(None, refusal)


def kind_of_bytes(head: bytes) -> str:
    """Returns the kind of a file that is neither a torch file nor safetensors, from its first bytes."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if not head.strip(b"\0"):
        return "zeros" if head else "empty"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image"
    if archive_kind(head) is not None:
        return "archive"
    return _kind_of_text(head.removeprefix(b"\xef\xbb\xbf").lstrip()[:2000])


def _kind_of_text(head: bytes) -> str:
    lowered = head.lower()
    if lowered.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")) or b"<html" in lowered[:500]:
        return "html"
    try:
        text = head.decode("utf-8", "ignore")
    except UnicodeDecodeError:
        return "unknown"
    if not text or not all(character.isprintable() or character in "\r\n\t" for character in text):
        return "unknown"
    return "json" if text[0] in "{[" else "text"


def kind_of_names(names: Collection[str]) -> str:
    """Returns the kind of a flat set of tensor names; ``"unknown"`` if none is recognized."""
    joined = "\n".join(names)

    def any_of(*parts: str) -> bool:
        return any(part in joined for part in parts)

    if any(name.startswith("network.mlps.") for name in names):
        return "training-state"
    if any_of("hada_w1_a", "lokr_w1", "dora_scale", "oft_blocks", "oft_diag", "lora_mid"):
        return "lycoris"
    if any_of("lora_up", "lora_down", ".lora_A", ".lora_B", "to_q_lora", "lora.up", "lora.down"):
        return "lora"
    if any(name.endswith((".diff", ".diff_b")) for name in names):
        return "diff"
    if any_of("model.diffusion_model.", "cond_stage_model.", "conditioner.embedders", "down_blocks.0.resnets"):
        return "checkpoint"
    if any_of("mask_decoder.", "output_hypernetworks_mlps"):
        return "sam"
    if any_of("string_to_param", "string_to_token", "emb_params") or {"clip_l", "clip_g"} & set(names):
        return "textual-inversion"
    if any_of("first_stage_model.") or (any_of("encoder.") and any_of("decoder.", "quant_conv")):
        return "vae"
    if any_of("text_model.encoder", "transformer_blocks.", "double_blocks.", "joint_blocks."):
        return "checkpoint"
    return "unknown"


def kind_of_value(value: Any) -> str:
    """Returns the kind of an object that `torch.save` wrote."""
    if isinstance(value, pickle_reader.TensorStub):
        return "aesthetic-gradient" if len(value.shape) == 2 and value.shape[1] in (768, 1024, 1280) else "unknown"
    if isinstance(value, list | tuple):
        return "lora" if value and all(isinstance(item, pickle_reader.TensorStub) for item in value) else "unknown"
    if not isinstance(value, dict):
        return "unknown"
    names = _texts(value)
    if {"optimizer_state_dict", "optimizer_name"} & names or {"state", "param_groups"} <= names:
        return "optimizer"
    if any(name.startswith("<") for name in names) and len(value) <= 4:
        return "textual-inversion"
    inner = value.get("state_dict")
    for level in (value, inner, value.get("model")):
        if isinstance(level, dict):
            kind = kind_of_names(_texts(level))
            if kind != "unknown":
                return kind
    return "checkpoint" if {"global_step", "pytorch-lightning_version"} & names else "unknown"


def _texts(value: Mapping[Any, Any]) -> set[str]:
    return {key for key in value if isinstance(key, str)}
