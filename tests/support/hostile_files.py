"""Files that try something, one function per trick. Each returns the bytes of the file.

A payload, wherever it stands, would create the file named by the environment variable CANARY.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable

MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
COMMAND = b'touch "$CANARY"'

TRICKS: dict[str, Callable[[], bytes]] = {}


def trick(make: Callable[[], bytes]) -> Callable[[], bytes]:
    TRICKS[make.__name__] = make
    return make


def add(name: str, make: Callable[[], bytes]) -> None:
    TRICKS[name] = make


# --- parts of pickles


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def items(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


ORDERED_DICT = b"ccollections\nOrderedDict\n)R"
CALL_SYSTEM = b"cposix\nsystem\n" + items(text(COMMAND.decode())) + b"R"


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def tensor(
    key: str = "0",
    numel: int = 8,
    offset: int = 0,
    shape: tuple[int, ...] = (4, 2),
    stride: tuple[int, ...] = (2, 1),
    storage: bytes = b"ctorch\nFloatStorage\n",
) -> bytes:
    reference = items(text("storage"), storage, text(key), text("cpu"), number(numel)) + b"Q"
    view = items(
        reference, number(offset), items(*map(number, shape)), items(*map(number, stride)), b"\x89", ORDERED_DICT
    )
    return REBUILD + view + b"R"


def side(first: bytes | None = None, name: str = "linear.0.weight") -> bytes:
    """One MLP of width 2, structure 1, 2, 1, without biases: storages 0 (8 values) and 1 (8 values)."""
    second = tensor("1", shape=(2, 4), stride=(4, 1))
    return ORDERED_DICT + b"(" + text(name) + (first or tensor()) + text("linear.1.weight") + second + b"u"


def network(first: bytes | None = None, metadata: bytes = b"", name: str = "linear.0.weight") -> bytes:
    """The pickle of a network of width 2."""
    return b"\x80\x02}(K\x02" + items(side(first, name), side()) + metadata + b"u."


def meta(value: bytes, key: str = "note") -> bytes:
    """A network whose metadata holds one more value."""
    return network(metadata=text(key) + value)


# --- containers

FLOATS = struct.pack("<8f", *range(8))


def zip_of(
    pickle: bytes,
    extra: dict[str, bytes] | None = None,
    storages: tuple[bytes, ...] = (FLOATS, FLOATS),
    root: str = "archive",
    method: int = zipfile.ZIP_STORED,
) -> bytes:
    members = {"data.pkl": pickle, **{f"data/{i}": data for i, data in enumerate(storages)}, "version": b"3\n"}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in {**members, **(extra or {})}.items():
            archive.writestr(
                zipfile.ZipInfo(name if name.startswith(("../", "/", "C:")) else f"{root}/{name}"), data, method
            )
    return out.getvalue()


def legacy_of(
    pickle: bytes, keys: tuple[str, ...] = ("0", "1"), numels: tuple[int, ...] = (8, 8), tail: bytes = b""
) -> bytes:
    system = b"\x80\x02}(" + text("little_endian") + b"\x88u."
    listed = b"\x80\x02](" + b"".join(map(text, keys)) + b"e."
    data = b"".join(struct.pack("<q", numel) + FLOATS for numel in numels)
    return MAGIC + b"\x80\x02M\xe9\x03." + system + pickle + listed + data + tail


def safetensors_of(header: object, data: bytes = b"\0" * 64) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def ours(note: str = "null", **tensors: list[int]) -> dict[str, object]:
    stated = {"format": "hnetkit.hypernetwork", "format_version": "1", "note": note}
    header: dict[str, object] = {"__metadata__": stated}
    names = ("2.k.linear.0.weight", "2.v.linear.0.weight")
    for name, (begin, end) in zip(names, tensors.values(), strict=False):
        header[name] = {"dtype": "F32", "shape": [2, 2], "data_offsets": [begin, end]}
    return header


def good_safetensors(note: str = "null") -> bytes:
    return safetensors_of(ours(note, a=[0, 16], b=[16, 32]), b"\0" * 32)


# --- calls that a pickle can make, in every container

CALLS: dict[str, bytes] = {
    "os_system": CALL_SYSTEM,
    "os_system_by_its_other_name": b"cos\nsystem\n" + items(text(COMMAND.decode())) + b"R",
    "os_system_by_stack_global": text("os") + text("system") + b"\x93" + items(text(COMMAND.decode())) + b"R",
    "eval": b"cbuiltins\neval\n" + items(text("__import__('os').system('touch \"$CANARY\"')")) + b"R",
    "exec_of_python_2": b"c__builtin__\nexec\n" + items(text("import os; os.system('touch \"$CANARY\"')")) + b"R",
    "import_module": b"cimportlib\nimport_module\n" + items(text("antigravity")) + b"R",
    "subprocess": b"csubprocess\ncheck_call\n"
    + items(b"](" + text("sh") + text("-c") + text(COMMAND.decode()) + b"e")
    + b"R",
    "getattr_chain": b"cbuiltins\ngetattr\n" + items(b"cos\npath\n", text("os")) + b"R",
    "torch_load": b"ctorch\nload\n" + items(text("/etc/passwd")) + b"R",
    "torch_hub": b"ctorch.hub\nload\n" + items(text("a/b"), text("c")) + b"R",
    "numpy_load": b"cnumpy\nload\n" + items(text("x.npy"), b"N", b"\x88") + b"R",
    "dotted_attribute": b"ccollections\nOrderedDict.__reduce__\n)R",
    "storage_of_another_module": b"ctorch._utils\nFloatStorage\n)R",
    "new_object": b"csubprocess\nPopen\n" + items(text(COMMAND.decode())) + b"\x81",
    "new_object_with_keywords": b"csubprocess\nPopen\n" + items(text(COMMAND.decode())) + b"}\x92",
    "instance": b"(" + text(COMMAND.decode()) + b"ios\nsystem\n",
    "object": b"(cos\nsystem\n" + text(COMMAND.decode()) + b"o",
    "extension_1": b"\x82\x01",
    "extension_2": b"\x83\x01\x00",
    "extension_4": b"\x84\x01\x00\x00\x00",
    "build_on_an_ordered_dict": ORDERED_DICT + b"}(" + text("__class__") + CALL_SYSTEM + b"ub",
    "build_on_a_tensor": tensor() + b"}(" + text("data") + b"Nub",
    "build_on_a_dict": b"}}(" + text("__setstate__") + b"Nub",
    "persistent_text": b"Pstorage\n",
    "persistent_number": b"K\x07Q",
    "persistent_call": items(text("storage"), b"cos\nsystem\n", text("0"), text("cpu"), number(8)) + b"Q",
    "persistent_view": items(text("storage"), b"ctorch\nFloatStorage\n", text("0"), text("cpu"), number(8), b"K\x01")
    + b"Q",
    "call_of_a_storage_type": b"ctorch\nFloatStorage\n" + items(number(1 << 40)) + b"R",
    "call_of_a_text": text("os.system") + items(text(COMMAND.decode())) + b"R",
    "call_of_a_memo": b"cos\nsystem\nq\x630" + b"h\x63" + items(text(COMMAND.decode())) + b"R",
    "call_inside_allowed_arguments": b"ccollections\nOrderedDict\n" + items(CALL_SYSTEM) + b"R",
    "allowed_call_with_wrong_arguments": b"ctorch._utils\n_rebuild_tensor_v2\n" + items(b"K\x01") + b"R",
    "codec_that_unpacks": b"c_codecs\nencode\n" + items(text("x"), text("zlib_codec")) + b"R",
    "numpy_object_scalar": b"cnumpy.core.multiarray\nscalar\n"
    + items(b"cnumpy\ndtype\n" + items(text("O8")) + b"R", text("x"))
    + b"R",
    "append_to_a_global": b"csys\npath\n" + text("/evil") + b"a",
    "items_set_on_a_global": b"cos\nenviron\n(" + text("PATH") + text("/evil") + b"u",
    "items_set_on_a_tuple": b")(K\x01K\x02u",
    "append_to_a_text": text("x") + text("y") + b"a",
    "set": b"\x8f(K\x01\x90",
    "frozen_set": b"(K\x01\x91",
    "byte_array": b"\x96" + struct.pack("<Q", 10 << 30),
    "next_buffer": b"\x97",
    "unhashable_key": b"}(]K\x01u",
    "global_alone": b"cos\nsystem\n",
}
for name, call in CALLS.items():
    add(f"zip_{name}", lambda call=call: zip_of(meta(call)))
for name in ("os_system", "eval", "new_object", "instance", "object", "build_on_a_tensor", "extension_4"):
    add(f"legacy_{name}", lambda call=CALLS[name]: legacy_of(meta(call)))
    add(f"bare_{name}", lambda call=CALLS[name]: b"\x80\x02" + call + b".")
add(
    "legacy_call_in_the_protocol", lambda: MAGIC + b"\x80\x02" + CALL_SYSTEM + b"." + legacy_of(network())[len(MAGIC) :]
)
add("legacy_call_in_the_keys", lambda: legacy_of(network(), keys=()).replace(b"](e.", b"](" + CALL_SYSTEM + b"e."))
add("bare_protocol_0", lambda: b"cos\nsystem\n(S'touch \"$CANARY\"'\ntR.")
add("bare_protocol_4", lambda: b"\x80\x04\x95" + struct.pack("<Q", 40) + CALLS["os_system_by_stack_global"] + b".")

# --- pickles that are too much, or not enough

add(
    "memo_bomb",
    lambda: zip_of(meta(b"]q\x01" + b"".join(b"](" + b"h%c" % i * 10 + b"eq%c" % (i + 1) for i in range(1, 90)))),
)
add(
    "ordered_dict_built_from_one_list_again_and_again",
    lambda: zip_of(
        b"\x80\x02ccollections\nOrderedDict\nq\x00]("
        + b"NN\x86" * 60_000
        + b"e\x85q\x01"
        + b"h\x00h\x01R0" * 3000
        + b"."
    ),
)
add(
    "text_encoded_again_and_again",
    lambda: zip_of(
        b"\x80\x02c_codecs\nencode\nq\x00" + text("a" * 9_000_000) + b"\x85q\x01" + b"h\x00h\x01R" * 90 + b"."
    ),
)
add(
    "call_with_a_million_arguments",
    lambda: zip_of(b"\x80\x02" + REBUILD + items(b"N" * 500_000) + b"q\x01" + b"0h\x01" * 9),
)
add("list_that_holds_itself", lambda: zip_of(meta(b"]q\x01h\x01a")))
add("deep_marks", lambda: zip_of(meta(b"(" * 100_000 + b"t" * 100_000)))
add("deep_tuples", lambda: zip_of(meta(b")" + b"\x85" * 1_000_000, key="layer_structure")))
add("deep_lists", lambda: zip_of(meta(b"]" * 50_000 + b"a" * 49_999, key="layer_structure")))
add("endless_pushes", lambda: zip_of(b"\x80\x02" + b"N" * 8_000_000 + b"."))
add("huge_integer", lambda: zip_of(meta(b"\x8b" + struct.pack("<I", 4_000_000) + b"\x7f" * 4_000_000)))
add("text_of_10_gigabytes", lambda: zip_of(meta(b"\x8d" + struct.pack("<Q", 10 << 30) + b"x")))
add("bytes_of_4_gigabytes", lambda: zip_of(meta(b"B\xff\xff\xff\xff")))
add("negative_length", lambda: zip_of(meta(b"T\xff\xff\xff\xffx")))
add("text_that_is_not_utf8", lambda: zip_of(meta(b"X\x02\0\0\0\xff\xfe")))
add("no_stop", lambda: zip_of(network()[:-1]))
add("two_values", lambda: zip_of(b"\x80\x02NN."))
add("empty_stack", lambda: zip_of(b"\x80\x02R."))
add("missing_memo", lambda: zip_of(b"\x80\x02h\x05."))
add("unknown_protocol", lambda: zip_of(b"\x80\xff" + network()[2:]))
add("second_pickle_behind_the_first", lambda: zip_of(network() + b"\x80\x02" + CALL_SYSTEM + b"."))
add("empty_pickle", lambda: zip_of(b""))
add("pickle_of_20_megabytes", lambda: zip_of(b"\x80\x02" + b"N0" * 10_000_000 + b"N."))

# --- tensors that lie

add("numel_too_large", lambda: zip_of(network(tensor(numel=1 << 40))))
add("numel_too_small", lambda: zip_of(network(tensor(numel=4))))
add("offset_beyond_the_storage", lambda: zip_of(network(tensor(offset=6))))
add("offset_negative", lambda: zip_of(network(tensor(offset=-4))))
add("shape_negative", lambda: zip_of(network(tensor(shape=(-4, -2)))))
add("shape_of_10_gigabytes", lambda: zip_of(network(tensor(shape=(50_000, 50_000), stride=(50_000, 1)))))
add("shape_that_overflows", lambda: zip_of(network(tensor(shape=(1 << 61, 8), stride=(8, 1)))))
add("stride_zero", lambda: zip_of(network(tensor(numel=1, shape=(4, 2), stride=(0, 0)), name="linear.0.weight")))
add("stride_huge", lambda: zip_of(network(tensor(stride=(1 << 40, 1)))))
add("shape_of_text", lambda: zip_of(network(tensor().replace(number(4), text("4")))))
add("storage_that_is_not_there", lambda: zip_of(network(tensor(key="7"))))
add("storage_outside_of_the_file", lambda: zip_of(network(tensor(key="../../etc/passwd"))))
add("weights_of_integers", lambda: zip_of(network(tensor(storage=b"ctorch\nLongStorage\n"))))
add("tensor_named_with_line_ends", lambda: zip_of(network(name="linear.0.weight\n\x1b[31mOK")))
add("shapes_that_do_not_chain", lambda: zip_of(network(tensor(shape=(2, 4), stride=(4, 1)))))
add("scalar_weight", lambda: zip_of(network(tensor(shape=(), stride=()))))
add("nine_dimensions", lambda: zip_of(network(tensor(shape=(1,) * 9, stride=(1,) * 9))))


@trick
def one_storage_seen_by_a_thousand_tensors() -> bytes:
    """A file of 400 kB whose hashing would go through 400 MB."""
    width, count = 300, 1000
    size = width * width + count
    views = b"".join(
        text(f"linear.{i}.weight") + tensor(numel=size, offset=i, shape=(width, width), stride=(width, 1))
        for i in range(count)
    )
    both = (ORDERED_DICT + b"(" + views + b"u") * 2
    return zip_of(b"\x80\x02}M" + struct.pack("<H", width) + both + b"\x86s.", storages=(b"\0" * 4 * size,))


# --- small files that would become large, or take for ever, by naming one thing many times

LONG = 9_900


def again_and_again(value: bytes, times: int = LONG) -> bytes:
    """A list that holds one value so many times."""
    return b"](" + value + b"q\x010" + b"h\x01" * times + b"e"


add("note_named_again_and_again", lambda: zip_of(meta(again_and_again(text("x" * 100_000)))))
for key in ("activation_func", "is_layer_norm", "dropout_structure", "layer_structure", "name"):
    add(f"{key}_named_again_and_again", lambda key=key: zip_of(meta(again_and_again(text("x" * 100_000)), key=key)))
add("activation_func_of_15_megabytes", lambda: zip_of(meta(text("relu" * 3_900_000), key="activation_func")))
add("activation_func_that_is_a_list", lambda: zip_of(meta(b"](" + text("relu") + b"e", key="activation_func")))
add(
    "layer_structure_of_long_text",
    lambda: zip_of(meta(b"](" + text("x" * 1_200_000) + b"e", key="layer_structure")),
)
add("safetensors_with_a_layer_structure_of_long_text", lambda: good_safetensors(json.dumps(["x" * 1_200_000])))
add(
    "names_of_globals_built_again_and_again",
    lambda: zip_of(meta(b"](" + text("x" * 500_000) + b"q\x010" + b"h\x01h\x01\x93" * 9000 + b"e")),
)
add(
    "one_key_of_bytes_at_every_width",
    lambda: zip_of(
        b"\x80\x02}(KcB"
        + struct.pack("<I", 240_000)
        + b"\xff" * 240_000
        + b"q\x010}(h\x01Nuq\x02}q\x03\x86q\x040K\x00N"
        + b"".join(b"J" + struct.pack("<i", width) + b"h\x02h\x03\x86" for width in range(1, 50_000))
        + b"u."
    ),
)
add(
    "one_large_dict_at_every_width",
    lambda: zip_of(
        b"\x80\x02}(K\x00}("
        + b"".join(b"J" + struct.pack("<i", number) + b"N" for number in range(60_000))
        + b"uq\x02"
        + b"".join(b"J" + struct.pack("<i", width) + b"h\x02h\x02\x86" for width in range(1, 50_000))
        + b"u."
    ),
)


@trick
def one_side_at_every_width() -> bytes:
    names = b"".join(text(f"linear.{i}.weight") + b"h\x01" for i in range(9000))
    shared = b"}(K\x00" + tensor() + b"q\x01K\x00}(" + names + b"uq\x02"
    return zip_of(
        b"\x80\x02" + shared + b"".join(b"M" + struct.pack("<H", w) + b"h\x02h\x02\x86" for w in range(1, 99)) + b"u."
    )


add("a_thousand_widths", lambda: zip_of(b"\x80\x02}(" + b"".join(_width(w) for w in range(1, 1000)) + b"u."))


def _width(width: int) -> bytes:
    return b"M" + struct.pack("<H", width) + items(side(), side())


add(
    "safetensors_with_a_shape_of_a_million_numbers",
    lambda: safetensors_of(
        b'{"a":{"dtype":"F32","shape":[' + b"9," * 1_000_000 + b'9],"data_offsets":[0,4]}}', b"\0" * 4
    ),
)
add(
    "safetensors_with_a_shape_of_nine_numbers",
    lambda: safetensors_of({"a": {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}}, b"\0" * 4),
)
add("safetensors_of_ours_with_a_million_notes", lambda: good_safetensors("[" + "1," * 1_000_000 + "1]"))


@trick
def zip_of_20000_lines_with_a_lying_64_bit_field() -> bytes:
    line = b"PK\1\2" + bytes(24) + struct.pack("<2H", 1, 4) + bytes(6) + b"\xff" * 8 + b"x\1\0\xff\xff"
    start = good().index(b"PK\1\2")
    end = b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 20_000, 20_000, 20_000 * len(line), start, 0)
    return good()[:start] + line * 20_000 + end


# --- one tensor or width by two spellings: each program has its own idea of which it is

for name in ("linear.00", "linear.\u0660", "linear.0 ", "linear.+0", "linear.0x0"):
    add(f"tensor_called_{name}", lambda name=name: zip_of(network(name=f"{name}.weight")))
for width in ("02", "\u0662", " 2", "+2", "0_2"):
    add(
        f"width_called_{width}",
        lambda width=width: zip_of(b"\x80\x02}(" + text(width) + items(side(), side()) + b"u."),
    )
    add(
        f"safetensors_width_called_{width}",
        lambda width=width: respelt(b"2.", f"{width}.".encode()),
    )
add("safetensors_tensor_called_linear.00", lambda: respelt(b"linear.0.", b"linear.00."))
add("safetensors_tensor_called_linear.\u0660", lambda: respelt(b"linear.0.", "linear.\u0660.".encode()))
add("safetensors_with_one_note_twice", lambda: respelt(b'"note": "null"', b'"note": "1", "a1111.note": "2"'))


def respelt(before: bytes, after: bytes) -> bytes:
    """A good safetensors file with other words in its header."""
    data = good_safetensors()[8:]
    header, floats = data[:-32].replace(before, after), data[-32:]
    return struct.pack("<Q", len(header)) + header + floats


# --- numbers whose hashes were chosen, so that finding one of them in a dict passes all the others

FAR = (1 << 61) - 1  # Python's hash of a number is what is left of it by this


def wide_number(value: int) -> bytes:
    return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)


add(
    "numbers_of_one_hash_as_keys",
    lambda: zip_of(meta(b"}(" + b"".join(wide_number(FAR * (i + 1)) + b"N" for i in range(60_000)) + b"u")),
)
add(
    "numbers_of_one_hash_in_an_ordered_dict",
    lambda: zip_of(
        meta(
            b"ccollections\nOrderedDict\n]("
            + b"".join(wide_number(FAR * (i + 1)) + b"N\x86" for i in range(60_000))
            + b"e\x85R"
        )
    ),
)
add(
    "more_numbers_as_keys_than_any_model_has",
    lambda: zip_of(meta(b"}(" + b"".join(wide_number(i) + b"N" for i in range(60_000)) + b"u")),
)
add(
    "safetensors_with_numbers_of_one_hash_as_keys",
    lambda: good_safetensors(json.dumps({"dict": [[FAR * (i + 1), 0] for i in range(60_000)]})),
)


@trick
def kept_values_whose_numbers_stand_in_each_others_way() -> bytes:
    """Of 2**17 places that a dict has, most are taken, in the order in which it would look for the last number."""
    kept = b"".join(b"r" + struct.pack("<I", place) for place in [*in_each_others_way(1 << 17), 131_226])
    return zip_of(meta(b"N" + kept + (b"j" + struct.pack("<I", 131_226) + b"0") * 40_000 + CALL_SYSTEM))


def in_each_others_way(places: int) -> list[int]:
    """Numbers that take most of a dict's places, in the order in which it would look for others."""
    found, place = [], 1
    for _ in range(places * 6 // 10):
        found.append(place)
        place = (5 * place + 1) % places
    return found


LAST = 65_723  # is looked for at almost all of them, where there are 2**16


def _tensors(*named: tuple[str, str, int, int]) -> bytes:
    form = '"%s":{"dtype":"%s","shape":[%d],"data_offsets":[%d,%d]}'
    lines = [form % (name, kind, size, begin, begin + size) for name, kind, size, begin in named]
    stated = '"__metadata__":{"format":"hnetkit.hypernetwork","format_version":"1"}'
    return ("{" + ",".join([stated, *lines]) + "}").encode()


@trick
def safetensors_with_tensors_in_each_others_way() -> bytes:
    first = [(f"{place:x}", "U8", 1, place) for place in in_each_others_way(1 << 16)]
    return safetensors_of(_tensors(*first, *((f"w{i}", "U8", 1, LAST) for i in range(40_000))), b"\0" * 100_000)


@trick
def safetensors_with_widths_in_each_others_way() -> bytes:
    first = [(f"{place}.k.linear.0.weight", "F32", 0, 0) for place in in_each_others_way(1 << 16) if place]
    return safetensors_of(_tensors(*first, *((f"{LAST}.k.linear.{i}", "F32", 0, 0) for i in range(40_000))), b"")


# --- zips that read differently from the front and from the back


def good() -> bytes:
    return zip_of(network())


add("zip_with_a_prefix", lambda: b"#!/bin/sh\n" + good())
add("zip_with_a_pickle_in_front", lambda: b"\x80\x02" + CALL_SYSTEM + b"." + good())
add("zip_with_a_legacy_file_in_front", lambda: legacy_of(meta(CALL_SYSTEM)) + good())
add("zip_with_a_suffix", lambda: good() + b"\0" * 16)
add("zip_with_a_zip_behind", lambda: good() + zip_of(meta(CALL_SYSTEM)))
add("zip_with_a_comment", lambda: good()[:-2] + struct.pack("<H", 9) + b"a comment")
add("zip_without_its_directory", lambda: good()[: good().rindex(b"PK\1\2")])
add("zip_with_its_first_half", lambda: good()[: len(good()) // 2])
add("zip_packed", lambda: zip_of(network(), method=zipfile.ZIP_DEFLATED))
add("zip_bomb", lambda: zip_of(b"\x80\x02" + b"N0" * 5_000_000 + b"N.", method=zipfile.ZIP_DEFLATED))
add(
    "zip_with_torchscript",
    lambda: zip_of(network(), {"code/__torch__.py": b"import os", "constants.pkl": b"\x80\x02)."}),
)
add("zip_with_a_program", lambda: zip_of(network(), {"run.sh": COMMAND}))
add("zip_that_climbs", lambda: zip_of(network(), {"../../evil.sh": COMMAND}))
add("zip_with_an_absolute_name", lambda: zip_of(network(), {"/etc/cron.d/evil": COMMAND}))
add("zip_of_the_other_byte_order", lambda: zip_of(network(), {"byteorder": b"big"}))
add("zip_with_two_pickles", lambda: zip_of(network(), {"../other/data.pkl": meta(CALL_SYSTEM)}))


@trick
def zip_with_double_members() -> bytes:
    data = zip_of(network(), {"data/9": b"x"})
    return data.replace(b"archive/data/9", b"archive/data/0")


@trick
def zip_with_two_names_for_one_member() -> bytes:
    data = bytearray(good())
    data[data.index(b"archive/data/0") : data.index(b"archive/data/0") + 14] = b"archive/data/5"
    return bytes(data)


def changed_directory(field: int, form: str, value: int, member: str = "archive/data/0") -> bytes:
    """A good zip whose directory says something else of a member than its own header."""
    data = bytearray(good())
    entry = data.rindex(member.encode()) - 46
    struct.pack_into(form, data, entry + field, value)
    return bytes(data)


add("zip_member_encrypted", lambda: changed_directory(8, "<H", 1))
add("zip_member_of_another_method", lambda: changed_directory(10, "<H", 99))
add("zip_member_of_another_checksum", lambda: changed_directory(16, "<I", 1))
add("zip_member_larger_than_it_is", lambda: changed_directory(24, "<I", 10_000))
add("zip_member_packed_smaller", lambda: changed_directory(20, "<I", 4))
add("zip_member_of_4_gigabytes", lambda: changed_directory(24, "<I", 0xFFFFFFFE))
add("zip_member_elsewhere", lambda: changed_directory(42, "<I", 5))
add("zip_member_on_another", lambda: changed_directory(42, "<I", 0))


def changed_end(offset: int, form: str, value: int) -> bytes:
    data = bytearray(good())
    struct.pack_into(form, data, len(data) - 22 + offset, value)
    return bytes(data)


add("zip_end_with_too_many_members", lambda: changed_end(10, "<H", 60_000))
add("zip_end_with_too_few_members", lambda: changed_end(10, "<H", 1))
add("zip_end_of_a_second_disk", lambda: changed_end(4, "<H", 1))
add("zip_end_with_the_directory_elsewhere", lambda: changed_end(16, "<I", 4))
add("zip_end_with_a_huge_directory", lambda: changed_end(12, "<I", 0xFFFFFFF0))

# --- legacy containers

add("legacy_cut_in_its_structure", lambda: legacy_of(network())[:200])
add("legacy_cut_in_its_tensors", lambda: legacy_of(network())[:-8])
add("legacy_with_a_tail", lambda: legacy_of(network(), tail=b"tail"))
add("legacy_with_lying_sizes", lambda: legacy_of(network(), numels=(1 << 40, 8)))
add("legacy_with_negative_sizes", lambda: legacy_of(network(), numels=(-8, 8)))
add("legacy_with_double_keys", lambda: legacy_of(network(), keys=("0", "0")))
add("legacy_with_foreign_keys", lambda: legacy_of(network(), keys=("0", "../1")))
add("legacy_with_only_its_magic", lambda: MAGIC)
add("legacy_of_another_protocol", lambda: legacy_of(network()).replace(b"M\xe9\x03", b"M\xea\x03"))

# --- safetensors

add("safetensors_with_a_huge_header", lambda: struct.pack("<Q", 1 << 35) + b"{" + b" " * 100)
add("safetensors_with_a_longer_header_than_file", lambda: struct.pack("<Q", 5000) + b'{"a": 1}')
add("safetensors_that_is_not_json", lambda: safetensors_of(b"{not json"))
add("safetensors_nested_deeply", lambda: safetensors_of(b'{"a":' * 100_000))
add("safetensors_of_empty_lists", lambda: safetensors_of(b'{"a":[' + b"[]," * 5_000_000 + b"[]]}"))
add("safetensors_with_a_note_nested_deeply", lambda: good_safetensors("[" * 900 + "]" * 900))
add("safetensors_with_a_number_of_4000_digits", lambda: good_safetensors("9" * 4000))
add("safetensors_with_double_names", lambda: safetensors_of(b'{"a":1,"a":2}'))
add("safetensors_that_overlap", lambda: safetensors_of(ours(a=[0, 16], b=[8, 24]), b"\0" * 24))
add("safetensors_with_a_hole", lambda: safetensors_of(ours(a=[0, 16], b=[32, 48]), b"\0" * 48))
add("safetensors_with_a_tail", lambda: safetensors_of(ours(a=[0, 16], b=[16, 32]), b"\0" * 99))
add("safetensors_cut_short", lambda: safetensors_of(ours(a=[0, 16], b=[16, 32]), b"\0" * 20))
add("safetensors_of_the_wrong_size", lambda: safetensors_of(ours(a=[0, 12], b=[12, 32]), b"\0" * 32))
add("safetensors_with_negative_places", lambda: safetensors_of(ours(a=[-16, 0], b=[0, 16]), b"\0" * 16))
add("safetensors_with_a_list_of_metadata", lambda: safetensors_of({"__metadata__": ["x"]}, b""))
add(
    "safetensors_with_fractional_shape",
    lambda: safetensors_of({"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 6]}}),
)
add(
    "safetensors_with_a_climbing_name",
    lambda: safetensors_of(
        {**ours(a=[0, 16]), "../x": {"dtype": "F32", "shape": [4], "data_offsets": [16, 32]}}, b"\0" * 32
    ),
)
add("safetensors_of_ours_without_tensors", lambda: safetensors_of(ours(), b""))

# --- no model at all

add("empty", lambda: b"")
add("zeros", lambda: b"\0" * 100)
add("half_a_magic", lambda: MAGIC[:7])
add("a_web_page", lambda: b"<!DOCTYPE html><html><body>Log in to download</body></html>")
add("an_error_message", lambda: b'{"error": "Unauthorized"}')
add("random_bytes", lambda: bytes((i * 7919 + i * i) % 256 for i in range(5000)))
