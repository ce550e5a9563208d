"""What the globals in a pickle are for: which are mere data, and which a pickle outside torch's containers names.

Whether a file is refused is decided elsewhere; this says what it would have done, so that a message names an attack
where there may be one, and only there.
"""

from __future__ import annotations

import pickletools
import re

# classes of what trainers leave beside the weights; no object of them is ever created
HARMLESS = {
    "argparse.Namespace",
    "collections.Counter",
    "collections.defaultdict",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "pathlib.PosixPath",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "torch.Size",
    "torch.device",
    "typing.Any",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "dict", "list", "int")),
}
# whole modules and unusual tensors, as `torch.save` writes them; nothing that lies behind a dot of a class
_OF_TORCH = re.compile(r"torch\.nn\.modules\.[a-z_]+\.[A-Z][A-Za-z0-9]*|torch\._utils\._rebuild_[a-z0-9_]+")
_NAME = re.compile(r"[A-Za-z_][\w.]*")

MAX_LISTED = 256 << 10
"""Bytes of a bare pickle that are looked through."""


def is_data(name: str) -> bool:
    """Whether a global only makes a value: a file that asks for it is no attack for that reason."""
    return name in HARMLESS or _OF_TORCH.fullmatch(name) is not None


def globals_of(data: bytes) -> tuple[list[str], bool]:
    """Lists the globals that a pickle of any protocol names, without running any of it.

    Args:
        data: its first bytes, up to `MAX_LISTED`.

    Returns:
        The names in order, each once, and whether `data` is a pickle up to its end.
    """
    names: dict[str, None] = {}
    texts: list[str] = []
    memo: dict[int, str] = {}
    last = ""  # the text that the last opcode pushed
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ("GLOBAL", "INST"):
                names[str(argument).replace(" ", ".", 1)] = None
            elif opcode.name == "STACK_GLOBAL":
                names[".".join(texts[-2:])] = None
            elif opcode.name == "MEMOIZE" or opcode.name.endswith("PUT"):
                memo[len(memo) if argument is None else int(argument)] = last
                continue
            last = ""
            if opcode.name.endswith("GET") and argument is not None:
                last = memo.get(int(argument), "")
            elif isinstance(argument, str) and opcode.name != "GLOBAL":
                last = argument
            if last:
                texts.append(last)
    except Exception:  # cut short, or no pickle; what came before counts all the same
        return [*names], False
    return [*names], all(map(_NAME.fullmatch, names))
