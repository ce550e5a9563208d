"""Model files made from a grammar: mostly of a network's form, with what pickles and headers can hold in between."""

from __future__ import annotations

import itertools
import json
import math
import random
import struct

from support import hostile_files
from support.hostile_files import ORDERED_DICT, REBUILD, items, number, text

STORAGES = {"FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "DoubleStorage": 8, "LongStorage": 8}
TEXTS = ("", "relu", "linear", "swish", "a note", "\u00fc\u4e2d", "\U0001f600", '"\\', "x" * 300, "\n\x1b[31m", "768")
KEYS = (
    *("step", "name", "layer_structure", "activation_func", "is_layer_norm", "activate_output", "use_dropout"),
    *("last_layer_dropout", "dropout_structure", "sd_checkpoint", "optional_info", "note", "state_dict", "topology"),
    *("optimizer_state_dict", "format", "a1111.step", "base_model", "02", "", "\u0662", "skip_connection"),
)


class Maker:
    """Makes files from a seeded source of chance; the same numbers make the same file.

    Attributes:
        odd: the chance of everything that torch would not have written.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.odd = rng.choice((0.0, 0.0, 0.02, 0.2))
        self.memos = 0
        self.storages: list[tuple[str, int]] = []

    def is_odd(self) -> bool:
        return self.rng.random() < self.odd

    def file(self) -> bytes:
        """Returns a zip, a legacy file or a safetensors file."""
        kind = self.rng.choice(("zip", "legacy", "safetensors"))
        if kind == "safetensors":
            return self.safetensors()
        pickle = self.pickle()
        data = [self.floats(size) for _, size in self.storages]
        if kind == "zip":
            more = {"byteorder": b"little"} if self.rng.random() < 0.3 else {}
            return hostile_files.zip_of(pickle, more, storages=tuple(data))
        keys = [str(key) for key in range(len(data))]
        head = hostile_files.legacy_of(pickle, keys=tuple(keys), numels=())
        sizes = [size // STORAGES[kind] for kind, size in self.storages]
        return head + b"".join(struct.pack("<q", n) + d for n, d in zip(sizes, data, strict=True))

    def floats(self, size: int) -> bytes:
        return self.rng.randbytes(size) if self.rng.random() < 0.1 else bytes(size)

    # --- pickles

    def pickle(self) -> bytes:
        parts = [b"\x80\x02" if not self.is_odd() else b"\x80\x04", b"}("]
        makers = [self.width] * self.rng.choice((1, 1, 2, 3)) + [self.entry] * self.rng.randrange(6)
        self.rng.shuffle(makers)
        body = b"".join([*parts, *(make() for make in makers), b"u"])
        if self.rng.random() < 0.1:
            return b"\x80\x02}" + text("state_dict") + body[2:] + b"s."
        return body + b"."

    def width(self) -> bytes:
        width = self.rng.choice((2, 2, 3, 768))
        key = text(str(width)) if self.rng.random() < 0.1 else number(width)
        structure = self.rng.choice(((1, 1), (1, 2, 1), (1, 1, 1)))
        norm = self.rng.random() < 0.2
        kind = self.rng.choice([*STORAGES][:4])
        sides = [self.side(width, structure, norm, kind) for _ in "kv"]
        if self.is_odd():
            sides = self.rng.choice((sides[:1], [*sides, self.value()], [self.value(), sides[0]]))
        pair = items(*sides)
        return key + (pair if self.rng.random() < 0.9 else b"](" + pair[1:-1] + b"e")

    def side(self, width: int, structure: tuple[int, ...], norm: bool, kind: str) -> bytes:
        if width == 768:
            structure = (1, 0.01, 1)  # type: ignore[assignment]
        sizes = [max(1, int(width * part)) for part in structure]
        entries, place = [], 0
        for take, give in itertools.pairwise(sizes):
            bias = self.rng.random() < 0.9
            entries.append(text(f"linear.{place}.weight") + self.tensor((give, take), kind))
            entries += [text(f"linear.{place}.bias") + self.tensor((give,), kind)] if bias else []
            place += self.rng.choice((1, 2))
            if norm:
                entries += [text(f"linear.{place}.{n}") + self.tensor((give,), kind) for n in ("weight", "bias")]
                place += 1
        if self.is_odd():
            entries.append(self.rng.choice((text("linear.00.weight"), text("linear1.weight"), b"N")) + self.value())
        return self.kept(ORDERED_DICT + b"(" + b"".join(entries) + b"u")

    def tensor(self, shape: tuple[int, ...], kind: str) -> bytes:
        if self.is_odd():
            kind = self.rng.choice([*STORAGES])
        numel = math.prod(shape)
        before, behind = (self.rng.choice((0, 0, 0, 3)) for _ in range(2))
        if self.storages and self.storages[-1] == (kind, numel * STORAGES[kind]) and self.rng.random() < 0.1:
            key, before, total = len(self.storages) - 1, 0, numel
        else:
            key, total = len(self.storages), before + numel + behind
            self.storages.append((kind, total * STORAGES[kind]))
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        if self.is_odd():
            strides = self.rng.choice((strides[::-1], [0] * len(shape), [*strides, 1]))
        reference = (
            items(text("storage"), f"ctorch\n{kind}\n".encode(), text(str(key)), text("cpu"), number(total)) + b"Q"
        )
        view = items(
            reference, number(before), items(*map(number, shape)), items(*map(number, strides)), b"\x89", ORDERED_DICT
        )
        made = REBUILD + view + b"R"
        if self.rng.random() < 0.1:
            made = b"ctorch._utils\n_rebuild_parameter\n" + items(made, b"\x88", ORDERED_DICT) + b"R"
        return self.kept(made)

    def entry(self) -> bytes:
        key = text(self.rng.choice(KEYS if self.is_odd() else KEYS[:12])) if not self.is_odd() else self.value()
        return key + self.value()

    def value(self, depth: int = 0) -> bytes:
        kinds = ["plain", "plain", "text", "number", "scalar", "recall"]
        kinds += ["list", "tuple", "dict", "ordered"] if depth < 4 else []
        kinds += ["bytes", "tensor", "call"] if self.is_odd() else []
        kind = self.rng.choice(kinds)
        inner = [self.value(depth + 1) for _ in range(self.rng.randrange(4))] if kind in ("list", "tuple") else []
        pairs = (
            [self.key() + self.value(depth + 1) for _ in range(self.rng.randrange(3))]
            if kind in ("dict", "ordered")
            else []
        )
        if kind == "list":
            return self.kept(b"](" + b"".join(inner) + b"e")
        if kind == "tuple":
            return self.kept(items(*inner))
        if kind in ("dict", "ordered"):
            return self.kept((b"}" if kind == "dict" else ORDERED_DICT) + b"(" + b"".join(pairs) + b"u")
        if kind == "scalar":
            code, data = self.rng.choice(
                (("i8", bytes(7)), ("f8", struct.pack("<d", 0.3)[:-1]), ("b1", b""), ("f4", b"\0\0\x80"))
            )
            raw = b"c_codecs\nencode\n" + items(text((data + b"\1").decode("latin1")), text("latin1")) + b"R"
            kind_of = b"cnumpy\ndtype\n" + items(text(code), b"K\0", b"K\1") + b"R"
            built = (
                items(b"K\3", text("<"), b"N", b"N", b"N", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\xff", b"K\0") + b"b"
            )
            return b"cnumpy.core.multiarray\nscalar\n" + items(kind_of + built, raw) + b"R"
        if kind == "recall" and self.memos:
            return b"j" + struct.pack("<I", self.rng.randrange(self.memos))
        if kind == "bytes":
            return b"C\3abc"
        if kind == "tensor":
            return self.tensor((2,), "FloatStorage")
        if kind == "call":
            return self.rng.choice([*hostile_files.CALLS.values()])
        return self.plain(kind)

    def plain(self, kind: str) -> bytes:
        if kind == "text":
            return self.kept(text(self.rng.choice(TEXTS)))
        if kind == "number":
            return number(self.rng.choice((0, 1, -1, 1000, 1 << 40, -(1 << 62), (1 << 70) - 1)))
        real = self.rng.choice((0.0, 0.1, -1e300, math.inf, math.nan, 1.5))
        return self.rng.choice((b"N", b"\x88", b"\x89", b"G" + struct.pack(">d", real)))

    def key(self) -> bytes:
        return self.value(9) if self.is_odd() else self.rng.choice((text("a"), text("b"), b"K\7", b"\x88"))

    def kept(self, made: bytes) -> bytes:
        """Sometimes leaves a value in the memo; what is made first has to stand first in the file."""
        if self.rng.random() > 0.3:
            return made
        self.memos += 1
        return made + b"r" + struct.pack("<I", self.memos - 1)

    # --- safetensors

    def safetensors(self) -> bytes:
        header: dict[str, object] = {}
        end = 0
        for width in self.rng.sample((2, 3, 4), self.rng.choice((1, 1, 2))):
            code, size = self.rng.choice((("F32", 4), ("F16", 2), ("BF16", 2), ("F64", 8)))
            for side in "kv":
                shapes = {"0.weight": [width, width], "0.bias": [width], "2.weight": [width, width]}
                for name, shape in shapes.items():
                    begin, end = end, end + math.prod(shape) * size
                    key = f"{width}.{side}.linear.{name}"
                    if self.is_odd():
                        key = self.rng.choice((key.replace("linear", "linear.0"), f"0{key}", "other", key.upper()))
                    header[key] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
                    if self.is_odd():
                        header[key] = self.rng.choice(({}, [], 5, {**header[key], "shape": [1] * 9}, {"dtype": []}))  # type: ignore
        stated = {"format": "hnetkit.hypernetwork", "format_version": "1"}
        stated |= {self.rng.choice(KEYS): self.json() for _ in range(self.rng.randrange(6))}
        header["__metadata__"] = stated
        return hostile_files.safetensors_of(header, self.floats(end))

    def json(self) -> str:
        made = json.dumps(self.json_value())
        return made[self.rng.randrange(len(made)) :] if self.is_odd() else made

    def json_value(self, depth: int = 0) -> object:
        kind = self.rng.choice(("plain", "text", "number", *(("list", "tuple", "dict", "raw") if depth < 4 else ())))
        inner = [self.json_value(depth + 1) for _ in range(self.rng.randrange(4) if depth < 4 else 0)]
        if kind == "list":
            return inner
        if kind == "tuple":
            return {"tuple": inner}
        if kind == "dict":
            return {"dict": [[self.rng.choice(("a", "b", 7, True)), item] for item in inner]}
        if kind == "raw":
            return {self.rng.choice(("tuple", "dict", "a", "b")): item for item in inner}
        if kind == "text":
            return self.rng.choice(TEXTS)
        return self.rng.choice((0, 1, -1, 1 << 70, 0.1, math.nan, math.inf, None, True, False))
